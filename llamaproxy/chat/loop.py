"""ToolLoop: asks the model and runs its calls of server tools, in rounds, until it answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import CancelledError

from llamaproxy.chat import toolless
from llamaproxy.chat.answer import Answer
from llamaproxy.chat.calls import CallVisibility
from llamaproxy.chat.injection import tool_names, with_tools, without_tools
from llamaproxy.chat.limits import REPETITION, ROUNDS, CallResults, Limit, Repeats
from llamaproxy.chat.memory import TurnStore, recall_turns, remember_turn
from llamaproxy.chat.messages import Completion, ToolCall, follow_up, is_function, text_of
from llamaproxy.chat.mixed_turns import new_mark
from llamaproxy.chat.openwebui import without_old_cards
from llamaproxy.chat.system_message import with_system_text
from llamaproxy.chat.tool_choice import after_round, with_offered_names
from llamaproxy.chat.toolless import ToollessModels
from llamaproxy.deferreds import Semaphore, all_of
from llamaproxy.errors import ProxyError, ToolFailed, UpstreamRefused
from llamaproxy.events import (
    CallEnded,
    Contents,
    LoopLimited,
    RoundBegan,
    RoundEnded,
    Tell,
    tell_nobody,
)
from llamaproxy.jsontext import Json, JsonList
from llamaproxy.records import CallRecord, ChatRecord, RoundRecord
from llamaproxy.tools.arguments import understood
from llamaproxy.tools.catalogue import Catalogue, note_tool
from llamaproxy.tools.definitions import ToolDefinition
from llamaproxy.tools.names import NameIndex
from llamaproxy.tools.offers import Offer
from llamaproxy.tools.results import ToolResult
from llamaproxy.upstream.client_context import ClientContext

#: Server calls of one round that are run; any more get an error as their result.
_MAX_CALLS = 128

T = TypeVar("T")


class CallSlots:
    """Limits the server calls that run at the same time, of each chat and of all; others wait."""

    def __init__(self, per_chat: int, overall: int) -> None:
        self._per_chat = per_chat
        self._overall = Semaphore(overall)

    def for_chat(self) -> Callable[[Callable[[], Awaitable[T]]], Awaitable[T]]:
        """A function for one chat that runs a call when there is a slot, and returns its result."""
        chat = Semaphore(self._per_chat)

        async def run(call: Callable[[], Awaitable[T]]) -> T:
            await chat.acquire()
            try:
                await self._overall.acquire()
                try:
                    return await call()
                finally:
                    self._overall.release()
            finally:
                chat.release()

        return run


@attrs.define(eq=False, repr=False)
class _Chat:
    """What stays the same in all rounds of one answer."""

    client: ClientContext
    offer: Offer
    client_tools: frozenset[str]
    answer: Answer
    record: ChatRecord
    names: NameIndex
    in_slot: Callable[[Callable[[], Awaitable[ToolResult]]], Awaitable[ToolResult]]

    def offered_name(self, call: ToolCall) -> str:
        """The name of the server's tool that *call* is of, as it is offered; "" if of none."""
        return (self.names.fuzzy_match(call.name) or "") if is_function(call.entry) else ""


@attrs.frozen(eq=False, repr=False)
class ToolLoop:
    """Answers chat completion requests in up to *max_rounds* rounds with tools, and one without."""

    _catalogue: Catalogue
    _turns: TurnStore
    _max_rounds: int
    _slots: CallSlots
    _toolless: ToollessModels
    #: Whether conversations get the instructions of the tools' servers.
    _instructs: bool = False
    _tell: Tell = tell_nobody

    async def pass_on(
        self, body: Json, client: ClientContext, answer: Answer, record: ChatRecord
    ) -> None:
        """Relay the request in a single round: no server tool is offered or run (L4).

        :param body: is emptied: the memory that it takes is not needed once it is serialised.
        :raises ProxyError: if it fails.
        """
        client_tools = tool_names(body)
        legacy = "functions" in body
        visibility = CallVisibility(client_tools, shows_all=True, legacy_functions=legacy)
        history = await recall_turns(self._turns, client, body["messages"])
        request = _serialised(body, history, JsonList())
        del history
        await self._round(request, visibility, answer, record)

    async def run(
        self,
        body: Json,
        client: ClientContext,
        answer: Answer,
        patterns: list[str] | None,
        record: ChatRecord,
    ) -> None:
        """Answer in rounds with server tools, only those that *patterns* match if given (L5).

        :param body: is emptied, as by :meth:`pass_on`.
        :raises ProxyError: if a round fails.
        """
        client_tools = tool_names(body)
        if not client_tools and record.model in self._toolless:
            record.not_injected = toolless.REASON
            return await self.pass_on(body, client, answer, record)
        record.listing_since = record.now()
        try:
            offer = await self._catalogue.offer(client, client_tools, patterns)
        finally:
            record.listing, record.listing_since = record.listed_for(record.now()), None
        record.offered, record.withheld = offer.all_names, offer.withheld
        names = offer.names(client_tools)
        chat = _Chat(client, offer, client_tools, answer, record, names, self._slots.for_chat())
        mark = new_mark() if offer.tools and client_tools else ""
        visibility = CallVisibility(
            client_tools,
            offer.tools.keys(),
            mark=mark,
            legacy_functions="functions" in body,
            index=names,
        )
        body |= with_offered_names(body, client_tools, offer.named)
        history = without_old_cards(body["messages"])
        history = await recall_turns(self._turns, client, history)
        # For a model that takes no tools, and so needs no words about them.
        plain = JsonList.of(history) if self._instructs and offer.notes else None
        if plain is not None:
            history = with_system_text(history, offer.notes)
        request = _serialised(body, history, offer.definitions)
        del history
        turn: list[Json] = []
        repeats = Repeats()
        limit = None
        while limit is None:
            visibility.after_server_calls = bool(record.rounds)
            try:
                completion = await self._round(request, visibility, answer, record)
            except UpstreamRefused as error:
                added = not record.run and not client_tools and offer.tools
                if not added or not toolless.takes_no_tools(error):
                    raise
                self._toolless.add(record.model)
                record.not_injected, record.offered = toolless.REASON, ()
                if plain is not None:
                    request["messages"] = plain
                await self._round(without_tools(request), visibility, answer, record)
                return
            if not completion.calls:
                return
            server_calls = [call for call in completion.calls if not visibility.shows(call.name)]
            client_calls = len(completion.calls) - len(server_calls)
            rewritten: dict[str, Json] = {}
            results = await self._run_all(server_calls, chat, rewritten)
            if not client_calls and repeats.too_many(results):
                limit = REPETITION
            elif not client_calls and len(record.rounds) == self._max_rounds:
                limit = ROUNDS
            if limit is not None and results:
                results = [(call, limit.noted(result)) for call, result in results]
            if "tool_choice" in request:
                called = {names.fuzzy_match(call.name) or call.name for call in completion.calls}
                request = after_round(request, called, client_tools, offer.tools.keys())
            texts = [(call, result.text) for call, result in results]
            messages = follow_up(completion.message, texts, rewritten)
            turn += messages
            request = {**request, "messages": request["messages"] + JsonList.of(messages)}
            if client_calls and (server_calls or len(record.rounds) > 1):
                # Before the answer ends: its client may be back at once.
                await remember_turn(self._turns, client, mark, turn)
            if client_calls or not server_calls:
                return
        await self._answer_without_tools(request, chat, limit)

    async def _round(
        self, body: Json, visibility: CallVisibility, answer: Answer, record: ChatRecord
    ) -> Completion:
        """The model's answer to *body*; observers are told when the round begins and ends."""
        round = RoundRecord(record, len(record.rounds) + 1, record.now())
        record.rounds.append(round)
        self._tell(RoundBegan(round))
        self._tell(Contents(round, "request", body))
        try:
            completion = await answer.complete(body, visibility, round)
            self._tell(Contents(round, "answer", completion.message))
            return completion
        except CancelledError:
            round.kind = "cancelled"
            raise
        except Exception as error:
            round.kind = error.kind if isinstance(error, ProxyError) else ProxyError.kind
            round.status = error.status if isinstance(error, ProxyError) else 0
            raise
        finally:
            round.ended = record.now()
            self._tell(RoundEnded(round))

    async def _answer_without_tools(self, body: Json, chat: _Chat, limit: Limit) -> None:
        """One more round, in which no tool may be called (L15)."""
        chat.record.limit = limit.name
        self._tell(LoopLimited(chat.record))
        if "tools" in body:
            body = {**body, "tool_choice": "none"}
        names = (*chat.client_tools, *chat.offer.tools)
        visibility = CallVisibility(server_tools=names)
        completion = await self._round(body, visibility, chat.answer, chat.record)
        if not text_of(completion.message.get("content")).strip():
            await chat.answer.say(limit.fallback.format(rounds=self._max_rounds))

    async def _run_all(
        self, calls: list[ToolCall], chat: _Chat, rewritten: dict[str, Json]
    ) -> CallResults:
        """Run *calls* at the same time, and return them with their results, in order (L9).

        :param rewritten: gets, by id, what was understood of arguments that are no object as they
            stand.
        """

        async def run(
            call: ToolCall, tool: ToolDefinition | None, record: CallRecord
        ) -> ToolResult:
            try:
                try:
                    card = await chat.answer.show_call(call)
                finally:
                    record.asked = chat.record.now()  # until then the client was to read
                self._tell(Contents(record, "arguments", call.arguments))
                result = await self._run(call, tool, chat, record, rewritten)
            except Exception as error:
                record.outcome = "cancelled" if isinstance(error, CancelledError) else "failed"
                raise
            finally:
                if record.began is None:  # else: the catalogue has told
                    record.ended = chat.record.now()
                    self._tell(CallEnded(record))
            self._tell(Contents(record, "result", result.text))
            await chat.answer.show_result(card, result)
            return result

        names = list(map(chat.offered_name, calls))
        tools = [chat.offer.tools.get(name) for name in names]
        records = self._call_records(names, tools, chat.record)
        for record in records[_MAX_CALLS:]:
            record.outcome, record.ended = "refused", record.asked
            self._tell(CallEnded(record))
        for call in calls[_MAX_CALLS:]:
            with suppress(ToolFailed):
                _arguments_of(call, rewritten)
        results = await all_of(map(run, calls[:_MAX_CALLS], tools, records))
        too_many = ToolResult.failure(f"only {_MAX_CALLS} calls can be made at the same time.")
        results += [too_many] * (len(calls) - len(results))
        return list(zip(calls, results, strict=True))

    def _call_records(
        self, names: list[str], tools: list[ToolDefinition | None], chat: ChatRecord
    ) -> list[CallRecord]:
        """The records of the last round's calls of *tools*, part of *chat* from now on.

        :param names: those by which they are offered.
        """
        now, before, round = chat.now(), len(chat.calls), len(chat.rounds)
        records = [
            CallRecord(chat, before + number, round, now) for number in range(1, len(tools) + 1)
        ]
        for name, tool, record in zip(names, tools, records, strict=True):
            if tool is not None:
                record.offered = name
                note_tool(record, tool)
        chat.calls += records
        return records

    async def _run(
        self,
        call: ToolCall,
        tool: ToolDefinition | None,
        chat: _Chat,
        record: CallRecord,
        rewritten: dict[str, Json],
    ) -> ToolResult:
        """The result of one call; a failure is a result that the model can read (L12)."""
        record.outcome = "refused"
        if call.cut_off:
            rewritten[call.id] = {}
            return ToolResult.failure(
                "the call was cut off before it was complete, so nothing was done. Make it again, "
                "shorter."
            )
        if tool is None:
            record.outcome = "unknown"
            with suppress(ToolFailed):
                _arguments_of(call, rewritten)
            nearest = " or ".join(chat.names.nearest(call.name))
            hint = f"Did you mean {nearest}?" if nearest else "Use one of the tools given."
            return ToolResult.failure(f"there is no tool named {call.name[:64]!r}. {hint}")
        try:
            arguments = _arguments_of(call, rewritten)
        except ToolFailed as error:
            return ToolResult.failure(error.message)
        record.outcome = ""

        async def invoke() -> ToolResult:
            return await self._catalogue.invoke(tool, arguments, chat.client, record)

        return await chat.in_slot(invoke)


def _arguments_of(call: ToolCall, rewritten: dict[str, Json]) -> Json:
    """What is understood of the arguments of *call*, put into *rewritten* if they are no object.

    :raises ToolFailed: if nothing is understood of them.
    """
    try:
        arguments, is_exact = understood(call.arguments)
    except ToolFailed:
        rewritten[call.id] = {}
        raise
    if not is_exact:
        rewritten[call.id] = arguments
    return arguments


def _serialised(body: Json, messages: list[Any], server_tools: JsonList) -> Json:
    """*body*, which is emptied, with *messages* and tools as they are sent in every round.

    What has been parsed takes far more memory, and would be held by all who wait for the answer.
    """
    request = with_tools(body, server_tools)
    request["messages"] = JsonList.of(messages)
    body.clear()
    return request
