"""WatchedWorker: what a worker answers when its parent asks for an operator; unasked, nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.protocols import amp

from llamaproxy import jsontext
from llamaproxy.admin import names
from llamaproxy.admin.answers import MAX_ANSWERS
from llamaproxy.admin.feed import ROWS_PER_SECOND
from llamaproxy.admin.looplag import LoopLag
from llamaproxy.admin.processes import cpu_seconds, most_files, open_files, resident_bytes
from llamaproxy.admin.reachability import ServerNews
from llamaproxy.admin.serving import ThisProcess
from llamaproxy.admin.shown import OwnAnswers
from llamaproxy.config.logformat import threshold
from llamaproxy.events import Observers, RequestEnded
from llamaproxy.jsontext import Json
from llamaproxy.watchdog import Watchdog
from llamaproxy.workers.asking import (
    Detail,
    Figures,
    LastRows,
    Rows,
    ServerHeard,
    SetLogLevel,
    StopAnswer,
)
from llamaproxy.workers.link import Link
from llamaproxy.workers.totals import as_json

#: Seconds without a question for rows after which nobody looks at them any more. After as many rows
#: as are kept the next question comes after a third of that.
_LOOKED_SECONDS = 3 * MAX_ANSWERS / ROWS_PER_SECOND

#: Seconds for which a process that ends waits until the parent has its last rows.
_LAST_SECONDS = 1.0

#: Seconds between two times at which the parent is told of the server, and for its answer.
_NEWS_SECONDS, _ANSWER_SECONDS = 1.0, 10.0


def worker_keys(number: int, count: int, unix: Callable[[], float] = time.time) -> Iterator[int]:
    """Keys for the answers of the worker *number* of so many, which no other one gives.

    They tell whose they are, grow with the time at which they are given, whoever gives them, and
    are not given again by who comes in its place.
    """
    milliseconds = 0
    while True:
        milliseconds = max(milliseconds + 1, int(unix() * 1000))
        yield milliseconds * count + number - 1


def number_of(key: int, count: int) -> int:
    """The number of the worker, of so many, that has given *key*."""
    return key % count + 1


class WatchedWorker(amp.CommandLocator):
    """Answers out of what this process knows anyway."""

    def __init__(
        self, number: int, own: ThisProcess, shown: OwnAnswers, lag: LoopLag, clock: IReactorTime
    ) -> None:
        amp.CommandLocator.__init__(self)
        self._number = number
        self._own = own
        self._shown = shown
        self._lag = lag
        self._looked = Watchdog(clock, _LOOKED_SECONDS, self._close)
        self._is_open = False
        #: Up to which change the parent has been told.
        self._told = -1
        watch, name = own.metrics.watch, str(number)
        watch(names.LOOP_LAG, lambda: lag.seconds)
        watch(names.WORKER_LAG, lambda: lag.largest, name)
        watch(names.WORKER_MEMORY, lambda: resident_bytes() or 0, name)
        watch(names.WORKER_CPU, cpu_seconds, name)
        watch(names.WORKER_FILES, lambda: open_files() or 0, name)
        watch(names.WORKER_FILES_MAX, most_files, name)

    @Figures.responder
    def figures(self) -> Deferred[Json]:
        return Deferred.fromCoroutine(self._figures())

    async def _figures(self) -> Json:
        told = {
            "measured": as_json(await self._own.measured()),
            "figures": await self._own.figures(),
            "calls": self._own.calls.as_json(),
            "lag": self._lag.largest,
        }
        return {"told": told}

    @Rows.responder
    def rows(self, change: int) -> Deferred[Json]:
        return Deferred.fromCoroutine(self._rows(change))

    async def _rows(self, change: int) -> Json:
        if not self._is_open:
            self._is_open = True
            self._shown.open(_nothing, _nothing)
        self._looked.start()
        self._shown.look(is_told_soon=True)
        return self._rows_since(change)

    def _rows_since(self, change: int) -> Json:
        shown = self._shown
        shown.settle()
        rows, _ = shown.rows_since(change)
        states = shown.states
        self._told = shown.change
        return {
            "change": shown.change,
            "keys": sorted(shown.keys),
            "told": [[row["key"], states[row["key"]]] for row in rows],
            "rows": b"\n".join(map(jsontext.dumps_strictly, rows)),
            "calls": self._own.calls.heard,
        }

    def last_rows(self) -> Json | None:
        """What is to be told of rows without having been asked for; None if nobody looks."""
        return {"number": self._number, **self._rows_since(self._told)} if self._is_open else None

    def _close(self) -> None:
        self._is_open = False
        self._shown.close()

    @Detail.responder
    def detail(self, key: int) -> Deferred[Json]:
        return Deferred.fromCoroutine(self._detail(key))

    async def _detail(self, key: int) -> Json:
        detail = await self._shown.detail(key)
        if detail is None:
            return {"id": None, "text": None}
        id, text = detail
        return {"id": id.encode("utf-8", "replace"), "text": text}

    @StopAnswer.responder
    def stop(self, key: int) -> Deferred[Json]:
        return Deferred.fromCoroutine(self._stop(key))

    async def _stop(self, key: int) -> Json:
        return {"ran": await self._shown.stop(key)}

    @SetLogLevel.responder
    def set_log_level(self, level: str) -> Json:
        threshold.level = level
        return {}


class LastRowsTold(Service):
    """Tells the parent at the end how the last answers ended, if somebody looks at them."""

    def __init__(self, watched: WatchedWorker, link: Link, clock: IReactorTime) -> None:
        self._watched = watched
        self._link = link
        self._clock = clock

    def stopService(self) -> Deferred[None]:
        Service.stopService(self)
        return Deferred.fromCoroutine(self._tell())

    async def _tell(self) -> None:
        rows = self._watched.last_rows()
        if rows is not None:
            try:
                await self._link.ask(self._clock, _LAST_SECONDS, LastRows, **rows)
            except Exception:
                pass  # it will say that they have ended with this process


class NewsTold(Service):
    """Tells the parent what is heard of the server here, though not all the time.

    Of a second that is the last answer, and the last failure. Listings are the parent's own.
    """

    def __init__(self, link: Link, clock: IReactorTime) -> None:
        self._link = link
        self._clock = clock
        self._answered: tuple[float, str, str] | None = None
        self._failed: tuple[float, str, str] | None = None
        self._due = 0.0
        self._call: IDelayedCall | None = None
        self._stopped = False

    def listen(self, tell: Observers) -> None:
        """Hear of what *tell* tells from now on."""
        ServerNews(self._clock, self).listen(tell, RequestEnded)

    def answered(self, at: float) -> None:
        news = (at, "", "")
        self._answered = max(self._answered or news, news)  # a tool may have run since
        self._tell_soon()

    def failed(self, at: float, kind: str, error: str) -> None:
        self._failed = (at, kind, error)
        self._tell_soon()

    def stopService(self) -> None:
        Service.stopService(self)
        self._stopped = True
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _tell_soon(self) -> None:
        if self._call is None and not self._stopped:
            seconds = max(0.0, self._due - self._clock.seconds())
            self._call = self._clock.callLater(seconds, self._tell)

    def _tell(self) -> None:
        self._call = None
        self._due = self._clock.seconds() + _NEWS_SECONDS
        news = sorted(news for news in (self._answered, self._failed) if news is not None)
        self._answered = self._failed = None
        Deferred.fromCoroutine(self._ask(news))

    async def _ask(self, news: list[tuple[float, str, str]]) -> None:
        try:
            await self._link.ask(self._clock, _ANSWER_SECONDS, ServerHeard, news=news)
        except Exception:
            pass  # the parent asks the server itself


def _nothing() -> None:
    """The parent asks again and again what has changed."""
