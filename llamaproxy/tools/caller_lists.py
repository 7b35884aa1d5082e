"""CallerLists: the tools that each caller can see, listed once for all of his chats."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import ClassVar

import attrs
from twisted.internet.defer import CancelledError, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from llamaproxy.deferreds import SharedCall, let_go_of_frames, within
from llamaproxy.errors import ProxyError, UpstreamTimeout
from llamaproxy.events import ListsStale, Tell, tell_nobody
from llamaproxy.tools.cached_list import CachedList, refreshed_event
from llamaproxy.tools.failure_memory import FailureMemory, is_timeout
from llamaproxy.tools.offers import Offer, Offers
from llamaproxy.tools.source import (
    FIRST_WAIT_SECONDS,
    Listing,
    ListLimits,
    ToolSource,
)
from llamaproxy.upstream.client_context import ClientContext

#: Seconds between two changes that are acted on at once.
_CHANGE_INTERVAL = 10.0

#: Seconds for which a list is fresh that lacks the groups of a server that does not say them.
_FAILING_SECONDS = 5.0

#: Callers whose lists are then fetched, the latest; those of others are only stale.
_MAX_RECENT = 16

#: Seconds after which a first chat goes on, whatever the source does; where it runs in another
#: process, that is told a little earlier.
_FIRST_LIMIT = FIRST_WAIT_SECONDS + 0.5
_FIRST_LIMIT_ELSEWHERE = FIRST_WAIT_SECONDS + 0.25

#: Bytes of all lists that are kept; of those of callers who have not come for the longest time, no
#: more are.
_MAX_HELD = 256 * 1024 * 1024

#: The limits of a listing, asked for when it begins.
_Limits = Callable[[], ListLimits]


class _Refresh(SharedCall[CachedList]):
    """A listing under way; *late* is what a chat has come to that has waited in vain."""

    late: Listing | None = None


@attrs.define(eq=False, repr=False)
class CallerLists:
    """Lists the tools of a source, and keeps the list of each caller; there may be thousands.

    *ttl*: seconds for which a list is fresh; *max_callers*: how many callers' lists are kept.
    """

    _source: ToolSource
    _clock: IReactorTime
    _ttl: float
    _offers: Offers
    _max_callers: int
    _tell: Tell = tell_nobody
    #: By digests of credentials, the latest last.
    _lists: OrderedDict[bytes, CachedList] = attrs.field(init=False, factory=OrderedDict)
    #: The listings under way.
    _refreshes: dict[bytes, _Refresh] = attrs.field(init=False, factory=dict)
    #: Of whom all is about to be listed again, with patience.
    _follow_ups: set[bytes] = attrs.field(init=False, factory=set)
    #: The callers listed last, whose lists are fetched when something has changed.
    _recent: OrderedDict[bytes, ClientContext] = attrs.field(init=False, factory=OrderedDict)
    #: Groups that some caller's list had and has not any more.
    _missed: set[str] = attrs.field(init=False, factory=set)
    _failures: FailureMemory = attrs.field(init=False)
    _changes: int = attrs.field(init=False, default=0)
    _changed_at: float = attrs.field(init=False, default=-_CHANGE_INTERVAL)
    #: How often the operator has changed the source.
    _configurations: int = attrs.field(init=False, default=0)
    _stopped: bool = attrs.field(init=False, default=False)
    _log: ClassVar[Logger] = Logger()

    @_failures.default
    def _no_failures(self) -> FailureMemory:
        return FailureMemory(self._clock)

    async def offer(self, caller: ClientContext) -> Offer:
        """All tools that *caller* can see; an old list while a new one is fetched.

        The first chat of a caller waits for about :data:`FIRST_WAIT_SECONDS`, and is offered
        nothing if nothing has been listed by then (DESIGN: L22, T3).
        """
        key = caller.key
        cached = self._cached(key)
        if not self._fresh_for(cached):
            cached = await self._for_a_chat(caller, key, cached, _FIRST_LIMIT)
        return cached.offer

    async def refreshed(self, caller: ClientContext) -> Offer:
        """All tools that *caller* can see, listed now, or by the listing that is under way."""
        return (await self._refreshed(caller, self._everything_anew)).offer

    async def listing(self, caller: ClientContext, limits: ListLimits) -> Listing:
        """What the last listing for *caller* came to, for another process that offers the same.

        It is made now unless there is a fresh one, or one is under way; which groups are down, is
        remembered here (DESIGN: T2, T3).
        """
        key = caller.key
        cached = self._cached(key)
        if limits.anew:
            cached = await self._refreshed(caller, self._everything_anew)
        elif limits.patient:
            if key in self._refreshes or not self._fresh_for(cached):
                cached = await self._refreshed(caller, self._others)
        elif not self._fresh_for(cached):
            cached = await self._for_a_chat(caller, key, cached, _FIRST_LIMIT_ELSEWHERE)
        # They cannot see of an error that it is of before, and nobody was asked.
        is_asked_again = key in self._refreshes or key in self._follow_ups
        return cached.listing(0.0 if is_asked_again else self._fresh_for(cached))

    def changed(self) -> None:
        """Make all lists stale, and fetch those of recent callers, though not all the time."""
        self._changes += 1
        now = self._clock.seconds()
        previous, self._changed_at = self._changed_at, now
        if now - previous >= _CHANGE_INTERVAL:
            for caller in list(self._recent.values()):
                self._start_refresh(caller, self._everything)
        self._tell(ListsStale())

    def reconfigured(self) -> None:
        """The same, at once, whatever has failed before: the operator has changed the source."""
        self._configurations += 1
        self._failures.clear()
        self._changed_at = -_CHANGE_INTERVAL
        self.changed()

    def figures(self) -> dict[str, int]:
        """How many lists are kept and fetched, with the limits, for the status."""
        return {
            "callers": len(self._lists),
            "max_callers": self._max_callers,
            "being_fetched": len(self._refreshes),
            "max_tools": self._offers.max_tools,
            "max_bytes_of_tools": self._offers.max_bytes,
        }

    def stop(self) -> None:
        """Cancel the listings under way, and start no more in the background."""
        self._stopped = True
        for refresh in list(self._refreshes.values()):
            refresh.cancel()

    def _fresh_for(self, cached: CachedList) -> float:
        """Seconds."""
        if cached.changes != self._changes:
            return 0.0
        return max(0.0, cached.stale_at - self._clock.seconds())

    async def _for_a_chat(
        self, caller: ClientContext, key: bytes, cached: CachedList, seconds: float
    ) -> CachedList:
        """The list for a chat, which waits for so many *seconds* at most.

        Not at all if there is an old one, or if another has waited in vain for the listing that is
        under way.
        """
        refresh = self._refreshes.get(key)
        late = None if refresh is None else refresh.late
        if cached.listed is not None or late is not None:
            cached.partial = cached.partial or late  # it may have been forgotten meanwhile
            self._start_refresh(caller, self._others)
            return cached
        try:
            # The source itself gives up on what is slow; this is for all of it.
            return await within(seconds, self._clock, self._refreshed(caller, self._first))
        except TimeoutError:
            self._note_late(key, cached, seconds)
            return cached

    def _cached(self, key: bytes) -> CachedList:
        cached = self._lists.setdefault(key, CachedList())
        self._lists.move_to_end(key)
        while len(self._lists) > self._max_callers:
            self._lists.popitem(last=False)
        return cached

    def _make_room(self) -> None:
        while self._offers.held > _MAX_HELD and len(self._lists) > 1:
            self._lists.popitem(last=False)

    def _first(self) -> ListLimits:
        """For a chat that waits."""
        until = self._clock.seconds() + FIRST_WAIT_SECONDS
        down, suspects = self._failures.down(), self._failures.suspects
        return ListLimits(FIRST_WAIT_SECONDS, down, until=until, suspects=suspects)

    def _others(self) -> ListLimits:
        """For a list that is there already."""
        return ListLimits(down=self._failures.down(), suspects=self._failures.suspects)

    def _everything(self) -> ListLimits:
        """All groups are listed, with patience, whether they are down or not."""
        return ListLimits(suspects=self._failures.suspects)

    def _everything_anew(self) -> ListLimits:
        """The same, and what was listed before will not do."""
        return ListLimits(anew=True, suspects=self._failures.suspects)

    async def _refreshed(self, caller: ClientContext, limits: _Limits) -> CachedList:
        key = caller.key
        return await self._refresh_of(key).result(lambda: self._refresh(key, caller, limits))

    def _start_refresh(self, caller: ClientContext, limits: _Limits) -> None:
        if not self._stopped:
            key = caller.key
            self._refresh_of(key).start(lambda: self._refresh(key, caller, limits))

    def _refresh_of(self, key: bytes) -> _Refresh:
        return self._refreshes.setdefault(key, _Refresh())

    async def _refresh(self, key: bytes, caller: ClientContext, limits: _Limits) -> CachedList:
        cached = self._cached(key)
        try:
            await self._list_again(cached, caller, limits())
            return cached
        finally:
            self._refreshes.pop(key, None)
            self._recent[key] = caller.for_listing()
            self._recent.move_to_end(key)
            while len(self._recent) > _MAX_RECENT:
                self._recent.popitem(last=False)

    async def _list_again(
        self, cached: CachedList, caller: ClientContext, limits: ListLimits
    ) -> None:
        started, changes = self._clock.seconds(), self._changes
        configurations = self._configurations
        listing = await self._listing(caller, limits)
        is_outdated = configurations != self._configurations
        now = self._clock.seconds()
        previous_groups = {**cached.groups, **listing.kept}
        groups = dict(listing.groups)
        for group, tools in previous_groups.items():
            if listing.keeps(group, tools):  # DESIGN: T2, T3
                groups.setdefault(group, tools)
        # What has changed meanwhile may be missing in it.
        cached.changes = changes
        if listing.fresh_for is None:
            if not is_outdated:  # else: they may be another server's
                self._failures.note(listing, limits)
            cached.stale_at = now + self._seconds_until_stale(listing, now - started)
        else:  # who has made it remembers its failures, but for that to answer
            self._failures.forget("")
            cached.stale_at = now + listing.fresh_for
        if groups or listing.groups_error is None or cached.listed is not None:
            cached.listed = self._offers.of(groups)
            self._make_room()
        cached.partial = None
        if listing.failures or listing.groups_error is not None:
            # Its tools are those that are kept once for all callers.
            answered = {name: cached.groups[name] for name in listing.groups}
            cached.partial = attrs.evolve(listing, groups=answered, kept={})
        remembered = {group for group, error in listing.errors if not limits.is_new(group, error)}
        callers, took = len(self._lists), now - started
        gone = self._gone(cached, cached.note_known(listing))
        self._tell(
            refreshed_event(callers, listing, cached.listed, took, remembered=remembered, gone=gone)
        )
        # What was too slow for a first chat, or for which there was no time, may be there for the
        # next; and what others have listed meanwhile.
        suspects = self._failures.suspects
        is_hasty = not limits.patient and any(
            group not in suspects
            if error is limits.down.get(group)
            else is_timeout(error) or group in remembered
            for group, error in listing.errors
        )
        # Of an old source: who has a list does not wait for the next, and others list themselves.
        if cached.listed is not None if is_outdated else is_hasty:
            self._follow_ups.add(caller.key)
            self._clock.callLater(0, self._follow_up, caller.for_listing())

    def _gone(self, cached: CachedList, missed: set[str]) -> set[str]:
        """The groups that are no more: those that callers have *missed*, and no fresh list has."""
        self._missed |= missed
        self._missed.difference_update(cached.known)
        if not self._missed:
            return set()
        fresh = [other.known for other in self._lists.values() if self._fresh_for(other)]
        gone = self._missed.difference(*fresh)
        self._missed -= gone
        return gone

    def _seconds_until_stale(self, listing: Listing, took: float) -> float:
        """For how long a *listing* is fresh that took so many seconds."""
        if listing.groups_error is None:
            return self._ttl
        # The longer a failure takes, the less often it should be met. It may last: what can be
        # listed beside it is not to be asked at every chat.
        return max(took, min(self._ttl, _FAILING_SECONDS)) if listing.groups else took

    def _follow_up(self, caller: ClientContext) -> None:
        """List all with patience, after a chat has waited for some of it in vain."""
        if self._stopped:
            return
        key = caller.key
        self._follow_ups.discard(key)
        refresh, cached = self._refresh_of(key), self._cached(key)
        if not refresh.running and cached.partial is not None:
            refresh.late = cached.partial
        self._start_refresh(caller, self._everything)

    def _note_late(self, key: bytes, cached: CachedList, seconds: float) -> None:
        """A chat goes on without the list that it has waited for, which is still under way."""
        refresh = self._refreshes.get(key)
        if refresh is None or refresh.late is not None:
            return
        error = UpstreamTimeout(f"The tools were not listed within {seconds:g} s.")
        cached.partial = refresh.late = Listing({}, groups_error=error)
        self._tell(refreshed_event(len(self._lists), refresh.late, None, seconds, late=True))

    async def _listing(self, caller: ClientContext, limits: ListLimits) -> Listing:
        """The listing of the source; a failure as a whole is its *groups_error*."""
        try:
            listing = await self._source.list_tools(caller, limits)
        except CancelledError:
            raise
        except ProxyError as error:
            listing = Listing({}, groups_error=error)
        except Exception:
            self._log.failure("listing the tools broke")
            listing = Listing({}, groups_error=ProxyError())
        for _, failure in listing.errors:
            let_go_of_frames(failure)  # it is kept, and may be raised again for others
        return listing
