"""Answer: what the rounds of a chat become for the client; UnaryAnswer: one completion."""

from __future__ import annotations

from typing import Any, Protocol

import attrs

from llamaproxy.chat.calls import CallVisibility
from llamaproxy.chat.deltas import texts_of
from llamaproxy.chat.finish_reasons import check_reason, closing_reason, mark_cut_off
from llamaproxy.chat.messages import (
    Completion,
    ToolCall,
    as_object,
    is_function,
    number_of,
    objects,
    read_calls,
    text_of,
)
from llamaproxy.chat.normalise import normalise
from llamaproxy.chat.openwebui import Card, message_item
from llamaproxy.chat.round_merging import (
    CompletionHeader,
    ReasoningBlocks,
    RoundTexts,
)
from llamaproxy.chat.stream import CONTROL_KEYS
from llamaproxy.chat.unasked import completion_of
from llamaproxy.chat.usage import added_usage
from llamaproxy.errors import UpstreamBroke
from llamaproxy.jsontext import Json
from llamaproxy.records import RoundRecord
from llamaproxy.tools.results import ToolResult
from llamaproxy.upstream.completions import ClientCompletions

#: Keys of an upstream's completion that the client is not sent (DESIGN: S9).
_NOT_ANSWERED = frozenset({*CONTROL_KEYS, "output"})


class Answer(Protocol):
    """What the loop drives: it asks for rounds, and is told of the calls of server tools."""

    async def complete(
        self, body: Json, visibility: CallVisibility, round: RoundRecord
    ) -> Completion:
        """Ask the model for one round with the request *body*; *visibility* is the client's.

        What the model's answer says of itself is kept in *round*.

        :raises ProxyError: if it fails.
        """

    async def say(self, text: str) -> None:
        """Add *text* to the content, after a blank line."""

    async def show_call(self, call: ToolCall) -> Card:
        """Show that a server tool is about to run."""

    async def show_result(self, card: Card, result: ToolResult) -> None:
        """Show the *result* of the call of *card*."""


@attrs.define(eq=False, repr=False)
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
    #: The content before its text, if it has parts that are no text.
    _parts: list[Any] = attrs.field(init=False, factory=list)
    _blocks: ReasoningBlocks = attrs.field(init=False, factory=ReasoningBlocks)
    _details: list[Json] = attrs.field(init=False, factory=list)
    _usage: Any = attrs.field(init=False, default=None)
    _client_calls: list[Json] = attrs.field(init=False, factory=list)

    async def complete(
        self, body: Json, visibility: CallVisibility, round: RoundRecord
    ) -> Completion:
        answer = await self._completions.complete(body)
        round.note_first()
        if isinstance(answer, list):
            answer = completion_of(answer, visibility.legacy_functions)
        normalise(answer, visibility.legacy_functions)
        choices = objects(answer.get("choices"))
        if not choices:
            raise UpstreamBroke("Llama Stack answered without choices.")
        self._header.adopt(answer)
        round.note_answer(answer.get("model"), choices[0].get("finish_reason"), answer.get("usage"))
        self._usage = added_usage(self._usage, answer.get("usage"))
        self._last_completion = answer
        if self._last_text_only:
            self._texts.pop("content", None)
            self._parts.clear()
            self._join.forget("content")
        self._join.begin_round()
        for choice in choices:
            if "message" not in choice:
                choice["message"] = choice.pop("delta", None)
            message = as_object(choice["message"])
            entries = message.get("tool_calls")
            check_reason(choice.get("finish_reason"), bool(entries and objects(entries)))
        message = {**as_object(choices[0]["message"]), "role": "assistant"}
        texts = texts_of(message)
        for key, text in texts.items():
            self._add_text(key, text)
        if "content" not in texts and isinstance(message.get("content"), list):
            self._flush_text()
            self._parts += self._join.joined_parts("content", message["content"])
        if details := message.get("reasoning_details"):
            self._blocks.begin_round()
            self._details += self._blocks.numbered(details)
        calls = read_calls(message.get("tool_calls"))
        self._client_calls = _shown(calls, visibility) if calls else []
        if calls:
            message["tool_calls"] = [call.entry for call in calls]
            calls = mark_cut_off(calls, choices[0].get("finish_reason"))
        return Completion(message, calls)

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
        for key in _NOT_ANSWERED & answer.keys():
            del answer[key]
        if self._cards and self._results:
            items = [
                item
                for card, result in self._results.items()
                if result is not None
                for item in (card.call_item(), card.output_item(result))
            ]
            text = text_of(choices[0]["message"].get("content"))
            answer["output"] = [*items, message_item(text)]
        return answer if self._usage is None else {**answer, "usage": self._usage}

    def _choice(self, choice: Json, position: int) -> Json:
        """One choice of the last round, the first with what earlier rounds have added."""
        message = dict(as_object(choice.get("message")))
        if position == 0:
            message |= self._texts
            if self._parts:
                self._flush_text()
                message["content"] = self._parts
            if self._details:
                message["reasoning_details"] = self._details
            if self._client_calls:
                message["tool_calls"] = self._client_calls
            elif message.get("tool_calls"):
                del message["tool_calls"]
            calls = self._client_calls
        else:
            message |= texts_of(message)
            calls = [call.entry for call in read_calls(message.get("tool_calls"))]
            if calls:
                message["tool_calls"] = calls
        message["role"] = "assistant"
        arguments = [call.arguments for call in read_calls(calls)] if calls else []
        reason = closing_reason(choice.get("finish_reason"), arguments)
        number = number_of(choice.get("index"))
        index = position if number is None or len(self._last_completion["choices"]) == 1 else number
        return {**choice, "index": index, "message": message, "finish_reason": reason}

    def _add_text(self, key: str, text: str) -> None:
        self._texts[key] = self._texts.get(key, "") + self._join.joined(key, text)

    def _flush_text(self) -> None:
        """Make the content so far parts."""
        if text := self._texts.pop("content", ""):
            self._parts.append({"type": "text", "text": text})


def _shown(calls: list[ToolCall], visibility: CallVisibility) -> list[Json]:
    """Those of a round's *calls* that the client is shown, under their marked ids."""
    client_calls = [call for call in calls if visibility.shows(call.name)]
    server_called = visibility.after_server_calls or len(client_calls) < len(calls)
    return [
        {**call.entry, "id": call.id + visibility.mark}
        if server_called or is_function(call.entry)
        else call.entry  # unchanged (L8b)
        for call in client_calls
    ]
