"""TimedChannel: how long a client is waited for, and how its connection ends."""

from __future__ import annotations

from contextlib import suppress
from math import inf
from typing import Any

from twisted.internet.interfaces import ISSLTransport
from twisted.internet.protocol import connectionDone
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel

from llamaproxy.errors import ProxyError, last_answer
from llamaproxy.framing import Refused, RequestLine, request_id
from llamaproxy.limits import Limits

#: What a connection is waiting for. Numbers: members of an Enum take five times as long to name.
REQUEST, HEAD, BODY, ANSWER, CLOSE = range(5)

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


class TimedChannel(HTTPChannel):
    """A connection whose client has so much time for each step, and which is closed politely.

    Its deadlines are looked at by :class:`llamaproxy.connections.Connections`.
    """

    site: Any

    def __init__(self) -> None:
        HTTPChannel.__init__(self)
        self.state = HEAD
        #: When the client's time is up.
        self.deadline = inf
        #: The request line of the request that is being received or answered.
        self.line: RequestLine | None = None
        self.spoke = False
        self.shed = False
        self._lingered = 0

    def connectionMade(self) -> None:
        HTTPChannel.connectionMade(self)
        self.site.connections.opened(self)
        limits: Limits = self.site.limits
        over = self.site.connections.connected - limits.connections
        self.shed = over > 0
        timeout = limits.header_timeout
        self.wait(min(timeout, SHED_SECONDS) if self.shed else timeout)
        if over > SHED_CONNECTIONS:
            self._abort()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.site.connections.closed(self)
        HTTPChannel.connectionLost(self, reason)

    def loseConnection(self) -> None:
        """Close once all that was written has been sent."""
        if self.state != CLOSE:
            self.state = CLOSE
            self.wait(CLOSING_SECONDS)
        HTTPChannel.loseConnection(self)

    def wait(self, seconds: float) -> None:
        """Give the client so many *seconds* for its next step."""
        self.deadline = self.site.now() + seconds

    def expire(self) -> None:
        """The client's time is up."""
        if self.state == CLOSE:
            self._abort()
        else:
            self.end(Refused(408, "The request did not come in time."))

    def end(self, error: ProxyError) -> None:
        """Close the connection; a request that is still being sent is refused with *error*."""
        if self.state == BODY or (self.state == HEAD and self.spoke):
            self.refuse(error)
        else:
            self.loseConnection()

    def refuse(self, error: ProxyError | OSError) -> None:
        """Answer in place of a request that will not be served, and close."""
        if isinstance(error, OSError):
            self._log.failure("a request body could not be stored")
            error = ProxyError("The request body could not be stored.")
        self.state = CLOSE
        self.wait(LINGER_SECONDS)
        LineReceiver.clearLineBuffer(self)
        given = None
        if self.requests:
            request = self.requests.pop()
            given = request.requestHeaders.getRawHeaders(b"X-Request-Id")
            if request.content is not None:
                with suppress(OSError):  # what could not be stored cannot be flushed either
                    request.content.close()
        method, target = (self.line.method, self.line.target) if self.line else (b"-", b"-")
        head, body = last_answer(error, request_id(given))
        if method == b"HEAD":
            body = b""
        transport: Any = self.transport
        transport.write(head + body)
        path = target.partition(b"?")[0]
        self.site.log_line(transport.getPeer(), method, path, error.status, len(body), 0.0)
        transport.unregisterProducer()
        if ISSLTransport.providedBy(transport):
            transport.loseConnection()  # which goes on reading until the client closes too
        else:
            transport.loseWriteConnection()
            transport.resumeProducing()

    def linger(self, data: bytes) -> None:
        """Throw away what comes after the last answer."""
        self._lingered += len(data)
        if self._lingered > LINGER_BYTES:
            self._abort()

    def _abort(self) -> None:
        transport: Any = self.transport
        transport.abortConnection()
