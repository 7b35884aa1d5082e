"""The load: clients that ask again as soon as they are answered, and clients that listen."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from time import perf_counter

import attrs

from .canned import WORD
from .http1 import whole


@attrs.define
class Tally:
    """What the connections of one run have seen so far."""

    answers: int = 0
    failures: int = 0
    waits: list[float] = attrs.Factory(list)
    """Seconds from a request to the end of its answer, one for each answer."""
    over: bool = False


class ClientContext(asyncio.Protocol):
    """One keep-alive connection that repeats one request."""

    _transport: asyncio.Transport

    def __init__(self, request: bytes, tally: Tally) -> None:
        self._request = request
        self._tally = tally
        self._received = b""
        self._sent = 0.0
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def data_received(self, received: bytes) -> None:
        received = self._received + received if self._received else received
        if not whole(received):
            self._received = received
            return
        self._received = b""
        self._tally.waits.append(perf_counter() - self._sent)
        if received.startswith(b"HTTP/1.1 200"):
            self._tally.answers += 1
        else:
            self._tally.failures += 1
        if self._tally.over:
            self._transport.close()
        else:
            self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._tally.over:
            self._tally.failures += 1
        self.closed.set_result(None)

    def _ask(self) -> None:
        self._sent = perf_counter()
        self._transport.write(self._request)


@contextlib.asynccontextmanager
async def calling(port: int, request: bytes, connections: int) -> AsyncIterator[Tally]:
    """Keep `connections` connections busy with `request`; on leaving, wait for the last answers.

    A connection that breaks is counted as a failure and not replaced.
    """
    loop = asyncio.get_running_loop()
    tally = Tally()
    callers = []
    for _ in range(connections):
        _, caller = await loop.create_connection(
            lambda: ClientContext(request, tally), "127.0.0.1", port
        )
        callers.append(caller.closed)
    try:
        yield tally
    finally:
        tally.over = True
        await _limited(callers)


@attrs.define
class Heard:
    """What the streams of one run have brought so far."""

    started: int = 0
    """Streams that have brought a word."""
    words: int = 0
    """Content events."""
    ended: int = 0
    """Streams that came to their end with a `[DONE]`."""


class Listener(asyncio.Protocol):
    """One connection that asks for one stream and counts its events."""

    _transport: asyncio.Transport

    def __init__(self, request: bytes, heard: Heard) -> None:
        self._request = request
        self._heard = heard
        self._tail = b""
        self._silent = True
        self._done = False
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, received: bytes) -> None:
        joined = self._tail + received
        # One byte short of a word, so that a split word counts, and none counts twice.
        self._tail = joined[1 - len(WORD) :]
        words = joined.count(WORD)
        self._heard.words += words
        if words and self._silent:
            self._silent = False
            self._heard.started += 1
        self._done = self._done or b"[DONE]" in joined
        if joined.endswith(b"\n0\r\n\r\n"):
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._heard.ended += self._done
        self.closed.set_result(None)


@contextlib.asynccontextmanager
async def listening(port: int, request: bytes, streams: int) -> AsyncIterator[Heard]:
    """Open `streams` streams at once; on leaving, wait for their ends."""
    loop = asyncio.get_running_loop()
    heard = Heard()
    listeners = []
    for _ in range(streams):
        _, listener = await loop.create_connection(
            lambda: Listener(request, heard), "127.0.0.1", port
        )
        listeners.append(listener.closed)
    try:
        yield heard
    finally:
        await _limited(listeners)


async def _limited(closed: Iterable[asyncio.Future[None]], seconds: float = 30) -> None:
    """Wait for connections to close, but not for ever: what stays open is missing in the counts."""
    await asyncio.wait(closed, timeout=seconds)
