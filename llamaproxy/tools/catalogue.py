"""Catalogue: the server's tools as chats use them: listed, narrowed, run under limits."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

import attrs
from twisted.internet.defer import CancelledError, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from llamaproxy.deferreds import within
from llamaproxy.errors import (
    ProxyError,
    ToolFailed,
    ToolUnknown,
)
from llamaproxy.events import (
    CallBegan,
    CallEnded,
    Tell,
    tell_nobody,
)
from llamaproxy.records import CallRecord, Outcome
from llamaproxy.tools.caller_lists import CallerLists
from llamaproxy.tools.definitions import ToolDefinition
from llamaproxy.tools.neutral import is_cut
from llamaproxy.tools.offers import Offer, Offers
from llamaproxy.tools.results import ToolResult
from llamaproxy.tools.source import Listing, ListLimits, ToolSource
from llamaproxy.upstream.client_context import ClientContext
from llamaproxy.upstream.urls import url_for_log


@attrs.define(eq=False, repr=False)
class Catalogue:
    """The tools of a source as chats use them.

    *ttl*: seconds for which a list is fresh; *tool_timeout*: seconds for one call; *max_result*:
    bytes of a result that a model is shown; *max_callers*: how many callers' lists are kept.
    """

    _source: ToolSource
    _clock: IReactorTime
    _ttl: float
    _tool_timeout: float
    _max_result: int
    _offers: Offers = attrs.Factory(lambda: Offers(1000, 4 * 1024 * 1024))
    _max_callers: int = 10_000
    _tell: Tell = tell_nobody
    _lists: CallerLists = attrs.field(init=False)
    _log: ClassVar[Logger] = Logger()

    @_lists.default
    def _no_lists(self) -> CallerLists:
        return CallerLists(
            self._source, self._clock, self._ttl, self._offers, self._max_callers, self._tell
        )

    async def offer(
        self,
        caller: ClientContext,
        reserved: Collection[str] = (),
        patterns: list[str] | None = None,
    ) -> Offer:
        """The tools that *caller* is offered, without the names of the client's own, *reserved*.

        Where nothing can be listed, nothing is offered (DESIGN: L22).

        :param patterns: of the names or groups that are wanted; None for all of them.

        :raises BadRequest: for patterns that are too many or too long.
        """
        return (await self._lists.offer(caller)).narrowed(reserved, patterns)

    async def refreshed(self, caller: ClientContext) -> Offer:
        """All tools that *caller* can see, listed now and with patience."""
        return await self._lists.refreshed(caller)

    async def listing(self, caller: ClientContext, limits: ListLimits) -> Listing:
        """What the last listing for *caller* came to, for another process that offers the same."""
        return await self._lists.listing(caller, limits)

    def figures(self) -> dict[str, int]:
        """How many lists are kept and fetched, for the status."""
        return self._lists.figures()

    async def invoke(
        self,
        tool: ToolDefinition,
        arguments: dict[str, Any],
        caller: ClientContext,
        call: CallRecord,
    ) -> ToolResult:
        """Run *tool*; a failure of any kind is a result too (DESIGN: L13).

        :param call: its record, which is filled in. What it has come to stands in it at its end.
        """
        note_tool(call, tool)
        call.began = self._clock.seconds()
        self._tell(CallBegan(call))
        outcome: Outcome = "failed"
        try:
            invocation = self._invoke(tool, arguments, caller)
            result = await within(self._tool_timeout, self._clock, invocation)
            if result.is_error:
                call.kind, call.reason = "tool_error", ", as it says itself"
            else:
                outcome = "answered"
        except CancelledError:
            call.outcome = "cancelled"
            self._end(call)
            raise
        except TimeoutError:
            outcome = call.kind = "timeout"
            call.reason = f": no answer within {self._tool_timeout:g} s"
            result = ToolResult.failure(
                f"the tool did not answer within {self._tool_timeout:g} s and was stopped."
            )
        except ToolFailed as error:
            call.kind, call.reason = "tool_failed", f": {error.kind}"
            result = ToolResult.failure(error.message)
        except ProxyError as error:
            call.kind, call.reason = error.kind, f": {error.logged}"
            result = ToolResult.failure(f"the tool could not be run. {error}")
        except Exception:
            self._log.failure("tool {tool} broke", tool=tool.name)
            call.kind = ProxyError.kind
            result = ToolResult.failure("the tool could not be run.")
        result = result.tidied(self._max_result)
        call.cut = is_cut(result.text, self._max_result)
        call.outcome = outcome
        self._end(call)
        return result

    def changed(self) -> None:
        """List the tools again: those of recent callers at once, others when they ask again."""
        self._lists.changed()

    def reconfigured(self) -> None:
        """The operator has changed the source: what failed may work now."""
        self._lists.reconfigured()

    def stop(self) -> None:
        """Cancel the listings under way."""
        self._lists.stop()

    def _end(self, call: CallRecord) -> None:
        call.ended = self._clock.seconds()
        self._tell(CallEnded(call))

    async def _invoke(
        self, tool: ToolDefinition, arguments: dict[str, Any], caller: ClientContext
    ) -> ToolResult:
        try:
            return await self._source.invoke(tool, arguments, caller)
        except ToolUnknown:
            offer = await self._lists.refreshed(caller)
            return await self._source.invoke(_relisted(tool, offer), arguments, caller)


def note_tool(call: CallRecord, tool: ToolDefinition) -> None:
    """Have the record of a *call* say which *tool* it is of."""
    call.tool, call.group, call.endpoint = tool.name, tool.group, url_for_log(tool.endpoint)


def _relisted(tool: ToolDefinition, offer: Offer) -> ToolDefinition:
    """*tool* as it is listed now: a server that was replaced may have another API for it.

    Only a tool of the same server counts: one of the same name on another was not what the model
    chose.
    """
    for other in sorted(offer.tools.values(), key=lambda each: each.group != tool.group):
        if other.name == tool.name and _is_same_server(tool, other):
            return other
    return tool


def _is_same_server(one: ToolDefinition, other: ToolDefinition) -> bool:
    if one.endpoint and other.endpoint:
        return _place(one) == _place(other)
    return one.group == other.group


def _place(tool: ToolDefinition) -> str:
    """Where its server is; what follows # says how a program is started, and may have changed."""
    return tool.endpoint.partition("#")[0].rstrip("/")
