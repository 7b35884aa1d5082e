"""LlamaStackResource: every path that is not a chat completion, passed through as it is."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from itertools import takewhile
from typing import Any

from hyperlink import DecodedURL
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.python.failure import Failure
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

from llamaproxy.cors import CorsMemory
from llamaproxy.errors import BadRequest, ProxyError, UpstreamTimeout
from llamaproxy.heads import SomeFields, headers_of, without
from llamaproxy.request import ProxyRequest
from llamaproxy.tracecontext import TRACE_FIELDS, current_span
from llamaproxy.upstream.bodies import Upload
from llamaproxy.upstream.client_context import PROVIDER_DATA, address_of, without_mcp_headers
from llamaproxy.upstream.dialect import Detector, ServerDialect
from llamaproxy.upstream.exchange import Exchange, Sender
from llamaproxy.upstream.failures import not_begun
from llamaproxy.upstream.headers import TRUST_NOBODY, UNCOMPRESSED, TrustedProxies, forwarded_for
from llamaproxy.upstream.relay import SILENT, drop
from llamaproxy.upstream.response_head import ResponseHead
from llamaproxy.upstream.secrets import Masker, Secret
from llamaproxy.upstream.tunnel import SWITCH, Tunnel, wants_websocket
from llamaproxy.upstream.urls import as_uri
from llamaproxy.watchdog import Watchdog

with warnings.catch_warnings():
    # Its HTTPClient is deprecated; nothing of it is used but the place in the resource tree.
    warnings.simplefilter("ignore", DeprecationWarning)
    from twisted.web.proxy import ReverseProxyResource


_NO_SECRET = Secret()

#: Fields with a URL that may be the server's own.
_LOCATIONS = frozenset({b"location", b"content-location"})

#: Paths that are the same in every version of the server.
_SAME_EVERYWHERE = (b"/v1/version", b"/v1/health")

#: Bytes of a body for which a client's connection always has room.
_SMALL_BODY = 32 * 1024

_ABSOLUTE = re.compile(rb"(https?)://(?:[^/?#@]*@)?([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)


def _own_authorities(scheme: bytes, authority: bytes) -> frozenset[bytes]:
    """The ways to write *authority* in a URL, in lower case: with its port, and without.

    It may be without if the port is the default one of *scheme* or of the other, which a server
    writes that is told of a client who came over it.
    """
    match = re.fullmatch(rb"(.*?)(?::([0-9]+))?", authority.lower())
    assert match is not None
    host, port = match[1], match[2] or (b"443" if scheme.lower() == b"https" else b"80")
    with_port = b"%b:%b" % (host, port)
    return frozenset({host, with_port} if port in (b"80", b"443") else {with_port})


def _first_member(fields: Mapping[bytes, bytes], name: bytes) -> bytes:
    """The first member of the list in the field *name*: each proxy on the way may append one."""
    return fields.get(name, b"").partition(b",")[0].strip(b" \t")


def _common_end(one: bytes, other: bytes) -> int:
    """The length of the longest common suffix of two paths, in bytes."""
    pairs = zip(reversed(one), reversed(other), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


class LlamaStackResource(ReverseProxyResource):
    """Forwards requests to Llama Stack and relays the answers, byte for byte, unbuffered.

    The target is sent as the client wrote it, with all end-to-end fields, repeated ones too.
    Neither side is read faster than the other reads. Of the stock resource, only its place in the
    tree is used.
    """

    isLeaf = True

    def __init__(
        self,
        sender: Sender,
        url: DecodedURL,
        detector: Detector,
        clock: IReactorTime,
        timeout: float,
        trusted: TrustedProxies = TRUST_NOBODY,
        secret: Secret = _NO_SECRET,
        cors: CorsMemory | None = None,
    ) -> None:
        """:param timeout: seconds to the first byte, and of silence after it.

        :param trusted: clients whose ``X-Forwarded-*`` are believed.

        :param secret: the key that the server is asked with, which it may repeat in its errors.

        :param cors: learns the CORS fields of the server's answers.
        """
        ReverseProxyResource.__init__(self, "", 0, b"")
        self.sender = sender
        self.url = as_uri(url).to_text().rstrip("/").encode("ascii")
        match = _ABSOLUTE.fullmatch(self.url)
        assert match is not None
        self._authorities = _own_authorities(match[1], match[2])
        self._base = match[3]
        self.detector = detector
        self.clock = clock
        self.timeout = timeout
        self.trusted = trusted
        self.secret = secret
        self.cors = CorsMemory() if cors is None else cors

    def render(self, request: ProxyRequest) -> int:
        """Forward *request*, and relay the answer."""
        request.work = passage = Passage(self, request)
        passage.begin()
        return NOT_DONE_YET

    def client_location(
        self, location: bytes, client_path: bytes, path: bytes, request_fields: SomeFields
    ) -> bytes:
        """Where the server's redirect to *location* leads a client: to itself means to this proxy.

        :param client_path: the path that the client has asked for; *path*: that which the server
            was asked for.

        :param request_fields: those sent, whose ``X-Forwarded-*`` have the proxy's address.
        """
        match = _ABSOLUTE.fullmatch(location)
        if match is not None:
            if match[2].lower() not in self._authorities:
                return location
            place: bytes = match[3]
        elif location.startswith(b"/") and not location.startswith(b"//"):
            place = location
        else:
            return location
        rest = place.removeprefix(self._base)
        if self._base and (rest == place or rest[:1] not in (b"", b"/", b"?", b"#")):
            return location
        place = rest
        common = _common_end(client_path, path)
        if path != client_path and place.startswith(path[: len(path) - common]):
            place = client_path[: len(client_path) - common] + place[len(path) - common :]
        sent = dict(reversed(request_fields))
        scheme = _first_member(sent, b"X-Forwarded-Proto")
        host = _first_member(sent, b"X-Forwarded-Host")
        if match is None or not scheme or not host:
            return place or b"/"
        return b"%b://%b%b" % (scheme, host, place)


@implementer(IPushProducer)
class Passage(Watchdog):
    """One request on its way to the server, and the answer on its way back.

    It is the watchdog of the server's silence, takes the answer
    (:class:`llamaproxy.upstream.exchange.AnswerTaker`), is the producer of the client's connection,
    and what is cancelled when the client leaves. No Deferred and no delayed call is made for it,
    unless the server's generation is not known yet.
    """

    _detecting: Deferred[Any] | None = None
    _exchange: Exchange | None = None
    _answered = _registered = _over = False
    _masker: Masker | None = None
    _tunnel: Tunnel | None = None
    #: Set when the request is sent: the path that the server is asked for, and the fields.
    _path: bytes
    _fields: SomeFields

    def __init__(self, resource: LlamaStackResource, request: ProxyRequest) -> None:
        self._resource = resource
        self._request = request
        self._span = current_span.get()
        self._deliver: Callable[[bytes], None] = request.write
        Watchdog.__init__(self, resource.clock, resource.timeout)

    # --- the request

    def begin(self) -> None:
        """Send the request, as soon as the server's generation is known if that matters."""
        path = self._request.path
        versioned = path.startswith((b"/v1/", b"/openai/v1/")) and path not in _SAME_EVERYWHERE
        detector = self._resource.detector
        if not versioned:
            self._send(None)
        elif detector.detected is not None:
            self._send(detector.detected)
        else:
            self._detecting = Deferred.fromCoroutine(detector.generation())
            self._detecting.addCallbacks(self._send, self._not_detected)

    def _send(self, dialect: ServerDialect | None) -> None:
        self._detecting = None
        if self._over:
            return
        try:
            self._exchange = self._sent(dialect)
        except Exception as error:
            self.failed(error)

    def _not_detected(self, failure: Failure) -> None:
        if not self._over:
            error: Any = failure.value
            self.failed(error)

    def _sent(self, dialect: ServerDialect | None) -> Exchange:
        resource, request = self._resource, self._request
        target: bytes = request.uri
        if not target.startswith(b"/"):
            raise BadRequest("The request target must begin with '/'.")
        path = request.path
        if dialect is not None:
            path = dialect.upstream_path(request.method, path)
        self._path = path
        client = address_of(request)
        head = request.head
        body: Upload | None = None
        fields = forwarded_for(head, client, request.isSecure(), client in resource.trusted)
        by_name = head.by_name
        if b"content-length" in by_name or b"transfer-encoding" in by_name:
            body = Upload(request.content)  # be it an empty one
            body.progressed = self.feed
        elif wants_websocket(head):
            fields = [*fields, *SWITCH]
        if not by_name.keys().isdisjoint(PROVIDER_DATA) and (
            dialect is None or not dialect.wants_mcp_headers(path)
        ):
            fields = without_mcp_headers(fields)
        if resource.secret.key:
            # An error must be readable, for the key may be in it.
            fields = [*without(fields, (b"accept-encoding",)), UNCOMPRESSED]
        if self._span is not None:
            fields = [*without(fields, TRACE_FIELDS), *self._span.fields]
        self._fields = fields
        self.start()
        upstream_target = resource.url + path + target.removeprefix(request.path)
        return resource.sender.send(request.method, upstream_target, fields, body, self)

    # --- the answer

    def answered(self, head: ResponseHead) -> None:
        """The head of the answer has come."""
        self._answered = True
        sent, self._fields = self._fields, ()  # a stream would keep them to its end
        self.feed()
        resource, request = self._resource, self._request
        if head.switches:
            self._tunnel = Tunnel(request, head.tunnel, self)
            self._deliver = self._tunnel.to_client
            self._register()
            self._tunnel.open(head)
            return
        if head.status == 404 and self._path != request.path:
            # Perhaps the server was replaced by one of another generation.
            resource.detector.doubt()
        phrase, fields = head.phrase, head.fields
        if head.status >= 400 and resource.secret.key:
            phrase = resource.secret.masked(phrase)
            fields = resource.secret.masked_fields(fields)
            self._masker = resource.secret.masker()
            self._deliver = self._write_masked
        if not _LOCATIONS.isdisjoint(head.names):
            fields = [
                (name, resource.client_location(value, request.path, self._path, sent))
                if name.lower() in _LOCATIONS
                else (name, value)
                for name, value in fields
            ]
        if (origin := request.head.origin) is not None:
            answer = headers_of(head.fields)
            resource.cors.learn_from_answer(origin, head.status, answer, request.responseHeaders)
        follows = head.body_follows and self._masker is None
        request.begin(head.status, phrase, fields, follows, head.names)
        if head.length is None or head.length > _SMALL_BODY:
            self._register()

    def received(self, data: bytes) -> None:
        """More of the body has come."""
        self.feed()
        self._deliver(data)

    def ended(self) -> None:
        """The answer is complete."""
        tunnel = self._end()
        request = self._request
        if request.channel is None:
            return
        if tunnel is not None:
            tunnel.close()
            return
        if self._masker is not None:
            request.write(self._masker.finish())
        request.finish()

    def failed(self, error: Exception) -> None:
        """There is no answer, or no end of it."""
        tunnel = self._end()
        if isinstance(error, ProxyError):
            error.where = error.where or self._resource.url.decode("ascii")
        if tunnel is None:
            self._request.fail(error)
        elif self._request.channel is not None:  # else: the client has left
            self._request.noted(error)
            tunnel.close()

    # --- limits and cancelling

    def cancel(self) -> None:
        """The client has left, or the daemon waits no longer."""
        if self._over:
            return
        self._leave()
        self.failed(CancelledError())

    def bark(self) -> None:
        self._leave()
        late = not_begun(self._resource.timeout)
        self.failed(UpstreamTimeout(SILENT) if self._answered else late)

    def _leave(self) -> None:
        """End what was started for the client; nothing is told of it any more."""
        exchange, detecting = self._exchange, self._detecting
        self._over = True
        if detecting is not None:
            detecting.cancel()
        if exchange is not None:
            exchange.cancel()

    def _end(self) -> Tunnel | None:
        """Nothing more comes; the tunnel, if there was one, which refers to this."""
        tunnel, self._tunnel = self._tunnel, None
        self._over = True
        self._deliver = drop
        self.stop()
        self._exchange = self._detecting = None
        if self._registered and self._request.channel is not None:
            self._registered = False
            self._request.unregisterProducer()
        return tunnel

    # --- for the client's connection

    def _register(self) -> None:
        self._registered = True
        self._request.registerProducer(self, True)

    def pauseProducing(self) -> None:
        # A client that does not read is no silence of the upstream.
        self.stop()
        if self._exchange is not None:
            self._exchange.pause()

    def resumeProducing(self) -> None:
        if self._exchange is not None:
            self.start()
            self._exchange.resume()

    def stopProducing(self) -> None:
        """The client has left: :meth:`cancel` is called as well."""

    def _write_masked(self, data: bytes) -> None:
        assert self._masker is not None
        self._request.write(self._masker.feed(data))
