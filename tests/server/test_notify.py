"""What the service manager is told (sd_notify(3))."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock

from llamaproxy.server.notify import NotifyService
from tests.test_twistd import PORT_LINE, TWISTD, environment, free_port
from tests.workers.processes import until


@attrs.frozen
class Manager:
    """A service manager that listens."""

    listening: socket.socket
    address: str

    def messages(self) -> list[str]:
        """Those that have come."""
        received = []
        self.listening.setblocking(False)
        try:
            while True:
                received.append(self.listening.recv(4096).decode())
        except BlockingIOError:
            return received

    def next(self) -> str:
        """The next one, once it has come."""
        self.listening.settimeout(60)
        return self.listening.recv(4096).decode()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    abstract = request.param == "abstract"
    name = f"\0llamaproxy-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(name)
        yield Manager(listening, name.replace("\0", "@"))


def service(
    manager: Manager, serving: Deferred[None] | None = None, **variables: str
) -> tuple[NotifyService, Any]:
    reactor: Any = MemoryReactorClock()
    named = {"NOTIFY_SOCKET": manager.address, **variables}
    return NotifyService(reactor, named, serving), reactor


def run(reactor: Any) -> None:
    for call, arguments, named in reactor.whenRunningHooks:
        call(*arguments, **named)


def test_it_serves_when_the_reactor_runs_and_then_stops(manager: Manager) -> None:
    notify, reactor = service(manager)
    notify.startService()
    assert manager.messages() == []
    run(reactor)
    assert manager.messages() == ["READY=1"]
    notify.stopService()
    assert manager.messages() == ["STOPPING=1"]
    reactor.advance(3600)
    assert manager.messages() == [], "no sign of life was asked for"


def test_it_serves_when_its_workers_do(manager: Manager) -> None:
    serving: Deferred[None] = Deferred()
    notify, reactor = service(manager, serving)
    notify.startService()
    run(reactor)
    assert manager.messages() == []
    serving.callback(None)
    assert manager.messages() == ["READY=1"]


def test_signs_of_life_are_given_twice_in_the_time(manager: Manager) -> None:
    variables = {"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(os.getpid())}
    notify, reactor = service(manager, Deferred(), **variables)
    notify.startService()
    run(reactor)
    assert manager.messages() == ["WATCHDOG=1"]
    reactor.pump([5, 5])
    assert manager.messages() == ["WATCHDOG=1"] * 2
    notify.stopService()
    reactor.advance(5)
    assert manager.messages() == ["STOPPING=1", "WATCHDOG=1"]


@pytest.mark.parametrize(
    "variables",
    [{"WATCHDOG_USEC": "10", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}, {}],
)
def test_signs_of_life_may_be_for_others(manager: Manager, variables: dict[str, str]) -> None:
    notify, reactor = service(manager, Deferred(), **variables)
    notify.startService()
    run(reactor)
    assert manager.messages() == [] and not reactor.getDelayedCalls()


def test_reloading_ends_when_all_have(manager: Manager) -> None:
    notify, _ = service(manager)
    notify.reloading(None)
    [begun, ended] = manager.messages()
    assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d+", begun) and ended == "READY=1"
    done: Deferred[None] = Deferred()
    notify.reloading(done)
    assert len(manager.messages()) == 1
    done.callback(None)
    assert manager.messages() == ["READY=1"]


def test_a_manager_that_is_gone_is_no_reason_to_end(manager: Manager) -> None:
    notify, _ = service(manager)
    manager.listening.close()
    notify.notify("READY=1")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_daemon_tells_its_manager(manager: Manager, tmp_path: Path, workers: str) -> None:
    keys = tmp_path / "keys"
    keys.write_text("one\n")
    log = tmp_path / "log"
    arguments = ["--demo", "--admin", "off", "--workers", workers, "--api-keys-file", str(keys)]
    listen = ["--listen", PORT_LINE.format(port=free_port())]
    with (
        log.open("wb") as out,
        subprocess.Popen(
            [*TWISTD, "-n", "--pidfile=", "llamaproxy", *arguments, *listen],
            env={**environment(), "NOTIFY_SOCKET": manager.address},
            stdout=out,
        ) as process,
    ):
        try:
            assert manager.next() == "READY=1"
            serving = log.read_text().count("serves as process")
            assert serving == (2 if workers == "2" else 0)
            process.send_signal(signal.SIGHUP)
            assert manager.next().startswith("RELOADING=1\n")
            assert manager.next() == "READY=1"
            until(lambda: log.read_text().count("API keys read again") == 1)
            until(lambda: log.read_text().count("counts here too: api-keys-file") == serving)
            process.send_signal(signal.SIGTERM)
            assert manager.next() == "STOPPING=1"
            process.wait(60)
            assert manager.messages() == []
        finally:
            process.kill()
