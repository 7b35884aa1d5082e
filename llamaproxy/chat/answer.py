"""One answer made of several rounds, whole or streamed: the loop does not know which."""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from llamaproxy.chat.eventstream import EventStream
from llamaproxy.chat.messages import (
    Completion,
    ToolCall,
    added_usage,
    as_object,
    closing_reason,
    objects,
    read_calls,
    text_of,
)
from llamaproxy.chat.openwebui import Card, message_item, shown
from llamaproxy.chat.stream import FOREIGN, Audience, RoundStream
from llamaproxy.errors import ProxyError, UpstreamBroke
from llamaproxy.jsontext import Json
from llamaproxy.tools.results import ToolResult
from llamaproxy.upstream.completions import Completions
from llamaproxy.upstream.headers import Caller

#: What is the first round's in the whole answer (L16).
_IDENTITY = ("id", "created", "model")


class Answer(Protocol):
    """What the loop tells of its progress."""

    async def complete(self, body: Json, audience: Audience) -> Completion:
        """Ask the model for one round; calls that are not the audience's are kept from it."""

    async def say(self, text: str) -> None:
        """Add *text* to the answer, as if the model had said it."""

    async def show_call(self, call: ToolCall) -> Card:
        """A server tool is about to run."""

    async def show_result(self, card: Card, result: ToolResult) -> None:
        """The tool of *card* has come to *result*."""


def separator(before: str) -> str:
    """What makes a blank line after *before*, the end of an earlier round's text (S4)."""
    if not before.strip() or before.endswith("\n\n"):
        return ""
    return "\n" if before.endswith("\n") else "\n\n"


class Identity:
    """Gives the ``id``, ``created`` and ``model`` of an answer: the first round's."""

    def __init__(self, clock: IReactorTime, model: object, new_id: str) -> None:
        self._fields: Json = {"id": new_id, "created": int(clock.seconds()), "model": model or ""}
        self._settled = False

    def learn(self, said: Json) -> None:
        """Take the fields from the first thing of the upstream's that has them."""
        if not self._settled and said.get("id"):
            self._settled = True
            self._fields |= {key: said[key] for key in _IDENTITY if said.get(key) is not None}

    def fields(self) -> Json:
        """The fields; from now on they stay as they are."""
        self._settled = True
        return self._fields


class UnaryAnswer:
    """Collects the rounds into one ``chat.completion``. Implements :class:`Answer`."""

    def __init__(
        self, upstream: Completions, caller: Caller, identity: Identity, cards: bool
    ) -> None:
        self._cards = cards
        self._upstream = upstream
        self._caller = caller
        self._identity = identity
        #: In the order of the calls, whichever ended first.
        self._results: dict[Card, ToolResult | None] = {}
        self._rounds: list[Json] = []
        self._texts: dict[str, str] = {}
        self._usage: Any = None
        self._shown: list[Json] = []

    async def complete(self, body: Json, audience: Audience) -> Completion:
        answer = await self._upstream.complete(body, self._caller)
        choices = objects(answer.get("choices"))
        if not choices:
            raise UpstreamBroke("Llama Stack answered without choices.")
        self._identity.learn(answer)
        self._usage = added_usage(self._usage, answer.get("usage"))
        said = {**as_object(choices[0].get("message")), "role": "assistant"}
        calls = read_calls(said.get("tool_calls"))
        self._rounds.append(answer)
        self._shown = [call.entry for call in calls if audience.shows(call.name)]
        for key in ("content", "reasoning_content", "reasoning"):
            if isinstance(said.get(key), str | list):
                self._add(key, text_of(said[key]))
        if calls:
            said["tool_calls"] = [call.entry for call in calls]
        return Completion(said, calls)

    async def say(self, text: str) -> None:
        self._add("content", text)

    async def show_call(self, call: ToolCall) -> Card:
        card = Card(call)
        self._results[card] = None
        return card

    async def show_result(self, card: Card, result: ToolResult) -> None:
        self._results[card] = result

    def result(self) -> Json:
        """The answer as one completion."""
        last = self._rounds[-1]
        said = objects(last["choices"])
        choices = [self._choice(choice, place) for place, choice in enumerate(said)]
        fields = self._identity.fields()
        answer = {**last, **fields, "choices": choices}
        answer.setdefault("object", "chat.completion")
        for key in (*FOREIGN, "output"):
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
        arguments = [call["function"]["arguments"] for call in calls]
        reason = closing_reason(choice.get("finish_reason"), arguments)
        whole = {**choice, "message": message, "finish_reason": reason}
        whole.setdefault("index", place)
        return whole

    def _add(self, key: str, text: str) -> None:
        before = self._texts.get(key, "")
        gap = separator(before) if key == "content" and text else ""
        self._texts[key] = before + gap + text


class StreamedAnswer:
    """Relays the rounds as one stream of chunks. Implements :class:`Answer`."""

    def __init__(
        self,
        upstream: Completions,
        caller: Caller,
        identity: Identity,
        events: EventStream,
        include_usage: bool,
        cards: bool,
    ) -> None:
        self._cards = cards
        self._upstream = upstream
        self._caller = caller
        self._identity = identity
        self._events = events
        self._include_usage = include_usage
        self._roles: set[int] = set()
        self._round = RoundStream(Audience(), self._roles)
        self._usage: Any = None
        self._open: list[Card] = []
        self._said = ""
        self._gap = ""

    async def complete(self, body: Json, audience: Audience) -> Completion:
        self._round = RoundStream(audience, self._roles)
        self._gap = separator(self._said)
        await self._upstream.stream(body, self._caller, self._take)
        for told in self._round.late():
            await self._send(told)
        completion = self._round.completion()
        self._usage = added_usage(self._usage, self._round.usage)
        return completion

    async def say(self, text: str) -> None:
        delta = {"content": text} if 0 in self._roles else {"role": "assistant", "content": text}
        self._roles.add(0)
        self._gap = separator(self._said)
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
        for chunk in self._round.finish_chunks():
            await self._send(chunk)
        if self._include_usage and self._usage is not None:
            await self._send({"choices": [], "usage": self._usage})
        self._events.finish()

    async def fail(self, error: ProxyError) -> None:
        """End the stream with an error that the client can tell from an end (S7)."""
        for card in list(self._open):
            await self.show_result(card, ToolResult.failure("the answer ended before the tool."))
        await self._events.send(error.body)
        self._events.finish()

    def _take(self, chunk: Json | None) -> Deferred[None] | None:
        """One chunk of the upstream's, or None for its end (see :data:`Take`)."""
        if chunk is not None:
            self._identity.learn(chunk)
        told = self._round.feed(chunk)
        if told is None:
            self._events.start()
            return None
        return self._events.write(self._ours(told))

    async def _send(self, chunk: Json) -> None:
        await self._events.send(self._ours(chunk))

    def _ours(self, chunk: Json) -> Json:
        """*chunk*, changed into one of this answer's."""
        for choice in chunk["choices"]:
            text = choice["delta"].get("content")
            if text and isinstance(text, str) and choice["index"] == 0:
                if self._gap:
                    text, self._gap = self._gap + text, ""
                    choice["delta"]["content"] = text
                # All that matters is whether anything was said, and how it ended.
                said = self._said + text
                self._said = "." * bool(said.strip()) + said[-2:]
        chunk["object"] = "chat.completion.chunk"
        chunk.update(self._identity.fields())
        return chunk
