"""ProxyChannel: one client's connection: strict, bounded in size and time, closed politely."""

from __future__ import annotations

from contextlib import suppress
from enum import Enum, auto
from http import HTTPStatus
from math import inf
from typing import Any

from twisted.internet.interfaces import ISSLTransport
from twisted.internet.protocol import connectionDone
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, datetimeToString
from twisted.web.server import version

from llamaproxy import jsontext
from llamaproxy.errors import BodyTooLarge, ProxyError
from llamaproxy.framing import (
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
    field_of,
    is_hopeless,
    request_id,
    request_line,
)
from llamaproxy.limits import Limits

#: Seconds, and bytes, for which a refused client may go on sending before it is cut off. If its
#: connection were closed at once, what it still sends would make its system throw the refusal
#: away unread (RFC 9112 section 9.6).
LINGER_SECONDS = 10.0
LINGER_BYTES = 64 * 1024 * 1024

#: Seconds that a client may take to fetch the last of an answer after which the connection ends.
CLOSING_SECONDS = 600.0

#: Connections over their limit that are still told so, and seconds that each has to ask.
SHED_CONNECTIONS = 256
SHED_SECONDS = 5.0


class State(Enum):
    """What a connection is waiting for."""

    REQUEST = auto()
    HEAD = auto()
    BODY = auto()
    ANSWER = auto()
    CLOSE = auto()


class ProxyChannel(HTTPChannel):
    """Takes requests off a connection, one after the other, and refuses what is doubtful.

    The lines, the framing and the timing are its own; queueing, answering and back-pressure are
    :class:`HTTPChannel`'s, which gets to see only the request line and the end of the head.
    """

    MAX_LENGTH = MAX_LINE
    totalHeadersSize = MAX_HEAD

    site: Any

    def __init__(self) -> None:
        HTTPChannel.__init__(self)
        self._state = State.HEAD
        #: When the client's time is up.
        self.deadline = inf
        self._spoke = False
        self._parsing = False
        self._ends_in_cr = False
        self._shed = False
        self._line: RequestLine | None = None
        self._empty_lines = 0
        self._bytes = 0
        self._fields = 0
        self._body: CountedBody | ChunkedBody = CountedBody(0)
        self._lingered = 0

    # --- a connection begins and ends

    def connectionMade(self) -> None:
        HTTPChannel.connectionMade(self)
        self.site.connections.opened(self)
        limits: Limits = self.site.limits
        over = self.site.connections.connected - limits.connections
        self._shed = over > 0
        timeout = limits.header_timeout
        self._wait(min(timeout, SHED_SECONDS) if self._shed else timeout)
        if over > SHED_CONNECTIONS:
            transport: Any = self.transport
            transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.site.connections.closed(self)
        HTTPChannel.connectionLost(self, reason)

    def loseConnection(self) -> None:
        """Close once all that was written has been sent."""
        if self._state is not State.CLOSE:
            self._state = State.CLOSE
            self._wait(CLOSING_SECONDS)
        HTTPChannel.loseConnection(self)

    def expire(self) -> None:
        """The client's time is up."""
        transport: Any = self.transport
        if self._state is State.CLOSE:
            transport.abortConnection()
        else:
            self.end(Refused(408, "The request did not come in time."))

    def end(self, error: ProxyError) -> None:
        """Close the connection; a request that is still being sent is refused with *error*."""
        if self._state is State.BODY or (self._state is State.HEAD and self._spoke):
            self._refuse(error)
        else:
            self.loseConnection()

    def _wait(self, seconds: float) -> None:
        self.deadline = self.site.now() + seconds

    # --- a request comes

    def dataReceived(self, data: bytes) -> None:
        if self._state is State.CLOSE:
            self._linger(data)
            return
        if self._state is State.REQUEST:
            self._await_head()
        self._spoke = True
        # Not HTTPChannel's, which gives the client more time whenever it sends something.
        if self._parsing:
            LineReceiver.dataReceived(self, data)
            return
        self._parsing = True
        try:
            LineReceiver.dataReceived(self, data)
        finally:
            self._parsing = False
        if self._state is State.HEAD:
            self._check_begun_line(data)

    def _await_head(self) -> None:
        self._state = State.HEAD
        self._wait(self.site.limits.header_timeout)

    def _check_begun_line(self, data: bytes) -> None:
        """Refuse at once what would otherwise be waited for in vain, such as bare line feeds."""
        if self._ends_in_cr:
            data = b"\r" + data
        self._ends_in_cr = data.endswith(b"\r")
        if is_hopeless(data.rpartition(b"\r\n")[2]):
            self._refuse(Refused(400, "The request is not HTTP/1.1."))

    def lineReceived(self, line: bytes) -> bool:
        """One line of a head; true if nothing of what follows matters any more."""
        try:
            if self._line is None:
                self._begin(line)
            elif line:
                self._field(line)
            else:
                self._end_head()
        except (ProxyError, OSError) as error:
            self._refuse(error)
        return self._state is State.CLOSE

    def lineLengthExceeded(self, line: bytes) -> None:
        if self._line is None:
            self._refuse(Refused(414, f"The request line is longer than {MAX_LINE} bytes."))
        else:
            self._refuse(Refused(431, f"A field is longer than {MAX_LINE} bytes."))

    def _begin(self, line: bytes) -> None:
        if not line and not self._empty_lines:  # one is to be ignored (RFC 9112 section 2.2)
            self._empty_lines = 1
            return
        if self._state is State.REQUEST:  # it came together with the one before
            self._await_head()
        self._line = read = request_line(line)
        if read.authority is not None or not line.endswith((b"1.1", b"1.0")):
            line = b"%b %b HTTP/1.%d" % (read.method, read.target, read.minor)
        HTTPChannel.lineReceived(self, line)

    def _field(self, line: bytes) -> None:
        self._bytes += len(line)
        self._fields += 1
        match = field_of(line)
        if match is None:
            raise Refused(400, "A field of the request is not well-formed.")
        if self._fields > MAX_FIELDS:
            raise Refused(431, f"The request has more than {MAX_FIELDS} fields.")
        if self._bytes > MAX_HEAD:
            raise Refused(431, f"The request's fields are longer than {MAX_HEAD} bytes.")
        name, value = match.groups()
        self.requests[-1].requestHeaders.addRawHeader(name, value.strip(b" \t"))

    def _end_head(self) -> None:
        line = self._line
        assert line is not None
        limits: Limits = self.site.limits
        headers = self.requests[-1].requestHeaders
        values = headers.getRawHeaders
        check_host(values(b"Host"), line)
        length = body_length(values(b"Content-Length"), values(b"Transfer-Encoding"), line.minor)
        if len(values(b"Authorization", ())) > 1:
            raise Refused(400, "The Authorization field is repeated.")
        waits = line.minor == 1 and expects_continue(values(b"Expect"))
        if self._shed:
            raise Refused(503, "There are too many connections.", {"Retry-After": "1"})
        headers.setRawHeaders(b"X-Request-Id", [request_id(values(b"X-Request-Id"))])
        self.length = length
        if length == 0:
            self._state, self.deadline = State.ANSWER, inf
        else:
            if self.site.keys is not None:
                # Asked again when the request is there; but nobody may fill the disk meanwhile.
                self.site.keys.admit(line.method, line.target.partition(b"?")[0], headers)
            limit = limits.body_to(line.target)
            if length is not None and length > limit:
                raise BodyTooLarge(f"The request body is larger than {limit} bytes.")
            self._body = ChunkedBody(limit) if length is None else CountedBody(length)
            self._state = State.BODY
            self._wait(limits.client_timeout)
        if waits:
            headers.removeHeader(b"Expect")  # for HTTPChannel would answer it, body or not
        HTTPChannel.lineReceived(self, b"")
        if waits and length != 0:
            transport: Any = self.transport
            transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def checkPersistence(self, request: Any, version: bytes) -> bool:
        """Whether another request may follow (RFC 9112 section 9.3); not after HTTP/1.0."""
        options = request.requestHeaders.getRawHeaders(b"Connection")
        if version == b"HTTP/1.1":
            if options is None:
                return True
            tokens = b",".join(options).lower().split(b",")
            if b"close" not in [token.strip(b" \t") for token in tokens]:
                return True
        request.responseHeaders.setRawHeaders(b"Connection", [b"close"])
        return False

    def rawDataReceived(self, data: bytes) -> None:
        """Part of a body, or of the requests that follow the one that is being answered."""
        if self._state is not State.BODY:
            HTTPChannel.rawDataReceived(self, data)
            return
        body = self._body
        content: Any = self.requests[-1].content
        try:
            content.write(body.feed(data))
            if body.rest is not None:
                content.flush()
        except (ProxyError, OSError) as error:
            self._refuse(error)
            return
        if body.rest is None:
            self._wait(self.site.limits.client_timeout)
            return
        self._state, self.deadline = State.ANSWER, inf
        HTTPChannel.allContentReceived(self)
        LineReceiver.dataReceived(self, body.rest)

    # --- it is answered

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Any) -> None:
        ids = self.requests[0].requestHeaders.getRawHeaders(b"X-Request-Id")
        headers.setRawHeaders(b"X-Request-Id", ids)
        HTTPChannel.writeHeaders(self, version, code, reason, headers)

    def requestDone(self, request: Any) -> None:
        self._line = None
        self._empty_lines = self._bytes = self._fields = 0
        self._ends_in_cr = False
        self._state = State.REQUEST
        self._wait(self.site.limits.client_timeout)
        HTTPChannel.requestDone(self, request)

    def _refuse(self, error: ProxyError | OSError) -> None:
        """Answer in place of a request that will not be served, and close."""
        if isinstance(error, OSError):
            self._log.failure("a request body could not be stored")
            error = ProxyError("The request body could not be stored.")
        self._state = State.CLOSE
        self._wait(LINGER_SECONDS)
        LineReceiver.clearLineBuffer(self)
        given = None
        if self.requests:
            request = self.requests.pop()
            given = request.requestHeaders.getRawHeaders(b"X-Request-Id")
            if request.content is not None:
                with suppress(OSError):  # what could not be stored cannot be flushed either
                    request.content.close()
        body = jsontext.dumps(error.body)
        phrase = HTTPStatus(error.status).phrase
        fields = {
            "Server": version.decode(),
            "Date": datetimeToString().decode(),
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Connection": "close",
            "X-Request-Id": request_id(given).decode(),
            **error.headers,
        }
        head = [f"HTTP/1.1 {error.status} {phrase}", *map(": ".join, fields.items()), "", ""]
        method, target = (self._line.method, self._line.target) if self._line else (b"-", b"-")
        sent = b"" if method == b"HEAD" else body
        transport: Any = self.transport
        transport.write("\r\n".join(head).encode("latin-1") + sent)
        path = target.partition(b"?")[0]
        self.site.log_line(transport.getPeer(), method, path, error.status, len(sent), 0.0)
        transport.unregisterProducer()
        if ISSLTransport.providedBy(transport):
            transport.loseConnection()  # which goes on reading until the client closes too
        else:
            transport.loseWriteConnection()
            transport.resumeProducing()

    def _linger(self, data: bytes) -> None:
        self._lingered += len(data)
        if self._lingered > LINGER_BYTES:
            transport: Any = self.transport
            transport.abortConnection()
