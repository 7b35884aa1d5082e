"""A store is asked while it answers in time, and tried now and then when it does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from llamaproxy.chat.memory import TurnMemory
from llamaproxy.chat.mixed_turns import new_mark
from llamaproxy.memory.connection import StoreError
from llamaproxy.memory.keeper import ASK_SECONDS, StoreKeeper
from llamaproxy.memory.quota import Quota
from llamaproxy.memory.sealing import Seal
from llamaproxy.memory.turns import RedisTurns, probe
from tests.chat.streams import message_of, replying, stack_with
from tests.chat.test_memory import TOOLS, now, returned
from tests.support import CHAT, INVOKE, Proxy, call, pending_calls, saying, tool_result

OWNER = b"o" * 32

#: What is answered to each command.
REPLIES: dict[str, Any] = {"SET": "OK", "STRLEN": 0, "MGET": [None], "EXPIRE": 1, "GET": b"v"}


@attrs.define(eq=False)
class FakeStore:
    """A store, all of whose connections do as it is set to."""

    #: What a connection waits for before it answers; None: it answers at once.
    hangs: bool = False
    #: What commands or connections end in.
    fails: Exception | None = None
    refused: dict[str, StoreError] = attrs.field(factory=dict)
    connections: list[FakeConnection] = attrs.field(factory=list)
    tried: list[float] = attrs.field(factory=list)
    clock: Clock = attrs.field(factory=Clock)
    lines: list[str] = attrs.field(factory=list)

    async def connect(self) -> FakeConnection:
        self.tried.append(self.clock.seconds())
        if self.fails is not None:
            raise self.fails
        self.connections.append(FakeConnection(self))
        return self.connections[-1]

    def keeper(self) -> StoreKeeper:
        return StoreKeeper(self.clock, "redis://store", self.connect, probe)

    def turns(self) -> RedisTurns:
        return RedisTurns(self.keeper(), Seal(b"x" * 16), Quota(self.clock, 5000, 60), 60)

    def log(self, event: Any) -> None:
        if str(event.get("log_namespace")).startswith("llamaproxy.memory"):
            self.lines.append(event["log_format"].format(**event))


class FakeConnection:
    def __init__(self, store: FakeStore) -> None:
        self._store = store
        self.lost: Deferred[None] = Deferred()
        self.asked: list[tuple[Any, ...]] = []
        self.waiting: list[Deferred[Any]] = []
        self.closed = False

    async def ask(self, *command: bytes | str | int) -> Any:
        self.asked.append(command)
        name = str(command[0])
        if name in self._store.refused:
            raise self._store.refused[name]
        if self._store.hangs:
            self.waiting.append(Deferred(lambda _: None))
            return await self.waiting[-1]
        return REPLIES[name]

    def tell(self, *command: bytes | str | int) -> None:
        self.asked.append(command)

    def abort(self) -> None:
        if not self.closed:
            self.lose()

    def lose(self) -> None:
        self.closed = True
        for each in self.waiting:
            if not each.called:
                each.errback(StoreError("unreachable", "the connection was closed"))
        self.lost.callback(None)


@pytest.fixture
def store() -> Iterator[FakeStore]:
    made = FakeStore()
    observer: Any = made.log
    globalLogPublisher.addObserver(observer)
    yield made
    globalLogPublisher.removeObserver(observer)


def started(store: FakeStore) -> StoreKeeper:
    keeper = store.keeper()
    keeper.startService()
    store.clock.advance(0)
    return keeper


def asking(keeper: StoreKeeper) -> list[Any]:
    """What comes of it when *keeper* is asked: nothing yet, or one thing."""
    outcome: list[Any] = []
    asked = Deferred.fromCoroutine(keeper.ask(lambda connection: connection.ask("GET", b"k")))
    asked.addBoth(outcome.append)
    return outcome


def late(store: FakeStore, keeper: StoreKeeper) -> None:
    """Ask *keeper*, whose store does not answer in time."""
    outcome = asking(keeper)
    store.clock.advance(ASK_SECONDS * 0.9)
    assert outcome == []
    store.clock.advance(ASK_SECONDS * 0.2)
    assert outcome == [None]


SHARED = "turns are shared in redis://store"


def away(reason: str) -> str:
    return f"turns are not shared: redis://store cannot be used: {reason}"


def test_a_store_is_asked_when_it_has_passed_a_trial(store: FakeStore) -> None:
    keeper = store.keeper()
    assert asking(keeper) == [None] and not keeper.up
    keeper.startService()
    assert asking(keeper) == [None]
    store.clock.advance(0)
    assert keeper.up and asking(keeper) == [b"v"]
    assert store.lines == [SHARED]
    assert len(pending_calls(store.clock)) == 1  # the next look at it


def test_one_that_is_late_three_times_in_a_row_is_left(store: FakeStore) -> None:
    keeper = started(store)
    store.hangs = True
    late(store, keeper)
    late(store, keeper)
    store.hangs = False
    assert asking(keeper) == [b"v"]
    store.hangs = True
    for number in range(3):
        assert keeper.up, number
        late(store, keeper)
    assert not keeper.up and store.connections[-1].closed
    assert asking(keeper) == [None]
    assert keeper.errors["slow"] == 5
    assert store.lines == [SHARED, away("it has not answered within 0.025 s")]


def test_however_many_wait_each_waits_so_long(store: FakeStore) -> None:
    keeper = started(store)
    store.hangs = True
    outcomes = [asking(keeper) for _ in range(100)]
    store.clock.advance(ASK_SECONDS)
    assert outcomes == [[None]] * 100
    assert len(store.lines) == 2


def test_an_answer_that_is_there_when_time_is_up_counts(store: FakeStore) -> None:
    """A process that was busy has not read it yet."""
    keeper = started(store)
    store.hangs = True
    outcome = asking(keeper)
    [*_, waiting] = store.connections[-1].waiting
    store.clock.callLater(1, waiting.callback, b"there")
    store.clock.advance(7)
    assert outcome == [b"there"] and keeper.up
    assert len(pending_calls(store.clock)) == 1


@pytest.mark.parametrize("kind", ["refused", "broken", "tls"])
def test_one_that_refuses_is_left_at_once(store: FakeStore, kind: str) -> None:
    keeper = started(store)
    store.refused["GET"] = StoreError(kind, "it answers GET with OOM")
    assert asking(keeper) == [None]
    assert not keeper.up and keeper.errors[kind] == 1
    assert store.lines[-1] == away("it answers GET with OOM")


def test_one_whose_connection_is_lost_is_left_and_said_so_once(store: FakeStore) -> None:
    keeper = started(store)
    store.hangs = True
    outcomes = [asking(keeper) for _ in range(3)]
    store.connections[-1].lose()
    assert outcomes == [[None]] * 3 and not keeper.up
    assert keeper.errors["unreachable"] == 1
    assert store.lines == [SHARED, away("the connection was closed")]


def test_it_is_looked_at_though_nobody_asks(store: FakeStore) -> None:
    keeper = started(store)
    before = len(store.connections[-1].asked)
    store.clock.advance(30)
    asked = store.connections[-1].asked[before:]
    assert [command[0] for command in asked] == ["SET", "STRLEN", "MGET", "EXPIRE"]
    store.refused["SET"] = StoreError("refused", "it answers SET with READONLY")
    store.clock.advance(30)
    assert not keeper.up and store.lines[1:] == [away("it answers SET with READONLY")]
    store.refused.clear()
    store.clock.advance(1)
    store.hangs = True
    for _ in range(3):
        assert keeper.up
        store.clock.advance(30)
        store.clock.advance(ASK_SECONDS)
    assert not keeper.up
    keeper.stopService()
    assert pending_calls(store.clock) == []


def test_it_is_tried_after_longer_and_longer_rests(store: FakeStore) -> None:
    store.fails = StoreError("unreachable", "Connection was refused by other side")
    keeper = started(store)
    for _ in range(100):
        store.clock.advance(0.25)
        assert asking(keeper) == [None]
    assert store.tried == [0, 1, 3, 7, 15, 23]
    assert store.lines == [away("Connection was refused by other side")]
    store.fails = None
    store.clock.advance(8)
    assert keeper.up and store.lines[1:] == [SHARED]


def test_the_rest_is_short_again_after_it_was_well(store: FakeStore) -> None:
    keeper = started(store)
    rests = []
    for well in (0.0, 0.0, 10.0, 70.0, 0.0):
        store.clock.advance(well)
        since = store.clock.seconds()
        store.connections[-1].lose()
        while not keeper.up:
            store.clock.advance(0.25)
        rests.append(store.clock.seconds() - since)
    assert rests == [1, 2, 4, 1, 2]


def test_a_trial_asks_all_that_will_be_asked(store: FakeStore) -> None:
    for command in ("SET", "STRLEN", "MGET", "EXPIRE"):
        store.refused = {command: StoreError("refused", f"it answers {command} with NOPERM")}
        keeper = started(store)
        assert not keeper.up and store.connections[-1].closed
        assert store.lines.pop() == away(f"it answers {command} with NOPERM")
        keeper.stopService()


def test_a_trial_has_a_limit(store: FakeStore) -> None:
    store.hangs = True
    keeper = started(store)
    store.clock.advance(5)
    assert store.connections[-1].closed and not keeper.up
    assert store.lines == [away("it has let nobody in within 5 s")]


def test_one_that_is_always_late_does_not_come_and_go(store: FakeStore) -> None:
    """It answers at first, and in time for a trial, but not for a chat."""

    async def slowly(self: FakeConnection, *command: Any) -> Any:
        self.asked.append(command)
        waiter: Deferred[None] = Deferred()
        store.clock.callLater(2 * ASK_SECONDS, waiter.callback, None)
        await waiter
        return REPLIES[str(command[0])]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeConnection, "ask", slowly)
        keeper = started(store)
        for _ in range(1000):
            store.clock.advance(0.01)
            assert not keeper.up
    assert store.lines == [away("it does not answer within 0.025 s")]
    assert keeper.errors["slow"] >= 3


def test_a_bug_in_a_trial_is_logged_and_costs_only_it(store: FakeStore) -> None:
    store.fails = KeyError("x")
    keeper = started(store)
    assert store.lines == ["a trial of the store failed", away("KeyError")]
    store.fails = None
    store.clock.advance(1)
    assert keeper.up


def test_who_leaves_is_no_failure_of_the_store(store: FakeStore) -> None:
    keeper = started(store)
    store.hangs = True
    asked = Deferred.fromCoroutine(keeper.ask(lambda connection: connection.ask("GET", b"k")))
    failures: list[Any] = []
    asked.addErrback(failures.append)
    asked.cancel()
    assert failures[0].check(CancelledError)
    assert keeper.up and not any(keeper.errors.values())
    assert len(pending_calls(store.clock)) == 1


@pytest.mark.parametrize("phase", ["begun", "trying", "up", "resting"])
def test_nothing_is_left_when_it_stops(store: FakeStore, phase: str) -> None:
    if phase == "resting":
        store.fails = StoreError("unreachable", "no")
    store.hangs = phase == "trying"
    keeper = store.keeper()
    keeper.startService()
    if phase != "begun":
        store.clock.advance(0)
    assert keeper.up == (phase == "up")
    keeper.stopService()
    store.clock.advance(100)
    assert all(each.closed for each in store.connections)
    assert pending_calls(store.clock) == []
    assert len(store.tried) == (phase != "begun")
    assert len(store.lines) == (phase in ("up", "resting"))


# --- what a chat waits for

MIXED = {"tool_calls": [call("ask_user", {}, "call_0"), call("clock", {}, "call_1")]}


def proxied(store: FakeStore) -> tuple[Proxy, RedisTurns, Any]:
    stack = stack_with("clock")
    turns = store.turns()
    turns.keeper.startService()
    store.clock.advance(0)
    return Proxy(stack, store.clock, far=turns), turns, stack


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_waits_for_a_store_that_hangs_for_50_ms_at_most(
    store: FakeStore, stream: bool
) -> None:
    """DESIGN: L20."""
    proxy, turns, stack = proxied(store)
    store.hangs = True
    stack.on(CHAT, replying(MIXED, "tool_calls"))
    stack.on(INVOKE, tool_result("12:00"))
    # It asks for one turn, and has another remembered.
    history = [{"role": "user", "content": "a"}, unknown(), {"role": "user", "content": "b"}]
    exchange = proxy.chat(tools=TOOLS, messages=history, stream=stream)
    for number in range(2):
        assert not exchange.ended, number
        proxy.advance(ASK_SECONDS)
    assert exchange.ended and exchange.status == 200
    assert turns.keeper.errors["slow"] == 2
    assert [c[0] for c in store.connections[-1].asked[-2:]] == ["STRLEN", "SET"]
    assert len(proxy.memory) == 1


def unknown() -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [call("ask_user", {}, f"call_0{new_mark()}")]}


def test_a_chat_without_marks_asks_nobody(store: FakeStore) -> None:
    proxy, _, stack = proxied(store)
    before = len(store.connections[-1].asked)
    stack.on(CHAT, saying("Noon."))
    proxy.chat(tools=TOOLS)
    assert len(store.connections[-1].asked) == before


def test_a_turn_is_remembered_before_its_answer_ends(store: FakeStore) -> None:
    proxy, _, stack = proxied(store)
    store.hangs = True
    stack.on(CHAT, replying(MIXED, "tool_calls"))
    stack.on(INVOKE, tool_result("12:00"))
    exchange = proxy.chat(tools=TOOLS, stream=True)
    assert b"[DONE]" not in exchange.body
    [*_, setting] = store.connections[-1].waiting
    setting.callback("OK")
    proxy.settle()
    assert b"[DONE]" in exchange.body


def test_a_client_that_leaves_meanwhile_costs_nothing_more(store: FakeStore) -> None:
    """DESIGN: L17."""
    proxy, turns, stack = proxied(store)
    store.hangs = True
    exchange = proxy.chat(messages=[unknown()])
    exchange.leave()
    proxy.advance(1)
    assert stack.asked_for(CHAT) == []
    assert not any(turns.keeper.errors.values())


def test_with_the_store_away_a_client_may_still_come_back_here(store: FakeStore) -> None:
    """DESIGN: L20."""
    proxy, _, stack = proxied(store)
    store.connections[-1].lose()
    stack.on(CHAT, replying(MIXED, "tool_calls"))
    stack.on(INVOKE, tool_result("12:00"))
    message = message_of(proxy.chat(tools=TOOLS))
    stack.on(CHAT, saying("Noon."))
    proxy.chat(tools=TOOLS, messages=returned(message, "one"))
    *_, last = stack.asked_for(CHAT)
    assert [m["role"] for m in last.json()["messages"]] == ["assistant", "tool", "tool"]


def test_a_store_that_is_back_is_given_what_it_may_have_lost(store: FakeStore) -> None:
    turns = store.turns()
    local = TurnMemory(store.clock, max_entries=100, max_bytes=10**7, max_age=60)
    turns.refill_from(local)
    for mark, text in (("old", b"1"), ("large", bytes(2 * 1024 * 1024)), ("a", b"2"), ("b", b"3")):
        now(local.remember(OWNER, mark, text))
        store.clock.advance(20 if mark == "old" else 0.6)
    turns.keeper.startService()
    store.clock.advance(0)
    _, *_, last = trial = store.connections[-1].asked
    assert last[0] == "SET" and len(trial) == 4 + 4 + 4 + 3  # twice a trial; one is too large
    names = [turns._seal.turn(OWNER, mark).name for mark in ("b", "a", "old")]
    puts = [each for each in trial[8:] if each[0] == "SET"]
    assert [each[1] for each in puts] == names
    assert [each[3:] for each in puts] == [("EX", 60), ("EX", 59), ("EX", 39)]


def test_no_more_is_put_into_one_that_is_away_again(store: FakeStore) -> None:
    turns = store.turns()
    local = TurnMemory(store.clock, max_entries=100, max_bytes=10**7, max_age=60)
    turns.refill_from(local)
    for number in range(50):
        now(local.remember(OWNER, str(number), b"1"))
    puts: list[Any] = []
    ask = FakeConnection.ask

    async def failing(self: FakeConnection, *command: Any) -> Any:
        if command[0] == "SET" and not command[1].endswith(b":trial"):
            puts.append(command)
            if len(puts) == 7:
                raise StoreError("refused", "it answers SET with OOM")
        return await ask(self, *command)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeConnection, "ask", failing)
        turns.keeper.startService()
        store.clock.advance(0)
    assert len(puts) == 7 and not turns.keeper.up


def test_no_caller_can_fill_the_store(store: FakeStore) -> None:
    """DESIGN: L20."""
    turns = store.turns()
    turns.keeper.startService()
    store.clock.advance(0)

    def put(owner: bytes) -> int:
        asked = store.connections[-1].asked
        before = len(asked)
        for _ in range(100):
            now(turns.remember(owner, new_mark(), b"x"))
        return len(asked) - before

    assert 10 < put(b"a" * 32) < 20
    assert put(b"a" * 32) == 0
    assert 10 < put(b"b" * 32) < 20
    store.clock.advance(60)
    assert 10 < put(b"a" * 32) < 20


def test_so_many_callers_are_told_apart() -> None:
    clock = Clock()
    quota = Quota(clock, 1000, 60)
    assert all(quota.take(b"%d" % number, 0) for number in range(10_000))
    assert [quota.take(b"%d" % number, 0) for number in range(10_000, 10_005)].count(True) == 3
    assert quota.take(b"7", 0)


def test_what_is_measured(store: FakeStore) -> None:
    from prometheus_client import generate_latest

    proxy, turns, _ = proxied(store)
    turns.watch(proxy.metrics)
    proxy.chat(messages=[unknown()])
    store.refused["STRLEN"] = StoreError("refused", "no")
    proxy.chat(messages=[unknown()])
    text = generate_latest(proxy.metrics.registry).decode()
    for line in (
        "up 0.0",
        'errors_total{kind="refused"} 1.0',
        'errors_total{kind="slow"} 0.0',
        'lookups_total{outcome="found"} 0.0',
        'lookups_total{outcome="missing"} 1.0',
    ):
        assert f"llamaproxy_memory_store_{line}\n" in text
