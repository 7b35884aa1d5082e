"""WatchedWorker: what a worker answers when its parent asks for an operator; unasked, nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, TimeoutError
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

#: Seconds for which a process that ends waits for the last question for rows.
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
        self._own = own
        self._shown = shown
        self._lag = lag
        self._looked = Watchdog(clock, _LOOKED_SECONDS, self._close)
        self._is_open = False
        self.last_look = LastLook(clock, lambda: self._is_open)
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
        self.last_look.asked()
        shown = self._shown
        if not self._is_open:
            self._is_open = True
            shown.open(_nothing, _nothing)
        self._looked.start()
        shown.look(is_told_soon=True)
        shown.settle()
        rows, _ = shown.rows_since(change)
        states = shown.states
        return {
            "change": shown.change,
            "keys": sorted(shown.keys),
            "told": [[row["key"], states[row["key"]]] for row in rows],
            "rows": b"\n".join(map(jsontext.dumps_strictly, rows)),
            "calls": self._own.calls.heard,
        }

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


class LastLook(Service):
    """Lets who looks at answers see how the last of them end, before the process does."""

    def __init__(self, clock: IReactorTime, is_looked_at: Callable[[], bool]) -> None:
        self._clock = clock
        self._is_looked_at = is_looked_at
        self._questions_left = 0
        self._seen: Deferred[None] | None = None

    def asked(self) -> None:
        """There is one more question for rows."""
        self._questions_left -= 1
        if self._seen is not None and self._questions_left == 0:
            self._seen.callback(None)

    def stopService(self) -> Deferred[None] | None:
        Service.stopService(self)
        if not self._is_looked_at():
            return None
        # The second one is asked when the answer to the first has come.
        self._questions_left, self._seen = 2, Deferred()
        self._seen.addTimeout(_LAST_SECONDS, self._clock)
        return self._seen.addErrback(lambda failure: failure.trap(TimeoutError) and None)


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
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _tell_soon(self) -> None:
        if self._call is None:
            seconds = max(0.0, self._due - self._clock.seconds())
            self._call = self._clock.callLater(seconds, self._tell)

    def _tell(self) -> None:
        self._call = None
        now = self._clock.seconds()
        self._due = now + _NEWS_SECONDS
        heard = sorted(news for news in (self._answered, self._failed) if news is not None)
        self._answered = self._failed = None
        news = [[max(0.0, now - at), kind, error] for at, kind, error in heard]
        Deferred.fromCoroutine(self._ask(news))

    async def _ask(self, news: list[Any]) -> None:
        try:
            await self._link.ask(self._clock, _ANSWER_SECONDS, ServerHeard, news=news)
        except Exception:
            pass  # the parent asks the server itself


def _nothing() -> None:
    """The parent asks again and again what has changed."""
