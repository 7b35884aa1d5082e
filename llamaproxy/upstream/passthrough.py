"""LlamaStackResource: every path that is not a chat completion, passed through as it is."""

from __future__ import annotations

import re
import warnings
from itertools import takewhile
from typing import Any, ClassVar

from hyperlink import DecodedURL
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.web.http import NO_BODY_CODES
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IAgent, IResponse
from twisted.web.server import NOT_DONE_YET

from llamaproxy.cors import CorsMemory, origin_in
from llamaproxy.errors import BadRequest, ProxyError
from llamaproxy.request import ProxyRequest
from llamaproxy.upstream.bodies import Upload
from llamaproxy.upstream.client_context import address_of, without_mcp_headers
from llamaproxy.upstream.dialect import Detector
from llamaproxy.upstream.failures import response_within
from llamaproxy.upstream.headers import TRUST_NOBODY, TrustedProxies, forwarded_for
from llamaproxy.upstream.relay import ResponseRelay
from llamaproxy.upstream.secrets import Secret
from llamaproxy.upstream.tunnel import TunnelRelay, ask_to_switch, wants_websocket
from llamaproxy.upstream.urls import as_uri

with warnings.catch_warnings():
    # Its HTTPClient is deprecated; nothing of it is used but the place in the resource tree.
    warnings.simplefilter("ignore", DeprecationWarning)
    from twisted.web.proxy import ReverseProxyResource


_NO_SECRET = Secret()

#: Paths that are the same in every version of the server.
_SAME_EVERYWHERE = (b"/v1/version", b"/v1/health")

_ABSOLUTE = re.compile(rb"(https?)://(?:[^/?#@]*@)?([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)


def _authority(scheme: bytes, authority: bytes) -> bytes:
    """*authority* in lower case and with a port, the default of *scheme* where it has none."""
    default = b":443" if scheme.lower() == b"https" else b":80"
    host = authority.lower()
    return host if re.search(rb":[0-9]+$", host) else host + default


def _common_end(one: bytes, other: bytes) -> int:
    """The length of the longest common suffix of two paths, in bytes."""
    pairs = zip(reversed(one), reversed(other), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


class LlamaStackResource(ReverseProxyResource):
    """Forwards requests to Llama Stack and relays the answers, byte for byte, unbuffered.

    Requests go through a shared :class:`twisted.web.iweb.IAgent`, with the target as the client
    wrote it and all end-to-end fields, repeated ones too. Neither side is read faster than the
    other reads. Of the stock resource, only its place in the tree is used.
    """

    isLeaf = True
    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        agent: IAgent,
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
        self._agent = agent
        self._url = as_uri(url).to_text().rstrip("/").encode("ascii")
        match = _ABSOLUTE.fullmatch(self._url)
        assert match is not None
        self._authority = _authority(match[1], match[2])
        self._base = match[3]
        self._detector = detector
        self._clock = clock
        self._timeout = timeout
        self._trusted = trusted
        self._secret = secret
        self._cors = CorsMemory() if cors is None else cors

    def render(self, request: ProxyRequest) -> int:
        """Forward *request*, and relay the answer."""
        return request.respond(self._forward(request))

    async def _forward(self, request: ProxyRequest) -> int | None:
        response = await self._response(request)
        if response.code == 101:
            return await self._tunnel(request, response)
        request.setResponseCode(response.code, response.phrase)
        if response.code >= 400:
            self._secret.mask_fields(response.headers)
        origin = origin_in(request.requestHeaders)
        self._cors.learn_from_answer(origin, response.headers, request.responseHeaders)
        _copy_fields(response, request)
        # Where there cannot be a body, its length says nothing about the one that there could be.
        bodiless = request.method == b"HEAD" or response.code in NO_BODY_CODES
        if response.length is not UNKNOWN_LENGTH and not bodiless:
            length = b"%d" % int(response.length)
            request.responseHeaders.setRawHeaders(b"Content-Length", [length])
        # The head goes out now: the first byte of a stream may be long in coming.
        request.write(b"")
        masker = self._secret.masker() if response.code >= 400 and self._secret.key else None
        relay = ResponseRelay(request, self._clock, self._timeout, masker)
        response.deliverBody(relay)
        await relay.finished
        return None

    async def _tunnel(self, request: ProxyRequest, response: IResponse) -> int:
        relay = TunnelRelay(request, response, self._clock, self._timeout)
        relay.start()
        try:
            await relay.finished
        except ProxyError as error:
            request.note(error=error.logged, kind=error.kind)
        channel: Any = request.channel
        if channel is not None:
            channel.loseConnection()
        return NOT_DONE_YET

    async def _response(self, request: ProxyRequest) -> IResponse:
        target: bytes = request.uri
        if not target.startswith(b"/"):
            raise BadRequest("The request target must begin with '/'.")
        client_path, mark, query = target.partition(b"?")
        path, tools = client_path, False
        if path.startswith((b"/v1/", b"/openai/v1/")) and path not in _SAME_EVERYWHERE:
            generation = await self._detector.generation()
            path = generation.upstream_path(request.method, path)
            tools = generation.wants_mcp_headers(path)
        content: Any = request.content
        body = Upload(content) if _has_body(request) else None
        client = address_of(request)
        fields = forwarded_for(
            request.requestHeaders, client, request.isSecure(), client in self._trusted
        )
        if wants_websocket(request) and body is None:
            ask_to_switch(fields)
        if not tools:
            without_mcp_headers(fields)
        if self._secret.key:
            # An error must be readable, for the key may be in it.
            fields.setRawHeaders(b"Accept-Encoding", [b"identity"])
        target = self._url + path + mark + query
        pending: Any = self._agent.request(request.method, target, fields, body)
        response: IResponse = await response_within(
            pending, self._clock, self._timeout, body, self._url.decode("ascii")
        )
        if response.code == 404 and path != client_path:
            # Perhaps the server was replaced by one of another generation.
            self._detector.doubt()
        self._rewrite_redirects(response.headers, fields, client_path, path)
        return response

    def _rewrite_redirects(
        self, response_fields: Headers, request_fields: Headers, client_path: bytes, path: bytes
    ) -> None:
        """Make the server's redirects to itself redirect to this proxy.

        :param request_fields: those sent, whose ``X-Forwarded-*`` have the proxy's address.

        :param client_path: the path of the client's request; *path* is that of the server's.
        """
        for name in (b"location", b"content-location"):
            locations = response_fields.getRawHeaders(name)
            if locations:
                rewritten = [
                    self._client_location(place, request_fields, client_path, path)
                    for place in locations
                ]
                response_fields.setRawHeaders(name, rewritten)

    def _client_location(
        self, location: bytes, request_fields: Headers, client_path: bytes, path: bytes
    ) -> bytes:
        match = _ABSOLUTE.fullmatch(location)
        if match is None or _authority(*match.groups()[:2]) != self._authority:
            return location
        target = match[3].removeprefix(self._base)
        common = _common_end(client_path, path)
        if path != client_path and target.startswith(path[: len(path) - common]):
            target = client_path[: len(client_path) - common] + target[len(path) - common :]
        hosts = request_fields.getRawHeaders(b"x-forwarded-host")
        if not hosts:
            return target or b"/"
        scheme = (request_fields.getRawHeaders(b"x-forwarded-proto") or [b"http"])[0]
        return b"%b://%b%b" % (scheme, hosts[0], target)


def _copy_fields(response: IResponse, request: ProxyRequest) -> None:
    """Give *request* the fields of *response*.

    ``Server`` and ``Date``, which Twisted Web has set by itself, are the upstream's to say, and a
    ``Content-Type`` is nobody's to invent.
    """
    fields = response.headers
    for name, values in request.responseHeaders.getAllRawHeaders():
        if name != b"Content-Type" and not fields.hasHeader(name):
            fields.setRawHeaders(name, values)
    request.responseHeaders = fields


def _has_body(request: ProxyRequest) -> bool:
    """Whether the request came with a body, be it an empty one."""
    fields = request.requestHeaders
    return fields.hasHeader(b"content-length") or fields.hasHeader(b"transfer-encoding")
