"""UpstreamConnection: one connection to a server, of HTTP/1.1."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Hashable
from typing import Any, Protocol

from twisted.internet import protocol
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import connectionDone
from twisted.internet.tcp import Connection
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from zope.interface import implementer

from llamaproxy.errors import UpstreamBroke
from llamaproxy.upstream.bodies import Upload
from llamaproxy.upstream.exchange import AnswerTaker
from llamaproxy.upstream.response_head import (
    END_OF_HEAD,
    MAX_HEAD,
    BadHead,
    ResponseHead,
    read_response_head,
)

#: The first bytes of every head.
_PREFIX = b"HTTP/1."

#: Looks at what has come, and neither takes it nor waits for it.
_PEEK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)

#: Bytes that are read at a time: as many as Twisted reads, and of a body that comes faster nearly
#: twice as many, which takes a quarter less CPU. More would be memory that is mapped anew for each
#: read (glibc's M_MMAP_THRESHOLD is 128 kB), and more than is sent in a turn of the reactor.
READ_BYTES, MOST_READ_BYTES = 64 * 1024, 124 * 1024

#: llhttp refuses it; until a head is complete, it is looked for here.
_BARE_LF = re.compile(rb"(?<!\r)\n")


class Carried(Protocol):
    """An exchange as its connection sees it."""

    method: bytes
    #: Without the length of the body, if there is one.
    head: bytes
    body: Upload | None
    #: Whether it has asked for another protocol.
    upgrade: bool
    paused: bool
    taker: AnswerTaker

    def left(self) -> None:
        """The connection carries it no more."""

    def lost(self, error: Exception, repeatable: bool) -> None:
        """The connection carries it no more, for *error*.

        :param repeatable: whether the server was perhaps gone before it was asked.
        """


@implementer(IHandshakeListener)
class UpstreamConnection(protocol.Protocol):
    """Carries one exchange at a time: sends its request, and tells its taker of the answer."""

    transport: Any

    def __init__(self) -> None:
        #: Where it goes when it can be used again; and where it is no more when it is lost.
        self.released: Callable[[UpstreamConnection], None] = UpstreamConnection.close
        self.gone: Callable[[UpstreamConnection], None] = lambda connection: None
        self.kept_by: Hashable = None
        #: When it was released, by the pool's clock.
        self.idle_since = 0.0
        #: What is wrong with the certificate of the server.
        self.certificate_error = ""
        self._secured: Deferred[None] | None = None
        self._exchange: Carried | None = None
        #: Whether a request has been made already; and whether before this one.
        self._used = self._reused = False
        self._received_any = False
        #: What has come of a head, and how many bytes of interim ones before it.
        self._partial = bytearray()
        self._interim_bytes = 0
        self._head: ResponseHead | None = None
        self._body_left = 0
        #: Whether it reads MOST_READ_BYTES.
        self._reads_more = False
        #: Whether an answer has ended the upload of its request.
        self._early = False
        #: Whether it is closed, or is being closed.
        self._closed = False

    # --- for the pool

    def carry(self, exchange: Carried) -> None:
        """Send the request of *exchange*, and tell it of the answer."""
        self._exchange = exchange
        self._reused, self._used = self._used, True
        self._received_any = False
        self._head = None
        if exchange.paused:
            self.transport.pauseProducing()
        if exchange.body is None:
            self.transport.write(exchange.head)
        else:
            length = b"Content-Length: %d\r\n\r\n" % exchange.body.open()
            exchange.body.send(self.transport, exchange.head + length)

    def is_stale(self) -> bool:
        """Whether no request must be sent here: closed, or bytes came after the last response.

        The reactor may not have seen it yet, so the socket itself is read.
        """
        if self._closed:
            return True
        try:
            self._tcp.getHandle().recv(1, _PEEK)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def close(self) -> None:
        """Close a connection that carries nothing."""
        if self._early:
            # What is still to be sent is not needed, and may never be taken.
            self.abort()
            return
        self._closed = True
        self.transport.loseConnection()
        if self._tcp is not self.transport:
            # A peer need not answer a TLS closure alert (RFC 8446 section 6.1).
            self._tcp.loseConnection()

    def abort(self) -> None:
        """Close the connection, whatever is under way."""
        self._exchange = self._head = None  # that of a tunnel refers to this
        self._closed = True
        self.transport.abortConnection()

    @property
    def handle(self) -> Any:
        """The socket; of TLS, the OpenSSL connection."""
        return self.transport.getHandle()

    def secured(self) -> Deferred[None]:
        """Fires when the TLS handshake has been completed."""
        self._secured = Deferred(lambda _: self._give_up())
        return self._secured

    # --- for an exchange

    def pause(self) -> None:
        """Read no more."""
        self.transport.pauseProducing()

    def resume(self) -> None:
        """Read on."""
        self.transport.resumeProducing()

    # --- for a tunnel, once the protocol has been switched

    def send(self, data: bytes) -> None:
        """Send bytes of the client's."""
        self.transport.write(data)

    def hold_back(self, client: Any) -> None:
        """Pause the *client*'s transport while the upstream does not read."""
        self.transport.registerProducer(client, True)

    # --- for the transport

    def connectionMade(self) -> None:
        #: The transport; if that is of TLS, the one below it.
        self._tcp = self.transport
        if isinstance(self._tcp, ProtocolWrapper):
            self._tcp = self._tcp.transport
        if isinstance(self._tcp, Connection):
            self._tcp.connectionLost = self._socket_lost  # type: ignore[method-assign]

    def handshakeCompleted(self) -> None:
        handshake, self._secured = self._secured, None
        if handshake is not None:
            handshake.callback(None)

    def dataReceived(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            self.abort()  # nobody has asked
        elif self._head is not None:
            self._read_body(exchange, self._head, data)
        else:
            self._received_any = True
            self._read_head(exchange, data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._closed = True
        self.gone(self)
        handshake, self._secured = self._secured, None
        if handshake is not None:
            handshake.errback(reason)
        exchange, self._exchange = self._exchange, None
        head, self._head = self._head, None
        if exchange is None:
            return
        if head is not None and head.until_close and reason.check(ConnectionDone):
            exchange.left()
            exchange.taker.ended()
        elif head is not None:
            exchange.lost(UpstreamBroke(), False)
        else:
            error = UpstreamBroke("Llama Stack closed the connection before it answered.")
            exchange.lost(error, self._reused and not self._received_any)

    # --- within

    def _socket_lost(self, reason: Failure) -> None:
        """Read what has come, and lose the connection.

        A server may answer, and close, before it has taken the whole request. What is written then
        fails, and by that the reactor would lose the connection with the answer unread.
        """
        del self._tcp.connectionLost  # the class's again, and nothing refers to this
        self._closed = True
        # Not if a reader has broken, or the connection is cut off, which reads nothing any more.
        is_lost = reason.check(ConnectionLost) and not reason.check(ConnectionAborted)
        try:
            while is_lost and self._reads_on() and not self._tcp.doRead():
                pass
        finally:
            self._tcp.connectionLost(reason)

    def _reads_on(self) -> bool:
        """Whether an exchange takes what comes, and something has."""
        if self._exchange is None or self._exchange.paused:
            return False
        try:
            return bool(self._tcp.getHandle().recv(1, _PEEK))
        except OSError:
            return False

    def _give_up(self) -> None:
        self._secured = None
        self.abort()

    def _read_head(self, exchange: Carried, data: bytes) -> None:
        text: bytes | bytearray = data
        searched = 0
        if self._partial:
            searched = max(0, len(self._partial) - len(END_OF_HEAD) + 1)
            self._partial += data
            text = self._partial
        begin = 0
        while (end := text.find(END_OF_HEAD, searched)) >= 0:
            searched = end = end + len(END_OF_HEAD)
            if self._interim_bytes + end > MAX_HEAD:
                break
            try:
                head = read_response_head(bytes(text[begin:end]), exchange.method, exchange.upgrade)
            except BadHead as error:
                self._refuse(exchange, str(error))
                return
            begin = end
            if not head.interim:
                rest = bytes(text[end:])
                self._partial, self._interim_bytes = bytearray(), 0
                self._answer(exchange, head, rest)
                return
        self._interim_bytes += begin
        self._partial = bytearray(text[begin:]) if begin or text is data else self._partial
        if self._interim_bytes + len(self._partial) > MAX_HEAD:
            self._refuse(exchange, f"has a head of more than {MAX_HEAD} bytes")
        elif not self._partial.startswith(_PREFIX[: len(self._partial)]):
            self._refuse(exchange, "is no HTTP/1.1")
        elif _BARE_LF.search(self._partial, max(0, searched - begin)):
            self._refuse(exchange, "has a malformed head")

    def _answer(self, exchange: Carried, head: ResponseHead, rest: bytes) -> None:
        self._head = head
        self._body_left = head.length or 0
        if not 200 <= head.status < 300 or head.close:
            # It does not want the rest of a body (RFC 9112 section 9.5); one that is glad of what
            # it gets may have begun to answer while it reads.
            self._stop_upload(exchange, head)
        if head.switches:
            head.tunnel = self
        head.body_follows = bool(rest and head.length)
        exchange.taker.answered(head)
        if self._exchange is exchange and (rest or head.length == 0):
            self._read_body(exchange, head, rest)

    def _stop_upload(self, exchange: Carried, head: ResponseHead) -> None:
        if exchange.body is not None and not exchange.body.finished:
            exchange.body.stopProducing()
            self._early = head.close = True

    def _read_body(self, exchange: Carried, head: ResponseHead, data: bytes) -> None:
        wrong = ""
        if len(data) == READ_BYTES and not self._reads_more:  # there is more already
            self._reads_more = True
            self._tcp.bufferSize = MOST_READ_BYTES
        if head.chunks is not None:
            body, wrong = head.chunks.feed(data)
            complete, exact = head.chunks.complete, head.chunks.ends_exactly
        elif head.length is None:
            body, complete, exact = data, False, False
        else:
            body = data if len(data) <= self._body_left else data[: self._body_left]
            self._body_left -= len(body)
            complete, exact = self._body_left == 0, len(body) == len(data)
        if body:
            exchange.taker.received(body)
            if self._exchange is not exchange:
                return
        if wrong:
            self._refuse(exchange, wrong)
        elif complete:
            self._stop_upload(exchange, head)
            self._exchange = None
            if self._reads_more:
                self._reads_more = False
                self._tcp.bufferSize = READ_BYTES
            exchange.left()
            if exchange.paused:
                self.resume()
            if exact and not head.close:
                self.released(self)
            else:
                self.close()
            exchange.taker.ended()

    def _refuse(self, exchange: Carried, why: str) -> None:
        self.abort()
        exchange.lost(UpstreamBroke(f"Llama Stack's answer {why}."), False)
