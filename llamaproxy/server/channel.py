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
from twisted.web.http_headers import Headers, InvalidHeaderName
from zope.interface import implementer

from llamaproxy.cors import origin_in
from llamaproxy.errors import BodyTooLarge, ProxyError, last_answer
from llamaproxy.server.framing import (
    MALFORMED_FIELD,
    MAX_EMPTY_LINES,
    MAX_FIELDS,
    MAX_HEAD,
    MAX_LINE,
    ChunkedBody,
    CountedBody,
    Refused,
    RequestLine,
    body_length,
    check_host,
    expects_continue,
    field,
    is_hopeless,
    request_id,
    request_line,
)
from llamaproxy.server.limits import Limits
from llamaproxy.server.state import ANSWER, BODY, CLOSING, HEAD, TUNNEL, ConnectionState

_log = Logger()


def _ignored(data: bytes) -> None:
    """Nobody has asked for it."""


@implementer(IHalfCloseableProtocol)
class ProxyChannel(HTTPChannel):
    """Takes requests off a connection, one after the other.

    The lines and the framing are its own; queueing, answering and back-pressure are
    :class:`HTTPChannel`'s, which gets to see only the request line and the end of the head. Its
    deadline is looked at by :class:`llamaproxy.server.connections.Connections`.
    """

    MAX_LENGTH = MAX_LINE
    totalHeadersSize = MAX_HEAD

    site: Any
    #: Made as soon as there is a connection.
    state: ConnectionState

    def __init__(self) -> None:
        HTTPChannel.__init__(self)
        self._parsing = False
        #: Requests that have been served in this turn of the reactor.
        self.served = 0
        #: The request line of the request that is being received or answered.
        self.line: RequestLine | None = None
        self._ends_in_cr = False
        self._empty_lines = 0
        self._bytes = 0
        self._fields = 0
        self._body: CountedBody | ChunkedBody = CountedBody(0)
        self._id = b""
        self._receive: Callable[[bytes], None] = _ignored
        self._half_closed_check: IDelayedCall | None = None

    # --- the connection

    def connectionMade(self) -> None:
        self.site.connections.opened(self)
        limits: Limits = self.site.limits
        excess = self.site.connections.connected - limits.connections
        self.state = ConnectionState(self.site.now, limits, over_limit=excess > 0)
        HTTPChannel.connectionMade(self)
        if excess > limits.over_limit_connections:
            self._abort()

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
        """Nothing more can be sent to the client, as it was meant."""

    def _check_half_closed(self, sent_before: object = None) -> None:
        # A client that has left is sent nothing twice, and leaves nothing unread.
        self._half_closed_check = None
        sent = [(request, request.sentLength) for request in self.requests]
        is_chat = bool(self.requests) and not self.requests[0].half_closable
        if is_chat or (sent == sent_before and not self.state.stalled):
            self._abort()
        else:
            clock: IReactorTime = self.site.reactor
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
            transport: Any = self.transport
            transport.loseConnection()
        else:
            self.state.close()
            HTTPChannel.loseConnection(self)

    def expire(self) -> None:
        """The deadline has passed."""
        if self.state.phase in (ANSWER, CLOSING):
            self._abort()
        else:
            self.end(Refused(408, "The request did not come in time."))

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
        given = None
        fields = Headers()
        if self.requests:
            request = self.requests.pop()
            self.site.cors.apply(origin_in(request.requestHeaders), fields)
            given = request.requestHeaders.getRawHeaders(b"X-Request-Id")
            if request.content is not None:
                with suppress(OSError):  # what could not be stored cannot be flushed either
                    request.content.close()
        method, target = (self.line.method, self.line.target) if self.line else (b"-", b"-")
        whose = request_id(given)
        head, body = last_answer(error, whose, fields)
        if method == b"HEAD":
            body = b""
        transport: Any = self.transport
        transport.write(head + body)
        path = target.partition(b"?")[0]
        log_fields = {
            "error": error.logged,
            "kind": error.kind,
            "request": whose.decode("latin-1"),
        }
        peer = transport.getPeer()
        self.site.tell_of_end(peer, method, path, error.status, len(body), 0.0, log_fields)
        transport.unregisterProducer()
        if ISSLTransport.providedBy(transport):
            transport.loseConnection()  # which goes on reading until the client closes too
        else:
            transport.loseWriteConnection()
            transport.resumeProducing()

    def _abort(self) -> None:
        transport: Any = self.transport
        transport.abortConnection()

    def switch(self, head: bytes, receive: Callable[[bytes], None]) -> None:
        """Answer with *head*, after which no HTTP is spoken; *receive* gets what comes from now on.

        What has come already, in place of a request that would follow, is the beginning of it.
        """
        self.state.tunnel_begins()
        self._receive = receive
        early, self._dataBuffer = b"".join(self._dataBuffer), []
        transport: Any = self.transport
        transport.write(head)
        if early:
            receive(early)
        transport.resumeProducing()

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
            self.refuse(Refused(400, "The request is not HTTP/1.1."))

    def lineReceived(self, line: bytes) -> bool:
        """One line of a head; true if nothing of what follows matters any more."""
        try:
            if self.line is None:
                self._begin(line)
            elif line:
                self._bytes += len(line)
                self._fields += 1
                if self._fields > MAX_FIELDS:
                    raise Refused(431, f"The request has more than {MAX_FIELDS} fields.")
                if self._bytes > MAX_HEAD:
                    raise Refused(431, f"The request's fields are longer than {MAX_HEAD} bytes.")
                name, value = field(line)
                self.requests[-1].requestHeaders.addRawHeader(name, value)
            else:
                self._end_head()
        except (ProxyError, OSError) as error:
            self.refuse(error)
        except InvalidHeaderName:
            self.refuse(Refused(400, MALFORMED_FIELD))
        return self.state.phase == CLOSING

    def lineLengthExceeded(self, line: bytes) -> None:
        if self.line is None:
            self.refuse(Refused(414, f"The request line is longer than {MAX_LINE} bytes."))
        else:
            self.refuse(Refused(431, f"A field is longer than {MAX_LINE} bytes."))

    def _begin(self, line: bytes) -> None:
        if not line and self._empty_lines < MAX_EMPTY_LINES:
            self._empty_lines += 1
            return
        self.state.head_begins()  # it may have come together with the one before
        self.line = read = request_line(line)
        if read.authority is not None or not line.endswith((b"1.1", b"1.0")):
            line = b"%b %b HTTP/1.%d" % (read.method, read.target, read.minor)
        HTTPChannel.lineReceived(self, line)

    def _end_head(self) -> None:
        line = self.line
        assert line is not None
        limits: Limits = self.site.limits
        headers = self.requests[-1].requestHeaders
        values = dict(headers.getAllRawHeaders()).get
        hosts = values(b"Host")
        check_host(hosts, line)
        if hosts and hosts[0] not in self.site.hosts:
            # Whoever asks without a name is no browser.
            raise Refused(
                421, "This host is not served here (--allowed-hosts names those that are)."
            )
        length = body_length(values(b"Content-Length"), values(b"Transfer-Encoding"), line.minor)
        if len(values(b"Authorization", ())) > 1:
            raise Refused(400, "The Authorization field is repeated.")
        waits = line.minor == 1 and expects_continue(values(b"Expect"))
        if self.state.over_limit:
            raise Refused(503, "There are too many connections.", {"Retry-After": "1"})
        self._id = request_id(values(b"X-Request-Id"))
        headers.setRawHeaders(b"X-Request-Id", [self._id])
        self.length = length
        if length == 0:
            self.state.answer_begins()
        else:
            if self.site.keys is not None:
                # Asked again when the request is there; but nobody may fill the disk meanwhile.
                self.site.keys.admit(line.method, line.target.partition(b"?")[0], headers)
            limit = limits.body_to(line.target)
            if length is not None and length > limit:
                raise BodyTooLarge(f"The request body is larger than {limit} bytes.")
            self._body = ChunkedBody(limit) if length is None else CountedBody(length)
            self.state.body_continues()
        if waits:
            headers.removeHeader(b"Expect")  # for HTTPChannel would answer it, body or not
        HTTPChannel.lineReceived(self, b"")
        if waits and length != 0:
            transport: Any = self.transport
            transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def checkPersistence(self, request: Any, version: bytes) -> bool:
        """Whether another request may follow (RFC 9112 section 9.3)."""
        options = request.requestHeaders.getRawHeaders(b"Connection", ())
        if not options and version == b"HTTP/1.1":
            return True
        tokens = [token.strip(b" \t") for token in b",".join(options).lower().split(b",")]
        if b"close" not in tokens and (version == b"HTTP/1.1" or b"keep-alive" in tokens):
            return True
        request.responseHeaders.setRawHeaders(b"Connection", [b"close"])
        return False

    # --- the body, and the answer

    def rawDataReceived(self, data: bytes) -> None:
        """Part of a body, or of the requests that follow the one that is being answered."""
        if self.state.phase != BODY:
            HTTPChannel.rawDataReceived(self, data)
            return
        body = self._body
        content: Any = self.requests[-1].content
        try:
            content.write(body.feed(data))
            if body.rest is not None:
                content.flush()
        except (ProxyError, OSError) as error:
            self.refuse(error)
            return
        if body.rest is None:
            self.state.body_continues()
            return
        self.state.answer_begins()
        HTTPChannel.allContentReceived(self)
        LineReceiver.dataReceived(self, body.rest)

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
        self.line = None
        self._empty_lines = self._bytes = self._fields = 0
        self._ends_in_cr = False
        self.state.answer_ended()
        HTTPChannel.requestDone(self, request)
        goes_on = self._parsing or self.state.phase in (ANSWER, CLOSING)
        if self.state.half_closed and not goes_on:
            self.loseConnection()
