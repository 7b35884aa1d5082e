"""Supervisor: starts the workers of the daemon, watches them, replaces them and ends them."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.logger import Logger
from twisted.protocols import amp

from llamaproxy.config.options import Options
from llamaproxy.deferreds import all_of
from llamaproxy.jsontext import Json
from llamaproxy.server.ports import Ports
from llamaproxy.server.site import ProxySite
from llamaproxy.workers.balance import Board
from llamaproxy.workers.commands import Ping, Ready, Reload, Stop
from llamaproxy.workers.life import STOP_SECONDS
from llamaproxy.workers.link import Link
from llamaproxy.workers.lookout import Lookout
from llamaproxy.workers.place import Place
from llamaproxy.workers.process import Worker

#: Seconds that a worker is given to answer: to be stuck takes longer.
_ANSWER_SECONDS = 60.0

#: Seconds that workers are given to end when they are not to wait for the requests that they serve,
#: and after SIGKILL.
_STOP_NOW_SECONDS, _KILLED_SECONDS = 0.7, 5.0

#: Answers what workers ask; each worker has locators of its own.
Locators = Callable[[Worker], Sequence[amp.CommandLocator]]


class Supervisor(Service):
    """Listens, and has so many workers serve who connects.

    ``on_ready`` are called with each worker that begins to serve, ``on_gone`` with each that has
    ended, whether it had been ready or not.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        reactor: Any,
        ports: Ports,
        options: Options,
        write: Callable[[bytes], object],
        failed: Callable[[], object],
        locators: Locators,
        site: ProxySite,
    ) -> None:
        """:param options: those of the daemon, which are its workers' too.

        :param write: takes whole lines of a worker's log.

        :param site: what the daemon would serve clients with, if it had no workers.

        :param failed: called once if the daemon cannot serve: no worker has ever got ready.
        """
        self._reactor = reactor
        self._ports = ports
        self._options = options
        self._files: Callable[[], Json] = options.files_read
        self._reloads = 0
        self._count: int = options["workers"]
        #: Seconds that workers have to end.
        self._patience: float = options["drain-timeout"] + STOP_SECONDS
        self._write = write
        self._failed = failed
        self._locators = locators
        self.site = site
        self._places = {number: Place(number) for number in range(1, self._count + 1)}
        self._board = Board(self._count)
        self._lookout = Lookout(reactor, lambda: self.workers, self._ping)
        self._all_gone: Deferred[None] | None = None
        self._any_ready = False
        self.draining = False
        self._stops_now = False
        #: Fires when all have been ready for the first time.
        self.started: Deferred[None] = Deferred()
        self.on_ready: list[Callable[[Worker], object]] = []
        self.on_gone: list[Callable[[Worker], object]] = []

    @property
    def count(self) -> int:
        """How many there are to be."""
        return self._count

    @property
    def workers(self) -> list[Worker]:
        """Those whose processes are there, in the order of their numbers."""
        return [place.worker for place in self._places.values() if place.worker is not None]

    def urls(self) -> list[str]:
        """Those of the endpoints, by which clients reach them."""
        return self._ports.urls()

    async def ask_all(
        self, command: type[amp.Command], seconds: float, **values: Any
    ) -> dict[int, Json]:
        """What the workers that are ready answer in time, by their numbers."""
        asked = [worker for worker in self.workers if worker.ready]
        answers = await all_of(self.ask(worker, command, seconds, **values) for worker in asked)
        return {
            worker.number: answer
            for worker, answer in zip(asked, answers, strict=True)
            if answer is not None
        }

    async def ask(
        self, worker: Worker, command: type[amp.Command], seconds: float, **values: Any
    ) -> Json | None:
        """What *worker* answers; None if it does not in time, or cannot."""
        try:
            return await worker.link.ask(self._reactor, seconds, command, **values)
        except CancelledError:
            raise
        except Exception as error:  # it may end at any time, and fail in any way
            self._log.debug(
                "worker {worker} does not answer {name}: {reason}",
                worker=worker.number,
                name=command.__name__,
                reason=repr(error),
            )
            return None

    async def _ping(self, worker: Worker) -> bool:
        return await self.ask(worker, Ping, _ANSWER_SECONDS) is not None

    def reload(self) -> Deferred[None]:
        """Have the workers take what was read again on SIGHUP; fires when they have."""
        self._reloads += 1
        done = Deferred.fromCoroutine(self.ask_all(Reload, _ANSWER_SECONDS, files=self._files()))
        return done.addCallback(lambda _: None)

    # --- the daemon's life

    def privilegedStartService(self) -> None:
        """Listen on every endpoint.

        :raises CannotListen: with one clear line, if one is taken, or cannot be shared.
        """
        self._ports.listen()
        self._ports.descriptors()

    def startService(self) -> None:
        Service.startService(self)
        if not self._ports.open:
            self.privilegedStartService()
        for place in self._places.values():
            self._start(place)
        self._lookout.start()

    def stopService(self) -> Deferred[None]:
        Service.stopService(self)
        self.draining = True
        return Deferred.fromCoroutine(self._stop())

    def stop_now(self) -> None:
        """Do not wait any longer for what is being served."""
        self._stops_now = True
        for worker in self.workers:
            self._tell_to_stop(worker)
        self._reactor.callLater(_STOP_NOW_SECONDS, self._kill_all)

    async def _stop(self) -> None:
        for place in self._places.values():
            place.cancel()
        for worker in self.workers:
            self._tell_to_stop(worker)
        await self._ports.close()
        if not await self._wait(self._patience):
            self._log.warn("{count} workers do not end", count=len(self.workers))
            self._kill_all()
            await self._wait(_KILLED_SECONDS)
        self._lookout.stop()

    def _tell_to_stop(self, worker: Worker) -> None:
        async def tell() -> None:
            if await self.ask(worker, Stop, _ANSWER_SECONDS, now=self._stops_now) is None:
                worker.send_signal(signal.SIGTERM)

        Deferred.fromCoroutine(tell())

    def _kill_all(self) -> None:
        for worker in self.workers:
            worker.send_signal(signal.SIGKILL)

    async def _wait(self, seconds: float) -> bool:
        """Whether all workers have ended within so many *seconds*."""
        if not self.workers:
            return True
        self._all_gone = Deferred()
        try:
            await self._all_gone.addTimeout(seconds, self._reactor)
        except TimeoutError:
            return False
        return True

    # --- a worker's life

    def _start(self, place: Place) -> None:
        """Start a worker in *place*."""
        place.starting = None
        link = Link()
        worker = Worker(
            place.number,
            time.time(),
            place.restarts,
            link,
            self._write,
            self._complained,
            self._ended,
        )
        link.answer_with(_ParentOf(lambda: self._ready(worker)), *self._locators(worker))
        place.started = self._reactor.seconds()
        place.reloads = self._reloads
        place.worker = worker
        try:
            ports = self._ports.descriptors()
            worker.start(self._reactor, self._options, self._board.descriptor, ports)
        except OSError as error:  # no process, no descriptor, no memory
            self._gone(worker, str(error))

    def _ready(self, worker: Worker) -> None:
        if self._places[worker.number].worker is not worker:
            return  # it has ended meanwhile
        worker.ready = self._any_ready = True
        worker.liveness.sign()
        self._log.info(
            "worker {worker} of {count} serves as process {pid}",
            worker=worker.number,
            count=self._count,
            pid=worker.pid,
        )
        self._tell(self.on_ready, worker)
        if self._places[worker.number].reloads != self._reloads:
            # It was started with what has been read again since.
            asking = self.ask(worker, Reload, _ANSWER_SECONDS, files=self._files())
            Deferred.fromCoroutine(asking)
        if not self.started.called and sum(each.ready for each in self.workers) == self._count:
            self.started.callback(None)

    def _tell(self, listeners: Sequence[Callable[[Worker], object]], worker: Worker) -> None:
        for listener in listeners:
            try:
                listener(worker)
            except Exception:
                self._log.failure("a listener failed")

    def _complained(self, worker: Worker, lines: bytes) -> None:
        """*worker* has written to its standard error."""
        place = self._places[worker.number]
        for line in lines.decode("utf-8", "replace").splitlines():
            place.last_words = line
            if self._any_ready:
                self._log.warn("worker {worker}: {reason}", worker=worker.number, reason=line)

    def _ended(self, worker: Worker, how: str) -> None:
        place = self._places[worker.number]
        self._gone(worker, f"{place.last_words} ({how})" if place.last_words else how)

    def _gone(self, worker: Worker, reason: str) -> None:
        place = self._places[worker.number]
        if place.worker is not worker:
            return
        place.worker, place.last_words = None, ""
        self._board.gone(worker.number)
        was_ready, worker.ready = worker.ready, False
        self._tell(self.on_gone, worker)
        if self.draining:
            if not self.workers and self._all_gone is not None and not self._all_gone.called:
                self._all_gone.callback(None)
            return
        if not was_ready and not self._any_ready:
            self.draining = True
            self._log.critical("no worker can serve: {reason}", reason=reason)
            self._failed()
            return
        delay = place.backoff.after(self._reactor.seconds() - place.started)
        place.restarts += 1
        self._log.error(
            "worker {worker}, process {pid}, has ended: {reason}; the next one starts in "
            "{seconds:g} s",
            worker=worker.number,
            pid=worker.pid,
            reason=reason,
            seconds=delay,
        )
        place.starting = self._reactor.callLater(delay, self._start, place)


class _ParentOf(amp.CommandLocator):
    """Answers what a worker asks about its own life."""

    def __init__(self, ready: Callable[[], None]) -> None:
        amp.CommandLocator.__init__(self)
        self._ready = ready

    @Ready.responder
    def ready(self) -> Json:
        self._ready()
        return {}
