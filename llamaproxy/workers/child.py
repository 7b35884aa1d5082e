"""WorkerLife: a worker's own part in its life: it says that it serves, and ends when it is told."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar

from twisted.application.service import IService
from twisted.internet.defer import maybeDeferred
from twisted.internet.error import ReactorNotRunning
from twisted.logger import Logger
from twisted.protocols import amp

from llamaproxy.jsontext import Json
from llamaproxy.workers.commands import Ping, Reload, Stop


class WorkerLife(amp.CommandLocator):
    """Answers the parent, and leads *services* to their end, once, whoever asks for it.

    That may be the parent, a signal, or the parent's own end.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        reactor: Any,
        services: IService,
        stop_now: Callable[[], object],
        take_files: Callable[[Json], object],
        patience: float,
    ) -> None:
        """:param stop_now: has what is being served not be waited for.

        :param take_files: takes what the parent has read of files.

        :param patience: seconds that it has to end.
        """
        amp.CommandLocator.__init__(self)
        self._reactor = reactor
        self._services = services
        self._stop_now = stop_now
        self._take_files = take_files
        self._patience = patience
        self._ending = False

    def take_signals(self) -> None:
        """Have SIGTERM end the worker from now on; until now it was blocked."""
        signal.signal(signal.SIGTERM, lambda *_: self._reactor.callFromThread(self.end))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    def parent_gone(self) -> None:
        """Nobody is there to replace this worker, or to end it if it does not."""
        if not self._ending:
            self._log.warn("the parent of this worker is gone: it ends")
        self._reactor.callLater(self._patience, self._reactor.crash)
        self.end()

    def end(self) -> None:
        """End in good order."""
        if self._ending:
            return
        self._ending = True
        stopping = maybeDeferred(self._services.stopService)
        stopping.addErrback(lambda failure: self._log.failure("a worker ends badly", failure))
        stopping.addCallback(lambda _: self._end_process())

    def _end_process(self) -> None:
        with suppress(ReactorNotRunning):
            self._reactor.stop()

    @Ping.responder
    def ping(self) -> Json:
        return {}

    @Stop.responder
    def stop(self, now: bool) -> Json:
        if now:
            self._stop_now()
        self.end()
        return {}

    @Reload.responder
    def reload(self, files: Json) -> Json:
        self._take_files(files)
        return {}
