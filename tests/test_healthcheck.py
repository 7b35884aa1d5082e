"""The container's health check, and a socket that a killed container has left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llamaproxy.healthcheck import daemon_arguments
from llamaproxy.server.places import client_url
from tests.config.test_logformat import waited_for
from tests.test_twistd import PORT_LINE, TWISTD, Daemon, environment

#: The check, in a process that takes *command* for that of process 1.
CHECK = """
import sys
from pathlib import Path
from llamaproxy import healthcheck
Path.read_bytes = lambda path: {command!r}
sys.exit(healthcheck.main())
"""


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (b"python\0twistd\0-n\0--pidfile=\0llamaproxy\0--port\09000\0", ["--port", "9000"]),
        (b"/sbin/docker-init\0--\0twistd\0-n\0llamaproxy\0", []),
        (b"sh\0", []),
        (b"", []),
    ],
)
def test_the_daemons_arguments_are_found(command: bytes, arguments: list[str]) -> None:
    assert daemon_arguments(command) == arguments


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("haproxy:tcp:8322:interface=127.0.0.1", "http://127.0.0.1:8322"),
        ("tcp:8322", "http://localhost:8322"),
        ("tcp:8322:interface=10.0.0.1:backlog=4", "http://10.0.0.1:8322"),
        (r"tcp6:8322:interface=\:\:1", "http://[::1]:8322"),
        ("tcp:port=1:interface=h", "http://h:1"),
        ("ssl:8443:privateKey=a:certKey=b", "https://localhost:8443"),
        (r"unix:/run/a\:b:mode=660", "http+unix:///run/a:b"),
        ("unix:address=/run/x", "http+unix:///run/x"),
    ],
)
def test_an_endpoint_has_a_url(endpoint: str, url: str) -> None:
    assert client_url(endpoint) == url


def checked(*arguments: str, **variables: str) -> tuple[int, str]:
    command = "\0".join(["twistd", "-n", "llamaproxy", *arguments]).encode()
    ran = subprocess.run(
        [sys.executable, "-c", CHECK.format(command=command)],
        env={**environment(), **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return ran.returncode, ran.stdout + ran.stderr


def test_it_asks_where_the_daemon_listens(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "log", "--demo")
    listen = PORT_LINE.format(port=daemon.port)
    assert checked("--listen", listen) == (0, '200 {"status": "healthy"}\n')
    assert checked(LLAMAPROXY_LISTEN=listen)[0] == 0
    assert checked("--port", str(daemon.port))[0] == 0
    assert checked(PROXY_PORT=str(daemon.port))[0] == 0
    daemon.stop()
    status, words = checked("--listen", listen)
    assert status == 1 and "refused" in words


def test_a_socket_that_was_left_behind_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "proxy.sock"
    log = tmp_path / "log"

    def started() -> subprocess.Popen[bytes]:
        with log.open("wb") as out:
            process = subprocess.Popen(
                [
                    *(*TWISTD, "-n", "--pidfile=", "llamaproxy", "--demo", "--admin", "off"),
                    *("--listen", f"unix:{path}"),
                ],
                env=environment(),
                stdout=out,
                stderr=out,
            )
        waited_for(lambda: "the server at" in log.read_text() or process.poll() is not None)
        return process

    first = started()
    assert checked("--listen", f"unix:{path}")[0] == 0
    first.send_signal(signal.SIGKILL)
    first.wait(10)
    # The next one has the same process id, in a container, so the lock seems to be held.
    lock = path.with_name(path.name + ".lock")
    lock.unlink()
    holder = subprocess.Popen(["sleep", "60"])
    lock.symlink_to(str(holder.pid))
    second = started()
    assert checked("--listen", f"unix:{path}")[0] == 0
    third = started()
    assert third.wait(10) != 0, "somebody listens there"
    assert checked("--listen", f"unix:{path}")[0] == 0
    second.terminate()
    second.wait(20)
    holder.kill()
    holder.wait()


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    ran = subprocess.run(
        [*TWISTD, "-n", "--pidfile=", "llamaproxy", "--demo", "--listen", f"unix:{path}"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 1
    assert path.read_text() == "mine"
