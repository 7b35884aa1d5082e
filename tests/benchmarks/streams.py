"""The load of streams: clients that listen at once, until there has been enough to hear."""

import contextlib
import select
import socket
from collections.abc import Callable, Iterator
from statistics import median
from time import perf_counter
from typing import Final

import attrs

from .canned import WORD, chat
from .http1 import request
from .load import LIMIT, Failed, connect
from .meter import Run

_EVENT: Final = b"data: "
_READ: Final = 256 * 1024
_MANY: Final = 1_000_000
"""Events of a stream that nobody hears to its end."""


@attrs.define
class Listeners:
    """Streams that are being heard."""

    epoll: select.epoll
    sockets: dict[int, socket.socket]
    words: int = 0
    """Content events so far."""
    first: dict[int, float] = attrs.Factory(dict)
    """When the first event of a stream came, by its descriptor."""

    def hear(self, over: Callable[[], bool]) -> None:
        """Hear the streams until `over`, which is asked after each look at what has come."""
        while not over():
            ready = self.epoll.poll(LIMIT)
            if not ready:
                raise Failed(f"no event in {LIMIT:g} s")
            for descriptor, _ in ready:
                received = self.sockets[descriptor].recv(_READ)
                if not received:
                    raise Failed("a stream ended")
                # No peer splits events, as each of them is one small write; where one that is
                # slow has them joined and cut, a word in thousands may be missed.
                self.words += received.count(WORD)
                if descriptor not in self.first and _EVENT in received:
                    self.first[descriptor] = perf_counter()


@contextlib.contextmanager
def listening(port: int, streams: int, milliseconds: int) -> Iterator[Listeners]:
    """Open streams whose events are so far apart; all requests are sent at once."""
    asked = request(
        "POST",
        "/v1/chat/completions",
        chat("Tell me.", stream=True, max_tokens=_MANY, seed=milliseconds),
    )
    with contextlib.ExitStack() as open_, select.epoll() as epoll:
        sockets = {}
        for _ in range(streams):
            client = open_.enter_context(connect(port))
            epoll.register(client, select.EPOLLIN)
            sockets[client.fileno()] = client
        for client in sockets.values():
            client.sendall(asked)
        yield Listeners(epoll, sockets)


def heard(
    port: int, streams: int, milliseconds: int, seconds: float, read: Callable[[int], Run]
) -> tuple[Run, float]:
    """What a server spent while all streams flowed, and the median seconds to a first event."""
    began = perf_counter()
    with listening(port, streams, milliseconds) as listeners:
        sent = perf_counter()
        late = began + LIMIT

        def started() -> bool:
            return len(listeners.first) == streams or perf_counter() > late

        listeners.hear(started)
        if len(listeners.first) < streams:
            raise Failed(f"{len(listeners.first)} of {streams} streams began in {LIMIT:g} s")
        first = median(listeners.first.values()) - sent
        before = read(listeners.words)
        end = perf_counter() + seconds
        listeners.hear(lambda: perf_counter() > end)
        return read(listeners.words) - before, first
