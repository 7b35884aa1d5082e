"""ToolLoop: complete, invoke, repeat, until there is an answer."""

from __future__ import annotations

from typing import ClassVar

import attrs
from twisted.logger import Logger

from llamaproxy import jsontext
from llamaproxy.admin.metrics import Metrics
from llamaproxy.chat.answer import Answer
from llamaproxy.chat.messages import (
    Completion,
    ToolCall,
    chosen_name,
    follow_up,
    text_of,
    tool_names,
    with_choice,
    with_free_choice,
    with_tools,
)
from llamaproxy.chat.stream import Audience
from llamaproxy.concurrent import all_of
from llamaproxy.errors import ToolFailed
from llamaproxy.jsontext import Json
from llamaproxy.tools.arguments import parse_arguments
from llamaproxy.tools.catalogue import Catalogue, Offer
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
        keys = {jsontext.canonical([c.name, _arguments(c), r.text]) for c, r in done}
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
        theirs = tool_names(body)
        offer = await self._catalogue.offer(caller, theirs, patterns)
        audience = Audience(client=theirs, server=offer.tools.keys())
        body = _with_offer(body, offer)
        repeats = _Repeats()
        limit, excuse = "rounds", _too_many_rounds(self._max_rounds)
        for _ in range(self._max_rounds):
            completion = await answer.complete(body, audience)
            ours = [call for call in completion.calls if not audience.shows(call.name)]
            done = await self._run_all(ours, offer, caller)
            if len(ours) < len(completion.calls) or not ours:
                return
            if repeated := repeats.too_many(done):
                limit, excuse = "repetition", _REPEATED
                done = [(call, _noted(result, _REPEATED)) for call, result in done]
            body = _next_round(body, completion, done, offer)
            if repeated:
                break
        self._metrics.loop_ended(limit)
        self._log.warn("a tool loop was ended by the limit of {limit}", limit=limit)
        if "tools" in body:
            body = {**body, "tool_choice": "none"}
        completion = await answer.complete(body, Audience(server=(*theirs, *offer.tools)))
        if not text_of(completion.message.get("content")).strip():
            await answer.say(excuse)

    async def _run_all(self, calls: list[ToolCall], offer: Offer, caller: Caller) -> _Done:
        """Run *calls* at the same time; their results come back in the calls' order (L9)."""
        results = await all_of(self._run(call, offer, caller) for call in calls[:_MAX_CALLS])
        refused = ToolResult.failure(f"only {_MAX_CALLS} calls can be made at the same time.")
        results += [refused] * (len(calls) - len(results))
        return list(zip(calls, results, strict=True))

    async def _run(self, call: ToolCall, offer: Offer, caller: Caller) -> ToolResult:
        tool = offer.tools.get(call.name)
        if tool is None:
            known = ", ".join(offer.tools) or "none"
            return ToolResult.failure(f"there is no tool named {call.name!r}. Tools: {known}.")
        try:
            arguments = parse_arguments(call.arguments)
        except ToolFailed as error:
            return ToolResult.failure(error.message)
        return await self._catalogue.invoke(tool, arguments, caller)


def _with_offer(body: Json, offer: Offer) -> Json:
    """*body* for the first round: a choice may name a server tool by its real name (L11)."""
    chosen = chosen_name(body)
    offered = offer.named(chosen) if chosen is not None else None
    if offered is not None and chosen not in tool_names(body):
        body = with_choice(body, offered)
    return with_tools(body, offer.definitions())


def _next_round(body: Json, completion: Completion, done: _Done, offer: Offer) -> Json:
    choice = body.get("tool_choice")
    mode = (choice.get("allowed_tools") or {}).get("mode") if isinstance(choice, dict) else None
    if "required" in (choice, mode) or chosen_name(body) in offer.tools:
        body = with_free_choice(body)
    told = [(call, result.text) for call, result in done]
    return follow_up(body, completion.message, told)


_REPEATED = (
    "The same call has now come to the same result three times in a row; no more tools are run."
)


def _too_many_rounds(rounds: int) -> str:
    return f"I stopped after {rounds} rounds of tool calls without reaching an answer."


def _noted(result: ToolResult, note: str) -> ToolResult:
    return attrs.evolve(result, text=f"{result.text}\n\n[{note}]")
