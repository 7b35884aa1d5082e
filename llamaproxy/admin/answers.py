"""Answers: those that the page shows, kept as the records that they are."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import count
from math import inf
from operator import attrgetter

import attrs
from twisted.internet.interfaces import IReactorTime

from llamaproxy.events import MANY, Observers, RequestEnded
from llamaproxy.records import ChatRecord, RequestRecord

#: Answers that are kept, and those among them that are to no chat: whoever tries out keys is not to
#: push out the chats.
MAX_ANSWERS, MAX_OTHERS = 500, 100

#: Chats that end well and are kept in a second, on average: a page is told of no more, and to keep
#: them all would cost each some percents.
_KEPT_PER_SECOND = 100

#: Calls of one round, at most; of an answer that runs the last ones are looked at.
_MAX_CALLS = 1000

#: Rounds and calls of all that have ended: one answer may have a hundred thousand.
MAX_PARTS = 100_000

#: From this status on, what the server has answered is an error too; and a chat has not ended well.
_SERVER_ERROR, _ERROR = 500, 400


#: What has become of an answer: it runs; all went well; something is to be looked at.
RUNS, WELL, BADLY = range(3)


@attrs.define(eq=False, repr=False)
class Answer:
    """One answer: its number, when it began in Unix seconds, its record, and its *state*.

    *change* is the number of the last change that pages have been told of, and *stage* how far it
    had come then, while it runs. *parts* are its rounds and calls when it ended.
    """

    key: int
    at: float
    record: RequestRecord
    state: int = RUNS
    change: int = 0
    stage: tuple[object, ...] = ()
    parts: int = 0


class Answers:
    """A listener that keeps every chat, and other requests that have ended with an error.

    Of more than :data:`MAX_ANSWERS` chats at once some are left out that have begun and ended well
    between two hearings: each of thousands in a second would cost something. Over that number the
    one goes that ended first, of those that went well or of those that did not, whichever there
    are more of, or the oldest if all of them run; over :data:`MAX_PARTS` those that ended first. So
    errors are not pushed out by what goes well. Those that run are looked at by
    :meth:`note_running`, while somebody asks for :attr:`on_change`. It hears of them later, and has
    heard of all before it says anything.
    """

    def __init__(
        self,
        clock: IReactorTime,
        served: Callable[[], Iterable[RequestRecord]],
        unix: Callable[[], float] = time.time,
        keys: Iterator[int] | None = None,
    ) -> None:
        """:param served: returns the records of the requests that are being answered, in the order
            in which they began.

        :param unix: returns the time of day.

        :param keys: those of the answers, each larger than the one before.
        """
        self.now = clock.seconds
        self.unix = unix
        self._served = served
        #: Is called with each answer that has changed.
        self.on_change: Callable[[Answer], None] | None = None
        #: Is called with each that is not kept any longer.
        self.on_drop: Callable[[Answer], None] = _nothing
        self._keys = count(1) if keys is None else keys
        self._kept: dict[int, Answer] = {}
        #: In the order in which they were found; and those that ended in that in which they ended:
        #: chats that went well, others, and what was no chat.
        self._running: dict[RequestRecord, Answer] = {}
        self._well: deque[Answer] = deque()
        self._badly: deque[Answer] = deque()
        self._others: deque[Answer] = deque()
        #: When the last began of those that have been pushed out while they ran.
        self._pushed_out = float("-inf")
        #: How many more chats that end well there is room for, and since when.
        self._room, self._room_at = float(MAX_ANSWERS), self.now()
        #: Rounds and calls of those that ended.
        self._parts = 0
        self._deliver: Callable[[], None] = _not_listening

    def listen(self, tell: Observers) -> None:
        """Hear of what *tell* tells from now on."""
        tell.listen_later(self.ended, RequestEnded)
        self._deliver = tell.deliver

    def ended(self, events: Sequence[RequestEnded]) -> None:
        """Requests have ended; many of them have begun since this was last heard of any."""
        offset = self._offset()
        running = self._running
        now = self.now()
        room = min(MAX_ANSWERS, self._room + _KEPT_PER_SECOND * (now - self._room_at))
        for event in events:
            record = event.request
            chat = record.chat
            well = (
                chat is not None
                and record.status < _ERROR
                and not (record.kind or chat.limit or (chat.calls and chat.failed))
            )
            answer = running.pop(record, None)
            if answer is None:
                if well:
                    if room < 1:
                        continue
                    room -= 1
                elif chat is None and not record.kind and record.status < _SERVER_ERROR:
                    continue
                answer = self._add(record, offset)
            answer.state = WELL if well else BADLY
            if chat is not None:
                answer.parts = len(chat.rounds) + len(chat.calls)
                self._parts += answer.parts
                while self._parts > MAX_PARTS and (self._well or self._badly):
                    # Not where there are most: one alone may have nearly all of the parts.
                    self._drop_first(min(self._well, self._badly, key=_first_ended))
                (self._well if well else self._badly).append(answer)
            else:
                self._others.append(answer)
                if len(self._others) > MAX_OTHERS:
                    self._drop_first(self._others)
            self._note(answer)
        self._room, self._room_at = room, now

    def get(self, key: int) -> Answer | None:
        """The answer of that number, None if it is not kept."""
        self.hear()
        return self._kept.get(key)

    def keeps(self, answer: Answer) -> bool:
        """Whether it is kept; nothing is heard of for that."""
        return self._kept.get(answer.key) is answer

    @property
    def kept(self) -> Collection[Answer]:
        """All of them, those last that were found last: at their end, if nobody looked before."""
        self.hear()
        return self._kept.values()

    @property
    def keys(self) -> frozenset[int]:
        self.hear()
        return frozenset(self._kept)

    @property
    def running(self) -> Collection[Answer]:
        self.hear()
        return self._running.values()

    def answer_to(self, chat: ChatRecord | None) -> Answer | None:
        """The answer to *chat*, None unless it is kept and runs."""
        request = None if chat is None else chat.request
        if request is None:
            return None
        answer = self._running.get(request)
        if answer is None and request.ended is None:
            answer = self._found(request, self._offset())
        return answer

    def hear(self) -> None:
        """Hear of all that has happened, for somebody looks: of the last there is all to see."""
        self._room = max(self._room, MANY)
        self._deliver()
        self._find_running()

    def note_running(self) -> None:
        """Tell of the answers that run and have come further.

        A look now and then costs a chat nothing, where a listener to its events would.
        """
        if self.on_change is None:
            return
        for answer in self.running:
            stage = _stage_of(answer.record)
            if stage != answer.stage:
                answer.stage = stage
                self.on_change(answer)

    def _find_running(self) -> None:
        """Keep the chats that run, after those that have ended before."""
        found = [
            record
            for record in self._served()
            if record.chat is not None and record.ended is None and record not in self._running
        ]
        if not found:
            return
        if len(found) > MAX_ANSWERS:  # they would be pushed out one by one
            self._pushed_out = max(self._pushed_out, found[-MAX_ANSWERS - 1].began)
            found = found[-MAX_ANSWERS:]
        offset = self._offset()
        for record in found:
            self._found(record, offset)

    def _found(self, record: RequestRecord, offset: float) -> Answer | None:
        """Keep a chat that runs; None if it has been pushed out before."""
        if record.began <= self._pushed_out:
            return None
        answer = self._running[record] = self._add(record, offset)
        self._note(answer)
        return self._running.get(record)

    def _note(self, answer: Answer) -> None:
        """One has been added, or has ended."""
        if len(self._kept) > MAX_ANSWERS:
            self._trim()
        if self.on_change is not None:
            self.on_change(answer)

    def _offset(self) -> float:
        """What Unix time is more than the clock's."""
        return self.unix() - self.now()

    def _add(self, record: RequestRecord, offset: float) -> Answer:
        answer = Answer(next(self._keys), offset + record.began, record)
        self._kept[answer.key] = answer
        return answer

    def _trim(self) -> None:
        """Drop one: there are too many."""
        if self._well or self._badly or self._others:
            self._drop_first(max(self._well, self._badly, self._others, key=len))
        else:
            oldest = min(self._running, key=_began)
            self._pushed_out = max(self._pushed_out, oldest.began)
            self._drop(self._running.pop(oldest))

    def _drop_first(self, ended: deque[Answer]) -> None:
        answer = ended.popleft()
        self._parts -= answer.parts
        self._drop(answer)

    def _drop(self, answer: Answer) -> None:
        del self._kept[answer.key]
        self.on_drop(answer)


_began = attrgetter("began")


def _first_ended(ended: deque[Answer]) -> float:
    """When the first of them ended, after all others if there is none."""
    return (ended[0].record.ended or 0.0) if ended else inf


def _stage_of(record: RequestRecord) -> tuple[object, ...]:
    """How far an answer has come: another as soon as there is something else to show of it."""
    chat = record.chat
    if chat is None:
        return ()
    round = chat.rounds[-1] if chat.rounds else None
    calls = chat.calls[-_MAX_CALLS:]
    return (
        *(record.first_byte is None, len(chat.offered), chat.not_injected, chat.limit),
        *(len(chat.rounds), round and round.first, round and round.ended),
        *(len(chat.calls), sum(call.began is not None for call in calls)),
        sum(call.ended is not None for call in calls),
    )


def _not_listening() -> None:
    """There is nothing to hear of."""


def _nothing(answer: Answer) -> None:
    """Nobody asks for it."""
