"""Connections to an upstream in memory, whose other end is the test."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from llamaproxy.upstream.bodies import Upload
from llamaproxy.upstream.connection import UpstreamConnection
from llamaproxy.upstream.exchange import Exchange
from llamaproxy.upstream.pool import UpstreamPool
from llamaproxy.upstream.response_head import ResponseHead

CLOSES, RESETS = Failure(ConnectionDone()), Failure(ConnectionLost())


class Taker:
    """Remembers what it is told, and that it is told in order."""

    def __init__(self) -> None:
        self.head: ResponseHead | None = None
        self.body = b""
        self.end: str | Exception | None = None
        self.calls: list[str] = []

    def answered(self, head: ResponseHead) -> None:
        assert self.head is None and self.end is None
        self.head = head
        self.calls.append("answered")

    def received(self, data: bytes) -> None:
        assert self.head is not None and self.end is None and data
        self.body += data
        self.calls.append("received")

    def ended(self) -> None:
        assert self.head is not None and self.end is None
        self.end = "ended"
        self.calls.append("ended")

    def failed(self, error: Exception) -> None:
        assert self.end is None
        self.end = error
        self.calls.append("failed")


class Transport(StringTransport):
    """The connection's transport; the test plays the socket, and the server behind it."""

    def __init__(self) -> None:
        StringTransport.__init__(self)
        self.writes: list[bytes] = []
        self.aborted = False
        #: What the socket has that the reactor has not seen: None for nothing.
        self.unread: bytes | None = None

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    @property
    def sent(self) -> bytes:
        return b"".join(self.writes)

    def getHandle(self) -> Transport:
        return self

    def recv(self, size: int, flags: int) -> bytes:
        if self.unread is None:
            raise BlockingIOError
        return self.unread

    def abortConnection(self) -> None:
        self.aborted = True
        self.disconnecting = True

    @property
    def closed(self) -> bool:
        return bool(self.disconnecting)


class Wire:
    """One connection."""

    def __init__(self) -> None:
        self.connection = UpstreamConnection()
        self.transport = Transport()
        connect: Any = self.connection.makeConnection
        connect(self.transport)

    def send(self, data: bytes) -> None:
        """The server sends *data*, which comes unless the connection is closed."""
        self.connection.dataReceived(data)

    def lose(self, reason: Failure) -> None:
        """The connection ends."""
        if self.transport.producer is not None:
            self.transport.producer.stopProducing()
        self.connection.connectionLost(reason)


class World:
    """A pool in front of one server."""

    kept_by = b"http://stack:8321"
    host = b"stack:8321"

    def __init__(self) -> None:
        self.clock = Clock()
        self.pool = UpstreamPool(self.clock)
        self.wires: list[Wire] = []
        self.connecting: list[Deferred[UpstreamConnection]] = []
        #: Whether connections are there at once.
        self.at_once = True

    def connect(self) -> Deferred[UpstreamConnection]:
        waiting: Deferred[UpstreamConnection] = Deferred()
        self.connecting.append(waiting)
        if self.at_once:
            self.connected()
        return waiting

    def connected(self) -> None:
        """A connection that is waited for is there."""
        wire = Wire()
        self.wires.append(wire)
        self.connecting.pop().callback(wire.connection)

    def ask(
        self, method: bytes = b"GET", body: Upload | None = None, taker: Any = None
    ) -> tuple[Any, Exchange]:
        taker = taker or Taker()
        fields = [(b"A", b"b")]
        return taker, self.pool.send(self, method, b"/x", fields, body, taker)

    def warm(self) -> None:
        """Have an answer, after which there is an idle connection."""
        taker, _ = self.ask()
        self.wires[-1].send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        assert taker.end == "ended" and not self.wires[-1].transport.closed
        self.wires[-1].transport.writes.clear()

    @property
    def idle(self) -> int:
        """How many connections would be used again."""
        return sum(map(len, self.pool._idle.values()))
