"""Lookout: asks workers for signs of life, and ends those that give none."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ClassVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from llamaproxy.workers.life import LOOK_SECONDS
from llamaproxy.workers.process import Worker, reap_strangers


class Lookout:
    """Looks at all workers every few seconds."""

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        workers: Callable[[], Sequence[Worker]],
        ping: Callable[[Worker], Coroutine[Any, Any, bool]],
    ) -> None:
        """:param ping: asks one for a sign of life; whether it has given it."""
        self._clock = clock
        self._workers = workers
        self._ping = ping
        self._look: IDelayedCall | None = None

    def start(self) -> None:
        """Look from now on."""
        self._look = self._clock.callLater(LOOK_SECONDS, self._look_at_all)

    def stop(self) -> None:
        """Look no more."""
        if self._look is not None:
            self._look.cancel()
            self._look = None

    def _look_at_all(self) -> None:
        self.start()
        workers = self._workers()
        if os.getpid() == 1:
            reap_strangers({worker.pid for worker in workers})
        for worker in workers:
            if worker.liveness.look():
                self._log.error(
                    "worker {worker}, process {pid}, is stuck", worker=worker.number, pid=worker.pid
                )
                worker.send_signal(signal.SIGKILL)
            elif worker.ready and not worker.asked:
                Deferred.fromCoroutine(self._ask(worker))

    async def _ask(self, worker: Worker) -> None:
        worker.asked = True
        if await self._ping(worker):
            worker.liveness.sign()
        worker.asked = False
