"""WorkersServing: what the admin port asks of all workers, as if they were one process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from llamaproxy.admin import names
from llamaproxy.admin.serving import ThisProcess
from llamaproxy.admin.tallies import Measured
from llamaproxy.admin.toolcalls import ToolCalls
from llamaproxy.deferreds import SharedCall, all_of, within
from llamaproxy.jsontext import Json
from llamaproxy.workers.asking import Crew, Figures, SetLogLevel, Worker
from llamaproxy.workers.totals import Samples, Totals, as_json, figures_together, samples_of

#: Seconds for which whoever asks waits for a worker, and after which its answer is given up.
_WAIT_SECONDS, _ANSWER_SECONDS = 1.0, 30.0

#: Seconds between two times at which workers are asked though nobody wants to know: what one that
#: is killed had counted since is lost.
REFRESH_SECONDS = 5.0

_log = Logger()


class _Told:
    """What a worker has said last, and the question that it has not answered yet."""

    def __init__(self) -> None:
        self.samples: Samples = {}
        self.figures: Json = {}
        self.calls: Json = {"tools": [], "groups": []}
        self.lag: float | None = None
        self.question: SharedCall[bool] = SharedCall()
        #: Whether it answered in time when it was asked last.
        self.answers = False

    def take(self, told: Json) -> None:
        self.samples = samples_of(told["measured"])
        self.figures, self.calls, self.lag = told["figures"], told["calls"], told["lag"]


class WorkersServing(Service):
    """What they say, added up; one that does not answer in time counts with what it said last.

    While it runs it asks them now and then.
    """

    def __init__(self, crew: Crew, own: ThisProcess, clock: IReactorTime) -> None:
        """:param own: the parent, which answers no clients."""
        self._crew = crew
        self._own = own
        self._clock = clock
        self._told: dict[Any, _Told] = {}
        self._totals = Totals()
        self._calls_gone = ToolCalls()
        self._restarts: Counter[int] = Counter(dict.fromkeys(range(1, crew.count + 1), 0))
        self._level: str | None = None
        self._refresh: IDelayedCall | None = None
        self.calls = own.calls
        crew.on_ready.append(self._joined)
        crew.on_gone.append(self._left)
        watch = own.metrics.watch
        watch(names.WORKERS, lambda: len(self._told))
        watch(names.WORKERS_MAX, lambda: crew.count)
        watch(names.WORKERS_ANSWERED, lambda: sum(told.answers for told in self._told.values()))
        for number in self._restarts:
            restarted = partial(self._restarts.__getitem__, number)
            watch(names.WORKER_RESTARTS, restarted, str(number))

    # --- Serving

    async def measured(self) -> Iterable[Measured]:
        await self.refresh()
        own = samples_of(as_json(await self._own.measured()))
        return self._totals.of(own, [told.samples for told in self._told.values()])

    async def figures(self) -> Json:
        await self.refresh()
        told = [each.figures for each in self._told.values()]
        return {
            **figures_together([await self._own.figures(), *told]),
            "workers": [self._worker_as_json(worker) for worker in self._crew.workers],
        }

    def unready(self) -> str:
        return "" if self._told else "no worker is ready"

    def set_log_level(self, level: str) -> None:
        self._level = level
        for worker in self._told:
            self._send_level(worker, level)

    # --- the workers

    async def refresh(self) -> None:
        """Ask all workers, and wait a little for their answers."""
        await all_of([self._ask(*each) for each in self._told.items()])
        calls = ToolCalls()
        for each in (self._own.calls, self._calls_gone):
            calls.add(each.as_json())
        for told in self._told.values():
            calls.add(told.calls)
        self.calls = calls

    async def _ask(self, worker: Worker, told: _Told) -> None:
        asking = told.question.result(lambda: self._answer(worker, told))
        try:
            told.answers = await within(_WAIT_SECONDS, self._clock, asking)
        except TimeoutError:
            told.answers = False  # what it answers later counts the next time

    async def _answer(self, worker: Worker, told: _Told) -> bool:
        answer = await self._crew.ask(worker, Figures, _ANSWER_SECONDS)
        if answer is None or self._told.get(worker) is not told:
            return False
        told.take(answer["told"])
        return True

    def _joined(self, worker: Worker) -> None:
        self._told[worker] = _Told()
        if self._level is not None:
            self._send_level(worker, self._level)

    def _left(self, worker: Worker) -> None:
        if not self._crew.draining:
            self._restarts[worker.number] += 1
        told = self._told.pop(worker, None)
        if told is not None:
            self._totals.bury(told.samples)
            self._calls_gone.add(told.calls)

    def _send_level(self, worker: Worker, level: str) -> None:
        Deferred.fromCoroutine(self._crew.ask(worker, SetLogLevel, _ANSWER_SECONDS, level=level))

    def _worker_as_json(self, worker: Worker) -> Json:
        told = self._told.get(worker) or _Told()
        figures = told.figures
        requests = figures.get("requests", {})
        return {
            "worker": worker.number,
            "pid": worker.pid,
            "since": round(worker.since, 3),
            "ready": worker.ready,
            "answers": told.answers,
            "restarts": worker.restarts,
            "connections": figures.get("connections", {}).get("open"),
            "running": requests.get("running"),
            "streams": requests.get("streams"),
            "resident_bytes": figures.get("memory", {}).get("resident_bytes"),
            "event_loop_lag_seconds": told.lag,
        }

    # --- the service

    def startService(self) -> None:
        Service.startService(self)
        self._refresh_later()

    def stopService(self) -> None:
        Service.stopService(self)
        if self._refresh is not None:
            self._refresh.cancel()
            self._refresh = None

    def _refresh_later(self) -> None:
        self._refresh = self._clock.callLater(REFRESH_SECONDS, self._refresh_now)

    def _refresh_now(self) -> None:
        self._refresh_later()
        refreshing = Deferred.fromCoroutine(self.refresh())
        refreshing.addErrback(lambda failure: failure.trap(CancelledError) and None)
        refreshing.addErrback(lambda failure: _log.failure("workers could not be asked", failure))
