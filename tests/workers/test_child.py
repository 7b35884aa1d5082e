"""A worker's own part in its life."""

from __future__ import annotations

import pytest
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.error import ReactorNotRunning
from twisted.internet.task import Clock

from llamaproxy.workers.child import WorkerLife


class Reactor(Clock):
    """Stops once, as others do."""

    def __init__(self) -> None:
        Clock.__init__(self)
        self.ended: list[str] = []

    def stop(self) -> None:
        if self.ended:
            raise ReactorNotRunning
        self.ended.append("stop")

    def crash(self) -> None:
        self.ended.append("crash")


class Slow(Service):
    """Stops when the test says so."""

    def __init__(self) -> None:
        self.stopping: list[Deferred[None]] = []

    def stopService(self) -> Deferred[None]:
        self.stopping.append(Deferred())
        return self.stopping[-1]


def life() -> tuple[WorkerLife, Reactor, Slow, list[str]]:
    reactor, services, called = Reactor(), Slow(), list[str]()
    made = WorkerLife(
        reactor,
        services,
        lambda: called.append("now"),
        lambda files: called.append(f"read again: {files}"),
        35,
    )
    return made, reactor, services, called


def test_it_ends_once_whoever_asks_for_it() -> None:
    worker, reactor, services, called = life()
    assert worker.stop(now=False) == {}
    worker.end()
    assert worker.stop(now=True) == {} and called == ["now"]
    worker.parent_gone()
    assert len(services.stopping) == 1 and not reactor.ended
    services.stopping[0].callback(None)
    assert reactor.ended == ["stop"]


def test_it_ends_though_something_fails(capsys: pytest.CaptureFixture[str]) -> None:
    worker, reactor, services, _ = life()
    worker.end()
    services.stopping[0].errback(OSError("a fault"))
    assert reactor.ended == ["stop"]


def test_it_ends_without_a_parent_though_something_hangs() -> None:
    worker, reactor, _, _ = life()
    worker.parent_gone()
    reactor.advance(34)
    assert not reactor.ended
    reactor.advance(1)
    assert reactor.ended == ["crash"]


def test_it_answers_its_parent() -> None:
    worker, reactor, services, called = life()
    assert worker.ping() == {} and worker.reload({"keys": []}) == {}
    assert called == ["read again: {'keys': []}"] and not services.stopping and not reactor.ended
