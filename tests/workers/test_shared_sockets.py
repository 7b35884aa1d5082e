"""Every kind of endpoint, listened on by the parent and served by workers."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs

from tests.test_tls import Secured, secured
from tests.test_twistd import TWISTD, environment, free_port
from tests.workers.processes import children_of, is_there, until, workers

__all__ = ["secured"]

GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
HEALTHY = b'{"status": "healthy"}'


def asked(connection: socket.socket) -> bytes:
    """What ``/health`` answers on *connection*, which ends with it."""
    with connection, connection.makefile("rb") as stream:
        connection.settimeout(30)
        connection.sendall(GET)
        return stream.read()


def at_path(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(path))
    return connection


def test_a_unix_socket_keeps_its_mode_and_goes_with_the_daemon(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with workers(tmp_path / "log", "--listen", f"unix:{path}:mode=660") as daemon:
        assert all(asked(at_path(path)).endswith(HEALTHY) for _ in range(8))
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        os.kill(min(daemon.pids), signal.SIGTERM)
        daemon.wait_for(3)
        assert asked(at_path(path)).endswith(HEALTHY), "the socket is not the worker's to remove"
        daemon.send(signal.SIGTERM)
        daemon.ended()
    assert not path.exists() and not os.path.lexists(f"{path}.lock")


def test_a_unix_socket_that_was_left_behind_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    for attempt in ("first", "second"):
        with workers(tmp_path / attempt, "--listen", f"unix:{path}") as daemon:
            assert asked(at_path(path)).endswith(HEALTHY)
            daemon.send(signal.SIGKILL)
            until(lambda: not any(map(is_there, daemon.seen)))
        assert path.exists()


def test_tls(tmp_path: Path, secured: Secured) -> None:
    port = free_port()
    with workers(tmp_path / "log", "--listen", secured.endpoint(port)):
        for _ in range(4):
            plain = socket.create_connection(("127.0.0.1", port), 30)
            wrapped = secured.client().wrap_socket(plain, server_hostname="localhost")
            with contextlib.suppress(ssl.SSLEOFError):
                assert asked(wrapped).endswith(HEALTHY)


def test_ipv6_and_a_proxy_in_front(tmp_path: Path) -> None:
    six, proxied = free_port(), free_port()
    listen = (
        *("--listen", rf"tcp6:{six}:interface=\:\:1"),
        *("--listen", f"haproxy:tcp:{proxied}:interface=127.0.0.1"),
    )
    with workers(tmp_path / "log", *listen) as daemon:
        assert asked(socket.create_connection(("::1", six), 30)).endswith(HEALTHY)
        connection = socket.create_connection(("127.0.0.1", proxied), 30)
        connection.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.1 1 80\r\n")
        assert asked(connection).endswith(HEALTHY)
        until(lambda: "192.0.2.7 GET /health" in daemon.log and "::1 GET" in daemon.log)


@attrs.define
class Activated:
    """A daemon that got its listening socket from a service manager."""

    process: subprocess.Popen[bytes]
    log: Path
    pids: set[int] = attrs.Factory(set)

    def wait_until_it_serves(self) -> None:
        until(lambda: self.log.read_text().count("serves as process") == 2)
        self.pids = children_of(self.process.pid)


@contextlib.contextmanager
def activated(log: Path, listening: socket.socket, domain: str) -> Iterator[Activated]:
    """Start a daemon with the descriptor 3, as systemd does."""
    endpoint = f"systemd:domain={domain}:index=0"
    program = "import os, sys; os.environ['LISTEN_PID'] = str(os.getpid()); " + TWISTD[2]
    arguments = ["-n", "--pidfile=", "llamaproxy", "--demo", "--workers", "2", "--admin", "off"]
    with (
        log.open("wb") as out,
        subprocess.Popen(
            [sys.executable, "-c", program, *arguments, "--listen", endpoint],
            env={**environment(), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "clients"},
            preexec_fn=lambda: os.dup2(listening.fileno(), 3),
            pass_fds=[3],
            stdout=out,
            stderr=out,
        ) as process,
    ):
        daemon = Activated(process, log)
        try:
            daemon.wait_until_it_serves()
            yield daemon
        finally:
            process.kill()


def test_a_socket_of_systemd(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = listening.getsockname()
        with activated(tmp_path / "log", listening, "INET") as daemon:
            for _ in range(4):
                assert asked(socket.create_connection(address, 30)).endswith(HEALTHY)
            daemon.process.send_signal(signal.SIGTERM)
            daemon.process.wait(60)
            assert not any(map(is_there, daemon.pids))
        # The socket is systemd's: who connects waits for the next daemon.
        with socket.create_connection(address, 30), activated(tmp_path / "next", listening, "INET"):
            assert asked(socket.create_connection(address, 30)).endswith(HEALTHY)


def test_a_unix_socket_of_systemd_stays(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        path.chmod(0o600)
        listening.listen()
        with activated(tmp_path / "log", listening, "UNIX") as daemon:
            assert asked(at_path(path)).endswith(HEALTHY)
            daemon.process.send_signal(signal.SIGTERM)
            daemon.process.wait(60)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
