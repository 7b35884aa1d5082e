"""Answers: those that the page shows, kept as the records that they are."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from itertools import count
from typing import ClassVar

import attrs
from twisted.internet.interfaces import IReactorTime

from llamaproxy.events import (
    CallBegan,
    CallEnded,
    ChatBegan,
    Event,
    FirstByte,
    LoopLimited,
    RequestEnded,
    RoundBegan,
    RoundEnded,
    ToolsOffered,
)
from llamaproxy.records import ChatRecord, RequestRecord, RoundRecord

#: Answers that are kept, and those among them that are to no chat: whoever tries out keys is not to
#: push out the chats.
MAX_ANSWERS, MAX_OTHERS = 500, 100

#: Rounds and calls of all that have ended: one answer may have a hundred thousand.
MAX_PARTS = 100_000


@attrs.define(eq=False, repr=False)
class Answer:
    """One answer: its number, when it began in Unix seconds, and its record.

    *change* is the number of the last change that pages have been told of, and *seen* the last
    round of which they have been told that the model answers. *parts* are its rounds and calls when
    it ended.
    """

    key: int
    at: float
    record: RequestRecord
    change: int = 0
    seen: RoundRecord | None = None
    parts: int = 0


class Answers:
    """A listener that keeps every chat, and other requests that have ended with an error.

    Over :data:`MAX_ANSWERS` the one that ended first goes, or the oldest if all of them run; over
    :data:`MAX_PARTS` those that ended first, but for the last one. Of what happens in between
    :meth:`note` is told, while somebody asks for :attr:`on_change`.
    """

    hears: ClassVar = (ChatBegan, RequestEnded)
    #: What :meth:`note` hears.
    changes: ClassVar = (
        *(ToolsOffered, FirstByte, RoundBegan, RoundEnded, CallBegan, CallEnded, LoopLimited),
    )

    def __init__(self, clock: IReactorTime, unix: Callable[[], float] = time.time) -> None:
        """:param unix: returns the time of day."""
        self.now = clock.seconds
        self.unix = unix
        #: Is called with each answer that has changed.
        self.on_change: Callable[[Answer], None] | None = None
        #: Is called with each that is not kept any longer.
        self.on_drop: Callable[[Answer], None] = _nothing
        self._keys = count(1)
        self._kept: dict[int, Answer] = {}
        #: In the order in which they began, and those that ended in that in which they ended.
        self._running: dict[RequestRecord, Answer] = {}
        self._ended: dict[int, Answer] = {}
        self._others: dict[int, Answer] = {}
        #: Rounds and calls of those that ended.
        self._parts = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, RequestEnded):
            self._end(event.request)
        elif isinstance(event, ChatBegan) and event.chat.request is not None:
            answer = self._running[event.chat.request] = self._add(event.chat.request)
            self._trim()
            self._changed(answer)

    def note(self, event: Event) -> None:
        """A listener to what happens to the chats that run."""
        answer = self.answer_to(_chat_of(event))
        if answer is not None:
            self._changed(answer)

    def get(self, key: int) -> Answer | None:
        """The answer of that number, None if it is not kept."""
        return self._kept.get(key)

    @property
    def kept(self) -> Collection[Answer]:
        """All of them, the newest last."""
        return self._kept.values()

    @property
    def keys(self) -> frozenset[int]:
        return frozenset(self._kept)

    @property
    def running(self) -> Collection[Answer]:
        return self._running.values()

    def answer_to(self, chat: ChatRecord | None) -> Answer | None:
        """The answer to *chat*, None unless it is kept and runs."""
        if chat is None or chat.request is None:
            return None
        return self._running.get(chat.request)

    def note_streaming(self) -> None:
        """Tell of the answers whose model has begun to answer: no event does."""
        if self.on_change is None:
            return
        for answer in self._running.values():
            chat = answer.record.chat
            round = chat.rounds[-1] if chat is not None and chat.rounds else None
            if round is not None and round.first is not None and round is not answer.seen:
                answer.seen = round
                self.on_change(answer)

    def _add(self, record: RequestRecord) -> Answer:
        at = self.unix() - (self.now() - record.began)
        answer = Answer(next(self._keys), at, record)
        self._kept[answer.key] = answer
        return answer

    def _end(self, record: RequestRecord) -> None:
        answer = self._running.pop(record, None)
        if answer is None:
            if not record.kind and record.chat is None:
                return
            # Refused at once, or pushed out while it ran.
            answer = self._add(record)
        if record.chat is not None:
            self._ended[answer.key] = answer
            answer.parts = len(record.chat.rounds) + len(record.chat.calls)
            self._parts += answer.parts
            while self._parts > MAX_PARTS and len(self._ended) > 1:
                self._drop(next(iter(self._ended.values())))
        else:
            self._others[answer.key] = answer
            if len(self._others) > MAX_OTHERS:
                self._drop(next(iter(self._others.values())))
        self._trim()
        self._changed(answer)

    def _trim(self) -> None:
        if len(self._kept) > MAX_ANSWERS:
            first = next(iter(self._ended.values()), None)
            other = next(iter(self._others.values()), None)
            if first is None or (other is not None and other.key < first.key):
                first = other
            self._drop(next(iter(self._running.values())) if first is None else first)

    def _drop(self, answer: Answer) -> None:
        self._running.pop(answer.record, None)
        if self._ended.pop(answer.key, None) is not None:
            self._parts -= answer.parts
        self._others.pop(answer.key, None)
        del self._kept[answer.key]
        self.on_drop(answer)

    def _changed(self, answer: Answer) -> None:
        if self.on_change is not None:
            self.on_change(answer)


def _chat_of(event: Event) -> ChatRecord | None:
    match event:
        case RoundBegan() | RoundEnded():
            return event.round.chat
        case CallBegan() | CallEnded():
            return event.call.chat
        case ToolsOffered() | FirstByte() | LoopLimited():
            return event.chat
    return None


def _nothing(answer: Answer) -> None:
    """Nobody asks for it."""
