"""WorkersShown: the answers of all workers for open pages, as if one process gave them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from llamaproxy import jsontext
from llamaproxy.admin.answers import BADLY, MAX_ANSWERS, RUNS, WELL
from llamaproxy.admin.feed import ROWS_INTERVAL, ROWS_PER_SECOND, TOOLS_INTERVAL
from llamaproxy.errors import ProxyError
from llamaproxy.events import CallEnded, Event, ListRefreshed, Observers
from llamaproxy.jsontext import Json, JsonList
from llamaproxy.workers.asking import Crew, Detail, Rows, StopAnswer, Worker
from llamaproxy.workers.serving import WorkersServing
from llamaproxy.workers.watched import number_of

#: Seconds for an answer with rows, or with all that is known of one; and for which a page that has
#: just been opened waits for workers.
_ANSWER_SECONDS, _FIRST_SECONDS = 30.0, 1.0

#: Of what ended with its worker: the kind of the error, and the words.
_GONE = "worker_gone"
_WHY_GONE = "worker_gone (the process that answered it has ended)"

_log = Logger()


class WorkerSilent(ProxyError):
    """The worker that gives this answer does not say anything about it now."""

    status = 504
    kind = "worker_silent"


@attrs.define(eq=False, repr=False)
class _Row:
    """A row as its worker has made it; *worker* is None if that is gone."""

    worker: Any
    state: int
    text: bytes
    change: int


@attrs.define(eq=False, repr=False)
class _Told:
    """How far one worker has told; *due* is when it is to be asked again, by the clock."""

    change: int = -1
    calls: int = -1
    due: float = 0.0
    is_asked: bool = False
    has_answered: bool = False


class WorkersShown:
    """Asks workers for rows while a page is open, and keeps what they say.

    Each is asked again when it has answered, and as long as a page reads: no worker is ahead of
    the pages by more than one answer. Rows of a worker that is gone stay; those that ran have
    ended with it.
    """

    def __init__(
        self,
        crew: Crew,
        serving: WorkersServing,
        tell: Observers,
        clock: IReactorTime,
        unix: Callable[[], float] = time.time,
    ) -> None:
        """:param tell: tells what the parent does itself: it lists tools, and tries them."""
        self._crew = crew
        self._serving = serving
        self._tell = tell
        self._clock = clock
        self._unix = unix
        self.change = -1
        self._has_changed = False
        self._rows: dict[int, _Row] = {}
        self._told: dict[Any, _Told] = {}
        self._is_open = False
        self._first: IDelayedCall | None = None
        self._calls_changed = False
        self._calls_due = 0.0
        self._on_rows: Callable[[], None] = _nothing
        self._on_tools: Callable[[], None] = _nothing
        crew.on_ready.append(self._joined)
        crew.on_gone.append(self._left)

    @property
    def keys(self) -> frozenset[int]:
        return frozenset(self._rows)

    def open(self, rows: Callable[[], None], tools: Callable[[], None]) -> None:
        self._on_rows, self._on_tools = rows, tools
        self._is_open = True
        self._tell.listen(self._note_tools, CallEnded, ListRefreshed)
        self._told = {worker: _Told() for worker in self._crew.workers if worker.ready}
        self._first = self._clock.callLater(_FIRST_SECONDS, self._begin)
        self._begin_if_all_have_answered()
        self.look(is_told_soon=True)

    def close(self) -> None:
        self._is_open = False
        self._tell.leave(self._note_tools)
        if self._first is not None:
            self._first.cancel()
            self._first = None
        self._told = {}
        self._rows = {key: row for key, row in self._rows.items() if row.worker is None}
        self.change = -1

    def look(self, is_told_soon: bool) -> None:
        now = self._clock.seconds()
        for worker, told in list(self._told.items()):
            if not told.is_asked and now >= told.due:
                told.is_asked = True
                self._start(self._ask(worker, told))
        if self._calls_changed and now >= self._calls_due:
            self._calls_changed, self._calls_due = False, now + TOOLS_INTERVAL
            self._start(self._ask_for_calls())

    def settle(self) -> None:
        if self._has_changed and self.change >= 0:
            self._has_changed = False
            self.change += 1

    def rows_since(self, change: int) -> tuple[Any, int]:
        texts = [row.text for _, row in sorted(self._rows.items()) if row.change > change]
        return JsonList(b",".join(texts)), len(texts)

    async def detail(self, key: int) -> tuple[str, bytes] | None:
        """:raises WorkerSilent: if the worker does not answer."""
        answer = await self._ask_for(key, Detail)
        if answer is None or answer.get("text") is None:
            return None
        return answer["id"].decode("utf-8", "replace"), answer["text"]

    async def stop(self, key: int) -> bool | None:
        """:raises WorkerSilent: if the worker does not answer."""
        answer = await self._ask_for(key, StopAnswer)
        return None if answer is None else answer.get("ran")

    async def _ask_for(self, key: int, command: Any) -> Json | None:
        """What the worker says that has given *key*; None if there is none that serves."""
        number = number_of(key, self._crew.count)
        for worker in self._crew.workers:
            if worker.number == number and worker.ready:
                answer = await self._crew.ask(worker, command, _ANSWER_SECONDS, key=key)
                if answer is None:
                    raise WorkerSilent()
                return answer
        return None

    # --- what workers tell

    async def _ask(self, worker: Worker, told: _Told) -> None:
        answer = await self._crew.ask(worker, Rows, _ANSWER_SECONDS, change=told.change)
        told.is_asked, told.has_answered = False, True
        if self._told.get(worker) is not told:
            return  # no page is open any more, or the worker is gone
        told.due = self._clock.seconds() + ROWS_INTERVAL
        if answer is not None:
            self._take(worker, told, answer)
        self._begin_if_all_have_answered()

    def _take(self, worker: Worker, told: _Told, answer: Json) -> None:
        kept = frozenset(answer["keys"])
        for key in [key for key, row in self._rows.items() if row.worker is worker]:
            if key not in kept:
                del self._rows[key]
                self._note_rows()
        for (key, state), text in zip(answer["told"], answer["rows"].split(b"\n"), strict=False):
            self._rows[key] = _Row(worker, state, text, self.change + 1)
            self._note_rows()
        self._shorten()
        told.change = answer["change"]
        told.due += max(0.0, len(answer["told"]) / ROWS_PER_SECOND - ROWS_INTERVAL)
        if answer["calls"] != told.calls:
            told.calls, self._calls_changed = answer["calls"], True

    def take_last(self, number: int, rows: Json) -> None:
        """The worker *number* ends, and tells its last rows without having been asked."""
        for worker, told in self._told.items():
            if worker.number == number and told.has_answered:
                self._take(worker, told, rows)

    def _shorten(self) -> None:
        """Keep no more than one process does, and of them what that would."""
        too_many = len(self._rows) - MAX_ANSWERS
        if too_many <= 0:
            return
        keys: dict[int, deque[int]] = {RUNS: deque(), WELL: deque(), BADLY: deque()}
        for key, row in sorted(self._rows.items()):
            keys[row.state].append(key)
        for _ in range(too_many):
            ended = max(keys[WELL], keys[BADLY], key=len)
            del self._rows[(ended or keys[RUNS]).popleft()]

    async def _ask_for_calls(self) -> None:
        await self._serving.refresh()
        self._on_tools()

    def _joined(self, worker: Worker) -> None:
        if self._is_open:
            self._told[worker] = _Told()

    def _left(self, worker: Worker) -> None:
        self._told.pop(worker, None)
        for row in self._rows.values():
            if row.worker is worker:
                row.worker = None
                if row.state == RUNS:
                    row.state, row.change = BADLY, self.change + 1
                    row.text = _ended_with_worker(row.text, self._unix())
                    self._note_rows()
        self._begin_if_all_have_answered()

    def _note_rows(self) -> None:
        self._has_changed = True
        if self.change >= 0:
            self._on_rows()

    def _note_tools(self, event: Event) -> None:
        self._calls_changed = True
        self._on_tools()

    def _begin_if_all_have_answered(self) -> None:
        if self._first is not None and all(told.has_answered for told in self._told.values()):
            self._first.cancel()
            self._begin()

    def _begin(self) -> None:
        """What is known now is what pages are told at first."""
        self._first = None
        self.change, self._has_changed = 0, False
        for row in self._rows.values():  # those of workers that are gone have been counted before
            row.change = 0
        self._on_rows()

    def _start(self, work: Any) -> None:
        def log(failure: Any) -> None:
            if not failure.check(CancelledError):
                _log.failure("workers could not be asked", failure)

        Deferred.fromCoroutine(work).addErrback(log)


def _ended_with_worker(text: bytes, now: float) -> bytes:
    """The row *text* of an answer whose worker has ended; what ran in it has ended as well."""
    row = jsontext.loads(text)
    total = row["total"] = round(max(0.0, now - row["at"]), 4)
    row.update(status=499, kind=_GONE, error=_WHY_GONE)
    for each in row["rounds"]:
        if each["ended"] is None:
            each.update(ended=total, kind=_GONE)
    for call in row["calls"]:
        if not call["outcome"]:
            call.update(ended=total, outcome="cancelled", reason=_WHY_GONE)
    return jsontext.dumps_strictly(row)


def _nothing() -> None:
    """No page is open."""
