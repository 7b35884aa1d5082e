"""The load: clients that ask again as soon as they are answered."""

import contextlib
import select
import socket
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Final

from .meter import Run
from .sockets import Connection

LIMIT: Final = 30.0
"""Seconds without a byte after which a server counts as dead."""
_SHARE: Final = 0.25
"""The part of a run's length that comes before it, for warming up."""


class Failed(Exception):
    """A server answered otherwise than it should, or not at all."""


def crowd(
    port: int, asked: bytes, connections: int, seconds: float, read: Callable[[int], Run]
) -> Run:
    """What a server spent while `connections` clients asked for `seconds`, after some to warm up.

    `read` reads the meters, given the number of answers so far.
    """
    with contextlib.ExitStack() as open_, select.epoll() as epoll:
        clients = {}
        for _ in range(connections):
            client = Connection(open_.enter_context(connect(port)), epoll)
            clients[client.socket.fileno()] = client
            client.send(asked)
        answers = 0

        def ask_until(moment: float) -> None:
            nonlocal answers
            while perf_counter() < moment:
                ready = epoll.poll(LIMIT)
                if not ready:
                    raise Failed(f"no answer in {LIMIT:g} s")
                for descriptor, event in ready:
                    client = clients[descriptor]
                    if event & select.EPOLLOUT:
                        client.flush()
                    if event == select.EPOLLOUT:
                        continue
                    for answer in _good(client.messages()):
                        if answer:
                            answers += 1
                            client.send(asked)

        ask_until(perf_counter() + _SHARE * seconds)
        before = read(answers)
        ask_until(perf_counter() + seconds)
        return read(answers) - before


def alone(port: int, asked: bytes, seconds: float, fewest: int = 3) -> list[float]:
    """Seconds that each request took of one client that asks one after the other.

    For so many seconds, and at least `fewest` of them, after some to warm up.
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
            if sent >= warmed or now - sent > seconds:
                waits.append(now - sent)
    return waits


def once(port: int, asked: bytes) -> float:
    """Seconds that one request takes, on a connection of its own."""
    (wait,) = alone(port, asked, 0.0, 1)
    return wait


def milliseconds(waits: list[float]) -> float:
    """The median of seconds, in milliseconds."""
    return median(waits) * 1000


def download(port: int, path: str) -> tuple[int, float]:
    """Bytes of an answer, and the seconds from the request to the last of them."""
    buffer = bytearray(1024 * 1024)
    with connect(port) as client:
        began = perf_counter()
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        received = 0
        while got := client.recv_into(buffer):
            received += got
        return received, perf_counter() - began


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
