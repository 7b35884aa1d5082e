"""Bodies: read under limits, paused while nobody reads, ended when somebody leaves."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone, ResponseFailed
from twisted.web.http import PotentialDataLoss

from llamaproxy.errors import BodyTooLarge, UpstreamBroke, UpstreamTimeout
from llamaproxy.upstream.relay import (
    DRAIN_SECONDS,
    HIGH_WATER_BYTES,
    BodyStream,
    Relay,
    body_of,
    read_body,
)
from tests.support import outcome, pending_calls

DONE = Failure(ResponseDone())
CUT = Failure(ResponseFailed([Failure(ConnectionLost())]))


# --- BodyStream


class Connection:
    """The upstream's transport, as a body protocol sees it."""

    def __init__(self) -> None:
        self.paused = False
        self.closed = False

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False

    def loseConnection(self) -> None:
        self.closed = True


class Reading:
    """A response whose body the test sends."""

    def __init__(self, silence: float = 5) -> None:
        self.clock = Clock()
        self.connection = Connection()
        self.stream = body_of(self, self.clock, silence)

    def deliverBody(self, protocol: BodyStream) -> None:
        transport: Any = self.connection
        receiver: Any = protocol
        receiver.makeConnection(transport)

    def next(self) -> Deferred[bytes]:
        return Deferred.fromCoroutine(self.stream.__anext__())

    def close(self) -> None:
        outcome(Deferred.fromCoroutine(self.stream.aclose()))


def test_bytes_come_when_they_are_there() -> None:
    body = Reading()
    body.stream.dataReceived(b"a")
    body.stream.dataReceived(b"b")
    assert outcome(body.next()) == b"ab"
    reading = body.next()
    assert not reading.called
    body.stream.dataReceived(b"c")
    assert outcome(reading) == b"c"


def test_what_has_come_is_read_before_the_end() -> None:
    for reason, end in ((DONE, StopAsyncIteration), (CUT, UpstreamBroke)):
        body = Reading()
        body.stream.dataReceived(b"a")
        body.stream.connectionLost(reason)
        assert outcome(body.next()) == b"a"
        with pytest.raises(end):
            outcome(body.next())


@pytest.mark.parametrize(
    ("reason", "end"),
    [
        (DONE, StopAsyncIteration),
        (Failure(PotentialDataLoss()), StopAsyncIteration),
        (CUT, UpstreamBroke),
    ],
)
def test_the_end_reaches_one_who_waits(reason: Failure, end: type[Exception]) -> None:
    body = Reading()
    reading = body.next()
    body.stream.connectionLost(reason)
    with pytest.raises(end):
        outcome(reading)
    assert pending_calls(body.clock) == []


def test_the_connection_is_paused_while_nobody_reads() -> None:
    body = Reading()
    body.stream.dataReceived(b"x" * HIGH_WATER_BYTES)
    assert not body.connection.paused
    body.stream.dataReceived(b"x")
    assert body.connection.paused
    assert len(outcome(body.next())) == HIGH_WATER_BYTES + 1
    assert not body.connection.paused


def test_silence_counts_only_while_somebody_waits() -> None:
    body = Reading(silence=5)
    body.clock.advance(100)
    body.stream.dataReceived(b"a")
    outcome(body.next())
    body.clock.advance(100)
    reading = body.next()
    body.clock.advance(4)
    assert not reading.called
    body.clock.advance(1)
    with pytest.raises(UpstreamTimeout):
        outcome(reading)
    assert body.connection.closed


def test_a_slow_reader_is_no_silence() -> None:
    body = Reading(silence=5)
    for _ in range(3):
        reading = body.next()
        body.clock.advance(4)
        body.stream.dataReceived(b"a")
        assert outcome(reading) == b"a"
        body.clock.advance(4)
    assert not body.connection.closed


def test_closing_closes_the_connection_unless_the_body_has_ended() -> None:
    body = Reading()
    body.close()
    assert body.connection.closed
    body.stream.connectionLost(CUT)
    ended = Reading()
    ended.stream.connectionLost(DONE)
    ended.close()
    assert not ended.connection.closed


def test_one_who_is_cancelled_may_read_on() -> None:
    body = Reading()
    reading = body.next()
    reading.cancel()
    with pytest.raises(CancelledError):
        outcome(reading)
    body.stream.dataReceived(b"a")
    assert outcome(body.next()) == b"a"


def test_draining_lets_the_body_end_by_itself() -> None:
    body = Reading()
    body.stream.drain()
    body.close()
    body.stream.dataReceived(b"x" * HIGH_WATER_BYTES * 2)
    assert not body.connection.paused
    body.stream.connectionLost(DONE)
    body.clock.advance(DRAIN_SECONDS * 2)
    assert not body.connection.closed


def test_draining_ends_after_a_moment() -> None:
    body = Reading()
    body.stream.drain()
    body.close()
    body.clock.advance(DRAIN_SECONDS)
    assert body.connection.closed


def test_draining_a_paused_connection_lets_it_go_on() -> None:
    body = Reading()
    body.stream.dataReceived(b"x" * HIGH_WATER_BYTES * 2)
    assert body.connection.paused
    body.stream.drain()
    assert not body.connection.paused


def test_a_whole_body_has_a_limit() -> None:
    for limit, enough in ((6, True), (5, False)):
        response = _Received([b"abc", b"def"])
        reading = Deferred.fromCoroutine(read_body(response, Clock(), 5, limit))
        if enough:
            assert outcome(reading) == b"abcdef"
        else:
            with pytest.raises(BodyTooLarge):
                outcome(reading)


class _Received:
    def __init__(self, parts: list[bytes]) -> None:
        self._parts = parts

    def deliverBody(self, protocol: BodyStream) -> None:
        transport: Any = Connection()
        receiver: Any = protocol
        receiver.makeConnection(transport)
        for part in self._parts:
            protocol.dataReceived(part)
        protocol.connectionLost(DONE)


def test_a_body_that_is_as_good_as_finished_is_read_to_its_end() -> None:
    full: Deferred[None] = Deferred()
    clock = Clock()
    connection: Any = Connection()
    relay: Any = Relay(lambda data: full, clock, 5)
    relay.makeConnection(connection)
    relay.dataReceived(b"a")
    assert connection.paused
    relay.release()
    assert outcome(relay.finished) is None
    assert not connection.paused
    relay.connectionLost(DONE)
    assert pending_calls(clock) == []
