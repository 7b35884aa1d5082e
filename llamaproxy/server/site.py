"""ProxySite: serves requests on its connections, and tells of each that has begun and ended."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from http import HTTPStatus

from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IProtocolNegotiationFactory,
    IReactorTime,
)
from twisted.internet.protocol import Factory
from twisted.web.http_headers import Headers
from twisted.web.resource import IResource
from twisted.web.server import version
from zope.interface import implementer

from llamaproxy import jsontext
from llamaproxy.cors import CorsMemory
from llamaproxy.errors import ProxyError
from llamaproxy.events import ConnectionsTurnedAway, RequestBegan, RequestEnded, Tell, tell_nobody
from llamaproxy.heads import KINDS, RequestHead, answer_head, date
from llamaproxy.records import RequestRecord
from llamaproxy.request import CUT_OFF_STATUS, ProxyRequest
from llamaproxy.server.channel import ProxyChannel
from llamaproxy.server.connections import Connections
from llamaproxy.server.framing import request_id
from llamaproxy.server.hosts import AllowedHosts
from llamaproxy.server.keys import ApiKeys, GuardedResource, caller_of
from llamaproxy.server.limits import Limits

_DEFAULT_LIMITS = Limits()

#: Seconds between two events of connections that were closed without an answer.
_TELL_SECONDS = 10.0

#: A ``traceparent`` of any version (W3C Trace Context, section 3.2).
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")


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
        self.connections = Connections(clock, limits.idle_grace)
        #: Connections that were closed without an answer, since that was last told, and what will
        #: tell of more.
        self._turned_away = 0
        self._telling: IDelayedCall | None = None

    def buildProtocol(self, addr: IAddress | None) -> ProxyChannel:
        return ProxyChannel(self)

    def acceptableProtocols(self) -> list[bytes]:
        """What is spoken over TLS (RFC 7301)."""
        return [b"http/1.1"]

    def began(self, request: ProxyRequest) -> None:
        """*request* is being served from now on, and has a record."""
        request.record = self._record(request.head, request.client_host, request.id)
        self.connections.began(request)
        self._tell(RequestBegan(request.record))

    def ended(self, request: ProxyRequest, status: int) -> None:
        """*request* has been answered with *status*, or its client has left."""
        record = request.record
        record.status, record.sent, record.ended = status, request.sentLength, self.now()
        self._tell(RequestEnded(record))
        self.connections.ended(request)

    def refusal(self, error: ProxyError, head: RequestHead | None, client: str | None) -> bytes:
        """The answer of *error* to what will not be served, after which its connection is closed.

        :param head: what there is of its head; *client*: the client's address, if it has one.
        """
        cors = Headers()
        client_ids: Sequence[bytes] = ()
        if head is not None:
            client_ids = head.by_name.get(b"x-request-id", ())
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
        if head is not None and head.line.method == b"HEAD":
            body = b""
        record = self._record(head, client, answer_id.decode())
        record.kind, record.error = error.kind, error.logged
        record.status, record.sent = error.status, len(body)
        record.first_byte = record.ended = record.began
        self._tell(RequestEnded(record))
        phrase = HTTPStatus(error.status).phrase.encode()
        return answer_head(1, error.status, phrase, fields) + body

    def left(self, head: RequestHead, client: str | None) -> None:
        """The client of a request with that *head* has left before all of its body had come."""
        record = self._record(head, client, head.id.decode("latin-1"))
        record.status, record.ended = CUT_OFF_STATUS, record.began
        self._tell(RequestEnded(record))

    def turned_away(self) -> None:
        """A connection over the limit has been closed without an answer."""
        self._turned_away += 1
        if self._telling is None:
            self._tell_turned_away()

    def _tell_turned_away(self) -> None:
        self._telling = None
        if self._turned_away:
            count, self._turned_away = self._turned_away, 0
            self._telling = self.clock.callLater(_TELL_SECONDS, self._tell_turned_away)
            self._tell(ConnectionsTurnedAway(count, self.limits.connections))

    def _record(self, head: RequestHead | None, client: str | None, id: str) -> RequestRecord:
        """The record of a request with that *head*, whether it becomes a ProxyRequest or not."""
        address = client or "-"
        if head is None:
            return RequestRecord(id, address, "-", "-", self.now())
        said = _said_by(head) if head.kind is None else _said_by_kind(head.kind)
        method, path, caller, trace, traceparent, tracestate = said
        record = RequestRecord(id, address, method, path, self.now(), caller, trace)
        if trace:
            record.traceparent, record.tracestate = traceparent, tracestate
        return record


def _said_by(head: RequestHead) -> tuple[str, str, str, str, str, str]:
    """What a record has of *head*: method, path, caller, trace, ``traceparent``, ``tracestate``."""
    parents = head.by_name.get(b"traceparent", ())
    return (
        head.line.method.decode("ascii"),
        head.path.decode("ascii"),
        caller_of(head),
        trace_id(parents),
        b",".join(parents).decode("latin-1"),
        b",".join(head.by_name.get(b"tracestate", ())).decode("latin-1"),
    )


_said_by_kind = lru_cache(maxsize=KINDS)(_said_by)


def trace_id(values: Sequence[bytes]) -> str:
    """The id of the trace in the *values* of ``traceparent``; empty if there is not one."""
    parent = _TRACEPARENT.fullmatch(values[0]) if len(values) == 1 else None
    return "" if parent is None else parent[1].decode("ascii")
