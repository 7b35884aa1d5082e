"""FailureMemory: groups of tools that fail for everybody, and are not waited for meanwhile."""

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

#: Seconds for which a group that fails for everybody is not asked again for a first chat.
_BELIEVED_SECONDS = 30.0

#: Failures that are the server's own, whoever asks.
_ANYBODYS = (UpstreamUnavailable, UpstreamTimeout, McpUnavailable, McpTimeout)


def is_slow(error: ProxyError) -> bool:
    """Whether somebody has waited for it."""
    return isinstance(error, UpstreamTimeout | McpTimeout)


@attrs.define
class FailureMemory:
    """Remembers failures across callers (DESIGN: T3), by group, under ``""`` that of all groups."""

    _clock: IReactorTime
    _until: dict[str, tuple[ProxyError, float]] = attrs.field(init=False, factory=dict)

    def believed(self) -> dict[str, ProxyError]:
        """The groups that need not be asked now, and why."""
        now = self._clock.seconds()
        self._until = {group: each for group, each in self._until.items() if each[1] > now}
        return {group: error for group, (error, _) in self._until.items()}

    def note(self, listing: Listing, patience: Patience) -> None:
        """Learn from a *listing* that was asked for with *patience*.

        What was believed, and so not asked, is not believed for longer.
        """
        until = self._clock.seconds() + _BELIEVED_SECONDS
        for group in listing.groups:
            self._until.pop(group, None)
        for group, error in listing.failures.items():
            if isinstance(error, _ANYBODYS) and error is not patience.down.get(group):
                self._until[group] = (error, until)
        if listing.rest is None:
            self._until.pop("", None)
        elif is_slow(listing.rest) and listing.rest is not patience.down.get(""):
            # For a server that says no at once nobody has to wait.
            self._until[""] = (listing.rest, until)
