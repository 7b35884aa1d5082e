"""A stand-in for the image ``python:3.12-slim``, for machines that reach no registry of images.

Debian of this machine's suite by debootstrap, with this machine's Python 3.12 in ``/usr/local``. As
in the original, the Python's programs are stripped, nothing of it is compiled, and no tests are
there. Made once and kept, as the environments are.
"""

from __future__ import annotations

import hashlib
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .buildah import Storage
from .environments import PYTHON, find_python, kept, output_of, run

NAME = "docker.io/library/python:3.12-slim"

#: What the original installs beside what the Python's libraries are in.
PACKAGES = ("ca-certificates", "netbase", "tzdata")

#: What Debian's own images leave out, and debootstrap in.
LEFT_OUT = (
    *("var/cache/apt/archives/*.deb", "var/lib/apt/lists/*", "var/log/*"),
    *("usr/share/man/*", "usr/share/info/*", "usr/share/locale/*", "usr/share/doc/*/[!c]*"),
)

PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"


def storage() -> Path:
    """Storage of buildah that has the image and nothing else."""
    # Another recipe, Python or Debian is another image.
    python = find_python()
    recipe = (python, output_of(python, "-VV"), _suite(), Path(__file__).read_text("utf-8"))
    digest = hashlib.sha256(repr(recipe).encode()).hexdigest()[:8]
    return kept(f"python-base-{digest}", lambda folder: _make(folder, Path(python)))


def _make(folder: Path, python: Path) -> None:
    folder.mkdir()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        root = Path(scratch, "root")
        prefix = Path(output_of(str(python), "-c", "import sys; print(sys.base_prefix)") or "")
        _install_debian(root, [*PACKAGES, *_packages_of_libraries(prefix)])
        _install_python(root / "usr/local", prefix)
        _chroot(root, "ldconfig")
        _chroot(root, "python3", "-B", "-m", "ensurepip", "--default-pip")
        # What the pip that comes with Python brings compiled.
        for path in [*root.glob("usr/local/**/__pycache__")]:
            shutil.rmtree(path)
        store = Storage(folder)
        container = store.buildah("from", "scratch")
        run("cp", "-a", f"{root}/.", store.buildah("mount", container))
        variables = (f"--env=PATH={PATH}", "--env=LANG=C.UTF-8")
        store.buildah("config", *variables, '--cmd=["python3"]', container)
        store.buildah("commit", "--rm", "--quiet", container, NAME)


def _suite() -> str:
    return platform.freedesktop_os_release()["VERSION_CODENAME"]


def _install_debian(root: Path, packages: list[str]) -> None:
    mirrors = output_of(
        *("apt-get", "indextargets", "--format", "$(REPO_URI)"),
        *("Created-By: Packages", f"Codename: {_suite()}", "Component: main"),
    )
    include = f"--include={','.join(packages)}"
    # Of none that is named here, debootstrap takes its own.
    mirror = (mirrors or "").split()[:1]
    run("debootstrap", "--variant=minbase", include, _suite(), str(root), *mirror)
    for pattern in LEFT_OUT:
        for path in root.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _install_python(local: Path, prefix: Path) -> None:
    """The interpreter and the standard library, with nothing of what has been installed."""
    library = f"python{PYTHON}"
    unwanted = shutil.ignore_patterns("__pycache__", "test", "tests", "idle_test", "*.a")
    shutil.copytree(
        prefix / "lib" / library,
        local / "lib" / library,
        symlinks=True,
        ignore=lambda folder, names: (
            {*names} if Path(folder).name == "site-packages" else unwanted(folder, names)
        ),
    )
    for path in prefix.glob("lib/libpython*.so*"):
        shutil.copy2(path, local / "lib" / path.name, follow_symlinks=False)
    shutil.copy2(prefix / "bin" / library, local / "bin" / library)
    for name in ("python3", "python"):
        (local / "bin" / name).symlink_to(library)
    if shutil.which("strip"):
        objects = [path for path in local.rglob("*.so*") if not path.is_symlink()]
        run("strip", "--strip-all", str(local / "bin" / library), *map(str, objects))


def _packages_of_libraries(prefix: Path) -> Iterator[str]:
    """The Debian packages of what the Python's extension modules load; no window is opened."""
    library = f"python{PYTHON}"
    modules = (prefix / "lib" / library / "lib-dynload").glob("*.so")
    binaries = [prefix / "bin" / library, *(m for m in modules if "tkinter" not in m.name)]
    loaded = subprocess.run(["ldd", *map(str, binaries)], capture_output=True, text=True)
    paths = {*re.findall(r"=> (/\S+) \(0x", loaded.stdout)}
    # Of a library in /usr/lib, dpkg may know only /lib.
    patterns = [
        f"*{path.removeprefix('/usr')}" for path in paths if not path.startswith(str(prefix))
    ]
    asked = subprocess.run(["dpkg-query", "--search", *patterns], capture_output=True, text=True)
    yield from sorted({line.partition(":")[0] for line in asked.stdout.splitlines()})


def _chroot(root: Path, *command: str) -> None:
    run("chroot", str(root), "env", "-i", f"PATH={PATH}", *command)
