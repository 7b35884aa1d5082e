"""FailureMemory: the tool groups that cannot be listed for any caller, for a limited time."""

from __future__ import annotations

import attrs
from twisted.internet.interfaces import IReactorTime

from llamaproxy.errors import (
    McpTimeout,
    McpUnavailable,
    ProxyError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from llamaproxy.tools.source import Listing, ListLimits

#: Seconds for which a group that fails for every caller is not listed again for a first chat.
_DOWN_SECONDS = 30.0

#: Seconds after which a failure is forgotten that nobody has met again: the group may be gone.
_FORGET_SECONDS = 600.0

#: Failures that do not depend on the caller's credentials.
_SERVER_FAILURES = (UpstreamUnavailable, UpstreamTimeout, McpUnavailable, McpTimeout)


def is_timeout(error: ProxyError) -> bool:
    """Whether *error* is a timeout."""
    return isinstance(error, UpstreamTimeout | McpTimeout)


@attrs.define(eq=False, repr=False)
class _Entry:
    """A failure, when it was met, and until when the group is not listed."""

    error: ProxyError
    failed_at: float
    until: float


@attrs.define(eq=False, repr=False)
class FailureMemory:
    """Failed listings of all callers, by group (DESIGN: T3).

    ``""`` stands for the list of the groups itself.
    """

    _clock: IReactorTime
    _entries: dict[str, _Entry] = attrs.field(init=False, factory=dict)

    def down(self) -> dict[str, ProxyError]:
        """The groups that are not to be listed now, with the failure of each.

        To be called by who lists the others next. When a failure has expired, he lists that group
        too, for all: for the others it is still down meanwhile, or hundreds would wait for a server
        that hangs.
        """
        now = self._clock.seconds()
        down: dict[str, ProxyError] = {}
        for group, entry in list(self._entries.items()):
            if entry.until > now:
                down[group] = entry.error
            elif now - entry.failed_at > _FORGET_SECONDS:
                del self._entries[group]
            else:
                entry.until = now + _DOWN_SECONDS
        return down

    @property
    def suspects(self) -> dict[str, ProxyError]:
        """The groups that have failed, whether they are to be listed now or not."""
        return {group: entry.error for group, entry in self._entries.items()}

    def forget(self, group: str) -> None:
        """The failure of that *group* is over."""
        self._entries.pop(group, None)

    def clear(self) -> None:
        """Forget them all: what could not be listed may be another server now."""
        self._entries.clear()

    def note(self, listing: Listing, limits: ListLimits) -> None:
        """Take up the failures of a *listing* that was made with *limits*.

        Groups with the failure that they had before were not asked: their time is not extended.
        """
        now = self._clock.seconds()
        for group in listing.groups:
            self._entries.pop(group, None)
        for group, error in listing.failures.items():
            if isinstance(error, _SERVER_FAILURES) and limits.is_new(group, error):
                self._entries[group] = _Entry(error, now, now + _DOWN_SECONDS)
        if listing.groups_error is None:
            self._entries.pop("", None)
        elif is_timeout(listing.groups_error) and limits.is_new("", listing.groups_error):
            # A server that refuses at once costs a first chat no time.
            self._entries[""] = _Entry(listing.groups_error, now, now + _DOWN_SECONDS)
