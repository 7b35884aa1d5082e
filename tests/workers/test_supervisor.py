"""The Supervisor, with processes and time that are made up."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any, ClassVar

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.task import Clock
from twisted.protocols import amp
from twisted.python.failure import Failure
from twisted.test.iosim import FakeTransport, connect

from llamaproxy.config.options import Options
from llamaproxy.jsontext import Json
from llamaproxy.workers.commands import Ping, Ready, Reload, Stop
from llamaproxy.workers.link import Link
from llamaproxy.workers.process import Worker
from llamaproxy.workers.supervisor import Supervisor
from tests.support import pending_calls


class Child(amp.CommandLocator):
    """A process that was started: what it is asked, and its end of the link."""

    def __init__(self, pid: int, protocol: Any) -> None:
        amp.CommandLocator.__init__(self)
        self.pid = pid
        self.protocol = protocol
        self.asked: list[str] = []
        self.signals: list[int] = []
        self.reads = True
        self.answers = True
        self.ends = True
        self.link = Link(self)
        self.pump: Any = None
        protocol.makeConnection(self)

    def says(self, command: type[amp.Command]) -> None:
        call: Any = self.link.callRemote
        call(command).addErrback(lambda _: None)
        self.pump.flush()

    def ended(self, number: int | None = None) -> None:
        how: Any = ProcessDone(0) if number is None else ProcessTerminated(signal=number)
        self.protocol.processEnded(Failure(how))

    def pauseProducing(self) -> None:
        self.reads = False

    def resumeProducing(self) -> None:
        self.reads = True

    def signalProcess(self, number: int) -> None:
        if self.pid == 0:
            raise ProcessExitedAlready
        self.signals.append(number)
        if number == signal.SIGKILL:
            self.pid = 0
            self.ended(number)

    def _answer(self, name: str) -> Any:
        self.asked.append(name)
        return {} if self.answers else Deferred()

    @Ping.responder
    def ping(self) -> Json:
        return self._answer("ping")  # type: ignore[no-any-return]

    @Reload.responder
    def reload(self) -> Json:
        return self._answer("reload")  # type: ignore[no-any-return]

    @Stop.responder
    def stop(self, now: bool) -> Json:
        self._answer("stop now" if now else "stop")
        if self.ends:
            self.ended()
        return {}


class Processes(Clock):
    """A reactor whose processes are made up."""

    def __init__(self) -> None:
        Clock.__init__(self)
        self.children: list[Child] = []
        self.impossible = False

    def spawnProcess(self, protocol: Any, *_: object, **__: object) -> Child:
        if self.impossible:
            raise OSError("no more processes")
        self.children.append(Child(100 + len(self.children), protocol))
        return self.children[-1]

    def adoptStreamConnection(self, _: int, __: object, factory: Any) -> None:
        child = self.children[-1]
        here = factory.buildProtocol(None)
        child.pump = connect(
            here, FakeTransport(here, True), child.link, FakeTransport(child.link, False)
        )

    def flush(self) -> None:
        for child in self.children:
            child.pump.flush()

    def goes_on(self, seconds: float) -> None:
        """Time passes, and everybody is heard in between."""
        for _ in range(round(seconds)):
            self.advance(1)
            self.flush()


class NoPorts:
    """No sockets."""

    def __init__(self) -> None:
        self.open: list[object] = [object()]

    def descriptors(self) -> list[int]:
        return []

    async def close(self) -> None:
        self.open = []


@attrs.define
class Daemon:
    """A supervisor, and what it did."""

    reactor: Processes
    supervisor: Supervisor
    ports: NoPorts
    written: list[bytes] = attrs.Factory(list)
    failures: list[str] = attrs.Factory(list)
    heard: list[str] = attrs.Factory(list)

    def ready(self, *indices: int) -> None:
        for index in indices:
            self.reactor.children[index].says(Ready)

    @property
    def numbers(self) -> list[int]:
        return [worker.number for worker in self.supervisor.workers if worker.ready]


def started(count: int = 2, ready: bool = True, locators: Any = lambda _: ()) -> Daemon:
    reactor, ports = Processes(), NoPorts()
    nothing: Any = None
    options = Options({})
    options.parseOptions(["--workers", str(count)])
    supervisor = Supervisor(
        reactor,
        ports,  # type: ignore[arg-type]
        options,
        lambda lines: daemon.written.append(lines),
        lambda: daemon.failures.append("cannot serve"),
        locators,
        nothing,
    )
    daemon = Daemon(reactor, supervisor, ports)
    supervisor.on_ready.append(lambda worker: daemon.heard.append(f"{worker.number} ready"))
    supervisor.on_gone.append(lambda worker: daemon.heard.append(f"{worker.number} gone"))
    supervisor.startService()
    if ready:
        daemon.ready(*range(count))
    return daemon


def test_all_are_started_and_known_when_they_are_ready() -> None:
    daemon = started(3, ready=False)
    workers = daemon.supervisor.workers
    assert [(each.number, each.pid, each.restarts) for each in workers] == [
        (1, 100, 0),
        (2, 101, 0),
        (3, 102, 0),
    ]
    daemon.ready(1, 0)
    assert daemon.numbers == [1, 2] and not daemon.supervisor.started.called
    daemon.ready(2)
    assert daemon.numbers == [1, 2, 3] and daemon.supervisor.started.called
    assert daemon.heard == ["2 ready", "1 ready", "3 ready"]


def test_a_listener_that_fails_keeps_nobody_from_being_replaced() -> None:
    daemon = started()

    def fail(worker: Worker) -> None:
        raise KeyError(worker.number)

    daemon.supervisor.on_ready.insert(0, fail)
    daemon.supervisor.on_gone.insert(0, fail)
    daemon.reactor.children[0].ended(signal.SIGKILL)
    daemon.reactor.advance(0)
    daemon.ready(-1)
    assert daemon.heard[2:] == ["1 gone", "1 ready"] and daemon.numbers == [1, 2]


def test_who_dies_is_replaced_later_and_later() -> None:
    daemon = started()
    for delay, count in ((0, 3), (1, 4), (2, 5), (4, 6)):
        daemon.reactor.children[-1].ended(signal.SIGKILL)
        if delay:
            daemon.reactor.advance(delay - 0.5)
            assert len(daemon.reactor.children) == count - 1
            assert len(daemon.supervisor.workers) == 1
        daemon.reactor.advance(0.5)
        assert len(daemon.reactor.children) == count
    [_, worker] = daemon.supervisor.workers
    assert (worker.number, worker.restarts, worker.ready) == (2, 4, False)
    assert daemon.heard[2:] == ["2 gone"] * 4
    daemon.reactor.goes_on(70)
    daemon.ready(-1)
    daemon.reactor.children[-1].ended(signal.SIGKILL)
    daemon.reactor.advance(0)
    assert len(daemon.reactor.children) == 7


def test_a_process_that_cannot_be_started_is_tried_again() -> None:
    daemon = started()
    daemon.reactor.impossible = True
    daemon.reactor.children[0].ended(signal.SIGKILL)
    daemon.reactor.advance(0)
    daemon.reactor.advance(1)
    assert [worker.number for worker in daemon.supervisor.workers] == [2]
    daemon.reactor.impossible = False
    daemon.reactor.advance(2)
    assert [worker.restarts for worker in daemon.supervisor.workers] == [3, 0]
    assert not daemon.failures


def test_who_is_silent_is_killed_and_replaced() -> None:
    daemon = started()
    first, second = daemon.reactor.children
    daemon.reactor.goes_on(20)
    assert len(first.asked) == 10 and not first.signals
    first.answers = False
    daemon.reactor.goes_on(10)
    assert not first.signals
    daemon.reactor.goes_on(4)
    assert first.signals == [signal.SIGKILL] and not second.signals
    assert len(daemon.reactor.children) == 3
    assert first.asked.count("ping") == 11, "one question at a time"


def test_who_does_not_get_ready_is_killed_after_a_minute() -> None:
    daemon = started(ready=False)
    daemon.ready(0)
    daemon.reactor.goes_on(60)
    second = daemon.reactor.children[1]
    assert not second.signals and not second.asked
    daemon.reactor.goes_on(3)
    assert second.signals == [signal.SIGKILL]


def test_a_daemon_that_was_stopped_and_goes_on_kills_nobody() -> None:
    daemon = started()
    for _ in range(3):
        daemon.reactor.goes_on(9)
        daemon.reactor.advance(3600)
        daemon.reactor.flush()
    assert [child.signals for child in daemon.reactor.children] == [[], []]


def test_no_worker_that_ever_gets_ready_is_the_end() -> None:
    daemon = started(ready=False)
    first, second = daemon.reactor.children
    first.protocol.childDataReceived(2, b"cannot listen: no permission\n")
    first.ended(None)
    second.ended(None)
    daemon.reactor.advance(60)
    assert daemon.failures == ["cannot serve"] and len(daemon.reactor.children) == 2


def test_one_that_does_not_get_ready_beside_others_is_tried_again() -> None:
    daemon = started(ready=False)
    daemon.ready(0)
    daemon.reactor.children[1].ended(None)
    daemon.reactor.advance(0)
    assert not daemon.failures and len(daemon.reactor.children) == 3


def test_lines_of_workers_are_written_as_a_whole() -> None:
    daemon = started()
    first, second = (child.protocol for child in daemon.reactor.children)
    first.childDataReceived(1, b"one\ntw")
    second.childDataReceived(1, b"three\n")
    first.childDataReceived(1, b"o\nfour")
    assert daemon.written == [b"one\n", b"three\n", b"two\n"]
    daemon.reactor.children[0].ended(signal.SIGKILL)
    assert daemon.written[3:] == [b"four\n"]


def test_lines_are_read_together() -> None:
    daemon = started()
    [child, _] = daemon.reactor.children
    child.protocol.childDataReceived(1, b"x" * 8191 + b"\n")
    assert child.reads, "there is more"
    child.protocol.childDataReceived(1, b"end\n")
    assert not child.reads
    daemon.reactor.advance(0.02)
    assert child.reads


# --- asking


class Count(amp.Command):
    """A question of a feature."""

    response: ClassVar[Any] = ((b"count", amp.Integer()),)


class Counting(amp.CommandLocator):
    def __init__(self, number: int) -> None:
        amp.CommandLocator.__init__(self)
        self.number = number

    @Count.responder
    def count(self) -> Json:
        if self.number == 3:
            raise KeyError("a fault")
        return {"count": self.number}


def result(coroutine: Any) -> list[Any]:
    results: list[Any] = []
    Deferred.fromCoroutine(coroutine).addBoth(results.append)
    return results


def test_those_that_answer_in_time_are_told() -> None:
    daemon = started(4)
    for child, number in zip(daemon.reactor.children, (1, 2, 3), strict=False):
        child.link.answer_with(Counting(number))
    answers = result(daemon.supervisor.ask_all(Count, 5))
    daemon.reactor.flush()
    assert answers == [{1: {"count": 1}, 2: {"count": 2}}], "3 fails, 4 does not know it"


def test_who_does_not_answer_in_time_is_left_out() -> None:
    daemon = started()
    daemon.reactor.children[0].answers = False
    answers = result(daemon.supervisor.ask_all(Reload, 3))
    daemon.reactor.flush()
    assert answers == []
    daemon.reactor.goes_on(5)
    assert answers == [{2: {}}]


def test_who_is_not_ready_or_gone_is_not_asked() -> None:
    daemon = started(3, ready=False)
    daemon.ready(0, 1)
    daemon.reactor.children[0].ended(signal.SIGKILL)
    answers = result(daemon.supervisor.ask_all(Reload, 3))
    daemon.reactor.flush()
    assert answers == [{2: {}}]


def test_a_worker_may_ask_its_parent() -> None:
    daemon = started(2, locators=lambda worker: [Counting(worker.number)])
    asking: Any = daemon.reactor.children[1].link.callRemote
    answers: list[Any] = []
    asking(Count).addCallback(answers.append)
    daemon.reactor.flush()
    assert answers == [{"count": 2}]


def test_all_read_again() -> None:
    daemon = started()
    done = daemon.supervisor.reload()
    assert not done.called
    daemon.reactor.flush()
    assert done.called
    assert [child.asked for child in daemon.reactor.children] == [["reload"], ["reload"]]


# --- the end


def stopping(daemon: Daemon) -> Callable[[], bool]:
    stopped = daemon.supervisor.stopService()
    daemon.reactor.flush()
    return lambda: bool(stopped.called)


def test_it_stops_when_all_have_ended() -> None:
    daemon = started()
    first, second = daemon.reactor.children
    second.ends = False
    has_stopped = stopping(daemon)
    assert daemon.supervisor.draining and not daemon.ports.open and not has_stopped()
    assert (first.asked, second.asked) == (["stop"], ["stop"])
    second.ended()
    assert has_stopped() and len(daemon.reactor.children) == 2
    assert not pending_calls(daemon.reactor)


def test_who_does_not_end_is_killed() -> None:
    daemon = started()
    for child in daemon.reactor.children:
        child.ends = False
    has_stopped = stopping(daemon)
    daemon.reactor.goes_on(34)
    assert not has_stopped()
    daemon.reactor.goes_on(2)
    assert has_stopped()
    assert [child.signals for child in daemon.reactor.children] == [[signal.SIGKILL]] * 2


def test_nobody_is_waited_for_after_a_second_signal() -> None:
    daemon = started()
    first, second = daemon.reactor.children
    first.ends = second.ends = False
    has_stopped = stopping(daemon)
    daemon.supervisor.stop_now()
    daemon.reactor.flush()
    assert first.asked == ["stop", "stop now"]
    first.ended()
    daemon.reactor.advance(0.8)
    assert has_stopped() and second.signals == [signal.SIGKILL]


def test_who_is_about_to_be_replaced_is_not_when_it_stops() -> None:
    daemon = started()
    daemon.reactor.children[1].ended(signal.SIGKILL)
    has_stopped = stopping(daemon)
    assert has_stopped()
    daemon.reactor.advance(100)
    assert len(daemon.reactor.children) == 2


def test_who_cannot_be_told_to_stop_gets_a_signal() -> None:
    daemon = started()
    [first, _] = daemon.supervisor.workers
    assert isinstance(first, Worker)
    transport: Any = daemon.reactor.children[0].link.transport
    transport.loseConnection()
    daemon.reactor.flush()
    stopping(daemon)
    assert daemon.reactor.children[0].signals == [signal.SIGTERM]
