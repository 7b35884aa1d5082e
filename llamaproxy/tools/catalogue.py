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

from llamaproxy.deferreds import SharedCall
from llamaproxy.errors import (
    ProxyError,
    ToolFailed,
    ToolUnknown,
)
from llamaproxy.events import (
    CallBegan,
    CallCancelled,
    CallEnded,
    ChatRecord,
    GroupListed,
    ListRefreshed,
    Tell,
    tell_nobody,
)
from llamaproxy.tools.definitions import ToolDefinition
from llamaproxy.tools.failure_memory import FailureMemory, is_slow
from llamaproxy.tools.offers import Listed, Offer, Offers
from llamaproxy.tools.results import ToolResult
from llamaproxy.tools.source import FIRST_WAIT, LISTING_TIMEOUT, Listing, Patience, ToolSource
from llamaproxy.upstream.client_context import ClientContext
from llamaproxy.upstream.urls import bare

#: Seconds between two changes that are acted on at once, and callers whose lists are then fetched
#: (the latest); otherwise a list is only stale.
_CHANGE_INTERVAL, _MAX_LATEST = 10.0, 16

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
    _ttl: float
    _tool_timeout: float
    _max_result: int
    _offers: Offers = attrs.Factory(lambda: Offers(1000, 4 * 1024 * 1024))
    _max_callers: int = 10_000
    _tell: Tell = tell_nobody
    #: By digests of credentials, the latest last.
    _callers: OrderedDict[bytes, _CallersTools] = attrs.field(init=False, factory=OrderedDict)
    #: The listings under way.
    _refreshes: dict[bytes, SharedCall[Offer]] = attrs.field(init=False, factory=dict)
    #: Those who asked last, who have their lists fetched when something has changed.
    _latest: OrderedDict[bytes, ClientContext] = attrs.field(init=False, factory=OrderedDict)
    _failures: FailureMemory = attrs.field(init=False)
    _changed_at: float = attrs.field(init=False, default=-_CHANGE_INTERVAL)
    _stopped: bool = attrs.field(init=False, default=False)
    _log: ClassVar[Logger] = Logger()

    @_failures.default
    def _no_failures(self) -> FailureMemory:
        return FailureMemory(self._clock)

    async def offer(
        self, caller: ClientContext, taken: Collection[str] = (), patterns: list[str] | None = None
    ) -> Offer:
        """What *caller* can be offered, without the names that the client's own tools have taken.

        Where nothing can be listed, nothing is offered (DESIGN: L22).

        :raises BadRequest: for patterns that are too many or too long.
        """
        return (await self._offer_to(caller)).narrowed(taken, patterns)

    async def invoke(
        self,
        tool: ToolDefinition,
        arguments: dict[str, Any],
        caller: ClientContext,
        chat: ChatRecord | None = None,
    ) -> ToolResult:
        """Run *tool* for a *chat*; whatever goes wrong becomes a result that says so (L13)."""
        record = ChatRecord() if chat is None else chat
        started = self._clock.seconds()
        self._tell(CallBegan(record, tool.name, tool.group))
        call = Deferred.fromCoroutine(self._invoke(tool, arguments, caller))
        call.addTimeout(self._tool_timeout, self._clock)
        reason = ""
        try:
            result = await call
            reason = ", as it says itself" if result.is_error else ""
        except CancelledError:
            self._tell(CallCancelled(record, tool.name, tool.group))
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
        ended = CallEnded(
            chat=record,
            tool=tool.name,
            group=tool.group,
            endpoint=bare(tool.endpoint) if tool.endpoint else "",
            seconds=self._clock.seconds() - started,
            failed=result.is_error,
            reason=reason,
        )
        self._tell(ended)
        return result.tidied(self._max_result)

    def changed(self) -> None:
        """A source says that its tools have changed: list them again, though not all the time.

        Those who asked last have them listed at once, all others when they ask again.
        """
        now = self._clock.seconds()
        before, self._changed_at = self._changed_at, now
        if now - before >= _CHANGE_INTERVAL:
            for caller in list(self._latest.values()):
                self._start_refresh(caller, Patience())

    def stop(self) -> None:
        """Give up the listings under way."""
        self._stopped = True
        for refresh in list(self._refreshes.values()):
            refresh.cancel()

    async def _invoke(
        self, tool: ToolDefinition, arguments: dict[str, Any], caller: ClientContext
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

    async def _offer_to(self, caller: ClientContext) -> Offer:
        known = self._known(_key(caller))
        now = self._clock.seconds()
        if now < known.stale_at and known.listed_at >= self._changed_at:
            return known.offer
        if known.listed is not None:
            self._start_refresh(caller, Patience(down=self._failures.believed()))
            return known.offer
        listing = self._refreshed(caller, Patience(FIRST_WAIT, self._failures.believed()))
        try:
            waiting = Deferred.fromCoroutine(listing)
            # The source itself gives up on what is slow; this is for all of it.
            return await waiting.addTimeout(FIRST_WAIT + _GRACE, self._clock)
        except TimeoutError:
            return known.offer

    def _start_refresh(self, caller: ClientContext, patience: Patience) -> None:
        if not self._stopped:
            key = _key(caller)
            self._refresh_of(key).start(lambda: self._refresh(key, caller, patience))

    async def _refreshed(self, caller: ClientContext, patience: Patience) -> Offer:
        key = _key(caller)
        return await self._refresh_of(key).result(lambda: self._refresh(key, caller, patience))

    def _refresh_of(self, key: bytes) -> SharedCall[Offer]:
        return self._refreshes.setdefault(key, SharedCall())

    async def _refresh(self, key: bytes, caller: ClientContext, patience: Patience) -> Offer:
        try:
            return await self._list_again(self._known(key), caller, patience)
        finally:
            del self._refreshes[key]
            self._latest[key] = caller.for_listing()
            self._latest.move_to_end(key)
            while len(self._latest) > _MAX_LATEST:
                self._latest.popitem(last=False)

    async def _list_again(
        self, known: _CallersTools, caller: ClientContext, patience: Patience
    ) -> Offer:
        started = self._clock.seconds()
        listing = await self._listing(caller, patience)
        now = self._clock.seconds()
        before = known.listed.groups if known.listed is not None else {}
        groups = dict(listing.groups)
        for group in before if listing.rest is not None else listing.failures:
            if group in before:  # DESIGN: T2, T3
                groups.setdefault(group, before[group])
        self._failures.note(listing, patience)
        known.listed_at = now
        # The longer a failure takes, the less often it should be met.
        known.stale_at = now + (self._ttl if listing.rest is None else now - started)
        if groups or listing.rest is None:
            known.listed = self._offers.of(groups)
        self._tell(_refreshed(len(self._callers), listing, known.listed))
        if patience.seconds < LISTING_TIMEOUT and any(map(is_slow, listing.news(patience.down))):
            # What was too slow for a first chat may be there for the next.
            self._clock.callLater(0, self._start_refresh, caller.for_listing(), Patience())
        return known.offer

    async def _listing(self, caller: ClientContext, patience: Patience) -> Listing:
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


def _refreshed(callers: int, listing: Listing, listed: Listed | None) -> ListRefreshed:
    """What those who watch are told of a *listing*, of which *listed* is offered."""
    names: dict[str, list[str]] = {group: [] for group in listing.groups}
    left_out: tuple[ToolDefinition, ...] = ()
    if listed is not None:
        left_out = listed.left_out
        for name, tool in listed.offer.tools.items():
            names.setdefault(tool.group, []).append(name)
    groups = {
        group: GroupListed(tuple(names[group]), next((t.endpoint for t in tools if t.endpoint), ""))
        for group, tools in listing.groups.items()
    }
    left_out_names = tuple(f"{tool.group}/{tool.name}" for tool in left_out)
    return ListRefreshed(callers, groups, listing.failures, listing.rest, left_out_names)


def _key(caller: ClientContext) -> bytes:
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
