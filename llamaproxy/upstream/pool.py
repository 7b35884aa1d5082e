"""UpstreamPool: connections to servers, of which the idle ones are used again."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from llamaproxy.heads import SomeFields
from llamaproxy.upstream.bodies import Upload
from llamaproxy.upstream.connection import UpstreamConnection
from llamaproxy.upstream.exchange import WEBSOCKET, AnswerTaker
from llamaproxy.upstream.failures import connecting_error
from llamaproxy.upstream.headers import WrittenFields, lines_of

#: Seconds an idle connection is kept: uvicorn closes its side after five, and a request that is
#: sent while it does would be lost.
IDLE_TIMEOUT = 2

#: Seconds between two looks at idle connections, at least.
SWEEP_SECONDS = 0.1

#: Idle connections kept of one server; more are closed once their request is done.
MAX_IDLE = 256

#: Methods that may be asked once more (RFC 9110 section 9.2.2), if they came without a body.
#: DELETE is idempotent too, but its second answer may be another one.
_REPEATABLE = (b"GET", b"HEAD", b"OPTIONS")

#: Methods that usually have a body: that there is none is said (RFC 9110 section 8.6).
_USUALLY_WITH_BODY = (b"POST", b"PUT")


class Server(Protocol):
    """A server that can be connected to."""

    #: The field ``Host`` of requests to it.
    host: bytes

    @property
    def kept_by(self) -> Hashable:
        """What its idle connections are kept by: where they lead, and who said that they do."""

    def connect(self) -> Deferred[UpstreamConnection]:
        """A new connection, secured where it has to be."""


class PooledExchange:
    """A request to one server, and its answer."""

    def __init__(
        self,
        pool: UpstreamPool,
        server: Server,
        method: bytes,
        head: bytes,
        body: Upload | None,
        upgrade: bool,
        taker: AnswerTaker,
    ) -> None:
        self.server = server
        self.method = method
        self.head = head
        self.body = body
        self.upgrade = upgrade
        self.taker = taker
        self.paused = False
        self._pool = pool
        self._connection: UpstreamConnection | None = None
        self._connecting: Deferred[None] | None = None
        self._over = False

    def pause(self) -> None:
        self.paused = True
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        self.paused = False
        if self._connection is not None:
            self._connection.resume()

    def cancel(self) -> None:
        connection = self._connection
        self.left()
        if connection is not None:
            connection.abort()
        if self._connecting is not None:
            self._connecting.cancel()

    # --- for the pool

    def carried_by(self, connection: UpstreamConnection) -> None:
        """Go on *connection*.

        :raises Exception: if the body cannot be made; then it is over.
        """
        self._connection = connection
        try:
            connection.carry(self)
        except Exception:
            self.cancel()
            raise
        if self.body is not None:
            self.head = b""  # it is not sent once more
            if self.body.finished:
                self.body = None

    def connect(self) -> None:
        """Go on a new connection."""
        self._connecting = self.server.connect().addCallbacks(self._connected, self._unconnected)

    # --- for the connection

    def left(self) -> None:
        self._connection = None
        self._over = True
        if self.body is not None and not self.body.finished:
            self.body.stopProducing()

    def lost(self, error: Exception, repeatable: bool) -> None:
        self._connection = None
        if repeatable and self.head and self.method in _REPEATABLE:
            self.connect()
        else:
            self.left()
            self.taker.failed(error)

    # --- within

    def _connected(self, connection: UpstreamConnection) -> None:
        self._connecting = None
        self._pool.adopt(connection, self.server.kept_by)
        if self._over:
            connection.abort()
            return
        try:
            self.carried_by(connection)
        except Exception as error:
            self.taker.failed(error)

    def _unconnected(self, failure: Failure) -> None:
        self._connecting = None
        if not self._over:
            self.left()
            self.taker.failed(connecting_error(failure))


class UpstreamPool:
    """Sends requests on idle connections, without those that their servers have closed."""

    def __init__(self, clock: IReactorTime, max_idle: int = MAX_IDLE) -> None:
        self._clock = clock
        self._max_idle = max_idle
        #: By server, those that have been idle the longest first.
        self._idle: dict[Hashable, list[UpstreamConnection]] = {}
        self._sweep: IDelayedCall | None = None

    def send(
        self,
        server: Server,
        method: bytes,
        target: bytes,
        fields: SomeFields,
        body: Upload | None,
        taker: AnswerTaker,
    ) -> PooledExchange:
        """Send a request to *server* (see :meth:`Sender.send`).

        *target* is sent as it is.
        """
        if isinstance(fields, WrittenFields):
            lines, upgrade = fields.lines, False
        else:
            lines, upgrade = lines_of(fields), WEBSOCKET in fields
        head = _head(server.host, method, target, lines, body)
        exchange = PooledExchange(self, server, method, head, body, upgrade, taker)
        connection = self._take(server.kept_by)
        if connection is None:
            exchange.connect()
        else:
            exchange.carried_by(connection)
        return exchange

    def adopt(self, connection: UpstreamConnection, kept_by: Hashable) -> None:
        """Keep *connection* whenever it is idle."""
        connection.kept_by = kept_by
        connection.released = self._release
        connection.gone = self._forget

    def figures(self) -> dict[str, int]:
        """How many connections are idle, for the status."""
        return {
            "servers": len(self._idle),
            "idle_connections": sum(map(len, self._idle.values())),
            "max_idle_connections_of_one": self._max_idle,
        }

    def close(self) -> None:
        """Close the idle connections, and keep none from now on."""
        self._max_idle = 0
        for idle in self._idle.values():
            for connection in idle[:]:
                connection.close()
        self._idle = {}
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

    def _take(self, kept_by: Hashable) -> UpstreamConnection | None:
        idle = self._idle.get(kept_by)
        while idle:
            connection = idle.pop()
            expired = self._clock.seconds() - connection.idle_since >= IDLE_TIMEOUT
            if not expired and not connection.is_stale():
                return connection
            connection.close()
        return None

    def _release(self, connection: UpstreamConnection) -> None:
        idle = self._idle.setdefault(connection.kept_by, [])
        if len(idle) >= self._max_idle:
            connection.close()
            return
        connection.idle_since = self._clock.seconds()
        idle.append(connection)
        if self._sweep is None:
            self._sweep = self._clock.callLater(IDLE_TIMEOUT, self._close_expired)

    def _forget(self, connection: UpstreamConnection) -> None:
        idle = self._idle.get(connection.kept_by, [])
        if connection in idle:
            idle.remove(connection)

    def _close_expired(self) -> None:
        """Close what has been idle for too long: one delayed call serves all connections."""
        self._sweep = None
        now = self._clock.seconds()
        for kept_by, idle in list(self._idle.items()):
            fresh = [each for each in idle if now - each.idle_since < IDLE_TIMEOUT]
            for connection in idle[: len(idle) - len(fresh)]:
                connection.close()
            if fresh:
                self._idle[kept_by] = fresh
            else:
                del self._idle[kept_by]
        if self._idle:
            oldest = min(idle[0].idle_since for idle in self._idle.values())
            due = max(oldest + IDLE_TIMEOUT - now, SWEEP_SECONDS)
            self._sweep = self._clock.callLater(due, self._close_expired)


def _head(host: bytes, method: bytes, target: bytes, lines: bytes, body: Upload | None) -> bytes:
    """The head of a request (RFC 9112 section 3), without the length of a *body*."""
    head = b"%b %b HTTP/1.1\r\nHost: %b\r\n%b" % (method, target, host, lines)
    if body is not None:
        return head
    return head + (b"Content-Length: 0\r\n\r\n" if method in _USUALLY_WITH_BODY else b"\r\n")
