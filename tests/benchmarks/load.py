"""The load: clients that ask again as soon as they are answered."""

import contextlib
import select
import socket
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Final

import attrs

from .http1 import request, wanted
from .meter import Run
from .sockets import Connection

LIMIT: Final = 30.0
"""Seconds without a byte after which a server counts as dead."""
_SHARE: Final = 0.25
"""The part of a run's length that comes before it, for warming up."""


class Failed(Exception):
    """A server answered otherwise than it should, or not at all."""


@attrs.define
class Tally:
    """What the clients of a crowd have seen so far."""

    answers: int = 0
    waits: list[float] = attrs.Factory(list)
    """Seconds that each answer took."""


def crowd(
    port: int,
    asked: bytes,
    connections: int,
    seconds: float,
    read: Callable[[int], Run],
) -> tuple[Run, Tally]:
    """What a server spent while `connections` clients asked for `seconds`, and all that was seen.

    The latter has the answers before and after that time, too. `read` reads the meters,
    given the number of answers so far.
    """
    tally = Tally()
    with contextlib.ExitStack() as open_, select.epoll() as epoll:
        clients = {}
        sent = {}
        for _ in range(connections):
            client = Connection(open_.enter_context(connect(port)), epoll)
            clients[client.socket.fileno()] = client
            sent[client] = perf_counter()
            client.send(asked)

        def ask_until(moment: float) -> None:
            while perf_counter() < moment:
                hear(again=True)

        def hear(again: bool) -> None:
            for descriptor, event in epoll.poll(LIMIT) or _dead():
                client = clients[descriptor]
                if event & select.EPOLLOUT:
                    client.flush()
                if event != select.EPOLLOUT and _good(client.messages()):
                    now = perf_counter()
                    tally.answers += 1
                    tally.waits.append(now - sent.pop(client))
                    if again:
                        sent[client] = now
                        client.send(asked)

        ask_until(perf_counter() + _SHARE * seconds)
        before = read(tally.answers)
        ask_until(perf_counter() + seconds)
        spent = read(tally.answers) - before
        while sent:
            hear(again=False)
        return spent, tally


def alone(
    port: int,
    asked: bytes,
    seconds: float,
    fewest: int = 3,
    less: Callable[[], float] = lambda: 0.0,
) -> list[float]:
    """Seconds that each request took of one client that asks one after the other.

    For so many seconds, and at least `fewest` of them, after some to warm up. `less` tells after
    each answer how many of its seconds do not count.
    """
    waits: list[float] = []
    with connect(port) as client, select.epoll() as epoll:
        connection = Connection(client, epoll)
        began = perf_counter()
        warmed = began + _SHARE * seconds
        now = began
        while now < warmed + seconds or len(waits) < fewest:
            sent = perf_counter()
            connection.send(asked)
            while not (answers := connection.messages()):
                _good(answers)
                for _, event in epoll.poll(LIMIT) or _dead():
                    if event & select.EPOLLOUT:
                        connection.flush()
            _good(answers)
            now = perf_counter()
            wait = now - sent - less()
            if sent >= warmed or now - sent > seconds:
                waits.append(wait)
    return waits


def milliseconds(waits: list[float]) -> float:
    """The median of seconds, in milliseconds."""
    return median(waits) * 1000


def download(port: int, path: str) -> tuple[int, float]:
    """Bytes of an answer, and the seconds from the request to the last of them."""
    buffer = bytearray(1024 * 1024)
    with connect(port) as client:
        began = perf_counter()
        client.sendall(request("GET", path))
        received = client.recv(65536)
        _good([received])
        length = wanted(received)
        had = len(received)
        while had < length:
            if not (got := client.recv_into(buffer)):
                raise Failed(f"{had} of {length} bytes")
            had += got
        return had, perf_counter() - began


def connect(port: int) -> socket.socket:
    """A connection to a server of this machine."""
    return socket.create_connection(("127.0.0.1", port), LIMIT)


def _good(answers: list[bytes] | None) -> list[bytes]:
    if answers is None:
        raise Failed("a connection was closed")
    for answer in answers:
        if not answer.startswith(b"HTTP/1.1 200"):
            raise Failed(answer[:200].decode("latin-1"))
    return answers


def _dead() -> list[tuple[int, int]]:
    raise Failed(f"no answer in {LIMIT:g} s")
