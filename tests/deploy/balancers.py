"""HAProxy and nginx with the files of deploy/, before servers on this machine."""

from __future__ import annotations

import contextlib
import csv
import http.client
import io
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs
import pytest

from tests.test_twistd import ROOT, free_port

DEPLOY = ROOT / "deploy"


def find(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def needs(program: str) -> pytest.MarkDecorator:
    """Skips where Debian's package *program* is not installed; CI has it."""
    missing = find(program) is None and not os.environ.get("CI")
    return pytest.mark.skipif(missing, reason=f"DEPLOY IS NOT TESTED: install {program}")


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.05)  # until another process is there; nothing tells


def get(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", path)
        return connection.getresponse().read()


@attrs.frozen
class Place:
    """Where a replica listens: for clients, and for probes."""

    port: int
    admin: int


def replaced(text: str, changes: dict[str, str]) -> str:
    """*text* with *changes*, each of which it needs once."""
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def haproxy_configuration(
    places: Sequence[Place], port: int, operators: int, server: str = ""
) -> str:
    """deploy/haproxy.cfg with other addresses, and checks in more of a hurry.

    :param server: what else is said of each server.
    """
    changes = {
        "bind :80\n": f"bind 127.0.0.1:{port}\n",
        "bind 127.0.0.1:8404": f"bind 127.0.0.1:{operators}",
        "check inter 1s": "check inter 200ms",
    }
    for number, place in enumerate(places, 1):
        name = f"llamaproxy-{number}"
        changes[f"server {name} {name}:8322 port 8323\n"] = (
            f"server {name} 127.0.0.1:{place.port} port {place.admin} {server}\n"
        )
    return replaced((DEPLOY / "haproxy.cfg").read_text(), changes)


def nginx_configuration(places: Sequence[Place], port: int, directory: Path) -> str:
    """deploy/nginx.conf in the context that it is for, with other addresses."""
    changes = {"listen 80;": f"listen 127.0.0.1:{port};"}
    for number, place in enumerate(places, 1):
        changes[f"server llamaproxy-{number}:8322 "] = f"server 127.0.0.1:{place.port} "
    text = replaced((DEPLOY / "nginx.conf").read_text(), changes)
    temporary = " ".join(
        f"{kind}_temp_path {directory}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return (
        f"daemon off; master_process off; pid {directory}/nginx.pid;\n"
        f"error_log {directory}/error.log; events {{}}\n"
        f"http {{ access_log off; {temporary}\n{text}\n}}\n"
    )


@attrs.frozen
class Balancer:
    """One that runs."""

    port: int
    #: The port of HAProxy's own statistics; nginx has none.
    operators: int
    log: Path

    def servers(self) -> dict[str, dict[str, str]]:
        """What HAProxy thinks of its servers, by their names."""
        table = get(self.operators, "/;csv").decode().removeprefix("# ")
        rows = csv.DictReader(io.StringIO(table))
        return {row["svname"]: row for row in rows if row["pxname"] == "llamaproxy"}

    def all_up(self) -> bool:
        states = [row["status"] for name, row in self.servers().items() if name != "BACKEND"]
        return states == ["UP"] * len(states)


@contextlib.contextmanager
def haproxy(directory: Path, places: Sequence[Place], server: str = "") -> Iterator[Balancer]:
    running = Balancer(free_port(), free_port(), directory / "haproxy.out")
    path = directory / "haproxy.cfg"
    path.write_text(haproxy_configuration(places, running.port, running.operators, server))
    program = find("haproxy")
    assert program is not None
    with _running([program, "-db", "-f", str(path)], running, running.all_up):
        yield running


@contextlib.contextmanager
def nginx(directory: Path, places: Sequence[Place]) -> Iterator[Balancer]:
    running = Balancer(free_port(), 0, directory / "nginx.out")
    path = directory / "nginx.conf"
    path.write_text(nginx_configuration(places, running.port, directory))
    program = find("nginx")
    assert program is not None

    def accepts() -> bool:
        with socket_to(running.port):
            return True

    command = [program, "-p", str(directory), "-c", str(path), "-e", str(directory / "error.log")]
    with _running(command, running, accepts):
        yield running


def socket_to(port: int) -> contextlib.closing[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.connect()
    return contextlib.closing(connection)


@contextlib.contextmanager
def _running(
    command: Sequence[str], balancer: Balancer, ready: Callable[[], bool]
) -> Iterator[None]:
    with balancer.log.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)

    def serves() -> bool:
        assert process.poll() is None, balancer.log.read_text()
        with contextlib.suppress(OSError):
            return ready()
        return False

    try:
        until(serves)
        yield
    finally:
        process.kill()
        process.wait()
