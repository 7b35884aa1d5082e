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
from llamaproxy.tools.source import Listing, Patience

#: Seconds for which a group that fails for every caller is not listed again for a first chat.
_DOWN_SECONDS = 30.0

#: Failures that do not depend on the caller's credentials.
_SERVER_FAILURES = (UpstreamUnavailable, UpstreamTimeout, McpUnavailable, McpTimeout)


def is_slow(error: ProxyError) -> bool:
    """Whether *error* is a timeout."""
    return isinstance(error, UpstreamTimeout | McpTimeout)


@attrs.define
class _Entry:
    """The failure of a group that is down *until* then; *asked_again*: somebody finds out."""

    error: ProxyError
    until: float
    asked_again: bool = False


@attrs.define
class FailureMemory:
    """Failed listings of all callers, by group (DESIGN: T3).

    ``""`` stands for the list of the groups itself.
    """

    _clock: IReactorTime
    _entries: dict[str, _Entry] = attrs.field(init=False, factory=dict)

    def down(self) -> dict[str, ProxyError]:
        """The groups that are not to be listed now, with the failure of each.

        When a group's time is over, the first who comes asks again for all: for the others it stays
        down meanwhile, or hundreds would wait for a server that hangs.
        """
        now = self._clock.seconds()
        down: dict[str, ProxyError] = {}
        for group, entry in list(self._entries.items()):
            if entry.until > now:
                down[group] = entry.error
            elif entry.asked_again:
                del self._entries[group]
            else:
                entry.asked_again = True
                entry.until = now + _DOWN_SECONDS
        return down

    def note(self, listing: Listing, patience: Patience) -> None:
        """Take up the failures of a *listing* that was made with *patience*.

        Groups that *patience* had as down were not asked: their time is not extended.
        """
        until = self._clock.seconds() + _DOWN_SECONDS
        for group in listing.groups:
            self._entries.pop(group, None)
        for group, error in listing.failures.items():
            if isinstance(error, _SERVER_FAILURES) and error is not patience.down.get(group):
                self._entries[group] = _Entry(error, until)
        if listing.rest is None:
            self._entries.pop("", None)
        elif is_slow(listing.rest) and listing.rest is not patience.down.get(""):
            # A server that refuses at once costs a first chat no time.
            self._entries[""] = _Entry(listing.rest, until)
