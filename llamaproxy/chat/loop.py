"""ToolLoop: complete, invoke, repeat, until there is an answer."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

import attrs
from twisted.logger import Logger

from llamaproxy import jsontext
from llamaproxy.admin.metrics import Metrics
from llamaproxy.chat.answer import Answer
from llamaproxy.chat.memory import TurnMemory
from llamaproxy.chat.messages import (
    Completion,
    ToolCall,
    chosen_name,
    follow_up,
    forces_a_call,
    text_of,
    tool_names,
    with_choice,
    with_free_choice,
    with_tools,
)
from llamaproxy.chat.openwebui import without_old_cards
from llamaproxy.chat.stream import Audience
from llamaproxy.concurrent import all_of
from llamaproxy.errors import ToolFailed
from llamaproxy.jsontext import Json
from llamaproxy.tools.arguments import parse_arguments
from llamaproxy.tools.catalogue import Catalogue, Offer
from llamaproxy.tools.names import nearest, plain_name
from llamaproxy.tools.results import ToolResult
from llamaproxy.upstream.headers import Caller

#: Server calls of one round that are run; a model that makes more is told so.
_MAX_CALLS = 128

#: Times that the same call may come to the same result in rounds that follow each other (L15).
_MAX_REPEATS = 3

_Done = list[tuple[ToolCall, ToolResult]]


@attrs.define
class _Repeats:
    """Counts the calls that come to the same result round after round."""

    _counts: dict[bytes, int] = attrs.Factory(dict)

    def too_many(self, done: _Done) -> bool:
        """Whether, with this round, a call has been repeated too often."""
        keys = {jsontext.canonical([plain_name(c.name), _arguments(c), r.text]) for c, r in done}
        self._counts = {key: self._counts.get(key, 0) + 1 for key in keys}
        return max(self._counts.values(), default=0) >= _MAX_REPEATS


def _arguments(call: ToolCall) -> object:
    try:
        return parse_arguments(call.arguments)
    except ToolFailed:
        return call.arguments


@attrs.frozen
class ToolLoop:
    """Answers a chat completion request in as many rounds as it takes."""

    _catalogue: Catalogue
    _memory: TurnMemory
    _metrics: Metrics
    _max_rounds: int
    _log: ClassVar[Logger] = Logger()

    async def pass_on(self, body: Json, answer: Answer) -> None:
        """One round, as the client asked for it: no tool is offered, none is run (L4)."""
        names = tool_names(body)
        await answer.complete(with_tools(body, []), Audience(client=names, everything=True))

    async def run(
        self, body: Json, caller: Caller, answer: Answer, patterns: list[str] | None
    ) -> None:
        """Rounds with the server's tools, narrowed to *patterns* if there are any (L5)."""
        asked = without_old_cards(body["messages"])
        theirs = tool_names(body)
        offer = await self._catalogue.offer(caller, theirs, patterns)
        audience = Audience(client=theirs, server=offer.tools.keys())
        body = _with_offer(body, offer)
        body["messages"] = self._memory.recall(caller, asked)
        known = len(body["messages"])
        repeats = _Repeats()
        limit = None
        for number in range(1, self._max_rounds + 1):
            completion = await answer.complete(body, audience)
            ours = [call for call in completion.calls if not audience.shows(call.name)]
            handed = [call for call in completion.calls if audience.shows(call.name)]
            done = await self._run_all(ours, offer, theirs, caller, answer)
            if not handed and repeats.too_many(done):
                limit = _REPETITION
            elif not handed and number == self._max_rounds:
                limit = _ROUNDS
            if limit is not None and done:
                done = [(call, limit.noted(result)) for call, result in done]
            body = _next_round(body, completion, done, offer)
            if handed and (ours or number > 1):
                self._memory.remember(caller, asked, handed, body["messages"][known:])
            if handed or not ours:
                return
            if limit is not None:
                break
        assert limit is not None
        self._metrics.loop_ended(limit.name)
        self._log.warn("a tool loop was ended by the limit of {limit}", limit=limit.name)
        if "tools" in body:
            body = {**body, "tool_choice": "none"}
        completion = await answer.complete(body, Audience(server=(*theirs, *offer.tools)))
        if not text_of(completion.message.get("content")).strip():
            await answer.say(limit.excuse.format(rounds=self._max_rounds))

    async def _run_all(
        self,
        calls: list[ToolCall],
        offer: Offer,
        theirs: Collection[str],
        caller: Caller,
        answer: Answer,
    ) -> _Done:
        """Run *calls* at the same time; their results come back in the calls' order (L9)."""

        async def run(call: ToolCall) -> ToolResult:
            card = await answer.show_call(call)
            result = await self._run(call, offer, theirs, caller)
            await answer.show_result(card, result)
            return result

        results = await all_of(run(call) for call in calls[:_MAX_CALLS])
        refused = ToolResult.failure(f"only {_MAX_CALLS} calls can be made at the same time.")
        results += [refused] * (len(calls) - len(results))
        return list(zip(calls, results, strict=True))

    async def _run(
        self, call: ToolCall, offer: Offer, theirs: Collection[str], caller: Caller
    ) -> ToolResult:
        tool = offer.find(call.name, theirs)
        if tool is None:
            near = nearest(call.name, [*theirs, *offer.tools])
            hint = f"Did you mean {' or '.join(near)}?" if near else "Use one of the tools given."
            return ToolResult.failure(f"there is no tool named {call.name[:64]!r}. {hint}")
        try:
            arguments = parse_arguments(call.arguments)
        except ToolFailed as error:
            return ToolResult.failure(error.message)
        return await self._catalogue.invoke(tool, arguments, caller)


@attrs.frozen
class _Limit:
    """Why a loop is ended: its name in the log, and what the model and the user are told."""

    name: str
    note: str
    excuse: str

    def noted(self, result: ToolResult) -> ToolResult:
        """*result* with the note, which the model reads before its last answer."""
        return attrs.evolve(result, text=f"{result.text}\n\n[{self.note}]")


_ROUNDS = _Limit(
    "rounds",
    "This was the last round of tool calls that is allowed. Answer with what is known.",
    "I stopped after {rounds} rounds of tool calls without reaching an answer.",
)

_REPETITION = _Limit(
    "repetition",
    "The same call has come to the same result three times in a row, so no more tools are run. "
    "Answer with what is known.",
    "I stopped because I was repeating the same tool call without reaching an answer.",
)


def _with_offer(body: Json, offer: Offer) -> Json:
    """*body* for the first round: a choice may name a server tool by its real name (L11)."""
    chosen = chosen_name(body)
    offered = offer.named(chosen) if chosen is not None else None
    if offered is not None and chosen not in tool_names(body):
        body = with_choice(body, offered)
    return with_tools(body, offer.definitions())


def _next_round(body: Json, completion: Completion, done: _Done, offer: Offer) -> Json:
    if forces_a_call(body) or chosen_name(body) in offer.tools:
        body = with_free_choice(body)
    told = [(call, result.text) for call, result in done]
    return follow_up(body, completion.message, told)
