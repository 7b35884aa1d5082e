"""ProxySite: the front door: bounded requests, and one line in the log for each."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.resource import IResource
from twisted.web.server import Request, Site

from llamaproxy.connections import Connections

#: Logged as the status of an answer that did not come to its end, as nginx does it.
CUT_OFF = 499

#: What a request may not write into the log.
_UNPRINTABLE = re.compile("[^!-~]")

#: Bytes of a request body that are stored for an upload; chat completions have a smaller limit.
MAX_BODY = 1024 * 1024 * 1024


class ProxyRequest(Request):
    """A request whose body is bounded before it is stored."""

    started_at: float = 0.0

    def gotLength(self, length: int | None) -> None:
        Request.gotLength(self, length)
        self._stored = 0
        self._refused = False
        if length is not None and length > MAX_BODY:
            self._refuse()

    def handleContentChunk(self, data: bytes) -> None:
        self._stored += len(data)
        if self._stored > MAX_BODY:
            self._refuse()
        if not self._refused:
            Request.handleContentChunk(self, data)

    def process(self) -> None:
        if self._refused:
            return
        channel: Any = self.channel
        self.started_at = channel.site.began(self)
        Request.process(self)

    def _refuse(self) -> None:
        # There is no request to answer yet, only a channel; so the answer is written to that.
        if not self._refused:
            self._refused = True
            channel: Any = self.channel
            channel.transport.write(
                b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                % (len(_TOO_LARGE), _TOO_LARGE)
            )
            channel.loseConnection()


_TOO_LARGE = (
    b'{"error":{"message":"The request body is too large.",'
    b'"type":"invalid_request_error","param":null,"code":"body_too_large"}}'
)


class ProxyChannel(HTTPChannel):
    """A client's connection."""

    site: ProxySite

    def connectionMade(self) -> None:
        HTTPChannel.connectionMade(self)
        self.site.connections.opened(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.site.connections.closed(self)
        HTTPChannel.connectionLost(self, reason)


class ProxySite(Site):
    """Serves requests, logs them, and knows its connections."""

    # Not the stock factory, which would speak HTTP/2 as well where the library for it is there.
    protocol: Any = ProxyChannel
    _log: ClassVar[Logger] = Logger()

    def __init__(self, resource: IResource, clock: IReactorTime) -> None:
        Site.__init__(self, resource, requestFactory=ProxyRequest, parsePOSTFormSubmission=False)
        self._monotonic = clock
        self.connections = Connections(clock)
        self.displayTracebacks = False

    def acceptableProtocols(self) -> list[bytes]:
        """What is spoken over TLS (RFC 7301)."""
        return [b"http/1.1"]

    def began(self, request: Request) -> float:
        """*request* is being served from now on; the time is returned."""
        self.connections.began(request)
        finished = request.notifyFinish()
        finished.addErrback(lambda _: self._log_access(request, CUT_OFF))
        finished.addBoth(lambda _: self.connections.ended(request))
        return self._monotonic.seconds()

    def log(self, request: Any) -> None:
        """Called by Twisted for a request that was answered to the end."""
        self._log_access(request, request.code)

    def _log_access(self, request: Any, status: int) -> None:
        """One line for each request; nothing of a query, a body or a credential is in it."""
        self._log.info(
            "{client} {method} {path} {status} {sent} bytes {seconds:.3f} s",
            # A client of a Unix socket has no host.
            client=getattr(request.getClientAddress(), "host", "-"),
            method=_UNPRINTABLE.sub("?", request.method.decode("latin-1")),
            path=_UNPRINTABLE.sub("?", request.path.decode("latin-1")),
            status=status,
            sent=request.sentLength,
            seconds=self._monotonic.seconds() - request.started_at,
        )
