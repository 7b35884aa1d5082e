"""Virtual environments for the real servers, made when first needed and kept for the next run.

They live in ``$LLAMAPROXY_REAL_CACHE``, or else in ``~/.cache/llamaproxy-real``. Each server has
one of its own, because no two generations agree about their dependencies.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

# The servers are all happy with this one; the older ones know no newer.
PYTHON = "3.12"

INSTALL_TIMEOUT = 900.0


class PythonMissing(Exception):
    """No Python 3.12 was found: install one, or name it in LLAMAPROXY_PYTHON312."""


@attrs.frozen
class Environment:
    """A virtual environment, by what is installed in it."""

    name: str
    packages: tuple[str, ...]
    dependencies: bool = True

    def python(self) -> Path:
        """The environment's interpreter; the environment is made now if there is none."""
        return kept(self._directory_name(), self._make) / "bin" / "python"

    def _directory_name(self) -> str:
        """Another list of packages is another environment."""
        recipe = repr(self._recipe())
        return f"{self.name}-{hashlib.sha256(recipe.encode()).hexdigest()[:8]}"

    def _recipe(self) -> tuple[object, ...]:
        return (PYTHON, self.packages, self.dependencies)

    def _make(self, directory: Path) -> None:
        base = find_python()
        if uv := find_uv():
            run(uv, "venv", "--quiet", "--python", base, str(directory))
        else:
            run(base, "-m", "venv", str(directory))
        self._fill(directory / "bin" / "python")

    def _fill(self, python: Path) -> None:
        flags = [] if self.dependencies else ["--no-deps"]
        _install(python, *flags, *self.packages)


@attrs.frozen
class SlimEnvironment(Environment):
    """One for a package that works without some of what it requires, by the names of those."""

    left_out: tuple[str, ...] = ()

    def _recipe(self) -> tuple[object, ...]:
        return (*super()._recipe(), self.left_out)

    def _fill(self, python: Path) -> None:
        _install(python, "--no-deps", *self.packages)
        name = self.packages[0].partition("==")[0]
        ask = f"import importlib.metadata as m; print(*m.requires({name!r}), sep='\\n')"
        required = (output_of(str(python), "-c", ask) or "").splitlines()
        wanted = [line for line in required if _name(line) not in self.left_out]
        _install(python, *(line for line in wanted if "extra ==" not in line))


def _name(requirement: str) -> str:
    """The package's name in a requirement such as ``uvicorn[standard]==0.40``."""
    found = re.match(r"[\w.-]+", requirement)
    assert found is not None, requirement
    return found[0]


def kept(name: str, make: Callable[[Path], None]) -> Path:
    """The folder of that *name* in the cache; *make* makes it now if there is none."""
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    directory = cache / name
    complete = directory / "complete"
    with (cache / f"{name}.lock").open("w") as lock:
        # Parallel test runs share the cache. The kernel drops the lock of a killed one.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            shutil.rmtree(directory, ignore_errors=True)
            make(directory)
            complete.touch()
    return directory


def cache_directory() -> Path:
    named = os.environ.get("LLAMAPROXY_REAL_CACHE")
    return Path(named or "~/.cache/llamaproxy-real").expanduser().resolve()


def find_uv() -> str | None:
    """uv from the PATH, or from beside this interpreter."""
    return shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))


def find_python() -> str:
    """A Python of the right version; each candidate is run, for a pyenv shim may exist and fail."""
    for candidate in _candidates():
        if (
            output_of(candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])")
            == PYTHON
        ):
            return candidate
    raise PythonMissing(PythonMissing.__doc__)


def _install(python: Path, *arguments: str) -> None:
    """``pip install`` into the environment of that interpreter."""
    if uv := find_uv():
        run(uv, "pip", "install", "--quiet", "--python", str(python), *arguments)
    else:
        run(str(python), "-m", "pip", "install", "--quiet", *arguments)


def _candidates() -> Iterator[str]:
    if named := os.environ.get("LLAMAPROXY_PYTHON312"):
        yield named
    yield sys.executable
    if on_path := shutil.which(f"python{PYTHON}"):
        yield on_path
    for version in (output_of("pyenv", "versions", "--bare") or "").split():
        if version.startswith(f"{PYTHON}.") and (prefix := output_of("pyenv", "prefix", version)):
            yield f"{prefix}/bin/python"
    if (uv := find_uv()) and (found := output_of(uv, "python", "find", PYTHON)):
        yield found


def output_of(*command: str) -> str | None:
    """What the command prints, or None if it cannot be run or fails."""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ran.stdout.strip() if ran.returncode == 0 else None


def run(*command: str) -> None:
    """Run to its end what installs something."""
    ran = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=INSTALL_TIMEOUT,
    )
    if ran.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{ran.stdout[-4000:]}")
