"""SecondSignal: what a signal means to a daemon that is stopping already."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from twisted.application.service import Service

#: Seconds from the second signal to the end of the process, whatever else is not done.
LAST = 0.9


class SecondSignal(Service):
    """Ends a stopping daemon at once when it gets another SIGTERM or SIGINT.

    Twisted's own handlers would try to stop a reactor that is stopping, and log a traceback.
    """

    def __init__(self, reactor: Any, hurry: Callable[[], None]) -> None:
        self._reactor = reactor
        self._hurry = hurry

    def stopService(self) -> None:
        Service.stopService(self)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._again)

    def _again(self, number: int, frame: object) -> None:
        self._reactor.callFromThread(self._end)

    def _end(self) -> None:
        self._hurry()
        self._reactor.callLater(LAST, self._reactor.crash)
