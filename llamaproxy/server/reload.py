"""ReloadService: reads again, on SIGHUP, what an operator may change while the daemon runs."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from typing import Any

from twisted.application.service import Service
from twisted.internet.interfaces import IReactorFromThreads


def _nothing() -> None:
    pass


class ReloadService(Service):
    """Calls *rereads* for each SIGHUP, while it runs; they say in the log what they have done."""

    def __init__(
        self, reactor: IReactorFromThreads, rereads: Iterable[Callable[[], object]]
    ) -> None:
        """:param rereads: there may be more of them later."""
        self._reactor = reactor
        self._rereads = rereads
        self._previous_handler: Any = None
        #: Called when all has been read again, or could not be.
        self.on_reread: Callable[[], object] = _nothing

    def startService(self) -> None:
        Service.startService(self)
        self._previous_handler = signal.signal(
            signal.SIGHUP, lambda *_: self._reactor.callFromThread(self._reread)
        )

    def stopService(self) -> None:
        Service.stopService(self)
        signal.signal(signal.SIGHUP, self._previous_handler)

    def _reread(self) -> None:
        for reread in self._rereads:
            reread()
        self.on_reread()
