"""The old HTTP+SSE transport: one stream of events for all answers, and POSTs beside it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing

from twisted.internet.defer import CancelledError, Deferred

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
from llamaproxy.tools.mcp.streamable import SessionLost
from llamaproxy.upstream.sse import Event, EventDecoder
from llamaproxy.upstream.urls import as_uri, origin_of, read_url


class HttpSse:
    """One session over HTTP+SSE (revision 2024-11-05)."""

    revision = ""

    def __init__(self, http: McpHttp, on_message: Callable[[Json], None]) -> None:
        """:param on_message: is told of what the server says of its own accord."""
        self._http = http
        self._on_message = on_message
        self._endpoint: Deferred[str] | str = Deferred()
        self._waiting: dict[object, Deferred[Json]] = {}
        self._reading: Deferred[None] | None = None
        self.alive = True

    async def open(self) -> None:
        """Begin to listen, and learn where to send messages.

        :raises McpBroke: if this is no server of that kind.
        """
        told = Deferred[str]()
        self._endpoint = told
        self._reading = Deferred.fromCoroutine(self._read())
        self._reading.addErrback(lambda _: None)
        self._endpoint = await told

    async def ask(self, message: Json, fields: Fields = ()) -> Json:
        """The result of a request.

        :raises SessionLost: if the server has forgotten the session, and so not acted.
        :raises McpBroke: if there is no result.
        """
        if not self.alive:
            raise SessionLost()
        waiting: Deferred[Json] = Deferred()
        self._waiting[message["id"]] = waiting
        try:
            await self._post(message, fields, NO_LIMIT)
            return messages.result_in(await waiting)
        except (HttpRefused, messages.RpcError) as error:
            if error.http_status != 404:
                raise
            await self.close()
            raise SessionLost() from None
        finally:
            self._waiting.pop(message["id"], None)
            waiting.addErrback(lambda _: {})

    async def tell(self, message: Json, fields: Fields = ()) -> None:
        """Send what has no answer."""
        await self._post(message, fields, CLEANUP_SECONDS)

    async def abandon(self, message: Json) -> None:
        """Tell the server that the request *message* has been given up."""
        await self.tell(messages.cancelled(message))

    async def listen(self) -> None:
        """There is one stream for everything."""

    async def close(self) -> None:
        """End the session."""
        self.alive = False
        if self._reading is not None:
            self._reading.cancel()

    async def _post(self, message: Json, fields: Fields, seconds: float) -> None:
        assert isinstance(self._endpoint, str)
        if self.revision:
            fields += (("MCP-Protocol-Version", self.revision),)
        body = jsontext.dumps(message)
        response = await self._http.request(b"POST", fields, body, self._endpoint, seconds)
        if response.code >= 300:
            raise await self._http.refusal(response)
        if content_type(response) == b"text/event-stream":
            self._http.leave(response)
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
                    self._heard(event)
                    if not self.alive:  # closed by whoever has heard it
                        return
        except CancelledError:
            raise
        except McpBroke as error:
            reason = error
        finally:
            self.alive = False
            waiting = list(self._waiting.values())
            self._waiting.clear()
            if isinstance(self._endpoint, Deferred) and not self._endpoint.called:
                self._endpoint.errback(reason)
            for each in waiting:
                each.errback(reason)

    def _heard(self, event: Event) -> None:
        if event.event == b"endpoint":
            if isinstance(self._endpoint, Deferred) and not self._endpoint.called:
                self._endpoint.callback(self._place(event.data))
            return
        if event.event not in (b"", b"message") or not event.data.strip():
            return
        if isinstance(self._endpoint, Deferred):
            return  # nothing has been asked yet, and there is no place for replies
        for message in messages.read_event(event.data):
            waiting = None
            number = messages.answers(message)
            if messages.is_answer(message) and isinstance(number, str | int):
                waiting = self._waiting.pop(number, None)
            elif messages.is_refusal(message) and len(self._waiting) == 1:
                waiting = self._waiting.popitem()[1]
            if waiting is not None:
                waiting.callback(message)
            else:
                self._on_message(message)

    def _place(self, said: bytes) -> str:
        """Where to send messages: credentials go along, so it must be of the same origin."""
        try:
            here = read_url(self._http.url)
            there = here.click(said.decode("utf-8"))
            place = as_uri(there.replace(fragment="")).to_text()
        except ValueError:
            raise McpBroke("The MCP server named an endpoint that is no URL.") from None
        if origin_of(there) != origin_of(here):
            raise McpBroke("The MCP server named an endpoint of another server.")
        return place
