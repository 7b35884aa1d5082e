"""TimedChannel: how long a client is waited for, and how its connection ends."""

from __future__ import annotations

from contextlib import suppress
from math import inf
from typing import Any

from twisted.internet.interfaces import (
    IDelayedCall,
    IHalfCloseableProtocol,
    IReactorTime,
    ISSLTransport,
)
from twisted.internet.protocol import connectionDone
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.http_headers import Headers
from zope.interface import implementer

from llamaproxy.cors import origin_in
from llamaproxy.errors import ProxyError, last_answer
from llamaproxy.server.framing import Refused, RequestLine, request_id
from llamaproxy.server.limits import Limits

#: What a connection is waiting for. Numbers: members of an Enum take five times as long to name.
REQUEST, HEAD, BODY, ANSWER, CLOSE, TUNNEL = range(6)

#: Seconds for which a refused client may go on sending before it is cut off, and may be silent. If
#: its connection were closed at once, what it still sends would make its system throw the refusal
#: away unread (RFC 9112 section 9.6). Both are nginx's.
LINGER_SECONDS = 30.0
LINGER_SILENCE = 5.0

#: Seconds that a client may take to read what waits for it, until it is sent more or its connection
#: ends.
READ_SECONDS = 600.0

#: Seconds in which a client that has closed its side must be sent something, or else has left.
HALF_CLOSED_SECONDS = 0.5

#: Connections over their limit that are still told so, and seconds that each has to ask.
SHED_CONNECTIONS = 256
SHED_SECONDS = 5.0


@implementer(IHalfCloseableProtocol)
class TimedChannel(HTTPChannel):
    """A connection whose client has so much time for each step, and which is closed politely.

    Its deadlines are looked at by :class:`llamaproxy.server.connections.Connections`.
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
        #: Whether more waits for the client than it reads.
        self.stalled = False
        #: Whether the client sends nothing more.
        self.half_closed = False
        self._parting: IDelayedCall | None = None
        self._lingers_until = 0.0

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
        if self._parting is not None:
            self._parting.cancel()
        HTTPChannel.connectionLost(self, reason)

    def readConnectionLost(self) -> None:
        """The client sends nothing more: it waits for its answers, or has left.

        Only something that is sent to it can tell: it is refused if nobody is there. What is done
        for a chat does not wait for that, but ends at once (DESIGN: L17).
        """
        self.half_closed = True
        if self.state != ANSWER:
            self.loseConnection()
        elif self._parting is None:
            self._part()

    def writeConnectionLost(self) -> None:
        """Nothing more can be sent to the client, as it was meant."""

    def _part(self, before: object = None) -> None:
        # Nobody who has left is sent anything twice, or leaves anything unread.
        progress = [(request, request.sentLength) for request in self.requests]
        self._parting = None
        chats = bool(self.requests) and not self.requests[0].half_closable
        if chats or (progress == before and not self.stalled):
            self._abort()
        else:
            clock: IReactorTime = self.site.reactor
            self._parting = clock.callLater(HALF_CLOSED_SECONDS, self._part, progress)

    def pauseProducing(self) -> None:
        """The client does not read what waits for it."""
        self.stalled = True
        if self.state == ANSWER and self.deadline == inf:
            self.wait(READ_SECONDS)
        HTTPChannel.pauseProducing(self)

    def resumeProducing(self) -> None:
        """The client has been sent all that waited for it."""
        self.stalled = False
        if self.state == ANSWER:
            self.deadline = inf
        HTTPChannel.resumeProducing(self)

    def loseConnection(self) -> None:
        """Close once all that was written has been sent."""
        if self.state == CLOSE:
            transport: Any = self.transport
            transport.loseConnection()
        else:
            self.state = CLOSE
            self.wait(READ_SECONDS)
            HTTPChannel.loseConnection(self)

    def wait(self, seconds: float) -> None:
        """Give the client so many *seconds* for its next step."""
        self.deadline = self.site.now() + seconds

    def expire(self) -> None:
        """The client's time is up."""
        if self.state in (ANSWER, CLOSE):
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
        self._lingers_until = self.site.now() + LINGER_SECONDS
        self.wait(LINGER_SILENCE)
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

    def linger(self) -> None:
        """The client goes on sending after it was refused: nobody listens."""
        if self._lingers_until:
            self.deadline = min(self._lingers_until, self.site.now() + LINGER_SILENCE)

    def _abort(self) -> None:
        transport: Any = self.transport
        transport.abortConnection()
