"""Answer: what the rounds of a chat become for the client, either unary or streamed."""

from __future__ import annotations

from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred

from llamaproxy import jsontext
from llamaproxy.chat.calls import CallVisibility
from llamaproxy.chat.deltas import texts_of
from llamaproxy.chat.eventstream import EventStream
from llamaproxy.chat.finish_reasons import check_reason, closing_reason, mark_cut_off
from llamaproxy.chat.likeness import Likeness, Place
from llamaproxy.chat.messages import (
    Completion,
    ToolCall,
    as_object,
    is_function,
    number_of,
    objects,
    read_calls,
)
from llamaproxy.chat.normalise import normalise
from llamaproxy.chat.openwebui import Card, item_event, message_item
from llamaproxy.chat.round_merging import (
    TEXT_KEYS,
    CompletionHeader,
    HeldContent,
    ReasoningBlocks,
    RoundTexts,
)
from llamaproxy.chat.stream import CONTROL_KEYS, RoundStream, completion_of
from llamaproxy.chat.usage import added_usage
from llamaproxy.errors import ProxyError, UpstreamBroke
from llamaproxy.jsontext import Json
from llamaproxy.tools.results import ToolResult
from llamaproxy.upstream.completions import ClientCompletions
from llamaproxy.upstream.sse import encode_event


class Answer(Protocol):
    """What the loop drives: it asks for rounds, and is told of the calls of server tools."""

    async def complete(self, body: Json, visibility: CallVisibility) -> Completion:
        """Ask the model for one round with the request *body*; *visibility* is the client's.

        :raises ProxyError: if it fails.
        """

    async def say(self, text: str) -> None:
        """Add *text* to the content, after a blank line."""

    async def show_call(self, call: ToolCall) -> Card:
        """Show that a server tool is about to run."""

    async def show_result(self, card: Card, result: ToolResult) -> None:
        """Show the *result* of the call of *card*."""


@attrs.define(eq=False)
class UnaryAnswer:
    """Merges the rounds into one ``chat.completion``. Implements :class:`Answer`.

    *cards*: whether it has Open WebUI's tool cards, as ``output``; *last_text_only*: whether its
    content must be the last round's alone (L15b).
    """

    _completions: ClientCompletions
    _header: CompletionHeader
    _cards: bool
    _last_text_only: bool
    #: In the order of the calls, not that of their results.
    _results: dict[Card, ToolResult | None] = attrs.field(init=False, factory=dict)
    _last_completion: Json = attrs.field(init=False, factory=dict)
    _join: RoundTexts = attrs.field(init=False, factory=RoundTexts)
    _texts: dict[str, str] = attrs.field(init=False, factory=dict)
    _blocks: ReasoningBlocks = attrs.field(init=False, factory=ReasoningBlocks)
    _details: list[Json] = attrs.field(init=False, factory=list)
    _usage: Any = attrs.field(init=False, default=None)
    _client_calls: list[Json] = attrs.field(init=False, factory=list)

    async def complete(self, body: Json, visibility: CallVisibility) -> Completion:
        answer = await self._completions.complete(body)
        if isinstance(answer, list):
            answer = completion_of(answer, visibility.legacy_functions)
        normalise(answer, visibility.legacy_functions)
        choices = objects(answer.get("choices"))
        if not choices:
            raise UpstreamBroke("Llama Stack answered without choices.")
        self._header.adopt(answer)
        self._usage = added_usage(self._usage, answer.get("usage"))
        self._last_completion = answer
        if self._last_text_only:
            self._texts.pop("content", None)
            self._join.forget("content")
        self._join.begin_round()
        for choice in choices:
            if "message" not in choice:
                choice["message"] = choice.pop("delta", None)
            message = as_object(choice["message"])
            check_reason(choice.get("finish_reason"), bool(objects(message.get("tool_calls"))))
        message = {**as_object(choices[0].get("message")), "role": "assistant"}
        calls = read_calls(message.get("tool_calls"))
        client_calls = [call for call in calls if visibility.shows(call.name)]
        server_called = visibility.after_server_calls or len(client_calls) < len(calls)
        self._client_calls = [
            {**call.entry, "id": call.id + visibility.mark}
            if server_called or is_function(call.entry)
            else call.entry  # unchanged (L8b)
            for call in client_calls
        ]
        for key, text in texts_of(message).items():
            self._add_text(key, text)
        self._blocks.begin_round()
        self._details += self._blocks.numbered(message.get("reasoning_details"))
        if calls:
            message["tool_calls"] = [call.entry for call in calls]
        return Completion(message, mark_cut_off(calls, choices[0].get("finish_reason")))

    async def say(self, text: str) -> None:
        self._join.begin_round()
        self._add_text("content", text)

    async def show_call(self, call: ToolCall) -> Card:
        card = Card(call)
        self._results[card] = None
        return card

    async def show_result(self, card: Card, result: ToolResult) -> None:
        self._results[card] = result

    def result(self) -> Json:
        """The answer as one completion."""
        choices = [
            self._choice(choice, position)
            for position, choice in enumerate(objects(self._last_completion["choices"]))
        ]
        answer = {**self._last_completion, **self._header.fields(), "choices": choices}
        answer.setdefault("object", "chat.completion")
        for key in (*CONTROL_KEYS, "output"):
            answer.pop(key, None)
        if self._cards and self._results:
            items = [
                item
                for card, result in self._results.items()
                if result is not None
                for item in (card.call_item(), card.output_item(result))
            ]
            answer["output"] = [*items, message_item(self._texts.get("content", ""))]
        return answer if self._usage is None else {**answer, "usage": self._usage}

    def _choice(self, choice: Json, position: int) -> Json:
        """One choice of the last round, the first with what earlier rounds have added."""
        message = dict(as_object(choice.get("message")))
        if position == 0:
            message |= self._texts
            if self._details:
                message["reasoning_details"] = self._details
            if self._client_calls:
                message["tool_calls"] = self._client_calls
            elif message.get("tool_calls"):
                del message["tool_calls"]
            calls = self._client_calls
        else:
            calls = [call.entry for call in read_calls(message.get("tool_calls"))]
            if calls:
                message["tool_calls"] = calls
        message["role"] = "assistant"
        reason = closing_reason(
            choice.get("finish_reason"), [call.arguments for call in read_calls(calls)]
        )
        number = number_of(choice.get("index"))
        index = position if number is None or len(self._last_completion["choices"]) == 1 else number
        return {**choice, "index": index, "message": message, "finish_reason": reason}

    def _add_text(self, key: str, text: str) -> None:
        self._texts[key] = self._texts.get(key, "") + self._join.joined(key, text)


@attrs.define(eq=False)
class StreamedAnswer:
    """Relays the rounds as one stream of chunks. Implements :class:`Answer`.

    Also a :class:`ChunkHandler`, to which the rounds are told.

    *cards* and *last_text_only* as for :class:`UnaryAnswer`.
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

    @_round.default
    def _no_round(self) -> RoundStream:
        return RoundStream(CallVisibility(), self._roles)

    async def complete(self, body: Json, visibility: CallVisibility) -> Completion:
        self._round = RoundStream(visibility, self._roles)
        self._join.begin_round()
        self._blocks.begin_round()
        # Without server tools no round follows.
        self._held_content = HeldContent(self._last_text_only and bool(visibility.server_tools))
        self._likeness = Likeness(self._round.reserve, self._keep)
        await self._completions.stream(body, self)
        self._likeness.settle()
        for held in self._round.held_chunks():
            await self._send(held)
        completion = self._round.completion()
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
            self._events.add(_event(self._merged(chunk)))
        self._events.finish()

    async def fail(self, error: ProxyError) -> None:
        """Send the results of the cards still open, *error* as an event, and ``[DONE]`` (S7)."""
        for card in list(self._running):
            await self.show_result(card, ToolResult.failure("the answer ended before the tool."))
        # Without what an upstream has put beside it (S9).
        await self._events.send({"error": error.body["error"]})
        self._events.finish()

    def handle_alike(self, event: bytes) -> bool:
        shown = self._likeness.shown(event)
        if shown is None:
            return False
        self._events.add(shown)
        return True

    def handle(self, chunk: Json | None, event: bytes) -> None:
        self._likeness.settle()
        if chunk is not None:
            self._header.adopt(chunk)
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

    def _keep(self, place: Place, text: str) -> None:
        """Keep the *text* of events that were told by their likeness."""
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
                if isinstance(delta.get("reasoning_details"), list):
                    delta["reasoning_details"] = self._blocks.numbered(delta["reasoning_details"])
        chunk["object"] = "chat.completion.chunk"
        chunk.update(self._header.fields())
        return chunk


def _event(chunk: Json) -> bytes:
    return encode_event(jsontext.dumps(chunk))
