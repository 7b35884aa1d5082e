"""LoopLag: how late the event loop is, which nothing but the loop itself can tell."""

from __future__ import annotations

from collections import deque

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from llamaproxy.admin import names
from llamaproxy.admin.tallies import Histogram

#: Seconds between two looks, and how many are remembered one by one: a minute's.
INTERVAL, _REMEMBERED = 0.5, 120


class LoopLag(Service):
    """While it runs, measures by how much what is due every half second comes late.

    Whatever holds the loop delays every client by as much.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._due = 0.0
        self._call: IDelayedCall | None = None
        self.seconds = Histogram(names.LOOP_LAG)
        self._last: deque[float] = deque(maxlen=_REMEMBERED)

    @property
    def largest(self) -> float:
        """The largest within the last minute, in seconds."""
        return max(self._last, default=0.0)

    def startService(self) -> None:
        Service.startService(self)
        self._wait()

    def stopService(self) -> Deferred[None] | None:
        if self._call is not None:
            self._call.cancel()
            self._call = None
        stopped: Deferred[None] | None = Service.stopService(self)
        return stopped

    def _look(self) -> None:
        late = max(0.0, self._clock.seconds() - self._due)
        self.seconds.add(late)
        self._last.append(late)
        self._wait()

    def _wait(self) -> None:
        self._due = self._clock.seconds() + INTERVAL
        self._call = self._clock.callLater(INTERVAL, self._look)
