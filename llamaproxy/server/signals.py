"""SecondSignal: what a signal means to a daemon that is stopping already."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from twisted.application.service import Service

#: Seconds from the second signal to the end of the process, whatever else is not done.
_CRASH_AFTER_SECONDS = 0.9


class SecondSignal(Service):
    """Ends a stopping daemon at once when it gets another SIGTERM or SIGINT.

    The first is for Twisted's own handlers, which would log a traceback for a second one. SIGHUP
    means the same, unless it has another meaning: its own would be an end without any order.
    """

    def __init__(self, reactor: Any, stop_now: Callable[[], None]) -> None:
        """:param stop_now: called for the second signal; the process ends soon afterwards."""
        self._reactor = reactor
        self._stop_now = stop_now
        self._handlers: dict[int, Any] = {}
        self._stopping = False

    def startService(self) -> None:
        Service.startService(self)
        # Twisted installs its handlers when the reactor starts to run.
        self._reactor.callWhenRunning(self._install)

    def stopService(self) -> None:
        Service.stopService(self)
        self._stopping = True

    def _install(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            # What was ignored when the daemon was started, as a shell does with SIGINT for what it
            # puts into the background, stays ignored.
            if callable(signal.getsignal(number)):
                self._handlers[number] = signal.signal(number, self._signalled)
        if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
            signal.signal(signal.SIGHUP, self._signalled)
            self._handlers[signal.SIGHUP] = self._handlers[signal.SIGTERM]

    def _signalled(self, number: int, frame: object) -> None:
        if self._stopping:
            self._reactor.callFromThread(self._end)
        else:
            self._stopping = True
            self._handlers[number](number, frame)

    def _end(self) -> None:
        self._stop_now()
        self._reactor.callLater(_CRASH_AFTER_SECONDS, self._reactor.crash)
