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

#: Failures that do not depend on the caller's credentials.
_SERVER_FAILURES = (UpstreamUnavailable, UpstreamTimeout, McpUnavailable, McpTimeout)


def is_timeout(error: ProxyError) -> bool:
    """Whether *error* is a timeout."""
    return isinstance(error, UpstreamTimeout | McpTimeout)


@attrs.define
class FailureMemory:
    """Failed listings of all callers, by group (DESIGN: T3).

    ``""`` stands for the list of the groups itself.
    """

    _clock: IReactorTime
    _until: dict[str, tuple[ProxyError, float]] = attrs.field(init=False, factory=dict)

    def down(self) -> dict[str, ProxyError]:
        """The groups that are not to be listed now, with the failure of each."""
        now = self._clock.seconds()
        self._until = {group: each for group, each in self._until.items() if each[1] > now}
        return {group: error for group, (error, _) in self._until.items()}

    def note(self, listing: Listing, limits: ListLimits) -> None:
        """Take up the failures of a *listing* that was made with *limits*.

        Groups that *limits* had as down were not asked: their time is not extended.
        """
        until = self._clock.seconds() + _DOWN_SECONDS
        for group in listing.groups:
            self._until.pop(group, None)
        for group, error in listing.failures.items():
            if isinstance(error, _SERVER_FAILURES) and error is not limits.down.get(group):
                self._until[group] = (error, until)
        if listing.groups_error is None:
            self._until.pop("", None)
        elif is_timeout(listing.groups_error) and listing.groups_error is not limits.down.get(""):
            # A server that refuses at once costs a first chat no time.
            self._until[""] = (listing.groups_error, until)
