"""A stand-in for Llama Stack 0.6.1 that answers from canned bytes, to be far faster than a proxy.

Run as ``python -m tests.benchmarks.stub PORT [SECONDS]``, these between two events of a stream; 0
stands for an event of each stream whenever it is asked for ``GET /stub/next``. ``GET /stub/counts``
tells what it has been asked.
"""

import asyncio
import re
import sys
from collections import Counter
from typing import Final

from . import canned
from .http1 import response, whole

INTERVAL: Final = 0.020
"""Seconds between two events of a stream, unless the command says otherwise."""

_STREAM: Final = re.compile(rb'"stream":\s*true')
_TOOL_MESSAGE: Final = re.compile(rb'"role":\s*"tool"')
_WORDS: Final = re.compile(rb'"max_tokens":\s*(\d+)')

_COUNTS: Final = b"GET /stub/counts "
_NEXT: Final = b"GET /stub/next "
_CHAT: Final = b"POST /v1/chat/completions "
_INVOKE: Final = b"POST /v1/tool-runtime/invoke "
_TARGET_END: Final = re.compile(rb"[ ?]")
_FIXED: Final = {
    b"GET /v1/health": response(canned.HEALTH),
    b"GET /health": response(canned.HEALTH),
    b"GET /v1/version": response(canned.VERSION),
    b"GET /v1/tools": response(canned.TOOLS),
    b"GET /v1/tool-runtime/list-tools": response(canned.TOOLS),
    b"GET /v1/toolgroups": response(canned.TOOLGROUPS),
}
_ANSWER: Final = response(canned.ANSWER)
_CALL: Final = response(canned.CALL)
_RESULT: Final = response(canned.RESULT)
_NOT_FOUND: Final = response(canned.NOT_FOUND, "404 Not Found")


class Stub(asyncio.Protocol):
    """One connection, on which requests come one after the other."""

    _transport: asyncio.Transport

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        counts: Counter[str],
        interval: float,
        streams: set["Stub"],
    ) -> None:
        self._loop = loop
        self._counts = counts
        self._interval = interval
        self._streams = streams
        self._received = b""
        self._words_left = 0
        self._next: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._counts["connections"] += 1

    def connection_lost(self, exc: Exception | None) -> None:
        if self._next is not None:
            self._next.cancel()
        self._streams.discard(self)

    def data_received(self, received: bytes) -> None:
        received = self._received + received if self._received else received
        while length := whole(received):
            self._answer(received[:length])
            received = received[length:]
        self._received = received

    def _answer(self, asked: bytes) -> None:
        if asked.startswith(_CHAT):
            self._complete(asked)
        elif asked.startswith(_INVOKE):
            self._counts["invocations"] += 1
            self._transport.write(_RESULT)
        elif asked.startswith(_COUNTS):
            self._transport.write(response(canned.compact(self._counts)))
        elif asked.startswith(_NEXT):
            for stream in tuple(self._streams):
                stream.say()
            self._transport.write(_FIXED[b"GET /health"])
        else:
            self._counts["others"] += 1
            method, _, rest = asked.partition(b" ")
            path = _TARGET_END.split(rest, maxsplit=1)[0]
            self._transport.write(_FIXED.get(method + b" " + path, _NOT_FOUND))

    def _complete(self, asked: bytes) -> None:
        self._counts["completions"] += 1
        self._counts["tools"] += asked.count(b'"parameters"')
        if _STREAM.search(asked):
            words = _WORDS.search(asked)
            self._words_left = int(words[1]) if words else 50
            self._transport.write(canned.STREAM_HEAD + canned.FIRST_EVENT)
            self._streams.add(self)
            self._wait()
        elif b"[call]" in asked and not _TOOL_MESSAGE.search(asked):
            self._transport.write(_CALL)
        else:
            self._transport.write(_ANSWER)

    def say(self) -> None:
        """Send the next event."""
        # It is timed from this one: a late stub slows down, it never sends two events together,
        # which a proxy could relay for the price of one.
        if self._words_left:
            self._words_left -= 1
            self._transport.write(canned.CONTENT_EVENT)
            self._wait()
        else:
            self._transport.write(canned.LAST_EVENT)
            self._streams.discard(self)

    def _wait(self) -> None:
        if self._interval:
            self._next = self._loop.call_later(self._interval, self.say)


async def serve(port: int, interval: float) -> None:
    """Answer on 127.0.0.1 until the process is ended."""
    loop = asyncio.get_running_loop()
    counts: Counter[str] = Counter()
    streams: set[Stub] = set()
    server = await loop.create_server(
        lambda: Stub(loop, counts, interval, streams), "127.0.0.1", port, backlog=1024
    )
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), float(sys.argv[2]) if sys.argv[2:] else INTERVAL))
