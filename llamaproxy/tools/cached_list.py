"""CachedList: what one caller can see, as it was listed last; and the event of a listing."""

from __future__ import annotations

from collections.abc import Collection

import attrs

from llamaproxy.events import GroupListed, ListRefreshed
from llamaproxy.tools.definitions import ToolDefinition
from llamaproxy.tools.instructions import instructions_of
from llamaproxy.tools.offers import Groups, ListedTools, Offer
from llamaproxy.tools.source import Listing
from llamaproxy.upstream.urls import url_for_log

_EMPTY_OFFER = Offer()


@attrs.define(eq=False, repr=False)
class CachedList:
    """What one caller's credentials can see, and until when that is fresh, in clock seconds.

    *changes*: how many changes of the source it has taken in.
    """

    listed: ListedTools | None = None
    #: The last listing, if there was no answer of some groups: what it lacks is from before.
    partial: Listing | None = None
    changes: int = 0
    stale_at: float = 0.0
    #: The names of the groups that there are, listed or not; and of the operator's among them.
    #: Tuples, for there may be thousands of callers.
    known: tuple[str, ...] = ()
    configured: tuple[str, ...] = ()

    @property
    def offer(self) -> Offer:
        return _EMPTY_OFFER if self.listed is None else self.listed.offer

    @property
    def groups(self) -> Groups:
        return {} if self.listed is None else self.listed.groups

    def note_known(self, listing: Listing) -> set[str]:
        """Which groups there are by this new *listing*, what it keeps among them; those gone."""
        known = {*listing.groups, *listing.failures, *self.groups}
        configured = listing.configured
        if listing.groups_error is not None or not listing.names_all:
            known.update(self.known)  # whether the others are still there is not known
            if configured is not None:
                known.difference_update(set(self.configured) - configured.keys())
        if configured is not None:
            self.configured = tuple(configured)
        gone, self.known = set(self.known) - known, tuple(known)
        return gone

    def listing(self, fresh_for: float) -> Listing:
        """The last listing, for others; *fresh_for*: seconds."""
        groups = dict(self.groups)
        if self.partial is None:
            return Listing(groups, fresh_for=fresh_for)
        kept = {name: tools for name, tools in groups.items() if name not in self.partial.groups}
        return attrs.evolve(self.partial, kept=kept, fresh_for=fresh_for)


def refreshed_event(
    callers: int,
    listing: Listing,
    listed: ListedTools | None,
    seconds: float,
    late: bool = False,
    remembered: Collection[str] = (),
    gone: Collection[str] = (),
) -> ListRefreshed:
    """The event of a *listing* of which *listed* is offered, where *callers* have a list each.

    :param late: whether it is still under way.

    :param remembered: of which groups the failure is of before; *gone*: which there were before.
    """
    offered: dict[str, dict[str, ToolDefinition]] = {group: {} for group in listing.groups}
    left_out: tuple[str, ...] | None = None
    entries: dict[str, bytes] = {}
    if listed is not None:
        left_out = tuple(f"{tool.group}/{tool.name}" for tool in listed.left_out)
        entries = listed.offer.entries
        for name, tool in listed.offer.tools.items():
            offered.setdefault(tool.group, {})[name] = tool
    groups = {
        group: GroupListed(
            tuple(offered[group]),
            url_for_log(next((tool.endpoint for tool in tools if tool.endpoint), "")),
            tuple(offered[group].values()),
            sum(len(entries[name]) for name in offered[group]),
            instructions_of(tools),
        )
        for group, tools in listing.groups.items()
    }
    return ListRefreshed(
        callers,
        groups,
        listing.failures,
        listing.groups_error,
        left_out,
        seconds,
        shared=listing.fresh_for is not None,
        late=late,
        remembered=remembered,
        gone=gone,
    )
