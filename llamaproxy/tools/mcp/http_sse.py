"""The old HTTP+SSE transport: one stream of events for all answers, and POSTs beside it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from typing import Any, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from llamaproxy import jsontext
from llamaproxy.errors import McpBroke
from llamaproxy.jsontext import Json
from llamaproxy.tools.mcp import messages
from llamaproxy.tools.mcp.http import (
    CLEANUP_SECONDS,
    NO_LIMIT,
    Fields,
    HttpRefused,
    McpHttp,
    content_type,
)
from llamaproxy.tools.mcp.pending import Pending
from llamaproxy.tools.mcp.transport import SessionLost
from llamaproxy.upstream.sse import Event, EventDecoder
from llamaproxy.upstream.urls import as_uri, origin_of, read_url


class HttpSse:
    """A :class:`Transport` over HTTP+SSE (revision 2024-11-05)."""

    has_session = True
    is_process = False
    revision = ""

    def __init__(self, http: McpHttp, on_message: Callable[[Json], None]) -> None:
        """:param on_message: is called with each message of the server's that is no response."""
        self._http = http
        self._on_message = on_message
        self._endpoint: Deferred[str] | str = Deferred()
        self._pending = Pending()
        self._reader: Deferred[None] | None = None
        self.alive = True

    async def open(self) -> None:
        """Open the event stream, and wait for the URL for messages (its ``endpoint`` event).

        :raises McpBroke: if this is no server of that kind.
        """
        endpoint = Deferred[str]()
        self._endpoint = endpoint
        self._reader = Deferred.fromCoroutine(self._read())
        self._reader.addErrback(lambda _: None)
        self._endpoint = await endpoint

    async def ask(self, message: Json, fields: Fields = ()) -> Json:
        if not self.alive:
            raise SessionLost()
        response = self._pending.expect(message)
        posting = Deferred.fromCoroutine(self._post(message, fields, NO_LIMIT))
        posting.addErrback(_post_failed, response)
        try:
            return messages.result_in(await response)
        except CancelledError:
            posting.cancel()
            raise
        except (HttpRefused, messages.RpcError) as error:
            if error.http_status != 404:
                raise
            await self.close()
            raise SessionLost() from None
        finally:
            self._pending.forget(message)
            response.addErrback(lambda _: {})
            posting.addTimeout(CLEANUP_SECONDS, cast(Any, self._http.clock))

    async def tell(self, message: Json, fields: Fields = ()) -> None:
        await self._post(message, fields, CLEANUP_SECONDS)

    async def abandon(self, message: Json) -> None:
        await self.tell(messages.cancelled(message))

    async def listen(self) -> None:
        """Do nothing: the one stream is read anyhow."""

    async def close(self) -> None:
        self.alive = False
        if self._reader is not None:
            self._reader.cancel()

    async def _post(self, message: Json, fields: Fields, seconds: float) -> None:
        assert isinstance(self._endpoint, str)
        if self.revision:
            fields += (("MCP-Protocol-Version", self.revision),)
        body = jsontext.dumps(message)
        response = await self._http.request(b"POST", fields, body, self._endpoint, seconds)
        if response.code >= 300:
            raise await self._http.refusal(response)
        if content_type(response) == b"text/event-stream":
            self._http.close_response(response)
        else:
            await self._http.discard(response)

    async def _read(self) -> None:
        reason = McpBroke("The MCP server closed its stream.")
        try:
            response = await self._http.request(b"GET", (("Accept", "text/event-stream"),))
            if response.code != 200 or content_type(response) != b"text/event-stream":
                raise await self._http.refusal(response)
            decoder = EventDecoder(messages.MAX_MESSAGE)
            async with aclosing(self._http.events(response, decoder, 2**62)) as events:
                async for event in events:
                    self._receive(event)
                    if not self.alive:  # closed by what received it
                        return
        except CancelledError:
            raise
        except McpBroke as error:
            reason = error
        finally:
            self.alive = False
            if isinstance(self._endpoint, Deferred) and not self._endpoint.called:
                self._endpoint.errback(reason)
            self._pending.fail(reason)

    def _receive(self, event: Event) -> None:
        if event.event == b"endpoint":
            if isinstance(self._endpoint, Deferred) and not self._endpoint.called:
                self._endpoint.callback(self._endpoint_url(event.data))
            return
        if event.event not in (b"", b"message") or not event.data.strip():
            return
        if isinstance(self._endpoint, Deferred):
            return  # nothing has been requested yet, and there is no URL for responses
        for message in messages.parse_event(event.data):
            if not self._pending.take(message):
                self._on_message(message)

    def _endpoint_url(self, reference: bytes) -> str:
        """The absolute URL for messages: of the same origin, for credentials are sent to it."""
        try:
            base = read_url(self._http.url)
            endpoint = base.click(reference.decode("utf-8"))
            url = as_uri(endpoint.replace(fragment="")).to_text()
        except ValueError:
            raise McpBroke("The MCP server named an endpoint that is no URL.") from None
        if origin_of(endpoint) != origin_of(base):
            raise McpBroke("The MCP server named an endpoint of another server.")
        return url


def _post_failed(failure: Failure, response: Deferred[Json]) -> None:
    """There will be no *response* to what could not be posted, unless it has come already."""
    if response.called:
        failure.trap(McpBroke, CancelledError)
    else:
        response.errback(failure)
