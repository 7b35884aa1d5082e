"""ProxySite: serves requests on its connections, and tells of each that has begun and ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus

from twisted.internet.interfaces import IAddress, IProtocolNegotiationFactory, IReactorTime
from twisted.internet.protocol import Factory
from twisted.web.http_headers import Headers
from twisted.web.resource import IResource
from twisted.web.server import version
from zope.interface import implementer

from llamaproxy import jsontext
from llamaproxy.cors import CorsMemory
from llamaproxy.errors import ProxyError
from llamaproxy.events import RequestBegan, RequestEnded, Tell, tell_nobody
from llamaproxy.heads import RequestHead, answer_head, date
from llamaproxy.prompt_writes import promptly_by
from llamaproxy.request import ProxyRequest
from llamaproxy.server.channel import ProxyChannel
from llamaproxy.server.connections import Connections
from llamaproxy.server.framing import request_id
from llamaproxy.server.hosts import AllowedHosts
from llamaproxy.server.keys import ApiKeys, GuardedResource
from llamaproxy.server.limits import Limits

_DEFAULT_LIMITS = Limits()


@implementer(IProtocolNegotiationFactory)
class ProxySite(Factory):
    """The HTTP server: a resource, the rules for requests to it, and the connections to it."""

    #: Whether Twisted's request answers with the traceback of a fault.
    displayTracebacks = False

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
        """:param resource: renders every request, whatever its path.

        :param keys: those that clients must have; with None, none is asked for.

        :param cors: what the upstream lets pages do, for requests that are refused here.

        :param hosts: the names that may be asked for; with None, any.

        :param tell: hears of every request.
        """
        self.cors = CorsMemory() if cors is None else cors
        self.hosts = AllowedHosts() if hosts is None else hosts
        self.resource = resource if keys is None else GuardedResource(resource, keys, self.cors)
        self._tell = tell
        self.limits = limits
        self.keys = keys
        self.clock = clock
        self.now = clock.seconds
        self.promptly = promptly_by(clock)
        self.connections = Connections(clock, limits.idle_grace)

    def buildProtocol(self, addr: IAddress | None) -> ProxyChannel:
        return ProxyChannel(self)

    def acceptableProtocols(self) -> list[bytes]:
        """What is spoken over TLS (RFC 7301)."""
        return [b"http/1.1"]

    def began(self, request: ProxyRequest) -> float:
        """*request* is being served from now on; the time is returned."""
        self.connections.began(request)
        self._tell(RequestBegan(request.id))
        return self.now()

    def ended(self, request: ProxyRequest, status: int) -> None:
        """*request* has been answered with *status*, or its client has left."""
        self._tell_of_end(
            request.client_host,
            request.method,
            request.path,
            status,
            request.sentLength,
            self.now() - request.started_at,
            {**request.counts(), **request.log_fields, "request": request.id},
        )
        self.connections.ended(request)

    def refusal(self, error: ProxyError, head: RequestHead | None, client: str | None) -> bytes:
        """The answer of *error* to what will not be served, after which its connection is closed.

        :param head: what there is of its head; *client*: the client's address, if it has one.
        """
        cors = Headers()
        method, path = b"-", b"-"
        client_ids: Sequence[bytes] = ()
        if head is not None:
            method, path = head.line.method, head.path
            client_ids = head.values(b"x-request-id")
            self.cors.apply(head.origin, cors)
        answer_id = request_id(client_ids)
        body = jsontext.dumps(error.body)
        fields = [
            (b"Server", version),
            (b"Date", date()),
            (b"Content-Type", b"application/json"),
            (b"Content-Length", b"%d" % len(body)),
            (b"Connection", b"close"),
            (b"X-Request-Id", answer_id),
            *((name, values[0]) for name, values in cors.getAllRawHeaders()),
            *((name.encode(), value.encode("latin-1")) for name, value in error.headers.items()),
        ]
        if method == b"HEAD":
            body = b""
        log_fields = {"error": error.logged, "kind": error.kind, "request": answer_id.decode()}
        self._tell_of_end(client, method, path, error.status, len(body), 0.0, log_fields)
        phrase = HTTPStatus(error.status).phrase.encode()
        return answer_head(1, error.status, phrase, fields) + body

    def _tell_of_end(
        self,
        client: str | None,
        method: bytes,
        path: bytes,
        status: int,
        sent: int,
        seconds: float,
        fields: Mapping[str, str | int | float],
    ) -> None:
        """Tell of a request that has ended, whether it became a :class:`ProxyRequest` or not."""
        ended = RequestEnded(
            client=client or "-",
            method=method.decode("ascii"),
            path=path.decode("ascii"),
            status=status,
            sent=sent,
            seconds=seconds,
            fields=fields,
        )
        self._tell(ended)
