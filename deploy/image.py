"""What the image holds, gathered in a folder: the Dockerfile runs ``python image.py FOLDER``.

That is this Python with what is installed in it, the shared libraries that these load, and the few
files that a C library reads. There is no shell, no package manager and no compiler. What a start
imports is compiled; the rest, which is compiled in memory if it is ever imported, is not.
"""

from __future__ import annotations

import json
import os
import py_compile
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

#: Parts of the standard library that need a window, a terminal or a database, or that install.
UNUSED = {
    *("curses", "dbm", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "sqlite3", "tkinter"),
    *("turtle.py", "turtledemo", "venv"),
}

#: The same of extension modules, whose libraries then are not needed either; and tests.
UNUSED_EXTENSIONS = re.compile(
    r"(_curses|_curses_panel|_dbm|_gdbm|_sqlite3|_tkinter|nis|readline|_?xx.*|_test.*)\..*"
)

#: Tests that packages bring along; what installs; headers and what else compilers want.
UNWANTED = re.compile(
    r"tests?|_test|pip(-.*\.dist-info)?|config-.*|__pycache__|.*\.(a|c|h|pxd|pyi|pyx)"
)

#: Files that the C library, OpenSSL and scanners read, if the base has them.
FILES = (
    *("etc/debian_version", "etc/ld.so.conf", "etc/os-release", "etc/protocols", "etc/services"),
    "etc/ssl/certs/ca-certificates.crt",
)

#: The user whom the image runs as.
UID = 65532

WRITTEN = {
    "etc/group": f"root:x:0:\nllamaproxy:x:{UID}:\n",
    "etc/nsswitch.conf": "hosts: files dns\n",
    "etc/passwd": (
        "root:x:0:0:root:/nonexistent:/nonexistent\n"
        f"llamaproxy:x:{UID}:{UID}:llamaproxy:/nonexistent:/nonexistent\n"
    ),
}


def main(root: Path) -> None:
    """Fill the empty folder *root*."""
    copy_python(root)
    copy_libraries(root)
    for name in FILES:
        if Path("/", name).exists():
            copy(Path("/", name), root)
    for path in Path("/etc/ld.so.conf.d").glob("*.conf"):
        copy(path, root)
    for name, text in WRITTEN.items():
        write(root / name, text)
    link(root / "usr/lib/ssl/cert.pem", "/etc/ssl/certs/ca-certificates.crt")
    # TZ is read by the C library too.
    link(root / "usr/share/zoneinfo", f"{sysconfig.get_path('purelib')}/tzdata/zoneinfo")
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    subprocess.run(["ldconfig", "-r", str(root)], check=True)


def copy_python(root: Path) -> None:
    """The interpreter, the standard library and what is installed, compiled as far as loaded."""
    prefix = Path(sys.prefix)
    library = Path(sysconfig.get_path("stdlib"))
    target = root / prefix.relative_to("/")

    def ignored(folder: str, names: list[str]) -> set[str]:
        at = Path(folder)
        if at == prefix / "lib":
            return {name for name in names if not name.startswith(("libpython", library.name))}
        unwanted = {name for name in names if UNWANTED.fullmatch(name)}
        if at == library:
            unwanted |= UNUSED & {*names}
        if at == library / "lib-dynload":
            unwanted |= {name for name in names if UNUSED_EXTENSIONS.fullmatch(name)}
        return unwanted

    shutil.copytree(prefix / "lib", target / "lib", symlinks=True, ignore=ignored)
    (target / "bin").mkdir()
    for name in ("python", "python3", Path(sys.executable).resolve().name, "twistd"):
        shutil.copy2(prefix / "bin" / name, target / "bin" / name, follow_symlinks=False)
    make_plugin_cache(target / Path(sysconfig.get_path("purelib")).relative_to(prefix))
    for source in loaded_sources():
        compiled = target / Path(source).relative_to(prefix)
        if compiled.exists():
            # Whatever becomes of modification times, it is not compiled again.
            py_compile.compile(
                str(compiled),
                dfile=source,
                doraise=True,
                invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            )


def make_plugin_cache(packages: Path) -> None:
    """Twisted's, of which it demands that it be newer than any plugin, in whole seconds."""
    plugins = packages / "twisted" / "plugins"
    for path in plugins.glob("*.py"):
        os.utime(path, (0, 0))
    ask = "from twisted.plugin import IPlugin, getPlugins; [*getPlugins(IPlugin)]"
    environment = {**os.environ, "PYTHONPATH": str(packages), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, "-c", ask], check=True, env=environment)
    assert (plugins / "dropin.cache").exists()


def loaded_sources() -> set[str]:
    """The source files of all that llamaproxy imports: at its start, in a chat, when watched."""
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder, "cache")
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(cache)}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        subprocess.run([sys.executable, "-c", IMPORT_ALL], check=True, env=environment)
        run_demo(Path(folder), environment)
        # A cache with a prefix has each file at its source's place under it.
        compiled = [path.relative_to(cache) for path in cache.rglob("*.pyc")]
    return {str(Path("/", path.parent, path.name.partition(".")[0] + ".py")) for path in compiled}


#: What no demonstration needs; some modules need what an extra installs.
IMPORT_ALL = """
import importlib, pkgutil, llamaproxy
for module in pkgutil.walk_packages(llamaproxy.__path__, "llamaproxy."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        assert not error.name.startswith("llamaproxy"), error
"""


def run_demo(folder: Path, environment: dict[str, str]) -> None:
    """Let the stand-in of ``--demo`` be asked as clients and probes ask."""
    from llamaproxy.healthcheck import connection_to

    endpoints = {name: f"unix:{folder}/{name}" for name in ("listen", "admin")}
    options = [word for name, endpoint in endpoints.items() for word in (f"--{name}", endpoint)]
    command = ["twistd", "-n", "--pidfile=", "llamaproxy", "--demo", *options]
    with subprocess.Popen(command, env=environment, cwd=folder) as daemon:
        try:
            for _ in range(600):
                if all(Path(folder, name).exists() for name in endpoints):
                    break
                assert daemon.poll() is None
                time.sleep(0.1)
            for name, path, body in ASKED:
                connection = connection_to(endpoints[name])
                connection.request("GET" if body is None else "POST", path, body)
                response = connection.getresponse()
                assert response.read() and response.status == 200, path
                connection.close()
        finally:
            daemon.terminate()


_CHAT = {"model": "demo/scripted", "messages": [{"role": "user", "content": "What is 6*7?"}]}

ASKED = (
    ("listen", "/health", None),
    ("listen", "/v1/chat/completions", json.dumps(_CHAT)),
    ("listen", "/v1/chat/completions", json.dumps({**_CHAT, "stream": True})),
    *(("admin", path, None) for path in ("/", "/live", "/metrics", "/ready", "/status")),
)


def copy_libraries(root: Path) -> None:
    """The shared libraries of the programs and modules in *root*, and what Debian says of them."""
    binaries = [path for path in root.rglob("*") if path.suffix == ".so" or ".so." in path.name]
    binaries.append(Path(sys.executable))
    ldd = subprocess.run(["ldd", *map(str, binaries)], capture_output=True, text=True, check=False)
    for name in ("lib", "lib64"):
        if Path("/", name).is_symlink():
            link(root / name, os.readlink(Path("/", name)))
    libraries = {
        # The C library loads it when a thread is cancelled.
        *Path("/").glob(f"usr/lib/{sysconfig.get_config_var('MULTIARCH')}/libgcc_s.so.1"),
        *map(Path, re.findall(r"(?:=>|^)\s+(/\S+) \(0x", ldd.stdout, re.MULTILINE)),
    }
    of_debian = sorted(path for path in libraries if not path.is_relative_to(sys.prefix))
    for path in of_debian:
        copy(path, root)
    for package in packages_of([*of_debian, Path("/etc/ssl/certs/ca-certificates.crt")]):
        # Where images without dpkg have it, for those who look for known vulnerabilities.
        status = subprocess.run(
            ["dpkg-query", "--status", package], capture_output=True, text=True, check=True
        )
        write(root / "var/lib/dpkg/status.d" / package, status.stdout)
        notice = Path("usr/share/doc", package, "copyright")
        if Path("/", notice).exists():
            write(root / notice, Path("/", notice).read_text("utf-8"))


def packages_of(paths: Iterable[Path]) -> Iterator[str]:
    """The Debian packages that these files are from."""
    patterns = [f"*{str(path).removeprefix('/usr')}" for path in paths]
    found = subprocess.run(
        ["dpkg-query", "--search", *patterns], capture_output=True, text=True, check=False
    )
    yield from sorted({line.partition(":")[0] for line in found.stdout.splitlines()})
    yield from ("ca-certificates", "netbase")


def copy(path: Path, root: Path) -> None:
    """The file at *path*, which may be a link, to the same place under *root*."""
    folder = root / path.parent.resolve().relative_to("/")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy2(path, folder / path.name)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
