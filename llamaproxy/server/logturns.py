"""LogTurns: has the log written once a turn of the reactor, as long as that runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.application.service import Service

from llamaproxy.server.prompt_writes import PromptWrites


class TurnLog(Protocol):
    """A log whose lines may wait."""

    at_end_of_turn: Callable[[Callable[[], None]], None] | None

    def flush_anyhow(self) -> None:
        """Write what waits for the end of the turn."""


class LogTurns(Service):
    """Tells a log of the ends of turns, if there is one, and *sockets* know of them."""

    def __init__(self, sockets: Any, log: Callable[[], TurnLog | None]) -> None:
        """:param log: returns this process's log: twistd makes it after the services."""
        self._sockets = sockets
        self._log = log

    def startService(self) -> None:
        Service.startService(self)
        if isinstance(self._sockets, PromptWrites) and self._log() is not None:
            # Not before there are any: a start that fails never comes to one.
            self._sockets.callWhenRunning(self._begin)

    def _begin(self) -> None:
        if self.running and (log := self._log()) is not None:
            log.at_end_of_turn = self._sockets.at_end_of_turn

    def stopService(self) -> None:
        Service.stopService(self)
        if (log := self._log()) is not None:
            log.at_end_of_turn = None
            log.flush_anyhow()
