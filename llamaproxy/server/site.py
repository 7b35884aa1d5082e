"""ProxySite: serves requests on its connections, and tells of each that has begun and ended."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.web.http import Request
from twisted.web.http_headers import Headers
from twisted.web.resource import IResource
from twisted.web.server import Site

from llamaproxy.cors import CorsMemory, origin_in
from llamaproxy.errors import ProxyError, last_answer
from llamaproxy.events import RequestBegan, RequestEnded, Tell, tell_nobody
from llamaproxy.request import ProxyRequest
from llamaproxy.server.channel import ProxyChannel
from llamaproxy.server.connections import Connections
from llamaproxy.server.framing import RequestLine, request_id
from llamaproxy.server.hosts import AllowedHosts
from llamaproxy.server.keys import ApiKeys, GuardedResource
from llamaproxy.server.limits import Limits

#: Logged as the status of an answer that did not come to its end, as nginx does it.
CUT_OFF_STATUS = 499

_DEFAULT_LIMITS = Limits()

#: What a request may not write into the log.
_UNPRINTABLE = re.compile("[^!-~]")


class ProxySite(Site):
    """The HTTP server: a resource, the rules for requests to it, and the connections to it."""

    # Not the stock factory, which would speak HTTP/2 as well where the library for it is there.
    protocol: Any = ProxyChannel

    def __init__(
        self,
        resource: IResource,
        clock: IReactorTime,
        limits: Limits = _DEFAULT_LIMITS,
        keys: ApiKeys | None = None,
        cors: CorsMemory | None = None,
        hosts: AllowedHosts | None = None,
        tell: Tell = tell_nobody,
    ) -> None:
        """:param keys: those that clients must have; with None, none is asked for.

        :param cors: what the upstream lets pages do, for requests that are refused here.

        :param hosts: the names that may be asked for; with None, any.

        :param tell: hears of every request.
        """
        self.cors = CorsMemory() if cors is None else cors
        self.hosts = AllowedHosts() if hosts is None else hosts
        Site.__init__(
            self,
            resource if keys is None else GuardedResource(resource, keys, self.cors),
            requestFactory=ProxyRequest,
            parsePOSTFormSubmission=False,
            timeout=None,  # the channels look after their time themselves
            reactor=clock,
        )
        self._tell = tell
        self.limits = limits
        self.keys = keys
        self.clock = clock
        self.now = clock.seconds
        self.connections = Connections(clock, limits.idle_grace)
        self.displayTracebacks = False

    def acceptableProtocols(self) -> list[bytes]:
        """What is spoken over TLS (RFC 7301)."""
        return [b"http/1.1"]

    def began(self, request: ProxyRequest) -> float:
        """*request* is being served from now on; the time is returned."""
        self.connections.began(request)
        self._tell(RequestBegan(request.id))
        finished = request.notifyFinish()
        finished.addErrback(
            lambda _: self._request_ended(request, 101 if request.code == 101 else CUT_OFF_STATUS)
        )
        finished.addBoth(lambda _: self.connections.ended(request))
        return self.now()

    def log(self, request: Any) -> None:
        """Called by Twisted for a request that was answered to the end."""
        self._request_ended(request, request.code)

    def _request_ended(self, request: Any, status: int) -> None:
        self._tell_of_end(
            request.getClientAddress(),
            request.method,
            request.path,
            status,
            request.sentLength,
            self.now() - request.started_at,
            {**request.counts(), **request.log_fields, "request": request.id},
        )

    def refusal(
        self, error: ProxyError, line: RequestLine | None, request: Request | None, client: object
    ) -> bytes:
        """The answer of *error* to what will not be served, after which its connection is closed.

        :param line: the request line, if one has come; *request*: what of the request there is.

        :param client: the address of the client.
        """
        fields = Headers()
        client_ids = None
        if request is not None:
            self.cors.apply(origin_in(request.requestHeaders), fields)
            client_ids = request.requestHeaders.getRawHeaders(b"X-Request-Id")
        answer_id = request_id(client_ids)
        head, body = last_answer(error, answer_id, fields)
        method, target = (line.method, line.target) if line else (b"-", b"-")
        if method == b"HEAD":
            body = b""
        path = target.partition(b"?")[0]
        log_fields = {"error": error.logged, "kind": error.kind, "request": answer_id.decode()}
        self._tell_of_end(client, method, path, error.status, len(body), 0.0, log_fields)
        return head + body

    def _tell_of_end(
        self,
        client: object,
        method: bytes,
        path: bytes,
        status: int,
        sent: int,
        seconds: float,
        fields: Mapping[str, str | int | float],
    ) -> None:
        """Tell of a request that has ended, whether it became a :class:`ProxyRequest` or not."""
        ended = RequestEnded(
            # A client of a Unix socket has no host.
            client=getattr(client, "host", "-"),
            method=_UNPRINTABLE.sub("?", method.decode("latin-1")),
            path=_UNPRINTABLE.sub("?", path.decode("latin-1")),
            status=status,
            sent=sent,
            seconds=seconds,
            fields=fields,
        )
        self._tell(ended)
