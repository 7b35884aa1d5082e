"""The image: built of the Dockerfile, looked into, and run as a container engine runs it.

``python:3.12-slim`` is a stand-in here (``python_base.py``); all else is as it is for everybody.
"""

from __future__ import annotations

import contextlib
import email
import json
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.test_twistd import ROOT, question

from . import python_base
from .buildah import Image, Storage
from .containers import Bundle, Container
from .environments import PYTHON, find_uv

pytestmark = pytest.mark.real

Start = Callable[..., Container]

#: Bytes. It has 70 million; a shell, pip or a second copy of something would be too many.
LARGEST = 80_000_000

CLIENTS, ADMIN = 8322, 8323

LIBRARY = f"usr/local/lib/python{PYTHON}"

#: What an image is better without.
UNWANTED = re.compile(
    r"(.*/)?(\.git|\.cache|tests?|_test|ensurepip|venv)/.*"
    r"|(.*/)?(pip|wheel|uv|apt|dpkg|gcc|cc|ld|as|make|perl|(ba|da|)sh|busybox)(3[.\d]*)?"
    r"|(.*/)?pip/.*|src/.*|.*\.(whl|a|h)|var/(cache|log|lib/apt)/.*|root/.+|tmp/.+",
)


@pytest.fixture(scope="module")
def image(engine: None, python312: str) -> Iterator[Image]:
    # Half a gigabyte that is soon thrown away: in memory, if there is much of it.
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 4_000_000_000
    with tempfile.TemporaryDirectory(prefix="image-", dir=memory if roomy else None) as folder:
        yield Storage(Path(folder), python_base.storage()).build(ROOT)


@pytest.fixture(scope="module")
def files(image: Image) -> Path:
    """The image's files; whoever would change them unpacks some of their own."""
    return image.unpacked()


@pytest.fixture(scope="module")
def start(image: Image, files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start a container of the image, or of a bundle with the changes that are named."""
    with contextlib.ExitStack() as started:

        def start(
            *arguments: str, variables: dict[str, str] | None = None, **changes: Any
        ) -> Container:
            folder = tmp_path_factory.mktemp("container")
            bundle = Bundle(
                **{"files": files, "image": image.config(), "folder": folder, **changes}
            )
            container = bundle.start(*arguments, **variables or {})
            started.callback(container.kill)
            return container

        yield start


@pytest.fixture(scope="module")
def demo(start: Start) -> Container:
    return start("--demo").until_healthy()


def answer_of(container: Container, port: int = CLIENTS, **more: object) -> str:
    """What a chat with the demo comes to, which is 42."""
    path = "/v1/chat/completions"
    status, text = container.ask(port, path, question("What is 6*7?", **more))
    assert status == 200, text
    return text


def installed(files: Path) -> dict[str, Message]:
    """What each distribution in the image says of itself, by its name as in constraints.txt."""
    found = [
        email.message_from_bytes(path.read_bytes())
        for path in (files / LIBRARY / "site-packages").glob("*.dist-info/METADATA")
    ]
    return {re.sub(r"[-_.]+", "-", each["Name"]).lower(): each for each in found}


def listing(files: Path) -> dict[str, tuple[int, int, int]]:
    """What is told of each file but folders: its mode, size and time of modification."""
    found = ((path, path.lstat()) for path in files.rglob("*"))
    return {
        str(path.relative_to(files)): (status.st_mode, status.st_size, status.st_mtime_ns)
        for path, status in found
        if not stat.S_ISDIR(status.st_mode)
    }


# --- what it is


def test_its_labels_are_what_the_package_says_of_itself(image: Image, files: Path) -> None:
    labels = image.config()["Labels"]
    package = installed(files)["llamaproxy"]
    urls = dict(line.split(", ") for line in package.get_all("Project-URL") or ())
    prefix = "org.opencontainers.image."
    assert {k.removeprefix(prefix): v for k, v in labels.items() if k.startswith(prefix)} == {
        "title": package["Name"],
        "description": package["Summary"],
        "version": package["Version"],
        "licenses": package["License"],
        "source": urls["Source"],
        "documentation": urls["Documentation"],
    }


def test_its_user_is_not_root_and_has_a_name(image: Image, files: Path, demo: Container) -> None:
    # A number, as Kubernetes cannot tell of a name that it is not root's.
    user = image.config()["User"]
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user)
    ran = demo.run(
        "python", "-c", "import os, pwd; print(os.getuid(), pwd.getpwuid(os.getuid())[0])"
    )
    assert ran.stdout.split() == [user.partition(":")[0], "llamaproxy"]
    writable = [
        path
        for path in files.rglob("*")
        if not path.is_symlink() and (path.stat().st_mode & 0o002 or path.stat().st_uid != 0)
    ]
    assert writable == [files / "tmp"]


def test_nothing_is_in_it_that_does_not_run(files: Path) -> None:
    names = listing(files)
    assert [name for name in names if UNWANTED.fullmatch(name)] == []
    assert sum(size for _, size, _ in names.values()) < LARGEST
    programs = {name for name in names if "/bin/" in name}
    assert {name.rpartition("/")[2] for name in programs} == {
        *("python", "python3", f"python{PYTHON}", "twistd"),
    }


def test_the_package_in_it_is_that_of_the_tree(files: Path) -> None:
    def modules(folder: Path) -> dict[str, bytes]:
        kinds = ("*.py", "*.html", "*.css", "*.js", "*.svg", "py.typed")
        paths = [path for kind in kinds for path in folder.rglob(kind)]
        return {str(path.relative_to(folder)): path.read_bytes() for path in paths}

    assert modules(files / LIBRARY / "site-packages/llamaproxy") == modules(ROOT / "llamaproxy")
    plugin = "twisted/plugins/llamaproxy_plugin.py"
    in_image = files / LIBRARY / "site-packages" / plugin
    assert in_image.read_bytes() == (ROOT / plugin).read_bytes()


def test_each_version_in_it_is_the_one_that_is_pinned(files: Path) -> None:
    packages = {name: each["Version"] for name, each in installed(files).items()}
    del packages["llamaproxy"]
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    )
    assert packages.items() <= pinned.items() and "twisted" in packages


def test_the_pins_are_all_that_the_image_can_need_and_no_more(
    files: Path, python312: str, tmp_path: Path
) -> None:
    """CONTRIBUTING says how to make them anew."""
    uv = find_uv()
    assert uv is not None, "uv is one of the test's requirements"
    text = (ROOT / "Dockerfile").read_text("utf-8")
    [extras] = re.findall(r"^# (\[.*)\nARG EXTRAS=$", text, re.MULTILINE)
    wanted = {"", *(f"extra == '{name}'" for name in re.findall(r"\w+(?=[],])", extras))}
    required = [
        requirement
        for line in installed(files)["llamaproxy"].get_all("Requires-Dist") or ()
        for requirement, _, condition in [line.partition(";")]
        if condition.strip().replace('"', "'") in wanted
    ]
    (tmp_path / "required").write_text("\n".join(required), "utf-8")
    shutil.copy(ROOT / "constraints.txt", tmp_path)
    command = [uv, "pip", "compile", "--quiet", "--python", python312, "required"]
    options = ["--no-header", "--no-annotate", "--output-file", "constraints.txt"]
    subprocess.run([*command, *options], cwd=tmp_path, check=True, timeout=120)
    made = (tmp_path / "constraints.txt").read_text("utf-8")
    assert made == (ROOT / "constraints.txt").read_text("utf-8")


def test_scanners_find_the_libraries_and_their_licences(files: Path) -> None:
    packages = {
        path.name: path.read_text("utf-8") for path in files.glob("var/lib/dpkg/status.d/*")
    }
    assert {"libc6", "ca-certificates"} <= packages.keys()
    for name, status in packages.items():
        assert f"Package: {name}\n" in status and "\nVersion: " in status
        assert (files / "usr/share/doc" / name / "copyright").stat().st_size > 0
    assert "Debian" in (files / "etc/os-release").read_text("utf-8")


# --- what it does


def test_it_answers_clients_and_probes(demo: Container) -> None:
    # The whole of 127/8 is the container's own; who listens at localhost alone is not at .2.
    assert demo.ask(CLIENTS, "/health", host="127.0.0.2") == (200, '{"status": "healthy"}')
    for path in ("/live", "/ready"):
        assert demo.ask(ADMIN, path, host="127.0.0.2")[0] == 200
    assert "42" in answer_of(demo)
    assert answer_of(demo, stream=True).endswith("data: [DONE]\n\n")
    assert demo.ask(ADMIN, "/")[0] == 200  # the page's files
    assert "Traceback" not in demo.log() and "plugin cache" not in demo.log()


def test_what_a_read_only_root_keeps_is_kept(demo: Container) -> None:
    write = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text('')"
    assert "Read-only" in demo.run("python", "-c", write, "/etc/file").stderr
    assert demo.run("python", "-c", write, "/tmp/file").returncode == 0


def test_nothing_is_written_even_where_it_could_be(start: Start, image: Image) -> None:
    """So all that is imported was compiled before, and Twisted's cache of plugins is in order."""
    files = image.unpacked()
    before = listing(files)
    container = start("--demo", files=files, read_only=False, user="0:0").until_healthy()
    answer_of(container)
    answer_of(container, stream=True)
    assert container.ask(ADMIN, "/metrics")[0] == container.ask(ADMIN, "/")[0] == 200
    assert container.stop() == 0
    runtime = {"etc/hosts"}  # what the engine mounts
    after = {name: told for name, told in listing(files).items() if name not in runtime}
    assert sorted(after.keys() - before.keys()) == [] and after == before


def test_a_check_of_the_options_runs_to_its_end(start: Start) -> None:
    container = start("--demo", "--check")
    assert (container.wait(), container.log().splitlines()[-1]) == (0, "All is well.")
    container = start("--nonsense")
    assert container.wait() == 1
    assert container.log().startswith("twistd llamaproxy: option --nonsense not recognized")


LISTENING = {
    "port": ["--port", "9000"],
    "endpoint": ["--listen", "tcp:9001"],
    "unix": ["--listen", "unix:/tmp/proxy.sock"],
    "tls": ["--listen", "ssl:8443:privateKey=/tls/key.pem:certKey=/tls/cert.pem"],
}


@pytest.mark.parametrize("kind", LISTENING)
def test_its_health_check_asks_where_it_was_told_to_listen(
    kind: str, start: Start, tmp_path: Path
) -> None:
    tmp_path.chmod(0o755)
    certificate = trustme.CA().issue_cert("proxy.example")
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    container = start("--demo", *LISTENING[kind], mounts={"/tls": tmp_path}).until_healthy()
    assert container.healthcheck().stdout == '200 {"status": "healthy"}\n'
    assert container.stop() == 0


def test_its_health_check_knows_variables_and_what_is_ill(start: Start) -> None:
    variables = {"LLAMAPROXY_DEMO": "1", "LLAMAPROXY_LISTEN": "tcp:9000"}
    container = start(variables=variables).until_healthy()
    assert "42" in answer_of(container, 9000)
    # Whoever listens at another place than it was told to is not the daemon that is asked for.
    ill = container.run("python", "-c", ASK_ELSEWHERE)
    assert ill.returncode == 1 and "refused" in ill.stderr


#: The health check in an environment that the daemon was not started in.
ASK_ELSEWHERE = """
import os, sys
os.environ["LLAMAPROXY_LISTEN"] = "tcp:9999"
from llamaproxy import healthcheck
sys.exit(healthcheck.main())
"""


def test_it_ends_at_once_when_it_is_told_to_and_all_that_it_started(start: Start) -> None:
    container = start("--demo").until_healthy()
    answer_of(container)
    assert container.stop() == 0
    assert "Traceback" not in container.log()


def test_what_is_running_is_finished_first(start: Start) -> None:
    container = start("--demo").until_healthy()
    body = json.dumps(question("What is 6*7?")).encode()
    with container.connection(CLIENTS) as client:
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
        )
        client.sendall(head.encode() + b"\r\n\r\n" + body[:-1])
        # One who asks later is answered later.
        assert container.ask(ADMIN, "/ready")[0] == 200
        container.terminate()
        container.until(lambda: container.ask(ADMIN, "/ready")[0] == 503)
        client.sendall(body[-1:])
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200 ") and b"42" in answer
    assert container.wait() == 0


# --- what is around it


#: Prints how many of the authorities that Python's own TLS trusts Twisted's trusts too.
AUTHORITIES = """
import ssl
from contextlib import suppress
from OpenSSL.crypto import X509, X509StoreContext, X509StoreContextError
from cryptography.x509 import load_der_x509_certificate
from twisted.internet.ssl import CertificateOptions, platformTrust
context = CertificateOptions(trustRoot=platformTrust()).getContext()
trusted = 0
for authority in ssl.create_default_context().get_ca_certs(binary_form=True):
    certificate = X509.from_cryptography(load_der_x509_certificate(authority))
    with suppress(X509StoreContextError):  # it has expired, or is too odd for OpenSSL of today
        X509StoreContext(context.get_cert_store(), certificate).verify_certificate()
        trusted += 1
print(trusted)
"""


def test_zones_of_time_and_authorities_are_there(start: Start) -> None:
    container = start("--demo", variables={"TZ": "Asia/Tokyo"}).until_healthy()
    zone = container.run("python", "-c", "import time; print(time.tzname[0], time.timezone)")
    assert zone.stdout.split() == ["JST", "-32400"]
    assert re.search(r"T\d\d:\d\d:\d\d\+0900 ", container.log()), container.log()
    ran = container.run("python", "-c", AUTHORITIES)
    assert ran.returncode == 0 and int(ran.stdout) > 100, ran.stderr
