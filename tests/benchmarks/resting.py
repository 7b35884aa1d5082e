"""What a daemon costs that does nothing: memory, and the time until it can do something."""

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Final

from . import load, streams
from .load import LIMIT, Failed, connect
from .processes import Server
from .works import CHAT, HEALTH, LOOP, Sample

CONNECTIONS: Final = 1000
STREAMS: Final = 500
_PACE: Final = 1000
"""Milliseconds between the events of those streams."""
_SETTLE: Final = 1.0
"""Seconds until memory is read."""
_WARM: Final = 0.5
"""Seconds of each kind of work before the memory of connections is looked at."""

Start = Callable[[str], AbstractContextManager[Server]]
"""Runs a program by its name, in a process of its own, for a block."""


def starting(name: str, start: Start) -> Sample:
    """Milliseconds from a process's start to its first answer."""
    began = time.perf_counter()
    with start(name):
        return {"start_ms": (time.perf_counter() - began) * 1000}


def resident(name: str, start: Start) -> Sample:
    """Memory of an idle process in MB; of an idle connection and of an open stream in kB."""
    with start(name) as server:
        time.sleep(_SETTLE)
        idle = server.memory()
        for asked in (HEALTH, CHAT, LOOP):
            load.alone(server.port, asked, _WARM)
        return {
            "idle_mb": idle,
            "connection_kb": _each(server, _connections, CONNECTIONS),
            "stream_kb": _each(server, _streams, STREAMS),
        }


def _each(
    server: Server, held: Callable[[int, int], AbstractContextManager[None]], count: int
) -> float:
    # Some have been there before: what the allocator keeps of them belongs to none.
    with held(server.port, count // 10):
        pass
    time.sleep(_SETTLE)
    before = server.memory()
    with held(server.port, count):
        time.sleep(_SETTLE)
        return (server.memory() - before) * 1000 / count


@contextlib.contextmanager
def _connections(port: int, count: int) -> Iterator[None]:
    with contextlib.ExitStack() as open_:
        for _ in range(count):
            client = open_.enter_context(connect(port))
            client.sendall(HEALTH)
            if not client.recv(65536).startswith(b"HTTP/1.1 200"):
                raise Failed("no answer on a connection")
        yield


@contextlib.contextmanager
def _streams(port: int, count: int) -> Iterator[None]:
    late = time.perf_counter() + LIMIT
    with streams.listening(port, count, _PACE) as listeners:
        listeners.hear(lambda: len(listeners.first) == count or time.perf_counter() > late)
        yield
