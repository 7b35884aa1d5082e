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
    Interrupted,
    McpHttp,
    content_type,
)
from llamaproxy.tools.mcp.unknown import means_unknown_session
from llamaproxy.upstream.sse import Event, EventDecoder

#: Seconds before a broken stream is resumed, where the server does not say; at least; and at most.
RETRY, _MIN_RETRY, MAX_RETRY = 1.0, 0.1, 60.0

#: Seconds for which a stream must last to have been worth opening.
_LONG = 10.0

#: How often in a row a stream may break without having brought anything.
_ATTEMPTS = 3

#: What a server says to a revision that is not, or no longer, its own.
_OTHER_REVISION = (messages.UNSUPPORTED_REVISION, messages.HEADER_MISMATCH)

_EVENTS = b"text/event-stream"


class OldTransport(McpBroke):
    """The MCP server speaks the old HTTP+SSE transport, and no other."""


class SessionLost(McpBroke):
    """The MCP server does not know the session any more."""


class Streamable:
    """One session over streamable HTTP (revisions 2025-03-26 to 2025-11-25)."""

    alive = True
    #: The revision agreed upon, once it is.
    revision = ""

    def __init__(self, http: McpHttp, on_message: Callable[[Json], None]) -> None:
        """:param on_message: is told of what the server says of its own accord."""
        self._http = http
        self._on_message = on_message
        self._session: str | None = None
        self._waiting: dict[object, Deferred[Json]] = {}
        #: The numbers of requests whose answer is to come on the server's own stream, whether that
        #: is being read, and by whom if it is read for them.
        self._promised: set[object] = set()
        self._hearing = False
        self._reading: Deferred[None] | None = None

    async def ask(self, message: Json, fields: Fields = ()) -> Json:
        """The result of a request.

        :raises SessionLost: if the server has forgotten the session, and so not acted.
        :raises McpBroke: if there is no result.
        """
        waiting: Deferred[Json] = Deferred()
        self._waiting[message["id"]] = waiting
        try:
            return await self._ask(message, fields, waiting)
        finally:
            self._waiting.pop(message["id"], None)
            waiting.addErrback(lambda _: {})

    async def _ask(self, message: Json, fields: Fields, waiting: Deferred[Json]) -> Json:
        response = await self._post(message, fields)
        if response.code >= 300:
            raise await self._refusal(response)
        for session in response.headers.getRawHeaders("mcp-session-id", []):
            # Visible ASCII by the specification, which is also all that a field can repeat.
            if message["method"] == "initialize" and session.isascii() and session.isprintable():
                self._session = session
        if response.code == 202:
            await self._http.discard(response)
            return messages.result_in(await self._promised_answer(message["id"], waiting))
        if content_type(response) == _EVENTS:
            return await self._streamed(response, message["id"])
        text = await self._http.body(response, messages.MAX_MESSAGE, NO_LIMIT)
        for said in _messages_in(text):
            if messages.is_answer(said, message["id"]) or messages.is_refusal(said):
                return messages.result_in(said, response.code)
            self._heard(said)
        raise McpBroke("The MCP server answered another question.")

    async def _promised_answer(self, number: int, waiting: Deferred[Json]) -> Json:
        """An answer on the stream of what the server says of its own accord.

        The specification wants it on the POST; some servers have it here, as the official clients
        understand it.
        """
        self._promised.add(number)
        try:
            if not self._hearing:
                # For good: what is written to a stream that is being closed would be lost.
                self._reading = Deferred.fromCoroutine(Streamable.listen(self))
                self._reading.addErrback(lambda _: None)
            return await waiting
        finally:
            self._promised.discard(number)

    def _heard(self, message: Json) -> None:
        """Take a *message* that is not the answer to the request on whose stream it came."""
        number = messages.answers(message)
        if messages.is_answer(message) and isinstance(number, str | int):
            waiting = self._waiting.pop(number, None)
            if waiting is not None:
                waiting.callback(message)
                return
        self._on_message(message)

    async def tell(self, message: Json, fields: Fields = ()) -> None:
        """Send what has no answer."""
        response = await self._post(message, fields, CLEANUP_SECONDS)
        if response.code >= 300:
            raise await self._http.refusal(response)
        # Only the status matters; some servers open a stream, which they never end.
        if content_type(response) == _EVENTS:
            self._http.leave(response)
        else:
            await self._http.discard(response)

    async def abandon(self, message: Json) -> None:
        """Tell the server that the request *message* has been given up."""
        await self.tell(messages.cancelled(message))

    async def listen(self) -> None:
        """Hear what the server says outside of any answer, for as long as it will."""
        if self._hearing:
            return
        self._hearing = True
        try:
            await self._hear()
        finally:
            self._hearing = False
            for number in list(self._promised):
                if number in self._waiting:
                    reason = McpBroke("The MCP server has no stream for the answer it promised.")
                    self._waiting.pop(number).errback(reason)

    async def _hear(self) -> None:
        decoder = self._decoder()
        fruitless = 0
        while fruitless < _ATTEMPTS:
            began = self._http.clock.seconds()
            response = await self._get(decoder.last_id)
            if response is None:
                return
            fruitless += 1
            try:
                async with aclosing(self._http.events(response, decoder, 2**62)) as events:
                    async for event in events:
                        fruitless = 0
                        for said in _messages(event):
                            self._heard(said)
            except Interrupted:
                pass
            if self._http.clock.seconds() - began > _LONG:
                fruitless = 0
            decoder = self._decoder(decoder)
            await self._http.sleep(max(_retry(decoder), RETRY))

    async def close(self) -> None:
        """End the session."""
        self.stop()
        if self._session is not None:
            response = await self._http.request(b"DELETE", self._fields(), seconds=CLEANUP_SECONDS)
            await self._http.discard(response)

    def stop(self) -> None:
        """Leave the session, without a word to the server."""
        self.alive = False
        if self._reading is not None:
            self._reading.cancel()

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
        sent = (*fields, accept, *self._fields(message))
        return await self._http.request(b"POST", sent, body, seconds=seconds)

    async def _refusal(self, response: IResponse) -> McpBroke:
        error = await self._http.refusal(response)
        # The specification says 404; the SDKs' own examples say 400 and name the session. A server
        # that has been replaced by one of another revision has lost it too.
        lost = self._session is not None and (
            response.code == 404 or (response.code == 400 and means_unknown_session(error))
        )
        other = isinstance(error, messages.RpcError) and error.rpc_code in _OTHER_REVISION
        if lost or (other and self.revision):
            self.stop()
            return SessionLost()
        return error

    async def _streamed(self, response: IResponse, number: int) -> Json:
        """The result at the end of an event stream, which is resumed where it breaks.

        Only a server that numbers its events can be asked to go on where it stopped.
        """
        decoder = self._decoder()
        fruitless = 0
        left = MAX_STREAM
        while True:
            fruitless += 1
            try:
                async with aclosing(self._http.events(response, decoder, left)) as events:
                    async for event in events:
                        if event.event == b"endpoint":
                            raise OldTransport()
                        fruitless = 0
                        left -= len(event.data)
                        for said in _messages(event):
                            if messages.is_answer(said, number) or messages.is_refusal(said):
                                events.drain()
                                return messages.result_in(said)
                            self._heard(said)
            except Interrupted:
                if decoder.last_id is None:
                    raise
            if decoder.last_id is None or fruitless >= _ATTEMPTS:
                break
            decoder = self._decoder(decoder)
            await self._http.sleep(_retry(decoder))
            resumed = await self._get(decoder.last_id)
            if resumed is None:
                break
            response = resumed
        raise McpBroke("The MCP server ended its answer before the result.")

    async def _get(self, last_id: bytes | None) -> IResponse | None:
        """An event stream, None if the server has none to offer."""
        fields: Fields = (("Accept", "text/event-stream"), *self._fields())
        if last_id is not None:
            fields += (("Last-Event-ID", last_id.decode("utf-8", "replace")),)
        response = await self._http.request(b"GET", fields)
        if response.code == 200 and content_type(response) == _EVENTS:
            return response
        await self._http.discard(response)
        return None

    @staticmethod
    def _decoder(before: EventDecoder | None = None) -> EventDecoder:
        decoder = EventDecoder(messages.MAX_MESSAGE)
        if before is not None:
            decoder.last_id, decoder.retry = before.last_id, before.retry
        return decoder


class Stateless(Streamable):
    """Requests that stand for themselves (revision 2026-07-28)."""

    revision = messages.STATELESS

    async def tell(self, message: Json, fields: Fields = ()) -> None:
        """There is nothing to tell: a request is given up by closing its connection."""

    async def abandon(self, message: Json) -> None:
        """Closing the connection has said it."""

    async def listen(self) -> None:
        """Ask to be told when the tools change."""
        wanted = {"notifications": {"toolsListChanged": True}}
        try:
            await self.ask(messages.request(-1, "subscriptions/listen", wanted))
        except McpBroke:
            pass

    def _fields(self, message: Json | None = None) -> Fields:
        fields = Streamable._fields(self)
        if message is None:
            return fields
        fields += (("Mcp-Method", message["method"]),)
        if message["method"] == "tools/call":
            fields += (("Mcp-Name", messages.field_value(message["params"]["name"])),)
        return fields

    async def _post(self, message: Json, fields: Fields, seconds: float = NO_LIMIT) -> IResponse:
        return await Streamable._post(self, messages.self_contained(message), fields, seconds)


def _messages(event: Event) -> list[Json]:
    """What *event* says; one without data only gives its number."""
    if not event.data.strip() or event.event not in (b"", b"message"):
        return []
    return messages.read_event(event.data)


def _messages_in(text: bytes) -> list[Json]:
    """The messages in an answer, whatever its type says that it is.

    :raises McpBroke: if it is neither JSON nor events.
    """
    if text.lstrip()[:1] in (b"{", b"["):
        return messages.read(text)
    decoder = EventDecoder(messages.MAX_MESSAGE)
    events = [*decoder.feed(text), *decoder.finish()]
    found = [message for event in events for message in _messages(event)]
    if not found:
        raise McpBroke("The MCP server answered with something that is neither JSON nor events.")
    return found


def _retry(decoder: EventDecoder) -> float:
    if decoder.retry is None:
        return RETRY
    return min(max(decoder.retry / 1000, _MIN_RETRY), MAX_RETRY)
