"""UpstreamConnection: stands between a transport and Twisted's HTTP client."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHandshakeListener, IProtocol
from twisted.internet.protocol import connectionDone
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.iweb import IResponse
from zope.interface import implementer

from llamaproxy.errors import UpstreamBroke
from llamaproxy.upstream.bodies import Upload
from llamaproxy.upstream.failures import upstream_error
from llamaproxy.upstream.response_head import (
    END_OF_HEAD,
    MAX_HEAD,
    BadHead,
    ResponseHead,
    read_response_head,
)
from llamaproxy.upstream.twisted_client import end_upload, is_idle, set_tunnel

#: Methods that may be asked once more (RFC 9110 section 9.2.2), if they came without a body.
#: DELETE is idempotent too, but its second answer may be another one.
_REPEATABLE = (b"GET", b"HEAD", b"OPTIONS")

#: The first bytes of every head.
_PREFIX = b"HTTP/1."

#: The end of a chunked body without trailers. After trailers a connection is not used again, for
#: the head of another response would end like them.
_LAST_CHUNK = b"\r\n0\r\n\r\n"


@implementer(IHandshakeListener)
class UpstreamConnection(ProtocolWrapper):
    """Sends requests with Twisted's client, which receives valid responses only.

    Each head is parsed here, and only its status and framing are passed to that client; the fields
    are put into the response when it is there. Of a body, only the length is counted.
    """

    def __init__(self, factory: Any, within: IProtocol) -> None:
        ProtocolWrapper.__init__(self, factory, within)
        #: Whether a request has been made already.
        self.used = False
        #: Returns a connection that has not been used, to repeat a request on.
        self.reconnect: Callable[[], Deferred[UpstreamConnection]] | None = None
        #: What is wrong with the certificate of the server.
        self.certificate_error = ""
        self._secured: Deferred[None] | None = None
        self._method = b""
        self._upgrade = False
        self._head: ResponseHead | None = None
        self._head_bytes = b""
        self._received_any = False
        self._body_left = 0
        self._tail = b""
        self._upload: Any = None
        self._muted = False

    # --- for the pool

    def request(self, request: Any) -> Deferred[IResponse]:
        """Send *request*; once more, elsewhere, if this connection turns out to be closed."""
        reused, self.used = self.used, True
        self._method = request.method
        self._upgrade = request.headers.hasHeader(b"upgrade")
        self._head = None
        self._head_bytes = b""
        self._received_any = False
        protocol: Any = self.wrappedProtocol
        answer: Deferred[IResponse] = protocol.request(request)
        answer.addCallback(self._complete)
        if reused and request.bodyProducer is None and request.method in _REPEATABLE:
            answer.addErrback(self._repeat, request)
        return answer

    @property
    def idle(self) -> bool:
        """Whether no request is under way."""
        return self.wrappedProtocol is None or is_idle(self.wrappedProtocol)

    def is_stale(self) -> bool:
        """Whether no request must be sent here: closed, or bytes came after the last response.

        The reactor may not have seen it yet, so the socket itself is read.
        """
        head = self._head
        if head is not None:
            complete = (
                _LAST_CHUNK.endswith(self._tail) if head.length is None else self._body_left == 0
            )
            if not complete or self.disconnecting:
                return True
        try:
            self._tcp.getHandle().recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def secured(self) -> Deferred[None]:
        """Fires when the TLS handshake has been completed."""
        self._secured = Deferred(lambda _: self._give_up())
        return self._secured

    # --- for Twisted's HTTP client, whose transport this is

    def write(self, data: bytes) -> None:
        if not self._muted:
            ProtocolWrapper.write(self, data)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self._upload = producer
        ProtocolWrapper.registerProducer(self, producer, streaming)

    def unregisterProducer(self) -> None:
        if self._upload is not None:
            self._upload = None
            ProtocolWrapper.unregisterProducer(self)

    def loseConnection(self) -> None:
        if self._muted or not self.idle:
            # What is still to be sent or read is not needed, and may never come.
            self.abortConnection()
            return
        ProtocolWrapper.loseConnection(self)
        if self._tcp is not self.transport:
            # A peer need not answer a TLS closure alert (RFC 8446 section 6.1).
            self._tcp.loseConnection()

    def abortConnection(self) -> None:
        self.disconnecting = 1
        transport: Any = self.transport
        transport.abortConnection()

    # --- for a tunnel, once the protocol has been switched

    def send(self, data: bytes) -> None:
        """Send bytes of the client's."""
        ProtocolWrapper.write(self, data)

    def hold_back(self, client: Any) -> None:
        """Pause the *client*'s transport while the upstream does not read."""
        ProtocolWrapper.registerProducer(self, client, True)

    # --- for the transport

    def handshakeCompleted(self) -> None:
        handshake, self._secured = self._secured, None
        if handshake is not None:
            handshake.callback(None)

    def dataReceived(self, data: bytes) -> None:
        if self.disconnecting:
            # An answer that nobody wants any more must not come to its end now: the connection
            # would go back into the pool.
            return
        if self._head is None:
            self._read_head(data)
            return
        self._body_left -= len(data)
        self._tail = data[-len(_LAST_CHUNK) :]
        if self._head.until_close:
            # The client could not tell an end from a broken connection.
            data = _framed(data)
        self._deliver(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        handshake, self._secured = self._secured, None
        if self.wrappedProtocol is None:
            return
        if self._head is not None and self._head.until_close and reason.check(ConnectionDone):
            if not self.disconnecting:
                self._deliver(b"0\r\n\r\n")
        ProtocolWrapper.connectionLost(self, reason)
        if handshake is not None:
            handshake.errback(reason)

    # --- within

    @property
    def _tcp(self) -> Any:
        transport: Any = self.transport
        return transport.transport if isinstance(transport, ProtocolWrapper) else transport

    def _deliver(self, data: bytes) -> None:
        protocol: Any = self.wrappedProtocol
        protocol.dataReceived(data)

    def _read_head(self, data: bytes) -> None:
        self._received_any = True
        data = self._head_bytes + data
        while end := END_OF_HEAD.search(data):
            try:
                head = read_response_head(data[: end.end()], self._method, self._upgrade)
            except BadHead as error:
                self._refuse(str(error))
                return
            data = data[end.end() :]
            if not head.interim:
                self._answer(head, data)
                return
        self._head_bytes = data
        if len(data) > MAX_HEAD:
            self._refuse(f"has a head of more than {MAX_HEAD} bytes")
        elif not data.startswith(_PREFIX[: len(data)]):
            self._refuse("is no HTTP/1.1")

    def _give_up(self) -> None:
        self._secured = None
        self.abortConnection()

    def _answer(self, head: ResponseHead, body: bytes) -> None:
        if isinstance(self._upload, Upload):
            self._stop_upload(self._upload)
            head.close = True
        self._head_bytes = b""
        self._head = head
        self._body_left = (head.length or 0) - len(body)
        self._tail = body[-len(_LAST_CHUNK) :]
        self._deliver(head.for_client())
        # By now the client may have left, or, after an answer without a body, asked again.
        if body and head.length != 0 and not self.disconnecting:
            self._deliver(_framed(body) if head.until_close else body)

    def _complete(self, response: IResponse) -> IResponse:
        if self._head is not None:
            for name, values in self._head.fields.items():
                response.headers.setRawHeaders(name, values)
            if self._head.switches:
                set_tunnel(response, self)
        return response

    def _stop_upload(self, upload: Upload) -> None:
        """End the request early: Twisted's client delivers no response while it is sending."""
        self.unregisterProducer()
        self._muted = True
        end_upload(upload)

    def _refuse(self, why: str) -> None:
        self.abortConnection()
        failure = Failure(UpstreamBroke(f"Llama Stack's answer {why}."))
        ProtocolWrapper.connectionLost(self, failure)

    def _repeat(self, failure: Failure, request: Any) -> Any:
        cancelled = isinstance(upstream_error(failure), CancelledError)
        if self._received_any or self.reconnect is None or cancelled:
            return failure
        return self.reconnect().addCallback(lambda connection: connection.request(request))


class UpstreamConnectionFactory(WrappingFactory[UpstreamConnection]):
    """Builds a connection around each of Twisted's clients."""

    protocol = UpstreamConnection


def _framed(data: bytes) -> bytes:
    """*data* as a chunk (RFC 9112 section 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)
