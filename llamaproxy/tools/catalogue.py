"""Catalogue: the server's tools as chats use them: cached, named, narrowed, run under limits."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from typing import Any, ClassVar

import attrs
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from llamaproxy.admin.metrics import Metrics
from llamaproxy.concurrent import SharedCall
from llamaproxy.errors import ProxyError, ToolFailed, ToolUnknown
from llamaproxy.jsontext import Json
from llamaproxy.tools.names import matches, offered_names
from llamaproxy.tools.results import ToolResult
from llamaproxy.tools.source import Listing, ToolDefinition, ToolSource
from llamaproxy.upstream.caller import Caller

#: How many callers' tool lists are kept; the one not asked for the longest goes first.
MAX_CALLERS = 128

#: Seconds between two changes that are acted on at once; in between, a list is only stale.
_CHANGE_INTERVAL = 10.0


@attrs.frozen
class Offer:
    """The server tools offered in one chat, by the name that the model knows."""

    tools: dict[str, ToolDefinition] = attrs.Factory(dict)
    _entries: dict[str, Json] = attrs.field()

    @_entries.default
    def _all_entries(self) -> dict[str, Json]:
        return {
            name: {
                "type": "function",
                "function": {
                    "name": name,
                    "description": tool.description,
                    "parameters": tool.parameters,
                },
            }
            for name, tool in self.tools.items()
        }

    def definitions(self) -> list[Json]:
        """The offer as entries of a request's ``tools``, which all chats share."""
        return [self._entries[name] for name in self.tools]

    def narrowed(self, taken: Collection[str], patterns: list[str] | None) -> Offer:
        """The offer without the names *taken*, and with nothing but what *patterns* match."""
        if not taken and patterns is None:
            return self
        tools = {
            name: tool
            for name, tool in self.tools.items()
            if name not in taken and (patterns is None or matches(patterns, name, tool))
        }
        return Offer(tools, self._entries)

    def named(self, name: str) -> list[str]:
        """The offered names of the tools that are called *name*, offered or real."""
        if name in self.tools:
            return [name]
        return [offered for offered, tool in self.tools.items() if tool.name == name]


@attrs.define
class _CallersTools:
    """What one caller's credentials can see, and how fresh that is."""

    groups: dict[str, list[ToolDefinition]] | None = None
    offer: Offer = attrs.Factory(Offer)
    stale_at: float = 0.0
    refresh: SharedCall[Offer] = attrs.Factory(SharedCall)
    caller: Caller | None = None


@attrs.define
class Catalogue:
    """Lists the tools of a source once for many chats, and runs them.

    *ttl*: seconds for which a list is fresh; *tool_timeout*: seconds for one call; *max_result*:
    bytes of a result that a model is shown.
    """

    _source: ToolSource
    _clock: IReactorTime
    _metrics: Metrics
    _ttl: float
    _tool_timeout: float
    _max_result: int
    _callers: OrderedDict[Any, _CallersTools] = attrs.Factory(OrderedDict)
    _told_at: float = -_CHANGE_INTERVAL
    _log: ClassVar[Logger] = Logger()

    async def offer(
        self, caller: Caller, taken: Collection[str] = (), patterns: list[str] | None = None
    ) -> Offer:
        """What *caller* can be offered, without the names that the client's own tools have taken.

        Never fails: where nothing can be listed, nothing is offered (DESIGN: L22).
        """
        return (await self._offer_to(caller)).narrowed(taken, patterns)

    async def invoke(
        self, tool: ToolDefinition, arguments: dict[str, Any], caller: Caller
    ) -> ToolResult:
        """Run *tool*; whatever goes wrong becomes a result that says so (DESIGN: L13)."""
        started = self._clock.seconds()
        call = Deferred.fromCoroutine(self._invoke(tool, arguments, caller))
        call.addTimeout(self._tool_timeout, self._clock)
        try:
            result = await call
        except CancelledError:
            self._log.info("tool {tool} was cancelled", tool=tool.name)
            raise
        except TimeoutError:
            result = ToolResult.failure(
                f"the tool did not answer within {self._tool_timeout:g} s and was stopped."
            )
        except ToolFailed as error:
            result = ToolResult.failure(error.message)
        except ProxyError as error:
            result = ToolResult.failure(f"the tool could not be run. {error}")
        except Exception:
            self._log.failure("tool {tool} broke", tool=tool.name)
            result = ToolResult.failure("the tool could not be run.")
        self._metrics.tool_called(failed=result.is_error)
        self._log.info(
            "tool {tool} {outcome} in {seconds:.3f} s",
            tool=tool.name,
            outcome="failed" if result.is_error else "answered",
            seconds=self._clock.seconds() - started,
        )
        return result.tidied(self._max_result)

    def changed(self) -> None:
        """A source says that its tools have changed: list them again, though not all the time."""
        now = self._clock.seconds()
        told, self._told_at = self._told_at, now
        for known in self._callers.values():
            known.stale_at = min(known.stale_at, now)
            if known.caller is not None and now - told >= _CHANGE_INTERVAL:
                self._start_refresh(known, known.caller)

    def stop(self) -> None:
        """Give up the listings under way."""
        for known in self._callers.values():
            known.refresh.cancel()

    async def _invoke(
        self, tool: ToolDefinition, arguments: dict[str, Any], caller: Caller
    ) -> ToolResult:
        try:
            return await self._source.invoke(tool, arguments, caller)
        except ToolUnknown:
            known = self._known(caller)
            offer = await known.refresh.result(lambda: self._refresh(known, caller))
            return await self._source.invoke(_again(tool, offer), arguments, caller)

    def _known(self, caller: Caller) -> _CallersTools:
        known = self._callers.setdefault(caller.credentials, _CallersTools())
        self._callers.move_to_end(caller.credentials)
        while len(self._callers) > MAX_CALLERS:
            self._callers.popitem(last=False)
        return known

    async def _offer_to(self, caller: Caller) -> Offer:
        known = self._known(caller)
        if self._clock.seconds() < known.stale_at:
            return known.offer
        if known.groups is None:
            return await known.refresh.result(lambda: self._refresh(known, caller))
        self._start_refresh(known, caller)
        return known.offer

    def _start_refresh(self, known: _CallersTools, caller: Caller) -> None:
        known.refresh.start(lambda: self._refresh(known, caller))

    async def _refresh(self, known: _CallersTools, caller: Caller) -> Offer:
        started = self._clock.seconds()
        try:
            listing = await self._source.list_tools(caller)
        except CancelledError:
            raise
        except Exception as error:
            if not isinstance(error, ProxyError):
                self._log.failure("listing the tools broke")
            self._metrics.listing_failed("", str(error))
            self._log.warn(
                "the tools cannot be listed, chats go on {how}: {reason}",
                how="without them" if known.groups is None else "with those of the last good list",
                reason=str(error),
            )
            # The longer a failure takes, the less often chats should have to wait for it.
            now = self._clock.seconds()
            known.stale_at = now + (now - started)
            return known.offer
        known.caller = caller
        known.groups = self._merged(listing, known.groups or {})
        known.offer = Offer(offered_names(known.groups))
        known.stale_at = self._clock.seconds() + self._ttl
        return known.offer

    def _merged(
        self, listing: Listing, before: dict[str, list[ToolDefinition]]
    ) -> dict[str, list[ToolDefinition]]:
        """The listed groups, and of the broken ones what was known of them (DESIGN: T2, T3)."""
        groups = dict(listing.groups)
        self._metrics.listed({group: len(tools) for group, tools in groups.items()})
        for group, reason in listing.failures.items():
            self._metrics.listing_failed(group, reason)
            self._log.warn(
                "the tools of {group} cannot be listed: {reason}", group=group, reason=reason
            )
            if group in before:
                groups.setdefault(group, before[group])
        return groups


def _again(tool: ToolDefinition, offer: Offer) -> ToolDefinition:
    """*tool* as it is listed now: a server that was replaced may run it in another way."""
    called = [other for other in offer.tools.values() if other.name == tool.name]
    exact = [other for other in called if other.group == tool.group]
    return exact[0] if exact else called[0] if len(called) == 1 else tool
