"""Streamable HTTP: every message to the server is a POST, its answer JSON or an event stream."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing

from twisted.internet.defer import Deferred
from twisted.web.iweb import IResponse

from llamaproxy import jsontext
from llamaproxy.errors import McpBroke
from llamaproxy.jsontext import Json
from llamaproxy.tools.mcp import messages
from llamaproxy.tools.mcp.http import (
    CLEANUP_SECONDS,
    MAX_STREAM,
    NO_LIMIT,
    Fields,
    McpHttp,
    StreamInterrupted,
    content_type,
)
from llamaproxy.tools.mcp.server_stream import (
    EVENT_STREAM,
    MAX_FRUITLESS,
    RETRY,
    ServerStream,
    decoder_after,
    get_stream,
    messages_of,
    retry_seconds,
)
from llamaproxy.tools.mcp.transport import OldTransport, SessionLost
from llamaproxy.tools.mcp.unknown_session import means_unknown_session
from llamaproxy.upstream.chunks import looks_like_json
from llamaproxy.upstream.sse import EventDecoder

#: Error codes for a revision that a server does not speak (any more).
_OTHER_REVISION = (messages.UNSUPPORTED_REVISION, messages.HEADER_MISMATCH)

#: How often in a row an answer is polled for that brings no event.
_MAX_POLLS = 1000


class Streamable:
    """A :class:`Transport` over streamable HTTP (revisions 2025-03-26 to 2025-11-25)."""

    has_session = True
    is_process = False
    alive = True
    #: The revision agreed upon, empty until then.
    revision = ""

    def __init__(self, http: McpHttp, on_message: Callable[[Json], None]) -> None:
        """:param on_message: is called with each message of the server's that is no response."""
        self._http = http
        self._on_message = on_message
        self._session: str | None = None
        self._pending: dict[object, Deferred[Json]] = {}
        #: The ids of requests that were answered with 202, and what reads the server's own stream,
        #: on which their responses come.
        self._accepted: set[object] = set()
        self._server_stream = ServerStream(http, self._fields, self._receive)
        self._reader: Deferred[None] | None = None

    async def ask(self, message: Json, fields: Fields = ()) -> Json:
        response: Deferred[Json] = Deferred()
        self._pending[message["id"]] = response
        try:
            return await self._ask(message, fields, response)
        finally:
            self._pending.pop(message["id"], None)
            response.addErrback(lambda _: {})

    async def _ask(self, message: Json, fields: Fields, deferred_response: Deferred[Json]) -> Json:
        response = await self._post(message, fields)
        if response.code >= 300:
            raise await self._refusal(response)
        for session in response.headers.getRawHeaders("mcp-session-id", []):
            # Visible ASCII by the specification, which is also all that a field can repeat.
            if message["method"] == "initialize" and session.isascii() and session.isprintable():
                self._session = session
        if response.code == 202:
            await self._http.discard(response)
            return messages.result_in(
                await self._accepted_response(message["id"], deferred_response)
            )
        if content_type(response) == EVENT_STREAM:
            return await self._streamed(response, message["id"])
        text = await self._http.body(response, messages.MAX_MESSAGE, NO_LIMIT)
        for received in _messages_in(text):
            if messages.is_response(received, message["id"]) or messages.is_error_without_id(
                received
            ):
                return messages.result_in(received, response.code)
            self._receive(received)
        raise McpBroke("The MCP server answered another question.")

    async def _accepted_response(self, request_id: int, response: Deferred[Json]) -> Json:
        """The response to a request that was answered with 202, from the server's own stream.

        MCP requires it on the POST's; some servers send it there, and the official clients take it.
        """
        self._accepted.add(request_id)
        try:
            if not self._server_stream.open:
                # Not closed afterwards: what is written to a stream that is closing would be lost.
                self._reader = Deferred.fromCoroutine(Streamable.listen(self))
                self._reader.addErrback(lambda _: None)
            return await response
        finally:
            self._accepted.discard(request_id)

    def _receive(self, message: Json) -> None:
        """Take a *message* that is not the response to the request on whose stream it came."""
        request_id = messages.response_id(message)
        if messages.is_response(message) and isinstance(request_id, str | int):
            response = self._pending.pop(request_id, None)
            if response is not None:
                response.callback(message)
                return
        self._on_message(message)

    async def tell(self, message: Json, fields: Fields = ()) -> None:
        response = await self._post(message, fields, CLEANUP_SECONDS)
        if response.code >= 300:
            raise await self._http.refusal(response)
        # Only the status matters; some servers open a stream, which they never end.
        if content_type(response) == EVENT_STREAM:
            self._http.close_response(response)
        else:
            await self._http.discard(response)

    async def abandon(self, message: Json) -> None:
        await self.tell(messages.cancelled(message))

    async def listen(self) -> None:
        if self._server_stream.open:
            return
        try:
            await self._server_stream.read()
        finally:
            for request_id in list(self._accepted):
                if request_id in self._pending:
                    reason = McpBroke("The MCP server has no stream for the answer it promised.")
                    self._pending.pop(request_id).errback(reason)

    async def close(self) -> None:
        self.stop()
        if self._session is not None:
            response = await self._http.request(b"DELETE", self._fields(), seconds=CLEANUP_SECONDS)
            await self._http.discard(response)

    def stop(self) -> None:
        """End the session here, without a request to the server."""
        self.alive = False
        if self._reader is not None:
            self._reader.cancel()

    def _fields(self, message: Json | None = None) -> Fields:
        fields: list[tuple[str, str]] = []
        if self.revision:
            fields.append(("MCP-Protocol-Version", self.revision))
        if self._session is not None:
            fields.append(("Mcp-Session-Id", self._session))
        return tuple(fields)

    async def _post(self, message: Json, fields: Fields, seconds: float = NO_LIMIT) -> IResponse:
        accept = ("Accept", "application/json, text/event-stream")
        body = jsontext.dumps(message)
        header_fields = (*fields, accept, *self._fields(message))
        return await self._http.request(b"POST", header_fields, body, seconds=seconds)

    async def _refusal(self, response: IResponse) -> McpBroke:
        error = await self._http.refusal(response)
        # MCP requires 404; the SDKs' own examples send 400 with an error text. A server that was
        # replaced by one of another revision has lost the session too.
        unknown_session = self._session is not None and (
            response.code == 404 or (response.code == 400 and means_unknown_session(error))
        )
        other_revision = isinstance(error, messages.RpcError) and error.rpc_code in _OTHER_REVISION
        if unknown_session or (other_revision and self.revision):
            self.stop()
            return SessionLost()
        return error

    async def _streamed(self, response: IResponse, request_id: int) -> Json:
        """The result at the end of an event stream, which is resumed where it breaks.

        A stream can be resumed only if the server numbers its events. Such a server may end it
        whenever it likes, to be polled (SEP-1699): the official clients too count the streams that
        break, and not those that end. It is the caller who does not wait for ever.
        """
        decoder = decoder_after(None)
        fruitless = polls = 0
        bytes_left = MAX_STREAM
        while True:
            fruitless += 1
            polls += 1
            try:
                async with aclosing(self._http.events(response, decoder, bytes_left)) as events:
                    async for event in events:
                        if event.event == b"endpoint":
                            raise OldTransport()
                        fruitless = polls = 0
                        bytes_left -= len(event.data)
                        for message in messages_of(event):
                            if messages.is_response(
                                message, request_id
                            ) or messages.is_error_without_id(message):
                                events.drain()
                                return messages.result_in(message)
                            self._receive(message)
            except StreamInterrupted:
                if decoder.last_id is None:
                    raise
            else:
                fruitless = 0
            if decoder.last_id is None or fruitless >= MAX_FRUITLESS or polls >= _MAX_POLLS:
                break
            decoder = decoder_after(decoder)
            least = RETRY if polls >= MAX_FRUITLESS else 0.0
            await self._http.sleep(max(retry_seconds(decoder), least))
            resumed = await get_stream(self._http, self._fields(), decoder.last_id)
            if resumed is None:
                break
            response = resumed
        raise McpBroke("The MCP server ended its answer before the result.")


def _messages_in(text: bytes) -> list[Json]:
    """The messages in the body of a response, whatever its ``Content-Type``.

    :raises McpBroke: if it is neither JSON nor events.
    """
    if looks_like_json(text):
        return messages.parse(text)
    decoder = EventDecoder(messages.MAX_MESSAGE)
    events = [*decoder.feed(text), *decoder.finish()]
    parsed = [message for event in events for message in messages_of(event)]
    if not parsed:
        raise McpBroke("The MCP server answered with something that is neither JSON nor events.")
    return parsed
