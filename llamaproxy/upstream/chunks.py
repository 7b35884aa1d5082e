"""Chunks of streamed completions, parsed from the events of a response."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from llamaproxy import jsontext
from llamaproxy.errors import UpstreamBroke, UpstreamRefused
from llamaproxy.errorshapes import error_text
from llamaproxy.jsontext import Json
from llamaproxy.upstream.relay import Relay
from llamaproxy.upstream.sse import Event, EventDecoder, EventTooLarge

#: The most bytes of one JSON answer that are kept in memory.
MAX_ANSWER_BYTES = 64 * 1024 * 1024


class ChunkHandler(Protocol):
    """What takes the chunks of a streamed completion as they come."""

    def handle_alike(self, events: Sequence[bytes], first: int) -> int:
        """Take the data of those *events* that are like the one before, without parsing them.

        :param first: where to begin.

        :returns: how many they are, up to one that is not.
        """

    def handle(self, chunk: Json | None, event: bytes) -> None:
        """Take a *chunk*, None for ``[DONE]``; *event* is the data it was in, empty if unknown."""

    def flush(self) -> Deferred[None] | None:
        """Send on what has come in one read.

        :returns: None, or a Deferred until which no more may be delivered.
        """


async def relay_chunks(
    response: Any, clock: IReactorTime, silence: float, handler: ChunkHandler
) -> None:
    """Give *handler* each chunk in the body of *response*, in the turn in which it comes.

    That is a function call for each chunk and not a step of a coroutine, because a daemon with
    hundreds of streams spends most of its time here. An answer of one JSON object is one chunk
    and the end; its first bytes decide what it is, not its ``Content-Type``.

    :param silence: seconds without a byte after which the stream is given up.

    :raises UpstreamRefused: for an error event.
    :raises ProxyError: if the stream breaks off, or is no stream of JSON objects.
    """
    decoder = EventDecoder()
    json_text = BoundedText()
    is_json: bool | None = None
    any_event = done = False

    def deliver(data: bytes) -> Deferred[None] | None:
        nonlocal is_json
        if is_json is None:
            data = data.lstrip(_BLANK)
            if not data:
                return None
            is_json = looks_like_json(data)
        if is_json:
            json_text.add(data)
            return None
        try:
            if lines := decoder.plain(data):
                take(lines)
            else:
                take_events(_decoded(decoder, data))
            if done:
                # The HTTP message has not ended yet; its last bytes are about to come.
                relay.release()
        finally:
            full = handler.flush()
        return full

    def take_events(events: list[Event]) -> None:
        take([b"" if event.event else event.data for event in events], events)

    def take(texts: list[bytes], events: list[Event] | None = None) -> None:
        nonlocal any_event, done
        any_event = any_event or bool(texts)
        at = 0
        while at < len(texts) and not done:
            at += handler.handle_alike(texts, at)
            if at == len(texts):
                break
            event = Event(texts[at]) if events is None else events[at]
            if event.data:
                done = _is_done(event)
                handler.handle(None if done else _chunk(event), texts[at])
            at += 1

    relay = Relay(deliver, clock, silence)
    response.deliverBody(relay)
    await relay.finished
    if is_json:
        answer = completion_in(json_text.text())
        if not answer.get("choices"):
            raise UpstreamBroke("Llama Stack answered without choices.")
        handler.handle(answer, b"")
        handler.handle(None, b"")  # a whole object is an end, whatever it says of its reason
    elif not done:
        take_events(decoder.finish())
        if not any_event:
            raise UpstreamBroke("Llama Stack answered with neither events nor JSON.")
    handler.flush()


#: Bytes that may precede an answer: blanks, and a byte order mark (RFC 8259 section 8.1).
_BLANK = b"\xef\xbb\xbf \t\r\n"


def looks_like_json(text: bytes) -> bool:
    """Whether *text*, which is not blank, begins an object or a list, and not an event."""
    return text.lstrip(_BLANK)[:1] in (b"{", b"[")


class BoundedText:
    """The bytes of an answer, up to a limit."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, data: bytes) -> None:
        """:raises UpstreamBroke: if they are too many."""
        self._size += len(data)
        if self._size > MAX_ANSWER_BYTES:
            raise UpstreamBroke(f"Llama Stack's answer is larger than {MAX_ANSWER_BYTES} bytes.")
        self._parts.append(data)

    def text(self) -> bytes:
        """All bytes so far."""
        return b"".join(self._parts)


def completion_in(text: bytes) -> Json:
    """The completion in the JSON *text*.

    :raises UpstreamRefused: if it reports an error.
    :raises UpstreamBroke: if it is no JSON object.
    """
    try:
        answer = jsontext.loads_anyhow(text)
    except ValueError:
        raise UpstreamBroke("Llama Stack answered with something that is not JSON.") from None
    answer = _unlisted(answer)
    if not isinstance(answer, dict):
        raise UpstreamBroke("Llama Stack did not answer with a JSON object.")
    return without_error(answer)


def _unlisted(value: object) -> object:
    """The element of a list of one, which is how Gemini sends its errors; else *value* itself."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def chunks_in(text: bytes) -> list[Json | None]:
    """The chunks in *text*, which is a whole stream; None stands for ``[DONE]``.

    :raises UpstreamRefused: for an error event.
    :raises UpstreamBroke: if it is no stream of JSON objects.
    """
    decoder = EventDecoder()
    events = [*_decoded(decoder, text), *decoder.finish()]
    if not events:
        raise UpstreamBroke("Llama Stack answered with something that is not JSON.")
    return [None if _is_done(event) else _chunk(event) for event in events if event.data]


def _decoded(decoder: EventDecoder, data: bytes) -> list[Event]:
    try:
        return decoder.feed(data)
    except EventTooLarge as error:
        raise UpstreamBroke(f"Llama Stack sent {error}.") from None


def _is_done(event: Event) -> bool:
    return event.data.strip() == b"[DONE]"


def _chunk(event: Event) -> Json:
    is_error = event.event == b"error"
    try:
        chunk = _unlisted(jsontext.loads_anyhow(event.data))
    except ValueError:
        chunk = event.data.decode("utf-8", "replace") if is_error else None
    if is_error and not (isinstance(chunk, dict) and "error" in chunk):
        chunk = {"error": chunk or "error"}
    if not isinstance(chunk, dict):
        if event.event.lower() in _HEARTBEATS:
            return {}
        raise UpstreamBroke("Llama Stack sent an event that is not a JSON object.")
    return without_error(chunk)


#: Names of events that say nothing but that the connection is alive.
_HEARTBEATS = (b"ping", b"keepalive", b"keep-alive", b"heartbeat")


def without_error(chunk: Json) -> Json:
    """*chunk* itself, unless it reports an error, in any of the shapes that servers use.

    Up to 0.4 a refused streaming request is a 200 with one event whose message begins with the
    real status ("400: Error code: 400 - ...", recorded); later ones carry it in ``code``.
    """
    error = chunk.get("error")
    if not error and chunk.get("choices") is None:
        flat = "error" in (chunk.get("type"), chunk.get("object"))
        error = chunk if flat else next(filter(None, map(chunk.get, _ERRORS)), None)
    if not error and "base_resp" in chunk and _failed(chunk["base_resp"]):  # MiniMax
        error = chunk["base_resp"]
    if not error:
        return chunk
    codes = [
        value.get(key) for value in (error, chunk) if isinstance(value, dict) for key in _CODES
    ]
    for status in (*codes, error_text(error)[:3]):
        if isinstance(status, str | int) and _STATUS.fullmatch(str(status)):
            raise UpstreamRefused(int(status), chunk)
    raise UpstreamRefused(502, chunk)


def _failed(state: object) -> bool:
    return isinstance(state, dict) and state.get("status_code") not in (None, 0, "0", "")


#: Keys of an error in a chunk without choices.
_ERRORS = ("errors", "detail", "message", "error_message", "error_msg", "msg", "fault")

#: Keys that may have the status of an error.
_CODES = ("code", "status", "status_code", "statusCode")

_STATUS = re.compile("[45][0-9]{2}")
