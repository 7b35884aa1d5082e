"""One answer made of several rounds, whole or streamed: the loop does not know which."""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.defer import Deferred

from llamaproxy.chat.calls import CallVisibility
from llamaproxy.chat.deltas import texts_of
from llamaproxy.chat.eventstream import EventStream
from llamaproxy.chat.finish_reasons import check_reason, closing_reason, mark_cut_off
from llamaproxy.chat.messages import (
    Completion,
    ToolCall,
    added_usage,
    as_object,
    is_function,
    number_of,
    objects,
    read_calls,
)
from llamaproxy.chat.normalise import normalise
from llamaproxy.chat.openwebui import Card, message_item, shown
from llamaproxy.chat.round_merging import (
    TEXT_KEYS,
    CompletionHeader,
    HeldContent,
    ReasoningBlocks,
    RoundTexts,
)
from llamaproxy.chat.stream import CONTROL_KEYS, RoundStream, completion_of
from llamaproxy.errors import ProxyError, UpstreamBroke
from llamaproxy.jsontext import Json
from llamaproxy.tools.results import ToolResult
from llamaproxy.upstream.completions import ClientCompletions


class Answer(Protocol):
    """What the loop tells of its progress."""

    async def complete(self, body: Json, visibility: CallVisibility) -> Completion:
        """Ask the model for one round; calls that are not the visibility's are kept from it."""

    async def say(self, text: str) -> None:
        """Add *text* to the answer, as if the model had said it."""

    async def show_call(self, call: ToolCall) -> Card:
        """A server tool is about to run."""

    async def show_result(self, card: Card, result: ToolResult) -> None:
        """The tool of *card* has come to *result*."""


class UnaryAnswer:
    """Collects the rounds into one ``chat.completion``. Implements :class:`Answer`."""

    def __init__(
        self,
        completions: ClientCompletions,
        identity: CompletionHeader,
        cards: bool,
        last_text_only: bool,
    ) -> None:
        """:param last_text_only: whether the content must be the last round's alone (L15b)."""
        self._completions = completions
        self._identity = identity
        self._cards = cards
        self._last_text_only = last_text_only
        #: In the order of the calls, whichever ended first.
        self._results: dict[Card, ToolResult | None] = {}
        self._last: Json = {}
        self._join = RoundTexts()
        self._texts: dict[str, str] = {}
        self._blocks = ReasoningBlocks()
        self._details: list[Json] = []
        self._usage: Any = None
        self._shown: list[Json] = []

    async def complete(self, body: Json, visibility: CallVisibility) -> Completion:
        answer = await self._completions.complete(body)
        if isinstance(answer, list):
            answer = completion_of(answer, visibility.legacy_functions)
        normalise(answer, visibility.legacy_functions)
        choices = objects(answer.get("choices"))
        if not choices:
            raise UpstreamBroke("Llama Stack answered without choices.")
        self._identity.learn(answer)
        self._usage = added_usage(self._usage, answer.get("usage"))
        self._last = answer
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
        shown = [call for call in calls if visibility.shows(call.name)]
        shared = visibility.after_server_calls or len(shown) < len(calls)
        self._shown = [
            {**call.entry, "id": call.id + visibility.mark}
            if shared or is_function(call.entry)
            else call.entry  # untouched (L8b)
            for call in shown
        ]
        for key, text in texts_of(message).items():
            self._add(key, text)
        self._blocks.begin_round()
        self._details += self._blocks.numbered(message.get("reasoning_details"))
        if calls:
            message["tool_calls"] = [call.entry for call in calls]
        return Completion(message, mark_cut_off(calls, choices[0].get("finish_reason")))

    async def say(self, text: str) -> None:
        self._join.begin_round()
        self._add("content", text)

    async def show_call(self, call: ToolCall) -> Card:
        card = Card(call)
        self._results[card] = None
        return card

    async def show_result(self, card: Card, result: ToolResult) -> None:
        self._results[card] = result

    def result(self) -> Json:
        """The answer as one completion."""
        choices = [
            self._choice(choice, place)
            for place, choice in enumerate(objects(self._last["choices"]))
        ]
        answer = {**self._last, **self._identity.fields(), "choices": choices}
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

    def _choice(self, choice: Json, place: int) -> Json:
        message = dict(as_object(choice.get("message")))
        if place == 0:
            message |= self._texts
            if self._details:
                message["reasoning_details"] = self._details
            if self._shown:
                message["tool_calls"] = self._shown
            elif message.get("tool_calls"):
                del message["tool_calls"]
            calls = self._shown
        else:
            calls = [call.entry for call in read_calls(message.get("tool_calls"))]
            if calls:
                message["tool_calls"] = calls
        message["role"] = "assistant"
        reason = closing_reason(
            choice.get("finish_reason"), [call.arguments for call in read_calls(calls)]
        )
        number = number_of(choice.get("index"))
        index = place if number is None or len(self._last["choices"]) == 1 else number
        return {**choice, "index": index, "message": message, "finish_reason": reason}

    def _add(self, key: str, text: str) -> None:
        self._texts[key] = self._texts.get(key, "") + self._join.joined(key, text)


class StreamedAnswer:
    """Relays the rounds as one stream of chunks. Implements :class:`Answer`."""

    def __init__(
        self,
        completions: ClientCompletions,
        identity: CompletionHeader,
        events: EventStream,
        include_usage: bool,
        cards: bool,
        last_text_only: bool,
    ) -> None:
        """:param last_text_only: whether the content must be the last round's alone (L15b)."""
        self._completions = completions
        self._identity = identity
        self._events = events
        self._include_usage = include_usage
        self._cards = cards
        self._last_text_only = last_text_only
        self._roles: set[int] = set()
        self._round = RoundStream(CallVisibility(), self._roles)
        self._held = HeldContent()
        self._join = RoundTexts()
        self._blocks = ReasoningBlocks()
        self._usage: Any = None
        self._open: list[Card] = []

    async def complete(self, body: Json, visibility: CallVisibility) -> Completion:
        self._round = RoundStream(visibility, self._roles)
        self._join.begin_round()
        self._blocks.begin_round()
        # With no tool to be run by the server, a round is the last.
        self._held = HeldContent(self._last_text_only and bool(visibility.server_tools))
        await self._completions.stream(body, self._take)
        for told in self._round.late():
            await self._send(told)
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
            self._open.append(card)
            await self._events.send(shown(card.call_item()))
        return card

    async def show_result(self, card: Card, result: ToolResult) -> None:
        if self._cards:
            self._open.remove(card)
            await self._events.send(shown(card.output_item(result)))

    async def end(self) -> None:
        """Send what belongs at the end of a stream."""
        for chunk in self._held.chunks:
            await self._send(chunk)
        finish = self._round.finish_chunks()
        beside = self._round.beside_usage
        if self._include_usage and self._usage is not None:
            finish.append({**beside, "choices": [], "usage": self._usage})
        else:
            finish[-1] |= {k: v for k, v in beside.items() if k not in finish[-1]}
        for chunk in finish:
            await self._send(chunk)
        self._events.finish()

    async def fail(self, error: ProxyError) -> None:
        """End the stream with an error that the client can tell from an end (S7)."""
        for card in list(self._open):
            await self.show_result(card, ToolResult.failure("the answer ended before the tool."))
        # Nothing that an upstream has put beside it (S9).
        await self._events.send({"error": error.body["error"]})
        self._events.finish()

    def _take(self, chunk: Json | None) -> Deferred[None] | None:
        """One chunk of the upstream's, or None for its end (see :data:`ChunkHandler`)."""
        if chunk is not None:
            self._identity.learn(chunk)
        told = self._round.feed(chunk)
        if told is not None:
            told = self._held.without_text(told)
        if told is None:
            self._events.start()
            return None
        return self._events.write(self._ours(told))

    async def _send(self, chunk: Json) -> None:
        await self._events.send(self._ours(chunk))

    def _ours(self, chunk: Json) -> Json:
        """*chunk*, changed into one of this answer's."""
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
        chunk.update(self._identity.fields())
        return chunk
