"""The memory that processes have in common, and each of its own."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.task import Clock

from llamaproxy.chat import shared_turns
from llamaproxy.chat.memory import TurnMemory
from llamaproxy.chat.shared_turns import NestedTurns, SharedTurns
from tests.chat.test_memory import now

OWNER = b"o" * 32


class Far:
    """A memory elsewhere, which may have gone away."""

    def __init__(self) -> None:
        self.turns: dict[str, bytes] = {}
        self.asked: list[list[str]] = []
        self.refreshed: list[list[str]] = []
        self.away = False

    async def recall(self, owner: bytes, marks: Sequence[str]) -> dict[str, bytes]:
        self.asked.append([*marks])
        return {} if self.away else {m: self.turns[m] for m in marks if m in self.turns}

    async def remember(self, owner: bytes, mark: str, text: bytes) -> None:
        if not self.away:
            self.turns[mark] = text

    def refresh(self, owner: bytes, marks: Sequence[str]) -> None:
        self.refreshed.append([*marks])


def shared(far: Far, age: float = 400) -> tuple[SharedTurns, TurnMemory, Clock]:
    clock = Clock()
    local = TurnMemory(clock, max_entries=100, max_bytes=10_000, max_age=age)
    return SharedTurns(clock, local, far, age), local, clock


def test_what_one_remembers_another_recalls() -> None:
    far = Far()
    (first, _, _), (second, local, _) = shared(far), shared(far)
    now(first.remember(OWNER, "a", b"1"))
    assert now(second.recall(OWNER, ["x", "a"])) == {"a": b"1"}
    assert far.asked == [["x", "a"]]
    # From now on it is here.
    far.away = True
    assert now(second.recall(OWNER, ["a"])) == {"a": b"1"} and len(local) == 1
    assert far.asked == [["x", "a"]]


def test_what_is_here_is_not_looked_for_elsewhere() -> None:
    far = Far()
    turns, _, _ = shared(far)
    far.away = True
    now(turns.remember(OWNER, "a", b"1"))
    assert now(turns.recall(OWNER, ["a", "b"])) == {"a": b"1"}
    assert far.asked == [["b"]]


def test_a_turn_in_use_is_refreshed_elsewhere_now_and_then() -> None:
    far = Far()
    turns, _, clock = shared(far, age=400)
    now(turns.remember(OWNER, "a", b"1"))
    for _ in range(40):
        clock.advance(10)
        now(turns.recall(OWNER, ["a"]))
    assert far.refreshed == [["a"]] * 4


def test_of_so_many_it_is_known_when_that_was() -> None:
    far = Far()
    turns, _, _ = shared(far)
    for number in range(shared_turns._MAX_REFRESHED + 10):
        now(turns.remember(OWNER, str(number), b""))
    assert len(turns._refreshed) == shared_turns._MAX_REFRESHED


class Nested:
    """A process that shares its turns with those *near*, and these with others *far* away."""

    def __init__(self, near: Far, far: Far, age: float = 400) -> None:
        self.clock = Clock()
        local = TurnMemory(self.clock, max_entries=100, max_bytes=10_000, max_age=age)
        nested = NestedTurns(self.clock, near, far, age)
        self.turns = SharedTurns(self.clock, local, nested, age)


def test_those_near_have_it_when_who_is_far_is_away() -> None:
    near, far = Far(), Far()
    far.away = True
    now(Nested(near, far).turns.remember(OWNER, "a", b"1"))
    assert now(Nested(near, far).turns.recall(OWNER, ["a"])) == {"a": b"1"}
    # Who comes later asks near, and far away only for what is not there.
    far.asked.clear()
    assert now(Nested(near, far).turns.recall(OWNER, ["a", "b"])) == {"a": b"1"}
    assert far.asked == [["b"]]


def test_what_is_far_away_is_near_from_then_on() -> None:
    near, far, other = Far(), Far(), Far()
    now(Nested(other, far).turns.remember(OWNER, "a", b"1"))
    assert now(Nested(near, far).turns.recall(OWNER, ["a"])) == {"a": b"1"}
    assert near.turns == {"a": b"1"}


def test_what_is_used_here_is_refreshed_near_and_far_away() -> None:
    near, far = Far(), Far()
    nested = Nested(near, far)
    now(nested.turns.remember(OWNER, "a", b"1"))
    nested.clock.advance(101)
    now(nested.turns.recall(OWNER, ["a"]))
    assert near.refreshed == far.refreshed == [["a"]]
