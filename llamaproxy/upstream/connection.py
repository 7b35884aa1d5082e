"""UpstreamConnection: a connection, between its transport and Twisted's HTTP client."""

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
from llamaproxy.upstream.response_head import (
    END_OF_HEAD,
    MAX_HEAD,
    BadHead,
    ResponseHead,
    read_response_head,
)

#: Methods that may be asked once more (RFC 9110 section 9.2.2), if they came without a body.
#: DELETE is idempotent too, but its second answer may be another one.
_REPEATABLE = (b"GET", b"HEAD", b"OPTIONS")

#: What every head begins with.
_PREFIX = b"HTTP/1."

#: What a chunked body ends with, unless it has trailers; after those a connection is in doubt, for
#: the head of another message would end like them.
_LAST = b"\r\n0\r\n\r\n"


@implementer(IHandshakeListener)
class UpstreamConnection(ProtocolWrapper):
    """Takes requests as Twisted's client does, and lets it hear of valid answers alone.

    Each head is read here and handed on without what Twisted reads wrong: the fields are put into
    the response when it is there. Of a body, only the length is noted.
    """

    def __init__(self, factory: Any, within: IProtocol) -> None:
        ProtocolWrapper.__init__(self, factory, within)
        #: Whether a request has been made already.
        self.used = False
        #: Called to repeat a request on a connection that nobody has used.
        self.afresh: Callable[[], Deferred[UpstreamConnection]] | None = None
        #: What is wrong with the certificate of the other side.
        self.distrust = ""
        self._secured: Deferred[None] | None = None
        self._method = b""
        self._upgrade = False
        self._head: ResponseHead | None = None
        self._begun = b""
        self._heard = False
        self._left = 0
        self._tail = b""
        self._upload: Any = None
        self._muted = False

    # --- for the pool

    def request(self, request: Any) -> Deferred[IResponse]:
        """Send *request*; once more, elsewhere, if this connection turns out to be closed."""
        kept, self.used = self.used, True
        self._method = request.method
        self._upgrade = request.headers.hasHeader(b"upgrade")
        self._head = None
        self._begun = b""
        self._heard = False
        protocol: Any = self.wrappedProtocol
        answer: Deferred[IResponse] = protocol.request(request)
        answer.addCallback(self._complete)
        if kept and request.bodyProducer is None and request.method in _REPEATABLE:
            answer.addErrback(self._again, request)
        return answer

    @property
    def idle(self) -> bool:
        """Whether no request is under way."""
        protocol: Any = self.wrappedProtocol
        return protocol is None or protocol.state == "QUIESCENT"

    def is_stale(self) -> bool:
        """Whether no request must be sent here: closed, or something came that nobody asked for.

        The reactor may not have seen it yet, so the socket is asked.
        """
        head = self._head
        if head is not None:
            whole = _LAST.endswith(self._tail) if head.length is None else self._left == 0
            if not whole or self.disconnecting:
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
            # What is still to be sent or read is of no use, and may never come.
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
        """Send what the client has sent."""
        ProtocolWrapper.write(self, data)

    def hold_back(self, client: Any) -> None:
        """Pause the *client*'s transport while the upstream does not read."""
        ProtocolWrapper.registerProducer(self, client, True)

    # --- for the transport

    def handshakeCompleted(self) -> None:
        waiting, self._secured = self._secured, None
        if waiting is not None:
            waiting.callback(None)

    def dataReceived(self, data: bytes) -> None:
        if self.disconnecting:
            # An answer that nobody wants any more must not come to its end now: the connection
            # would go back into the pool.
            return
        if self._head is None:
            self._read_head(data)
            return
        self._left -= len(data)
        self._tail = data[-len(_LAST) :]
        if self._head.until_close:
            # The client could not tell an end from a broken connection.
            data = _framed(data)
        self._deliver(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        waiting, self._secured = self._secured, None
        if self.wrappedProtocol is None:
            return
        if self._head is not None and self._head.until_close and reason.check(ConnectionDone):
            if not self.disconnecting:
                self._deliver(b"0\r\n\r\n")
        ProtocolWrapper.connectionLost(self, reason)
        if waiting is not None:
            waiting.errback(reason)

    # --- within

    @property
    def _tcp(self) -> Any:
        transport: Any = self.transport
        return transport.transport if isinstance(transport, ProtocolWrapper) else transport

    def _deliver(self, data: bytes) -> None:
        protocol: Any = self.wrappedProtocol
        protocol.dataReceived(data)

    def _read_head(self, data: bytes) -> None:
        self._heard = True
        data = self._begun + data
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
        self._begun = data
        if len(data) > MAX_HEAD:
            self._refuse(f"has a head of more than {MAX_HEAD} bytes")
        elif not data.startswith(_PREFIX[: len(data)]):
            self._refuse("is no HTTP/1.1")

    def _give_up(self) -> None:
        self._secured = None
        self.abortConnection()

    def _answer(self, head: ResponseHead, rest: bytes) -> None:
        if isinstance(self._upload, Upload):
            self._stop_upload(self._upload)
            head.close = True
        self._begun = b""
        self._head = head
        self._left = (head.length or 0) - len(rest)
        self._tail = rest[-len(_LAST) :]
        self._deliver(head.for_client())
        # By now the client may have left, or, after an answer without a body, asked again.
        if rest and head.length != 0 and not self.disconnecting:
            self._deliver(_framed(rest) if head.until_close else rest)

    def _complete(self, response: IResponse) -> IResponse:
        if self._head is not None:
            for name, values in self._head.fields.items():
                response.headers.setRawHeaders(name, values)
            if self._head.switches:
                switched: Any = response
                switched.code, switched.tunnel = 101, self
        return response

    def _stop_upload(self, upload: Upload) -> None:
        """The answer is there: let the client read it, and never mind the rest of the request."""
        self.unregisterProducer()
        self._muted = True
        upload.skip()

    def _refuse(self, why: str) -> None:
        self.abortConnection()
        failure = Failure(UpstreamBroke(f"Llama Stack's answer {why}."))
        ProtocolWrapper.connectionLost(self, failure)

    def _again(self, failure: Failure, request: Any) -> Any:
        reasons = getattr(failure.value, "reasons", ())
        if self._heard or self.afresh is None or any(r.check(CancelledError) for r in reasons):
            return failure
        return self.afresh().addCallback(lambda connection: connection.request(request))


class UpstreamConnectionFactory(WrappingFactory[UpstreamConnection]):
    """Builds a connection around each of Twisted's clients."""

    protocol = UpstreamConnection


def _framed(data: bytes) -> bytes:
    """*data* as a chunk (RFC 9112 section 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)
