"""Event streams of streamable HTTP: the server's own, and how a broken one is resumed.

MCP 2025-11-25, "Streamable HTTP", sections "Listening for Messages from the Server" and
"Resumability and Redelivery".
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing

from twisted.web.iweb import IResponse

from llamaproxy.jsontext import Json
from llamaproxy.tools.mcp import messages
from llamaproxy.tools.mcp.http import Fields, McpHttp, StreamInterrupted, content_type
from llamaproxy.upstream.sse import Event, EventDecoder

#: Seconds before a broken stream is resumed: where the server does not say, at least, at most.
RETRY, _MIN_RETRY, MAX_RETRY = 1.0, 0.1, 60.0

#: Seconds after which a stream that brought no event counts as a success all the same.
_LASTING_SECONDS = 10.0

#: How often in a row a stream may break without an event.
MAX_FRUITLESS = 3

EVENT_STREAM = b"text/event-stream"

#: Larger than any stream.
_NO_LIMIT = 2**62


class ServerStream:
    """The stream of a GET, on which a server sends requests and notifications of its own.

    Some servers send responses on it too, as the official clients understand them.
    """

    def __init__(
        self, http: McpHttp, fields: Callable[[], Fields], receive: Callable[[Json], None]
    ) -> None:
        """:param fields: returns the header fields of the session.

        :param receive: is called with each message.
        """
        self._http = http
        self._fields = fields
        self._receive = receive
        #: Whether it is being read.
        self.open = False

    async def read(self) -> None:
        """Receive messages until the server has no stream to offer (any more).

        :raises McpBroke: if a request for it fails.
        """
        self.open = True
        try:
            await self._read()
        finally:
            self.open = False

    async def _read(self) -> None:
        decoder = decoder_after(None)
        fruitless = 0
        while fruitless < MAX_FRUITLESS:
            began = self._http.clock.seconds()
            response = await get_stream(self._http, self._fields(), decoder.last_id)
            if response is None:
                return
            fruitless += 1
            try:
                async with aclosing(self._http.events(response, decoder, _NO_LIMIT)) as events:
                    async for event in events:
                        fruitless = 0
                        for message in messages_of(event):
                            self._receive(message)
            except StreamInterrupted:
                pass
            if self._http.clock.seconds() - began > _LASTING_SECONDS:
                fruitless = 0
            decoder = decoder_after(decoder)
            await self._http.sleep(max(retry_seconds(decoder), RETRY))


async def get_stream(http: McpHttp, fields: Fields, last_id: bytes | None) -> IResponse | None:
    """The response with an event stream that goes on after the event *last_id*.

    None if the server has none to offer.

    :raises McpBroke: if there is no response.
    """
    fields = (("Accept", "text/event-stream"), *fields)
    if last_id is not None:
        fields += (("Last-Event-ID", last_id.decode("utf-8", "replace")),)
    response = await http.request(b"GET", fields)
    if response.code == 200 and content_type(response) == EVENT_STREAM:
        return response
    await http.discard(response)
    return None


def decoder_after(previous: EventDecoder | None) -> EventDecoder:
    """A decoder for the continuation of the stream that *previous* has decoded, if any."""
    decoder = EventDecoder(messages.MAX_MESSAGE)
    if previous is not None:
        decoder.last_id, decoder.retry = previous.last_id, previous.retry
    return decoder


def retry_seconds(decoder: EventDecoder) -> float:
    """How long to wait before the stream is resumed, within this client's own limits."""
    if decoder.retry is None:
        return RETRY
    return min(max(decoder.retry / 1000, _MIN_RETRY), MAX_RETRY)


def messages_of(event: Event) -> list[Json]:
    """The messages in *event*; one without data has only an id."""
    if not event.data.strip() or event.event not in (b"", b"message"):
        return []
    return messages.parse_event(event.data)
