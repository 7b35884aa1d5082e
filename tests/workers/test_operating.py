"""What an operator does with a daemon that has workers: starts that fail, signals, its log."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trustme

from tests.test_twistd import PORT_LINE, TWISTD, environment, free_port, twistd
from tests.workers.processes import children_of, is_there, until, workers

#: What a worker says on SIGHUP.
TAKEN = "what counts in the parent counts here too: api-keys-file"

TWO = ("--demo", "--workers", "2", "--admin", "off")


def status(port: int, key: str) -> int:
    """How a request with *key* is answered."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
        return connection.getresponse().status
    finally:
        connection.close()


# --- the start


@pytest.mark.parametrize("workers", ["0", "many", "257", "2.5", ""])
def test_a_number_that_is_none_stops_the_start(workers: str) -> None:
    result = twistd("llamaproxy", "--workers", workers)
    assert result.returncode == 1
    rule = "--workers must be a whole number from 1 to 256, or auto, not"
    assert result.stderr.startswith(f"twistd llamaproxy: {rule}")


def test_an_endpoint_without_a_socket_cannot_be_shared() -> None:
    result = twistd("llamaproxy", *TWO, "--listen", "stdio:")
    assert result.returncode == 1
    assert "cannot listen on 'stdio:': workers cannot share it" in result.stdout + result.stderr


def test_workers_that_cannot_start_end_the_daemon(tmp_path: Path) -> None:
    """Not one after the other, for ever."""
    authorities = tmp_path / "authorities.pem"
    trustme.CA().cert_pem.write_to_path(str(authorities))
    # The parent has read them when its workers cannot any more.
    program = (
        "import os, llamaproxy.tap as tap; make = tap.makeService\n"
        "def made(options):\n"
        f"    os.unlink({str(authorities)!r})\n"
        "    return make(options)\n"
        "tap.makeService = made\n"
    ) + TWISTD[2]
    listen = PORT_LINE.format(port=free_port())
    pidfile = tmp_path / "pid"
    arguments = ["-n", f"--pidfile={pidfile}", "llamaproxy", *TWO, "--listen", listen]
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments, "--upstream-ca", str(authorities)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    [line] = [line for line in result.stdout.splitlines() if "no worker can serve" in line]
    assert "--upstream-ca must be a readable file with certificates" in line
    assert "Traceback" not in result.stdout + result.stderr
    assert not pidfile.exists()


def test_in_the_background(tmp_path: Path) -> None:
    port = free_port()
    pidfile, log = tmp_path / "pid", tmp_path / "file.log"
    started, run = tmp_path / "started here", tmp_path / "runs there"
    started.mkdir()
    run.mkdir()
    (started / "keys").write_text("one\n")
    arguments = [f"--pidfile={pidfile}", f"--logfile={log}", f"--rundir={run}", "llamaproxy"]
    more = ["--listen", PORT_LINE.format(port=port), "--api-keys-file", "keys"]
    subprocess.run(
        [*TWISTD, *arguments, *TWO, *more],
        cwd=started,
        env=environment(),
        check=True,
        timeout=60,
    )
    pid = int(pidfile.read_text())
    try:
        until(lambda: log.read_text().count("serves as process") == 2)
        children = children_of(pid)
        assert len(children) == 2
        assert {os.readlink(f"/proc/{each}/cwd") for each in (pid, *children)} == {str(run)}
        assert (status(port, "any"), status(port, "one")) == (401, 200)
        until(lambda: "GET /v1/models" in log.read_text())
        os.kill(pid, signal.SIGTERM)
        until(lambda: not any(map(is_there, {pid, *children})))
        assert not pidfile.exists()
    finally:
        for each in (pid, *children_of(pid)):
            if is_there(each):
                os.kill(each, signal.SIGKILL)


# --- while it runs


def test_all_have_room_before_one_refuses(tmp_path: Path) -> None:
    with workers(tmp_path / "log", "--max-connections", "8") as daemon:
        clients = [
            http.client.HTTPConnection("127.0.0.1", daemon.daemon.port, timeout=30)
            for _ in range(9)
        ]
        for client in clients:
            client.connect()
        outcomes = []
        for client in clients:
            client.request("GET", "/health")
            outcomes.append(client.getresponse().status)
        for client in clients:
            client.close()
        assert sorted(outcomes) == [200] * 8 + [503]


def test_keys_are_read_again_by_all(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("one\n")
    with workers(tmp_path / "log", "--api-keys-file", str(keys)) as daemon:
        port = daemon.daemon.port
        assert {status(port, "one") for _ in range(8)} == {200}
        keys.write_text("two\n")
        daemon.send(signal.SIGHUP)
        until(lambda: daemon.log.count(TAKEN) == 2)
        assert daemon.log.count("API keys read again: 1") == 1
        assert {status(port, "one") for _ in range(8)} == {401}
        assert {status(port, "two") for _ in range(8)} == {200}
        daemon.send(signal.SIGHUP)
        until(lambda: daemon.log.count(TAKEN) == 4)
        daemon.send(signal.SIGTERM)
        daemon.ended()


def test_a_worker_is_replaced_by_one_with_the_same_keys(tmp_path: Path) -> None:
    """Whatever has become of their file; what is there is for SIGHUP to read."""
    keys = tmp_path / "keys"
    keys.write_text("one\n")
    config = tmp_path / "mcp.json"
    config.write_text('{"mcpServers": {}}')
    files = ("--api-keys-file", str(keys), "--mcp-config", str(config))
    with workers(tmp_path / "log", *files) as daemon:
        port = daemon.daemon.port
        keys.write_text("two\n")
        config.unlink()
        for pid in daemon.pids:
            os.kill(pid, signal.SIGKILL)
        daemon.wait_for(4)
        assert {status(port, "one") for _ in range(8)} == {200}
        assert {status(port, "two") for _ in range(8)} == {401}
        keys.unlink()
        daemon.send(signal.SIGHUP)
        until(lambda: "stay as they were: No such file" in daemon.log)
        until(lambda: daemon.log.count("counts here too: api-keys-file, mcp-config") == 2)
        assert "read again" not in daemon.log
        assert {status(port, "one") for _ in range(8)} == {200}
        daemon.send(signal.SIGTERM)
        daemon.ended()


def test_the_log_of_all_is_rotated(tmp_path: Path) -> None:
    log, moved = tmp_path / "file.log", tmp_path / "moved.log"
    port = free_port()
    listen = ["--listen", PORT_LINE.format(port=port)]
    arguments = ["-n", "--pidfile=", "--logfile", str(log), "llamaproxy", *TWO, *listen]
    with subprocess.Popen([*TWISTD, *arguments], env=environment()) as process:
        try:
            until(lambda: log.exists() and log.read_text().count("serves as process") == 2)
            log.rename(moved)
            for pid in [process.pid, *children_of(process.pid)]:
                os.kill(pid, signal.SIGUSR1)
            until(log.exists)
            assert status(port, "any") == 200
            until(lambda: "GET /v1/models" in log.read_text())
            assert len(children_of(process.pid)) == 2
        finally:
            process.terminate()
            process.wait(60)
    assert "Server Shut Down" in log.read_text() and "has ended" not in log.read_text()
    assert "GET /v1/models" not in moved.read_text()


def test_a_log_of_twistds_own_choice_has_the_lines_of_workers(tmp_path: Path) -> None:
    log = tmp_path / "log"
    port = free_port()
    listen = ["--listen", PORT_LINE.format(port=port)]
    own = "--logger=twisted.logger.jsonFileLogObserver"
    program = "import sys, twisted.logger as log; log.own = lambda: log.jsonFileLogObserver("
    program += f"open({str(log)!r}, 'a', 1), ''); " + TWISTD[2]
    arguments = ["-n", "--pidfile=", own.replace("jsonFileLogObserver", "own"), "llamaproxy"]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments, *TWO, *listen], env=environment()
    )
    try:
        until(lambda: log.exists() and log.read_text().count("serves as process") == 2)
        assert status(port, "any") == 200
        until(lambda: "GET /v1/models" in log.read_text())
    finally:
        process.terminate()
        process.wait(60)


# --- as the first process of a container

UNSHARE = shutil.which("unshare")


def can_unshare() -> bool:
    command = [str(UNSHARE), "--pid", "--fork", "--mount-proc", "true"]
    return UNSHARE is not None and subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.skipif(not can_unshare(), reason="NO PROCESS 1 IS TESTED: unshare is not allowed")
def test_as_process_1_it_lets_go_of_strangers(tmp_path: Path) -> None:
    log = tmp_path / "log"
    port = free_port()
    listen = ["--listen", PORT_LINE.format(port=port)]
    # Before it, a process that leaves another one behind, whose parent is then process 1.
    script = '(sh -c "sleep 1 & exit") ; exec "$@"'
    command = [str(UNSHARE), "--pid", "--fork", "--mount-proc", "sh", "-c", script, "sh"]
    arguments = [*TWISTD, "-n", "--pidfile=", "llamaproxy", *TWO, *listen]
    with log.open("wb") as out:
        process = subprocess.Popen([*command, *arguments], env=environment(), stdout=out)
    try:
        until(lambda: log.read_text().count("serves as process") == 2)
        [first] = children_of(process.pid)
        until(lambda: len(children_of(first)) == 2)
        assert status(port, "any") == 200
        os.kill(min(children_of(first)), signal.SIGKILL)
        until(lambda: log.read_text().count("serves as process") == 3)
        assert len(children_of(first)) == 2
        os.kill(first, signal.SIGTERM)
        process.wait(60)
        assert "Server Shut Down." in log.read_text()
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_workers_are_who_the_daemon_has_become(tmp_path: Path) -> None:
    log = tmp_path / "log"
    listen = ["--listen", PORT_LINE.format(port=free_port())]
    arguments = ["-n", "--pidfile=", "--uid=65534", "--gid=65534", "llamaproxy", *TWO, *listen]
    with log.open("wb") as out:
        process = subprocess.Popen([*TWISTD, *arguments], env=environment(), stdout=out)
    try:
        until(lambda: log.read_text().count("serves as process") == 2 or process.poll() == 1)
        if process.poll() is not None:
            pytest.skip(f"others may not run this Python: {log.read_text().splitlines()[-3]}")
        for pid in children_of(process.pid):
            [line] = re.findall(r"^Uid:.*", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
            assert set(line.split()[1:]) == {"65534"}
    finally:
        process.terminate()
        process.wait(60)
