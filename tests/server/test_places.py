"""What descriptions of endpoints say, and sockets that systemd has passed on."""

from __future__ import annotations

import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress

from llamaproxy.server.places import Description, client_url
from tests.config.test_logformat import waited_for
from tests.server.test_hosts import answer_to
from tests.test_twistd import PORT_LINE, TWISTD, environment, free_port, twistd


@pytest.mark.parametrize(
    ("text", "kind", "values"),
    [
        ("tcp:1:127.0.0.1:4", "tcp", {"port": "1", "interface": "127.0.0.1", "backlog": "4"}),
        ("TCP:1:backlog=4", "tcp", {"port": "1", "backlog": "4"}),
        (r"tcp6:1:4:\:\:1", "tcp6", {"port": "1", "backlog": "4", "interface": "::1"}),
        ("haproxy:tcp:1", "tcp", {"port": "1"}),
        (r"unix:/a\=b\\:600", "unix", {"address": "/a=b\\", "mode": "600"}),
        (
            "ssl:1:privateKey=a=b:interface=",
            "ssl",
            {"port": "1", "privateKey": "a=b", "interface": ""},
        ),
        ("stdio:", "stdio", {"": ""}),
    ],
)
def test_a_description_is_read_as_twisted_reads_it(
    text: str, kind: str, values: dict[str, str]
) -> None:
    assert Description.read(text) == Description(kind, values)


@pytest.mark.parametrize(
    ("text", "address", "url"),
    [
        ("tcp:0", IPv4Address("TCP", "0.0.0.0", 7), "http://localhost:7"),
        ("tcp:0:interface=me", IPv4Address("TCP", "10.0.0.1", 7), "http://me:7"),
        ("tcp:8322:10.0.0.1", None, "http://10.0.0.1:8322"),
        ("tcp:8322:interface=0.0.0.0", None, "http://localhost:8322"),
        ("systemd:domain=INET:index=0", IPv4Address("TCP", "10.0.0.1", 7), "http://10.0.0.1:7"),
        ("systemd:domain=INET6:index=0", IPv6Address("TCP", "::1", 7), "http://[::1]:7"),
        ("systemd:domain=UNIX:index=0", UNIXAddress(b"/run/x"), "http+unix:///run/x"),
        ("haproxy:systemd:domain=INET:index=0", None, "http://localhost"),
    ],
)
def test_the_socket_knows_what_the_description_does_not_say(
    text: str, address: IAddress | None, url: str
) -> None:
    assert client_url(text, address) == url


def test_who_is_not_started_by_systemd_has_none_of_its_sockets() -> None:
    result = twistd("llamaproxy", "--demo", "--listen", "systemd:domain=INET:index=0")
    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    assert line.endswith("'systemd:domain=INET:index=0': systemd has passed on no such socket")


#: Runs the rest of its arguments as systemd would with the socket of a number.
SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="clients")
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_socket_of_systemds_is_asked_where_it_is(tmp_path: Path, workers: str) -> None:
    log, admin = tmp_path / "log", free_port()
    with socket.create_server(("127.0.0.1", 0)) as made, log.open("wb") as out:
        port = made.getsockname()[1]
        daemon = subprocess.Popen(
            [
                *(sys.executable, "-c", SYSTEMD, str(made.fileno())),
                *(*TWISTD, "-n", "--pidfile=", "llamaproxy", "--demo", "--workers", workers),
                *("--listen", "systemd:domain=INET:index=0"),
                *("--admin", PORT_LINE.format(port=admin)),
            ],
            env=environment(),
            stdout=out,
            stderr=out,
            pass_fds=[made.fileno()],
        )
    try:
        waited_for(lambda: "it has" in log.read_text() or daemon.poll() is not None)
        assert f"which use http://127.0.0.1:{port}/v1;" in log.read_text()
        assert answer_to(port, f"localhost:{port}", "/v1/models")[0] == 200
        assert answer_to(port, "rebound.evil.example", "/v1/models")[0] == 421
        assert f'"url":"http://127.0.0.1:{port}/v1"' in hello_of(admin)
    finally:
        daemon.terminate()
        daemon.wait(20)
    assert "Traceback" not in log.read_text()


def hello_of(admin: int) -> str:
    """The first that a page is told."""
    with urllib.request.urlopen(f"http://127.0.0.1:{admin}/feed", timeout=10) as feed:
        return str(next(line for line in feed if b'"upstream"' in line))
