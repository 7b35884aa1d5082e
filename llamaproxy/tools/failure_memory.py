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
class _Entry:
    """A failure, until when it is believed, and whether somebody has set out to ask again."""

    error: ProxyError
    until: float
    asked_again: bool = False


@attrs.define
class FailureMemory:
    """Remembers failures across callers (DESIGN: T3), by group, under ``""`` that of all groups."""

    _clock: IReactorTime
    _entries: dict[str, _Entry] = attrs.field(init=False, factory=dict)

    def believed(self) -> dict[str, ProxyError]:
        """The groups that need not be asked now, and why.

        When a failure is believed no longer, the first who comes finds out for all: meanwhile it is
        believed by the others, or hundreds would wait at a server that hangs.
        """
        now = self._clock.seconds()
        believed: dict[str, ProxyError] = {}
        for group, entry in list(self._entries.items()):
            if entry.until > now:
                believed[group] = entry.error
            elif entry.asked_again:
                del self._entries[group]
            else:
                entry.asked_again = True
                entry.until = now + _BELIEVED_SECONDS
        return believed

    def note(self, listing: Listing, patience: Patience) -> None:
        """Learn from a *listing* that was asked for with *patience*.

        What was believed, and so not asked, is not believed for longer.
        """
        until = self._clock.seconds() + _BELIEVED_SECONDS
        for group in listing.groups:
            self._entries.pop(group, None)
        for group, error in listing.failures.items():
            if isinstance(error, _ANYBODYS) and error is not patience.down.get(group):
                self._entries[group] = _Entry(error, until)
        if listing.rest is None:
            self._entries.pop("", None)
        elif is_slow(listing.rest) and listing.rest is not patience.down.get(""):
            # For a server that says no at once nobody has to wait.
            self._entries[""] = _Entry(listing.rest, until)
