"""LogTurns: has the log written once a turn of the reactor, as long as that runs."""

from __future__ import annotations

from typing import Any

from twisted.application.service import Service

from llamaproxy.config import logformat
from llamaproxy.server.prompt_writes import PromptWrites


class LogTurns(Service):
    """Tells this process's log of the ends of turns, if it has one, and *sockets* know of them."""

    def __init__(self, sockets: Any) -> None:
        self._sockets = sockets

    def startService(self) -> None:
        Service.startService(self)
        if isinstance(self._sockets, PromptWrites) and logformat.current is not None:
            # Not before there are any: a start that fails never comes to one.
            self._sockets.callWhenRunning(self._begin)

    def _begin(self) -> None:
        if self.running and logformat.current is not None:
            logformat.current.at_end_of_turn = self._sockets.at_end_of_turn

    def stopService(self) -> None:
        Service.stopService(self)
        if logformat.current is not None:
            logformat.current.at_end_of_turn = None
            logformat.current.flush_anyhow()
