"""Workers remember turns together, by their parent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from llamaproxy.chat.memory import TurnMemory
from llamaproxy.workers.turns import ParentTurns, TurnsOfWorkers
from tests.chat.test_memory import now
from tests.workers.test_link import linked

OWNER = bytes(range(32))


class Workers:
    """Two of them, and the memory of their parent."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.memory = TurnMemory(self.clock, max_entries=10, max_bytes=10**6, max_age=60)
        self.links = [linked(TurnsOfWorkers(self.memory)) for _ in range(2)]
        self.turns = [ParentTurns(link, self.clock) for link, _, _ in self.links]

    def done(self, work: Any) -> Any:
        outcome: list[Any] = []
        Deferred.fromCoroutine(work).addBoth(outcome.append)
        while sum(pump.pump() for _, _, pump in self.links):
            pass
        [value] = outcome
        return value

    def pump(self) -> None:
        for _, _, pump in self.links:
            pump.flush()


@given(st.lists(st.binary(max_size=9) | st.integers(65_000, 200_000).map(bytes), max_size=4))
def test_what_one_worker_remembers_another_recalls(texts: list[bytes]) -> None:
    workers = Workers()
    first, second = workers.turns
    marks = [f"_lp{number}" for number in range(len(texts))]
    for mark, text in zip(marks, texts, strict=True):
        workers.done(first.remember(OWNER, mark, text))
    recalled = workers.done(second.recall(OWNER, ["other", *marks]))
    assert recalled == dict(zip(marks, texts, strict=True))
    assert workers.done(second.recall(b"x" * 32, marks)) == {}


def test_a_turn_that_a_worker_uses_itself_is_used() -> None:
    workers = Workers()
    worker = workers.turns[0]
    workers.done(worker.remember(OWNER, "a", b"1"))
    for _ in range(3):
        workers.clock.advance(50)
        worker.refresh(OWNER, ["a"])
        workers.pump()
    assert now(workers.memory.recall(OWNER, ["a"])) == {"a": b"1"}


class Silent:
    """A store that does not answer."""

    async def recall(self, owner: bytes, marks: Sequence[str]) -> dict[str, bytes]:
        return await Deferred()

    async def remember(self, owner: bytes, mark: str, text: bytes) -> None:
        await Deferred()


@pytest.mark.parametrize("what", ["recall", "remember"])
def test_a_parent_that_does_not_answer_within_a_second_has_forgotten(what: str) -> None:
    clock = Clock()
    here, _, pump = linked(TurnsOfWorkers(Silent()))
    turns = ParentTurns(here, clock)
    work = turns.recall(OWNER, ["a"]) if what == "recall" else turns.remember(OWNER, "a", b"")
    outcome: list[Any] = []
    Deferred.fromCoroutine(work).addBoth(outcome.append)
    pump.flush()
    clock.advance(0.9)
    assert outcome == []
    clock.advance(0.2)
    assert outcome == [{} if what == "recall" else None]


def test_so_has_one_that_is_gone_or_fails() -> None:
    class Failing(Silent):
        async def recall(self, owner: bytes, marks: Sequence[str]) -> dict[str, bytes]:
            raise KeyError

    here, _, pump = linked(TurnsOfWorkers(Failing()))
    turns = ParentTurns(here, Clock())
    outcome: list[Any] = []
    Deferred.fromCoroutine(turns.recall(OWNER, ["a"])).addBoth(outcome.append)
    while pump.pump():
        pass
    assert outcome == [{}]
    here.connectionLost(Failure(ConnectionDone()))
    assert now(turns.recall(OWNER, ["a"])) == {}
    turns.refresh(OWNER, ["a"])


def test_who_leaves_is_cancelled() -> None:
    here, _, _ = linked(TurnsOfWorkers(Silent()))
    failures: list[Any] = []
    waiting = Deferred.fromCoroutine(ParentTurns(here, Clock()).recall(OWNER, ["a"]))
    waiting.addErrback(failures.append)
    waiting.cancel()
    assert failures[0].check(CancelledError)
