"""Catalogue: the server's tools as chats use them: cached, named, narrowed, run under limits."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Collection
from typing import Any, ClassVar

import attrs
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from llamaproxy.admin.metrics import Metrics
from llamaproxy.deferreds import SharedCall
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
from llamaproxy.tools.source import FIRST_WAIT, LISTING_TIMEOUT, Listing, Patience, ToolSource
from llamaproxy.upstream.caller import Caller
from llamaproxy.upstream.urls import bare

#: Seconds between two changes that are acted on at once, and callers whose lists are then fetched
#: (the latest); otherwise a list is only stale.
_CHANGE_INTERVAL, _MAX_LATEST = 10.0, 16

#: Seconds for which a group that fails for everybody is not asked again for a first chat.
_DOWN_SECONDS = 30.0

#: Seconds that a listing is given beyond what its groups are.
_GRACE = 0.5

_NOTHING = Offer()


@attrs.define
class _CallersTools:
    """What one caller's credentials can see, and how fresh that is; there may be thousands."""

    listed: Listed | None = None
    listed_at: float = 0.0
    stale_at: float = 0.0

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
    #: By digests of credentials, the latest last.
    _callers: OrderedDict[bytes, _CallersTools] = attrs.field(init=False, factory=OrderedDict)
    #: The listings under way.
    _refreshes: dict[bytes, SharedCall[Offer]] = attrs.field(init=False, factory=dict)
    #: Those who asked last, who have their lists fetched when something has changed.
    _latest: OrderedDict[bytes, Caller] = attrs.field(init=False, factory=OrderedDict)
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
            for caller in list(self._latest.values()):
                self._start_refresh(caller)

    def stop(self) -> None:
        """Give up the listings under way."""
        self._stopped = True
        for refresh in list(self._refreshes.values()):
            refresh.cancel()

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
            offer = await self._refreshed(caller, Patience())
            return await self._source.invoke(_again(tool, offer), arguments, caller)

    def _known(self, key: bytes) -> _CallersTools:
        known = self._callers.setdefault(key, _CallersTools())
        self._callers.move_to_end(key)
        while len(self._callers) > self._max_callers:
            self._callers.popitem(last=False)
        return known

    async def _offer_to(self, caller: Caller) -> Offer:
        known = self._known(_key(caller))
        now = self._clock.seconds()
        if now < known.stale_at and known.listed_at >= self._changed_at:
            return known.offer
        if known.listed is not None:
            self._start_refresh(caller)
            return known.offer
        listing = self._refreshed(caller, Patience(FIRST_WAIT, self._known_down()))
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

    def _start_refresh(self, caller: Caller) -> None:
        if not self._stopped:
            key = _key(caller)
            self._refresh_of(key).start(lambda: self._refresh(key, caller, Patience()))

    async def _refreshed(self, caller: Caller, patience: Patience) -> Offer:
        key = _key(caller)
        return await self._refresh_of(key).result(lambda: self._refresh(key, caller, patience))

    def _refresh_of(self, key: bytes) -> SharedCall[Offer]:
        return self._refreshes.setdefault(key, SharedCall())

    async def _refresh(self, key: bytes, caller: Caller, patience: Patience) -> Offer:
        try:
            return await self._list_again(self._known(key), caller, patience)
        finally:
            del self._refreshes[key]
            self._latest[key] = caller.for_listing()
            self._latest.move_to_end(key)
            while len(self._latest) > _MAX_LATEST:
                self._latest.popitem(last=False)

    async def _list_again(self, known: _CallersTools, caller: Caller, patience: Patience) -> Offer:
        started = self._clock.seconds()
        listing = await self._listing(caller, patience)
        now = self._clock.seconds()
        before = known.listed.groups if known.listed is not None else {}
        groups = dict(listing.groups)
        for group in before if listing.rest is not None else listing.failures:
            if group in before:  # DESIGN: T2, T3
                groups.setdefault(group, before[group])
        for group, failure in listing.failures.items():
            if failure is not patience.down.get(group):
                self._note_failure(group, failure)
        for group in listing.groups:
            self._down.pop(group, None)
        known.listed_at = now
        if listing.rest is None:
            self._status.recovered()
            self._down.pop("", None)
            known.stale_at = now + self._ttl
        else:
            if listing.rest is not patience.down.get(""):
                self._note_failure("", listing.rest)
            # The longer a failure takes, the less often it should be met.
            known.stale_at = now + (now - started)
        if groups or listing.rest is None:
            known.listed = self._offers.of(groups)
            self._status.listed(known.listed, set(listing.groups))
        if patience.seconds < LISTING_TIMEOUT and any(map(_is_slow, listing.reasons)):
            # What was too slow for a first chat may be there for the next.
            self._clock.callLater(0, self._start_refresh, caller.for_listing())
        return known.offer

    async def _listing(self, caller: Caller, patience: Patience) -> Listing:
        """What the source lists, or why it lists nothing at all."""
        try:
            return await self._source.list_tools(caller, patience)
        except CancelledError:
            raise
        except ProxyError as error:
            return Listing({}, rest=error)
        except Exception:
            self._log.failure("listing the tools broke")
            return Listing({}, rest=ProxyError())

    def _note_failure(self, group: str, error: ProxyError) -> None:
        self._metrics.listing_failed()
        self._status.failed(group, error)
        # For a server that says no at once nobody has to wait.
        if _is_slow(error) or (group and isinstance(error, EVERYBODYS)):
            self._down[group] = (error, self._clock.seconds() + _DOWN_SECONDS)


def _is_slow(error: ProxyError) -> bool:
    return isinstance(error, UpstreamTimeout | McpTimeout)


def _key(caller: Caller) -> bytes:
    """What tells callers apart, and not what they identify themselves with: it is kept."""
    return hashlib.blake2b(repr(caller.credentials).encode(), digest_size=16).digest()


def _again(tool: ToolDefinition, offer: Offer) -> ToolDefinition:
    """*tool* as it is listed now: a server that was replaced may run it in another way.

    It is looked for on the server that it was offered from, and nowhere else: a newcomer with a
    tool of the same name was not what the model chose.
    """
    for other in sorted(offer.tools.values(), key=lambda each: each.group != tool.group):
        if other.name == tool.name and _is_same_server(tool, other):
            return other
    return tool


def _is_same_server(one: ToolDefinition, other: ToolDefinition) -> bool:
    if one.endpoint and other.endpoint:
        return one.endpoint.rstrip("/") == other.endpoint.rstrip("/")
    return one.group == other.group
