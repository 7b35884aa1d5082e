"""StreamedAnswer: the rounds of a chat as one stream of events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred

from llamaproxy import jsontext
from llamaproxy.chat.calls import CallVisibility
from llamaproxy.chat.eventstream import EventStream
from llamaproxy.chat.likeness import Likeness
from llamaproxy.chat.messages import Completion, ToolCall
from llamaproxy.chat.openwebui import Card, item_event
from llamaproxy.chat.round_merging import (
    TEXT_KEYS,
    CompletionHeader,
    HeldContent,
    ReasoningBlocks,
    RoundTexts,
)
from llamaproxy.chat.stream import RoundStream
from llamaproxy.chat.usage import added_usage
from llamaproxy.errors import ProxyError
from llamaproxy.jsontext import Json
from llamaproxy.records import RoundRecord, name_of
from llamaproxy.tools.results import ToolResult
from llamaproxy.upstream.completions import ClientCompletions
from llamaproxy.upstream.sse import encode_event


@attrs.define(eq=False, repr=False)
class StreamedAnswer:
    """Relays the rounds as one stream of chunks. Implements :class:`Answer`.

    It also handles the chunks of its rounds (:class:`ChunkHandler`). *cards* and *last_text_only*
    as for :class:`UnaryAnswer`.
    """

    _completions: ClientCompletions
    _header: CompletionHeader
    _events: EventStream
    _include_usage: bool
    _cards: bool
    _last_text_only: bool
    _roles: set[int] = attrs.field(init=False, factory=set)
    _round: RoundStream = attrs.field(init=False)
    _held_content: HeldContent = attrs.field(init=False, factory=HeldContent)
    _join: RoundTexts = attrs.field(init=False, factory=RoundTexts)
    _blocks: ReasoningBlocks = attrs.field(init=False, factory=ReasoningBlocks)
    _usage: Any = attrs.field(init=False, default=None)
    _running: list[Card] = attrs.field(init=False, factory=list)

    _likeness: Likeness = attrs.field(init=False)
    _record: RoundRecord = attrs.field(init=False)

    @_round.default
    def _no_round(self) -> RoundStream:
        return RoundStream(CallVisibility(), self._roles)

    async def complete(
        self, body: Json, visibility: CallVisibility, round: RoundRecord
    ) -> Completion:
        self._record = round
        self._round = RoundStream(visibility, self._roles)
        self._join.begin_round()
        self._blocks.begin_round()
        # Without server tools no round follows.
        self._held_content = HeldContent(self._last_text_only and bool(visibility.server_tools))
        self._likeness = Likeness(self._round.reserve)
        try:
            await self._completions.stream(body, self)
            self._keep_texts()
            for held in self._round.held_chunks():
                await self._send(held)
            completion = self._round.completion()
        finally:
            # Tokens have been used, whatever becomes of the stream.
            round.note_answer(round.model, self._round.finish_reason, self._round.usage)
        self._usage = added_usage(self._usage, self._round.usage)
        return completion

    async def say(self, text: str) -> None:
        delta = {"content": text} if 0 in self._roles else {"role": "assistant", "content": text}
        self._roles.add(0)
        self._join.begin_round()
        await self._send({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})

    async def show_call(self, call: ToolCall) -> Card:
        card = Card(call)
        if self._cards:
            self._running.append(card)
            await self._events.send(item_event(card.call_item()))
        return card

    async def show_result(self, card: Card, result: ToolResult) -> None:
        if self._cards:
            self._running.remove(card)
            await self._events.send(item_event(card.output_item(result)))

    async def end(self) -> None:
        """Send the content held back, the finish reasons, the usage and ``[DONE]``."""
        for chunk in self._held_content.chunks:
            await self._send(chunk)
        finish = self._round.finish_chunks()
        beside = self._round.beside_usage
        if self._include_usage and self._usage is not None:
            finish.append({**beside, "choices": [], "usage": self._usage})
        else:
            finish[-1] |= {k: v for k, v in beside.items() if k not in finish[-1]}
        await self._events.wait()
        for chunk in finish:
            await self._events.put(_event(self._merged(chunk)))
        self._events.finish()

    async def fail(self, error: ProxyError) -> None:
        """Send the results of the cards still open, *error* as an event, and ``[DONE]`` (S7)."""
        for card in list(self._running):
            await self.show_result(card, ToolResult.failure("the answer ended before the tool."))
        # Without what an upstream has put beside it (S9).
        await self._events.send({"error": error.body["error"]})
        self._events.finish()

    def handle_alike(self, events: Sequence[bytes], first: int) -> int:
        count, shown = self._likeness.shown(events, first)
        if count:
            self._events.add(shown)
        return count

    def handle(self, chunk: Json | None, event: bytes) -> None:
        self._keep_texts()
        if chunk is not None:
            self._header.adopt(chunk)
            if self._record.first is None:
                self._record.note_first()
                self._record.model = name_of(chunk.get("model"))
        visible = self._round.feed(chunk)
        if visible is not None:
            visible = self._held_content.without_text(visible)
        if visible is None:
            self._events.start()
        else:
            self._events.add(_event(self._merged(visible)))
        self._likeness.learn(event, visible)

    def flush(self) -> Deferred[None] | None:
        self._events.flush()
        return self._events.writable()

    def _keep_texts(self) -> None:
        """Keep the texts of events that were told by their likeness."""
        if (taken := self._likeness.taken()) is None:
            return
        place, text = taken
        self._round.keep(place.index, place.key, text)
        if place.index == 0:
            self._join.joined(place.key, text)

    async def _send(self, chunk: Json) -> None:
        await self._events.send(self._merged(chunk))

    def _merged(self, chunk: Json) -> Json:
        """*chunk* of a round, which is changed, as one of the whole answer."""
        for choice in chunk["choices"]:
            delta = choice["delta"]
            if choice["index"] == 0:
                for key in TEXT_KEYS:
                    text = delta.get(key)
                    if text and isinstance(text, str):
                        delta[key] = self._join.joined(key, text)
                    elif text:
                        delta[key] = self._join.joined_parts(key, text)
                if isinstance(delta.get("reasoning_details"), list):
                    delta["reasoning_details"] = self._blocks.numbered(delta["reasoning_details"])
        chunk["object"] = "chat.completion.chunk"
        chunk.update(self._header.fields())
        return chunk


def _event(chunk: Json) -> bytes:
    return encode_event(jsontext.dumps(chunk))
