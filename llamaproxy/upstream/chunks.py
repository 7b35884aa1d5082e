"""The chunks of a streamed completion, out of the events of a response."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from llamaproxy import jsontext
from llamaproxy.errors import UpstreamBroke, UpstreamRefused
from llamaproxy.jsontext import Json
from llamaproxy.upstream.relay import Relay
from llamaproxy.upstream.sse import Event, EventDecoder, EventTooLarge

#: Is handed each chunk, and None for ``[DONE]``; returns None, or until when to send no more.
Take = Callable[[Json | None], Deferred[None] | None]


async def relay_chunks(response: Any, clock: IReactorTime, silence: float, take: Take) -> None:
    """Hand the chunks in the body of *response* to *take*, in the turn in which they come.

    That is a function call for each chunk and not a step of a coroutine, because a daemon with
    hundreds of streams spends most of its time here.

    :raises UpstreamRefused: for an error event.
    :raises ProxyError: if the stream breaks off, or is no stream of JSON objects.
    """
    decoder = EventDecoder()
    done = False

    def deliver(data: bytes) -> Deferred[None] | None:
        nonlocal done
        full = None
        for event in _decoded(decoder, data):
            if _is_done(event):
                # The HTTP message has not ended yet; its last bytes are about to come.
                done = True
                take(None)
                relay.release()
                break
            if event.data:
                full = take(_chunk(event))
        return full

    relay = Relay(deliver, clock, silence)
    response.deliverBody(relay)
    await relay.finished
    if not done:
        for event in decoder.finish():
            take(None if _is_done(event) else _chunk(event))


def _decoded(decoder: EventDecoder, data: bytes) -> list[Event]:
    try:
        return decoder.feed(data)
    except EventTooLarge as error:
        raise UpstreamBroke(f"Llama Stack sent {error}.") from None


def _is_done(event: Event) -> bool:
    return event.data.strip() == b"[DONE]"


def _chunk(event: Event) -> Json:
    try:
        chunk = jsontext.loads_anyhow(event.data)
    except ValueError:
        chunk = None
    if not isinstance(chunk, dict):
        raise UpstreamBroke("Llama Stack sent an event that is not a JSON object.")
    if event.event == b"error" and "error" not in chunk:
        chunk = {"error": chunk}
    return without_error(chunk)


def without_error(chunk: Json) -> Json:
    """*chunk* itself, unless it reports an error, in whatever way servers do that.

    Up to 0.4 a refused streaming request is a 200 with one event whose message begins with the
    real status ("400: Error code: 400 - ...", recorded); later ones carry it in ``code``.
    """
    error = chunk.get("error")
    if not error and "choices" not in chunk:
        if "error" in (chunk.get("type"), chunk.get("object")):
            error = chunk
        else:
            error = chunk.get("detail")
    if not error:
        return chunk
    code = error.get("code") if isinstance(error, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    if error is chunk:
        chunk = {"error": {key: value for key, value in chunk.items() if key != "object"}}
    for status in (str(code), str(message)[:3]):
        if status.isdigit() and 400 <= int(status) <= 599:
            raise UpstreamRefused(int(status), chunk)
    raise UpstreamRefused(502, chunk)
