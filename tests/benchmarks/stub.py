"""A stand-in for Llama Stack 0.6.1 that answers from canned bytes, to be far faster than a proxy.

Run as ``python -m tests.benchmarks.stub PORT [TOOLS]``. What a chat gets is in its text and fields:
``[call 2]`` two rounds of one call each, ``[parallel 3]`` three calls at once of 50 ms each,
``[burst]`` a stream whose 103 events are all there at once; otherwise a stream of `max_tokens`
events, `seed` milliseconds apart, or, if that is 0, an event whenever ``GET /stub/next`` asks for
it. ``GET /big`` is a large body, ``GET /stub/counts`` tells what has been asked.

It is one loop over epoll, as an event loop of a library would cost more than the answers.
"""

import heapq
import re
import sys
from collections import Counter
from time import perf_counter
from typing import Final

from . import canned
from .http1 import head, response
from .sockets import Connection, Loop

INTERVAL: Final = 20
"""Milliseconds between two events of a stream, unless its request says otherwise."""
SLOW: Final = 0.050
"""Seconds that each of several calls at once takes."""
BIG: Final = 256 * 1024 * 1024
"""Bytes of the large body."""

_STREAM: Final = re.compile(rb'"stream":\s*true')
_TOOL_MESSAGE: Final = re.compile(rb'"role":\s*"tool"')
_WORDS: Final = re.compile(rb'"max_tokens":\s*(\d+)')
_SEED: Final = re.compile(rb'"seed":\s*(\d+)')
_CALLS: Final = re.compile(rb"\[(call|parallel) (\d+)\]")
_TARGET_END: Final = re.compile(rb"[ ?]")

_CHAT: Final = b"POST /v1/chat/completions "
_INVOKE: Final = b"POST /v1/tool-runtime/invoke "
_BIG: Final = memoryview(bytes(BIG))
_ANSWER: Final = response(canned.ANSWER)
_CALL: Final = response(canned.calls(1))
_RESULT: Final = response(canned.RESULT)
_NOT_FOUND: Final = response(canned.NOT_FOUND, "404 Not Found")


class Stub(Loop):
    """The connections, and what is due on them."""

    def __init__(self, port: int, tools: int) -> None:
        super().__init__(port)
        self._counts: Counter[str] = Counter()
        self._slowest = 0.0
        self._slow = False
        self._due: list[tuple[float, int, Connection, float]] = []
        self._words: dict[Connection, tuple[int, float]] = {}
        listed = response(canned.tools(tools))
        self._fixed = {
            b"GET /v1/health": response(canned.HEALTH),
            b"GET /health": response(canned.HEALTH),
            b"GET /v1/version": response(canned.VERSION),
            b"GET /v1/tools": listed,
            b"GET /v1/tool-runtime/list-tools": listed,
            b"GET /v1/toolgroups": response(canned.TOOLGROUPS),
        }

    def wait(self) -> float:
        """Seconds until something is due; what is due by now is done."""
        now = perf_counter()
        while self._due and self._due[0][0] <= now:
            _, _, connection, received = heapq.heappop(self._due)
            if connection.closed:
                continue
            if received:
                self._slowest = max(self._slowest, now - received)
                connection.send(_RESULT)
            else:
                self._say(connection)
        return self._due[0][0] - now if self._due else -1

    def lost(self, connection: Connection) -> None:
        self._words.pop(connection, None)

    def answer(self, connection: Connection, asked: bytes) -> None:
        if asked.startswith(_CHAT):
            self._complete(connection, asked)
        elif asked.startswith(_INVOKE):
            self._counts["invocations"] += 1
            if self._slow:
                now = perf_counter()
                self._later(SLOW, connection, now)
            else:
                connection.send(_RESULT)
        elif asked.startswith(b"GET /big "):
            connection.send(head(BIG))
            connection.send(_BIG)
        elif asked.startswith(b"GET /stub/"):
            self._told(connection, asked)
        else:
            self._counts["others"] += 1
            method, _, rest = asked.partition(b" ")
            path = _TARGET_END.split(rest, maxsplit=1)[0]
            connection.send(self._fixed.get(method + b" " + path, _NOT_FOUND))

    def _told(self, connection: Connection, asked: bytes) -> None:
        if asked.startswith(b"GET /stub/next "):
            for stream in tuple(self._words):
                self._say(stream)
        counts = self._counts | {"streams": len(self._words), "slowest_us": self._slowest * 1e6}
        self._slowest = 0.0
        connection.send(response(canned.compact(counts)))

    def _complete(self, connection: Connection, asked: bytes) -> None:
        self._counts["completions"] += 1
        self._counts["tools"] += asked.count(b'"parameters"')
        calls = _CALLS.search(asked)
        if _STREAM.search(asked):
            self._stream(connection, asked)
        elif calls is None:
            connection.send(_ANSWER)
        elif calls[1] == b"parallel" and not _TOOL_MESSAGE.search(asked):
            self._slow = True
            connection.send(response(canned.calls(int(calls[2]))))
        elif calls[1] == b"call" and len(_TOOL_MESSAGE.findall(asked)) < int(calls[2]):
            self._slow = False
            connection.send(_CALL)
        else:
            connection.send(_ANSWER)

    def _stream(self, connection: Connection, asked: bytes) -> None:
        if b"[burst]" in asked:
            connection.send(canned.BURST)
            return
        words, seed = _WORDS.search(asked), _SEED.search(asked)
        interval = (int(seed[1]) if seed else INTERVAL) / 1000
        self._words[connection] = int(words[1]) if words else 50, interval
        connection.send(canned.STREAM_HEAD + canned.FIRST_EVENT)
        if interval:
            self._later(interval, connection)

    def _say(self, connection: Connection) -> None:
        words, interval = self._words[connection]
        if words:
            self._words[connection] = words - 1, interval
            connection.send(canned.CONTENT_EVENT)
            # Timed from this one: a late stub slows down, it never sends two events together,
            # which a proxy could relay for the price of one.
            if interval:
                self._later(interval, connection)
        else:
            connection.send(canned.LAST_EVENT)
            del self._words[connection]

    def _later(self, seconds: float, connection: Connection, received: float = 0.0) -> None:
        self._number += 1
        entry = perf_counter() + seconds, self._number, connection, received
        heapq.heappush(self._due, entry)

    _number = 0


if __name__ == "__main__":
    Stub(int(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else canned.TOOL_COUNT).run()
