"""deploy/llamaproxy.service and deploy/llamaproxy.socket."""

from __future__ import annotations

import configparser
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.test_twistd import TWISTD, environment, free_port

from .balancers import DEPLOY, get, until
from .settings import VARIABLES, default, taken

ANALYZE = shutil.which("systemd-analyze")
ACTIVATE = shutil.which("systemd-socket-activate")

needs_systemd = pytest.mark.skipif(
    ANALYZE is None or ACTIVATE is None, reason="UNITS ARE NOT VERIFIED: there is no systemd"
)


def unit(name: str) -> configparser.RawConfigParser:
    """A unit; of what is set again, the last."""
    parsed = configparser.RawConfigParser(strict=False, comment_prefixes=("#",))
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read_string((DEPLOY / name).read_text())
    return parsed


@needs_systemd
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """Every setting, and no program that is missing but the one that is installed by hand."""
    for name in ("llamaproxy.service", "llamaproxy.socket"):
        text = (DEPLOY / name).read_text()
        text = text.replace("/opt/llamaproxy/bin/twistd", "/bin/true")
        (tmp_path / name).write_text(text)
    ran = subprocess.run(
        [str(ANALYZE), "verify", "--man=no", *(str(path) for path in tmp_path.iterdir())],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    # What it warns of in these is in these; it may warn of others.
    assert "llamaproxy" not in ran.stderr, ran.stderr


@needs_systemd
def test_the_service_can_do_little_else(tmp_path: Path) -> None:
    """By systemd's own scale: 0 is nothing at all, 9.6 a service without any restriction."""
    path = tmp_path / "llamaproxy.service"
    path.write_text((DEPLOY / path.name).read_text())
    ran = subprocess.run(
        [str(ANALYZE), "security", "--offline=true", "--threshold=20", "--no-pager", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_service_waits_for_what_the_daemon_says() -> None:
    service = unit("llamaproxy.service")["Service"]
    assert service["Type"] == "notify"
    assert service["NotifyAccess"] == "main"
    assert int(service["TimeoutStopSec"]) >= int(default("drain-timeout")) + 5
    assert int(service["LimitNOFILE"]) >= 3 * int(default("max-connections"))
    # Signals are for the daemon, which tells its workers.
    assert service["KillMode"] == "mixed"


def test_the_socket_is_what_the_daemon_is_told_to_take(tmp_path: Path) -> None:
    text = (DEPLOY / "llamaproxy.socket").read_text()
    [(name, value)] = re.findall(r"^#   (\w+)=(.*)$", text, re.MULTILINE)
    assert name in VARIABLES
    held = unit("llamaproxy.socket")["Socket"]
    descriptor = f"systemd:domain=INET6:name={held['FileDescriptorName']}"
    assert taken({name: value}, tmp_path)["listen"] == [descriptor]
    assert held["ListenStream"] == f"[::]:{default('port')}"


@needs_systemd
def test_the_daemon_serves_on_a_socket_that_systemd_holds(tmp_path: Path) -> None:
    """As it is told by the file; the program that hands the socket over is systemd's own."""
    text = (DEPLOY / "llamaproxy.socket").read_text()
    [listen] = re.findall(r"LLAMAPROXY_LISTEN=.*", text)
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("there is no IPv6")
    port = free_port()
    held = unit("llamaproxy.socket")["Socket"]["FileDescriptorName"]
    variables = [f"--setenv={listen}", "--setenv=LLAMAPROXY_ADMIN=off"]
    passed = [f"--setenv={name}" for name in ("PYTHONPATH", "PATH")]
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [
                *(str(ACTIVATE), "--listen", f"[::]:{port}", "--fdname", held, *variables, *passed),
                *(*TWISTD, "-n", "--pidfile=", "llamaproxy", "--demo"),
            ],
            env=environment(),
            stdout=out,
            stderr=out,
        )
    try:

        def serves() -> bool:
            assert process.poll() is None, log.read_text()
            try:
                return get(port, "/health") == b'{"status": "healthy"}'
            except OSError:
                return False

        until(serves)
    finally:
        process.terminate()
        assert process.wait(30) in (0, -signal.SIGTERM), log.read_text()
