"""Catalogue: the server's tools as chats use them: cached, named, narrowed, run under limits."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from itertools import islice
from typing import Any, ClassVar

import attrs
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from llamaproxy.admin.metrics import Metrics
from llamaproxy.concurrent import SharedCall
from llamaproxy.errors import (
    EVERYBODYS,
    McpTimeout,
    ProxyError,
    ToolFailed,
    ToolUnknown,
    UpstreamTimeout,
)
from llamaproxy.jsontext import Json
from llamaproxy.tools.definitions import ToolDefinition
from llamaproxy.tools.groupstatus import GroupStatus
from llamaproxy.tools.offers import Listed, Offer, Offers
from llamaproxy.tools.results import ToolResult
from llamaproxy.tools.source import FIRST_WAIT, LISTING_TIMEOUT, Patience, ToolSource
from llamaproxy.upstream.caller import Caller
from llamaproxy.upstream.urls import bare

#: Seconds between two changes that are acted on at once, and callers whose lists are then fetched;
#: otherwise a list is only stale.
_CHANGE_INTERVAL, _MAX_REFRESHES = 10.0, 16

#: Seconds for which a group that fails for everybody is not asked again for a first chat.
_DOWN_SECONDS = 30.0

#: Seconds that a listing is given beyond what its groups are.
_GRACE = 0.5

_NOTHING = Offer()


@attrs.define
class _CallersTools:
    """What one caller's credentials can see, and how fresh that is."""

    listed: Listed | None = None
    listed_at: float = 0.0
    stale_at: float = 0.0
    refresh: SharedCall[Offer] = attrs.Factory(SharedCall)
    caller: Caller | None = None

    @property
    def offer(self) -> Offer:
        return _NOTHING if self.listed is None else self.listed.offer


@attrs.define
class Catalogue:
    """Lists the tools of a source once for many chats, and runs them.

    *ttl*: seconds for which a list is fresh; *tool_timeout*: seconds for one call; *max_result*:
    bytes of a result that a model is shown; *max_callers*: how many callers' lists are kept.
    """

    _source: ToolSource
    _clock: IReactorTime
    _metrics: Metrics
    _ttl: float
    _tool_timeout: float
    _max_result: int
    _offers: Offers = attrs.Factory(lambda: Offers(1000, 4 * 1024 * 1024))
    _max_callers: int = 10_000
    _callers: OrderedDict[Any, _CallersTools] = attrs.field(init=False, factory=OrderedDict)
    #: Groups that fail for everybody, empty for all of them: why, and until when that is believed.
    _down: dict[str, tuple[ProxyError, float]] = attrs.field(init=False, factory=dict)
    _changed_at: float = attrs.field(init=False, default=-_CHANGE_INTERVAL)
    _stopped: bool = attrs.field(init=False, default=False)
    _status: GroupStatus = attrs.field(init=False)
    _log: ClassVar[Logger] = Logger()

    @_status.default
    def _new_status(self) -> GroupStatus:
        return GroupStatus(self._clock)

    async def offer(
        self, caller: Caller, taken: Collection[str] = (), patterns: list[str] | None = None
    ) -> Offer:
        """What *caller* can be offered, without the names that the client's own tools have taken.

        Where nothing can be listed, nothing is offered (DESIGN: L22).

        :raises BadRequest: for patterns that are too many or too long.
        """
        return (await self._offer_to(caller)).narrowed(taken, patterns)

    async def invoke(
        self, tool: ToolDefinition, arguments: dict[str, Any], caller: Caller
    ) -> ToolResult:
        """Run *tool*; whatever goes wrong becomes a result that says so (DESIGN: L13)."""
        started = self._clock.seconds()
        call = Deferred.fromCoroutine(self._invoke(tool, arguments, caller))
        call.addTimeout(self._tool_timeout, self._clock)
        reason = ""
        try:
            result = await call
            reason = ", as it says itself" if result.is_error else ""
        except CancelledError:
            self._log.info("tool {tool} was cancelled", tool=tool.name)
            raise
        except TimeoutError:
            reason = f": no answer within {self._tool_timeout:g} s"
            result = ToolResult.failure(
                f"the tool did not answer within {self._tool_timeout:g} s and was stopped."
            )
        except ToolFailed as error:
            reason = f": {error.kind}"
            result = ToolResult.failure(error.message)
        except ProxyError as error:
            reason = f": {error.logged}"
            result = ToolResult.failure(f"the tool could not be run. {error}")
        except Exception:
            self._log.failure("tool {tool} broke", tool=tool.name)
            result = ToolResult.failure("the tool could not be run.")
        self._metrics.tool_called(failed=result.is_error)
        self._status.called(tool, result.is_error)
        self._log.info(
            "tool {tool} of {group} {outcome} in {seconds:.3f} s{reason}{where}",
            tool=tool.name,
            group=tool.group,
            outcome="failed" if result.is_error else "answered",
            seconds=self._clock.seconds() - started,
            reason=reason,
            where=f" ({bare(tool.endpoint)})" if reason and tool.endpoint else "",
        )
        return result.tidied(self._max_result)

    def changed(self) -> None:
        """A source says that its tools have changed: list them again, though not all the time.

        Those who asked last have them listed at once, all others when they ask again.
        """
        now = self._clock.seconds()
        before, self._changed_at = self._changed_at, now
        if now - before >= _CHANGE_INTERVAL:
            for known in islice(reversed(self._callers.values()), _MAX_REFRESHES):
                if known.caller is not None:
                    self._start_refresh(known, known.caller)

    def stop(self) -> None:
        """Give up the listings under way."""
        self._stopped = True
        for known in self._callers.values():
            known.refresh.cancel()

    def status(self) -> Json:
        """What an operator may want to know of the tools."""
        status = self._status.as_json()
        return {**status, "tools": {**status["tools"], "callers": len(self._callers)}}

    async def _invoke(
        self, tool: ToolDefinition, arguments: dict[str, Any], caller: Caller
    ) -> ToolResult:
        try:
            return await self._source.invoke(tool, arguments, caller)
        except ToolUnknown:
            known = self._known(caller)
            offer = await known.refresh.result(lambda: self._refresh(known, caller, Patience()))
            return await self._source.invoke(_again(tool, offer), arguments, caller)

    def _known(self, caller: Caller) -> _CallersTools:
        known = self._callers.setdefault(caller.credentials, _CallersTools())
        self._callers.move_to_end(caller.credentials)
        while len(self._callers) > self._max_callers:
            self._callers.popitem(last=False)
        return known

    async def _offer_to(self, caller: Caller) -> Offer:
        known = self._known(caller)
        now = self._clock.seconds()
        if now < known.stale_at and known.listed_at >= self._changed_at:
            return known.offer
        down = self._known_down()
        if known.listed is not None or "" in down:
            self._start_refresh(known, caller)
            return known.offer
        patience = Patience(FIRST_WAIT, down)
        listing = known.refresh.result(lambda: self._refresh(known, caller, patience))
        try:
            waiting = Deferred.fromCoroutine(listing)
            # The source itself gives up on what is slow; this is for all of it.
            return await waiting.addTimeout(FIRST_WAIT + _GRACE, self._clock)
        except TimeoutError:
            return known.offer

    def _known_down(self) -> dict[str, ProxyError]:
        now = self._clock.seconds()
        self._down = {group: each for group, each in self._down.items() if each[1] > now}
        return {group: error for group, (error, _) in self._down.items()}

    def _start_refresh(self, known: _CallersTools, caller: Caller) -> None:
        if not self._stopped:
            known.refresh.start(lambda: self._refresh(known, caller, Patience()))

    async def _refresh(self, known: _CallersTools, caller: Caller, patience: Patience) -> Offer:
        started = self._clock.seconds()
        try:
            listing = await self._source.list_tools(caller, patience)
        except CancelledError:
            raise
        except Exception as error:
            if not isinstance(error, ProxyError):
                self._log.failure("listing the tools broke")
                error = ProxyError()
            self._note_failure("", error)
            # The longer a failure takes, the less often it should be met.
            now = self._clock.seconds()
            known.stale_at = known.listed_at = now + (now - started)
            return known.offer
        self._status.recovered()
        self._down.pop("", None)
        groups = dict(listing.groups)
        before = known.listed.groups if known.listed is not None else {}
        for group, failure in listing.failures.items():
            self._note_failure(group, failure)
            if group in before:  # DESIGN: T2, T3
                groups.setdefault(group, before[group])
        for group in listing.groups:
            self._down.pop(group, None)
        known.listed = self._offers.of(groups)
        known.caller = caller.for_listing()
        known.listed_at = self._clock.seconds()
        known.stale_at = known.listed_at + self._ttl
        self._status.listed(known.listed, set(listing.groups))
        if patience.seconds < LISTING_TIMEOUT and any(map(_is_slow, listing.failures.values())):
            # What was too slow for a first chat may be there for the next.
            self._clock.callLater(0, self._start_refresh, known, known.caller)
        return known.offer

    def _note_failure(self, group: str, error: ProxyError) -> None:
        self._metrics.listing_failed()
        self._status.failed(group, error)
        # For a server that says no at once nobody has to wait.
        if _is_slow(error) or (group and isinstance(error, EVERYBODYS)):
            self._down[group] = (error, self._clock.seconds() + _DOWN_SECONDS)


def _is_slow(error: ProxyError) -> bool:
    return isinstance(error, UpstreamTimeout | McpTimeout)


def _again(tool: ToolDefinition, offer: Offer) -> ToolDefinition:
    """*tool* as it is listed now: a server that was replaced may run it in another way."""
    called = [other for other in offer.tools.values() if other.name == tool.name]
    exact = [other for other in called if other.group == tool.group]
    return exact[0] if exact else called[0] if len(called) == 1 else tool
