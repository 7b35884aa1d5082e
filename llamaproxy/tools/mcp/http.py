"""HTTP towards MCP servers: no cookies, no redirects, no compression, everything bounded."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from typing import Any, cast

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IResponse

from llamaproxy.errors import (
    McpBroke,
    McpTimeout,
    McpUnavailable,
    ProxyError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from llamaproxy.tools.mcp import messages
from llamaproxy.upstream.bodies import BytesUpload
from llamaproxy.upstream.failures import redirect_target, response_within
from llamaproxy.upstream.headers import HOP_BY_HOP
from llamaproxy.upstream.relay import BodyStream, body_of, read_body
from llamaproxy.upstream.sse import Event, EventDecoder, EventTooLarge
from llamaproxy.upstream.urls import read_url

#: Seconds without a limit of this module: callers have limits of their own.
NO_LIMIT = 7 * 86400.0

#: Seconds for notifications and for the end of a session.
CLEANUP_SECONDS = 5.0

#: The most bytes of all messages of one streamed answer.
MAX_STREAM = 4 * messages.MAX_MESSAGE

#: The most bytes of an error's body.
_MAX_REFUSAL = 64 * 1024

#: Header fields that a caller's ``mcp_headers`` cannot set.
_RESERVED_FIELDS = HOP_BY_HOP | {
    *(b"host", b"content-length", b"content-type", b"content-encoding", b"accept"),
    *(b"accept-encoding", b"expect", b"cookie", b"last-event-id"),
}

_URL = re.compile(r"[!-~]+")

Fields = tuple[tuple[str, str], ...]


class StreamInterrupted(McpBroke):
    """The MCP server's stream broke off."""


class HttpRefused(McpBroke):
    """The MCP server refused the request."""

    def __init__(self, http_status: int, text: str = "", target: str = "") -> None:
        self.http_status = http_status
        self.text = text
        hint = (
            ": it wants credentials, or others (mcp_headers in X-LlamaStack-Provider-Data)"
            if http_status in (401, 403)
            else f": a redirect to {target}, which is not followed"
            if 300 <= http_status < 400
            else ""
        )
        super().__init__(f"The MCP server answered with HTTP status {http_status}{hint}.")


def permitted_fields(fields: Iterable[tuple[str, str]]) -> Fields:
    """Those of a caller's *fields* that may be sent to an MCP server."""
    return tuple(
        (name, value)
        for name, value in fields
        if messages.TOKEN.fullmatch(name)
        and not {name.lower().encode()} & _RESERVED_FIELDS
        and not name.lower().startswith("mcp-")
        and value.isprintable()
    )


def content_type(response: IResponse) -> bytes:
    """The media type of *response*, without parameters."""
    values: list[bytes] = response.headers.getRawHeaders(b"content-type", [b""])
    return values[0].partition(b";")[0].strip().lower()


class McpEventReader:
    """The events in the body of a response, in their order, as an async iterator."""

    def __init__(self, body: BodyStream, decoder: EventDecoder, limit: int) -> None:
        """:param limit: the most bytes of the whole stream."""
        self._body = body
        self._decoder = decoder
        self._bytes_left = limit
        self._events: deque[Event] = deque()

    def __aiter__(self) -> McpEventReader:
        return self

    async def __anext__(self) -> Event:
        """:raises StreamInterrupted: if the stream breaks off.

        :raises McpBroke: if it is too long.
        """
        while not self._events:
            try:
                part = await self._body.__anext__()
            except ProxyError as error:
                raise StreamInterrupted(str(_translated(error))) from None
            self._bytes_left -= len(part)
            if self._bytes_left < 0:
                raise McpBroke("The MCP server sent more than it may in one answer.")
            try:
                self._events.extend(self._decoder.feed(part))
            except EventTooLarge as error:
                raise McpBroke(f"The MCP server sent {error}.") from None
        return self._events.popleft()

    def drain(self) -> None:
        """Drop what comes until the end, which is near: the connection can be used again then."""
        self._body.drain()

    async def aclose(self) -> None:
        """Close the connection, unless the stream has ended."""
        await self._body.aclose()


@attrs.frozen(eq=False, repr=False)
class McpHttp:
    """Requests to one MCP server, with one caller's credentials."""

    _agent: IAgent
    clock: IReactorTime
    url: str
    _credentials: Fields = attrs.field(default=(), repr=False)

    async def request(
        self,
        method: bytes,
        fields: Fields = (),
        body: bytes | None = None,
        url: str | None = None,
        seconds: float = NO_LIMIT,
    ) -> IResponse:
        """A response as soon as its head is there, within *seconds*.

        :raises McpBroke: if there is none.
        """
        headers = Headers()
        for name, value in (*permitted_fields(self._credentials), *fields):
            headers.setRawHeaders(name, [value.encode("utf-8", "replace")])
        if body is not None:
            headers.setRawHeaders(b"Content-Type", [b"application/json"])
        producer = None if body is None else BytesUpload(body)
        target = _target(url or self.url)
        try:
            request = self._agent.request(method, target, headers, producer)
            response: IResponse = await response_within(request, self.clock, seconds)
        except ProxyError as error:
            raise _translated(error) from None
        return response

    async def body(self, response: IResponse, limit: int, seconds: float) -> bytes:
        """The whole body of *response*.

        :raises McpBroke: if it is cut short, or too large.
        """
        try:
            return await read_body(response, self.clock, seconds, limit)
        except ProxyError as error:
            raise _translated(error) from None

    def close_response(self, response: IResponse) -> None:
        """Close the connection of *response*, whose body is not read."""
        Deferred.fromCoroutine(body_of(response, self.clock, NO_LIMIT).aclose())

    async def discard(self, response: IResponse) -> None:
        """Read the body of *response* and drop it, so that its connection can be used again."""
        await self.body(response, _MAX_REFUSAL, CLEANUP_SECONDS)

    async def refusal(self, response: IResponse) -> McpBroke:
        """The error that *response*, whose status is no success, reports."""
        try:
            body = await self.body(response, _MAX_REFUSAL, CLEANUP_SECONDS)
        except McpBroke:
            body = b""
        try:
            [message] = messages.parse(body)
        except (McpBroke, ValueError):
            message = {}
        if "jsonrpc" in message and isinstance(message.get("error"), dict):
            return messages.RpcError(message["error"], response.code)
        text = body.decode("utf-8", "replace")
        return HttpRefused(
            response.code, text, redirect_target(response.headers.getRawHeaders(b"location", []))
        )

    def events(
        self, response: IResponse, decoder: EventDecoder, limit: int = MAX_STREAM
    ) -> McpEventReader:
        """The events of *response*; iterate inside :func:`contextlib.aclosing`."""
        return McpEventReader(body_of(response, self.clock, NO_LIMIT), decoder, limit)

    async def sleep(self, seconds: float) -> None:
        """Wait *seconds*."""
        await deferLater(cast(Any, self.clock), seconds)


def _target(url: str) -> bytes:
    """:raises McpBroke: if *url* is no URL of a server."""
    try:
        parsed = read_url(url)
        valid = parsed.scheme in ("http", "https") and bool(parsed.host) and _URL.fullmatch(url)
        if not valid or parsed.port is None or not 0 < parsed.port < 65536:
            raise ValueError
    except ValueError:
        raise McpBroke("The MCP server's address is no URL.") from None
    if any(parsed.userinfo):  # it would be taken for a part of the host's name
        raise McpBroke(
            "The MCP server's URL has a user or a password in it, which is not sent: "
            "mcp_headers are for credentials."
        )
    scheme, _, rest = url.partition(":")
    return f"{scheme.lower()}:{rest}".encode("ascii")


def _translated(error: ProxyError) -> McpBroke:
    """The error about an MCP server for *error* of the HTTP client, which is about Llama Stack."""
    if isinstance(error, McpBroke):
        return error
    if isinstance(error, UpstreamTimeout):
        return McpTimeout("The MCP server did not answer in time.")
    if isinstance(error, UpstreamUnavailable):
        reason = str(error).partition(": ")[2]
        return McpUnavailable(f"The MCP server could not be reached: {reason or 'no connection'}")
    if error.status == 413:
        return McpBroke("The MCP server sent more than it may in one answer.")
    return McpBroke("The MCP server closed the connection before it had answered.")
