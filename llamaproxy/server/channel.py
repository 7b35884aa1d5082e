"""ProxyChannel: takes requests off a client's connection, and refuses what is doubtful."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from twisted.internet.interfaces import (
    IDelayedCall,
    IHalfCloseableProtocol,
    IReactorTime,
    ISSLTransport,
)
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, datetimeToString
from zope.interface import implementer

from llamaproxy.errors import ProxyError
from llamaproxy.server.body import StoredBody
from llamaproxy.server.checks import HEAD_CHECKS
from llamaproxy.server.framing import (
    MAX_EMPTY_LINES,
    MAX_HEAD,
    MAX_LINE,
    RequestRefused,
    is_hopeless,
    keeps_connection,
    request_id,
    request_line,
)
from llamaproxy.server.head import RequestHead
from llamaproxy.server.limits import Limits
from llamaproxy.server.state import ANSWER, BODY, CLOSING, HEAD, TUNNEL, ConnectionState

_log = Logger()

#: Bytes that are read of the requests that follow the one that is being answered.
MAX_PIPELINED_BYTES = 16384


def _discard(data: bytes) -> None:
    """The connection has not been switched to another protocol."""


@implementer(IHalfCloseableProtocol)
class ProxyChannel(HTTPChannel):
    """Takes requests off a connection, one after the other.

    The lines, the framing and the queue are its own; answering and back-pressure are
    :class:`HTTPChannel`'s, which gets to see only the request line. Its deadline is looked at by
    :class:`llamaproxy.server.connections.Connections`.
    """

    MAX_LENGTH = MAX_LINE
    totalHeadersSize = MAX_HEAD

    site: Any
    transport: Any
    #: Made as soon as there is a connection, and as soon as there is a head.
    state: ConnectionState
    _body: StoredBody

    def __init__(self) -> None:
        HTTPChannel.__init__(self)
        self._parsing = False
        #: Requests that have been served in this turn of the reactor.
        self.served = 0
        #: The head of the request that is being received or answered.
        self._head: RequestHead | None = None
        self._ends_in_cr = False
        self._empty_lines = 0
        #: What has come after the request that is being answered.
        self._pipelined = bytearray()
        self._id = b""
        self._receive: Callable[[bytes], None] = _discard
        self._half_closed_check: IDelayedCall | None = None

    # --- the connection

    def connectionMade(self) -> None:
        self.site.connections.opened(self)
        limits: Limits = self.site.limits
        excess = self.site.connections.connected - limits.connections
        self.state = ConnectionState(self.site.now, limits, over_limit=excess > 0)
        HTTPChannel.connectionMade(self)
        if excess > limits.over_limit_connections:
            self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.site.connections.closed(self)
        if self._half_closed_check is not None:
            self._half_closed_check.cancel()
        HTTPChannel.connectionLost(self, reason)

    def readConnectionLost(self) -> None:
        """The client sends nothing more: it waits for its answers, or has left.

        Only something that is sent to it can tell: it is refused if nobody is there. What is done
        for a chat does not wait for that, but ends at once (DESIGN: L17).
        """
        self.state.half_closed = True
        if self.state.phase != ANSWER:
            self.loseConnection()
        elif self._half_closed_check is None:
            self._check_half_closed()

    def writeConnectionLost(self) -> None:
        """Our side has been closed, after a refusal."""

    def _check_half_closed(self, sent_before: object = None) -> None:
        # A client that has left is sent nothing twice, and leaves nothing unread.
        self._half_closed_check = None
        sent = [(request, request.sentLength) for request in self.requests]
        is_chat = bool(self.requests) and not self.requests[0].half_closable
        if is_chat or (sent == sent_before and not self.state.stalled):
            self.transport.abortConnection()
        else:
            clock: IReactorTime = self.site.clock
            seconds = self.site.limits.half_closed_timeout
            self._half_closed_check = clock.callLater(seconds, self._check_half_closed, sent)

    def pauseProducing(self) -> None:
        self.state.stall()
        HTTPChannel.pauseProducing(self)

    def resumeProducing(self) -> None:
        self.state.unstall()
        HTTPChannel.resumeProducing(self)

    def loseConnection(self) -> None:
        """Close once all that was written has been sent."""
        if self.state.phase == CLOSING:
            self.transport.loseConnection()
        else:
            self.state.close()
            HTTPChannel.loseConnection(self)

    def expire(self) -> None:
        """The deadline has passed."""
        if self.state.phase in (ANSWER, CLOSING):
            self.transport.abortConnection()
        else:
            self.end(RequestRefused(408, "The request did not come in time."))

    def end(self, error: ProxyError) -> None:
        """Close the connection; a request that is still being sent is refused with *error*."""
        if self.state.receiving:
            self.refuse(error)
        else:
            self.loseConnection()

    def refuse(self, error: ProxyError | OSError) -> None:
        """Answer in place of a request that will not be served, and close."""
        if isinstance(error, OSError):
            _log.failure("a request body could not be stored")
            error = ProxyError("The request body could not be stored.")
        self.state.refuse()
        LineReceiver.clearLineBuffer(self)
        request = self.requests.pop() if self.requests else None
        line = self._head.line if self._head is not None else None
        self.transport.write(self.site.refusal(error, line, request, self.transport.getPeer()))
        if request is not None and request.content is not None:
            with suppress(OSError):  # what could not be stored cannot be flushed either
                request.content.close()
        self.transport.unregisterProducer()
        if ISSLTransport.providedBy(self.transport):
            self.transport.loseConnection()  # which goes on reading until the client closes too
        else:
            self.transport.loseWriteConnection()
            self.transport.resumeProducing()

    def switch(self, head: bytes, receive: Callable[[bytes], None]) -> None:
        """Answer with *head*, after which no HTTP is spoken; *receive* gets what comes from now on.

        What has come already, in place of a request that would follow, is the beginning of it.
        """
        self.state.tunnel_begins()
        self._receive = receive
        self.transport.write(head)
        if self._pipelined:
            receive(bytes(self._pipelined))
            self._pipelined.clear()
        self.transport.resumeProducing()

    # --- the head

    def dataReceived(self, data: bytes) -> None:
        if self.state.phase == CLOSING:
            self.state.linger()
            return
        if self.state.phase == TUNNEL:
            self._receive(data)
            return
        self.state.head_begins()
        # Not HTTPChannel's, which gives the client more time whenever it sends something.
        if self._parsing:
            LineReceiver.dataReceived(self, data)
            return
        self._parsing = True
        self.served = 0
        try:
            LineReceiver.dataReceived(self, data)
        finally:
            self._parsing = False
        if self.state.phase == HEAD:
            self._check_begun_line(data)

    def _check_begun_line(self, data: bytes) -> None:
        """Refuse at once what would otherwise be waited for in vain, such as bare line feeds."""
        if self._ends_in_cr:
            data = b"\r" + data
        self._ends_in_cr = data.endswith(b"\r")
        if is_hopeless(data.rpartition(b"\r\n")[2]):
            self.refuse(RequestRefused(400, "The request is not HTTP/1.1."))

    def lineReceived(self, line: bytes) -> bool:
        """One line of a head; true if nothing of what follows matters any more."""
        try:
            if self._head is None:
                self._begin_head(line)
            elif line:
                self._head.add_field(line)
            else:
                self._end_head(self._head)
        except (ProxyError, OSError) as error:
            self.refuse(error)
        return self.state.phase == CLOSING

    def lineLengthExceeded(self, line: bytes) -> None:
        if self._head is None:
            self.refuse(RequestRefused(414, f"The request line is longer than {MAX_LINE} bytes."))
        else:
            self.refuse(RequestRefused(431, f"A field is longer than {MAX_LINE} bytes."))

    def _begin_head(self, line: bytes) -> None:
        if not line and self._empty_lines < MAX_EMPTY_LINES:
            self._empty_lines += 1
            return
        self.state.head_begins()  # it may have come together with the one before
        parsed = request_line(line)
        if parsed.authority is not None or not line.endswith((b"1.1", b"1.0")):
            line = b"%b %b HTTP/1.%d" % (parsed.method, parsed.target, parsed.minor)
        HTTPChannel.lineReceived(self, line)  # which makes the request
        self._head = RequestHead(parsed, self.requests[-1].requestHeaders, self.state.over_limit)

    def _end_head(self, head: RequestHead) -> None:
        for check in HEAD_CHECKS:
            check(head, self.site)
        request = self.requests[-1]
        self._id = request_id(head.values(b"X-Request-Id"))
        head.headers.setRawHeaders(b"X-Request-Id", [self._id])
        self.persistent = keeps_connection(head.line.minor, head.values(b"Connection"))
        if not self.persistent:
            request.responseHeaders.setRawHeaders(b"Connection", [b"close"])
        limit = self.site.limits.body_to(head.line.target)
        self._body = StoredBody(head.body_length, limit)
        request.content = self._body.file
        if head.body_length == 0:
            self._serve()
            return
        self.state.body_continues()
        LineReceiver.setRawMode(self)
        if head.expects_continue:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _serve(self) -> None:
        self.state.answer_begins()
        HTTPChannel.allContentReceived(self)

    # --- the body, and the answer

    def rawDataReceived(self, data: bytes) -> None:
        """Part of a body, or of the requests that follow the one that is being answered."""
        if self.state.phase != BODY:
            # Not HTTPChannel's, which stores any number of them for a client that reads nothing.
            self._pipelined += data
            if len(self._pipelined) > MAX_PIPELINED_BYTES:
                self.transport.pauseProducing()
            return
        try:
            rest = self._body.receive(data)
        except (ProxyError, OSError) as error:
            self.refuse(error)
            return
        if rest is None:
            self.state.body_continues()
            return
        self._serve()
        LineReceiver.dataReceived(self, rest)

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Any) -> None:
        if not headers.hasHeader(b"X-Request-Id"):  # else: the upstream's own
            headers.setRawHeaders(b"X-Request-Id", [self._id])
        if not headers.hasHeader(b"Date"):  # an upstream without a clock (RFC 9110 section 6.6.1)
            headers.setRawHeaders(b"Date", [datetimeToString()])
        if version == b"HTTP/1.0" and self.persistent:
            # It knows no other way to see where an answer ends, and expects to be told so.
            self.persistent = headers.hasHeader(b"Content-Length")
            option = b"keep-alive" if self.persistent else b"close"
            headers.setRawHeaders(b"Connection", [option])
        HTTPChannel.writeHeaders(self, version, code, reason, headers)

    def requestDone(self, request: Any) -> None:
        self._head = None
        self._empty_lines = 0
        self._ends_in_cr = False
        self.state.answer_ended()
        HTTPChannel.requestDone(self, request)
        if self.persistent and self._pipelined:
            data, self._pipelined = bytes(self._pipelined), bytearray()
            self.dataReceived(data)
        goes_on = self._parsing or self.state.phase in (ANSWER, CLOSING)
        if self.state.half_closed and not goes_on:
            self.loseConnection()
