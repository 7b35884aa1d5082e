"""Response bodies: read under limits, or relayed to a client no faster than it reads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from zope.interface import implementer

from llamaproxy.errors import BodyTooLarge, UpstreamBroke, UpstreamTimeout
from llamaproxy.watchdog import Watchdog

#: Bytes that may wait for a slow reader before the sender is paused.
HIGH_WATER_BYTES = 64 * 1024

#: Seconds in which a body that is not needed any more may still end by itself.
DRAIN_SECONDS = 1.0

#: What is said of an upstream that has begun to answer and does not go on.
SILENT = "Llama Stack stopped sending in the middle of its answer."


class BodyStream(Protocol):
    """A response body as an async iterator, which pauses its connection while nobody reads.

    Ends with :class:`UpstreamBroke` if the body was cut short, and :class:`UpstreamTimeout` if
    the peer was silent for longer than *silence* seconds while somebody waited.
    """

    def __init__(self, clock: IReactorTime, silence: float) -> None:
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._paused = False
        self._end: Exception | None = None
        self._waiter: Deferred[None] | None = None
        self._silence = Watchdog(clock, silence, self._silent)
        self._drain = Watchdog(clock, DRAIN_SECONDS, lambda: self._producer.loseConnection())
        self._draining = False

    def dataReceived(self, data: bytes) -> None:
        if self._draining:
            return
        self._chunks.append(data)
        self._size += len(data)
        if self._size > HIGH_WATER_BYTES and not self._paused:
            self._paused = True
            self._producer.pauseProducing()
        self._wake()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._end is None:
            clean = reason.check(ResponseDone, PotentialDataLoss)
            self._end = StopAsyncIteration() if clean else UpstreamBroke()
        self._silence.stop()
        self._drain.stop()
        self._wake()

    def __aiter__(self) -> BodyStream:
        return self

    async def __anext__(self) -> bytes:
        while not self._chunks:
            if self._end is not None:
                raise self._end
            self._waiter = Deferred()
            self._silence.start()
            try:
                await self._waiter
            finally:
                self._waiter = None
        data = b"".join(self._chunks) if len(self._chunks) > 1 else self._chunks[0]
        self._chunks.clear()
        self._size = 0
        if self._paused:
            self._paused = False
            self._producer.resumeProducing()
        return data

    async def aclose(self) -> None:
        """Close the connection, unless the body has ended."""
        self._silence.stop()
        if self._end is None and not self._draining:
            self._end = UpstreamBroke()
            self._producer.loseConnection()

    def drain(self) -> None:
        """Drop what comes until the end, for at most :data:`DRAIN_SECONDS`."""
        self._draining = True
        if self._end is None:
            self._drain.start()
            if self._paused:
                self._paused = False
                self._producer.resumeProducing()

    @property
    def _producer(self) -> Any:
        return self.transport

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.callback(None)

    def _silent(self) -> None:
        if self._waiter is not None:
            self._end = UpstreamTimeout(SILENT)
            self._producer.loseConnection()
            self._wake()


def body_of(response: Any, clock: IReactorTime, silence: float) -> BodyStream:
    """The body of *response*; iterate inside :func:`contextlib.aclosing`.

    Leaving early closes the upstream connection.
    """
    stream = BodyStream(clock, silence)
    response.deliverBody(stream)
    return stream


def drop(data: bytes) -> None:
    """Nobody takes it any more."""


@implementer(IPushProducer)
class Relay(Protocol):
    """Delivers a response body as it comes, in the same turn of the reactor.

    *deliver* is called with bytes; it returns None, or a Deferred until which no more may come.
    ``finished`` fires when the body has ended, or fails: with what *deliver* raised, with
    :class:`UpstreamBroke` for a body that was cut short, with :class:`UpstreamTimeout` after
    *silence* seconds in which the upstream sent nothing though it could have. Cancelling it closes
    the upstream connection.
    """

    def __init__(
        self,
        deliver: Callable[[bytes], Deferred[None] | None],
        clock: IReactorTime,
        silence: float,
    ) -> None:
        self._deliver = deliver
        self._clock = clock
        self._silence = Watchdog(clock, silence, self._silent)
        self.finished: Deferred[None] = Deferred(lambda _: self.stopProducing())

    def connectionMade(self) -> None:
        self._silence.start()

    def dataReceived(self, data: bytes) -> None:
        if self.finished.called:
            return
        self._silence.feed()
        try:
            full = self._deliver(data)
        except Exception:
            self._end(Failure())
            self.stopProducing()
            return
        if full is not None and not self.finished.called:
            self.pauseProducing()
            full.addCallback(lambda _: self.resumeProducing())

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        clean = reason.check(ResponseDone, PotentialDataLoss)
        self._end(None if clean else Failure(UpstreamBroke()))

    def release(self) -> None:
        """Finish now, and drop what comes until the body's end, for at most :data:`DRAIN_SECONDS`.

        The connection of a body that was read to its end can be used again.
        """
        self._end(None)
        self._silence = Watchdog(self._clock, DRAIN_SECONDS, self.stopProducing)
        self._silence.start()
        cast(Any, self.transport).resumeProducing()

    def pauseProducing(self) -> None:
        # A client that does not read is no silence of the upstream.
        self._silence.stop()
        cast(Any, self.transport).pauseProducing()

    def resumeProducing(self) -> None:
        if not self.finished.called:
            self._silence.start()
            cast(Any, self.transport).resumeProducing()

    def stopProducing(self) -> None:
        self._let_go()
        cast(Any, self.transport).loseConnection()

    def _silent(self) -> None:
        self._end(Failure(UpstreamTimeout(SILENT)))
        self.stopProducing()

    def _end(self, failure: Failure | None) -> None:
        self._let_go()
        if not self.finished.called:  # else: cancelled, or it has ended before
            self.finished.callback(failure)

    def _let_go(self) -> None:
        """Nothing is delivered, and nothing waited for, any more.

        Who is called may refer to this: the garbage collector is left nothing to find.
        """
        self._silence.end()
        self._deliver = drop


async def read_body(response: Any, clock: IReactorTime, silence: float, limit: int) -> bytes:
    """The body of *response*, which may be silent for *silence* seconds.

    :raises BodyTooLarge: if it has more than *limit* bytes.
    """
    parts: list[bytes] = []
    size = 0

    def deliver(data: bytes) -> None:
        nonlocal size
        size += len(data)
        if size > limit:
            raise BodyTooLarge(f"The upstream's answer is larger than {limit} bytes.")
        parts.append(data)

    relay = Relay(deliver, clock, silence)
    response.deliverBody(relay)
    await relay.finished
    return b"".join(parts)
