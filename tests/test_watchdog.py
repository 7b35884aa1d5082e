"""Watchdogs: time limits that cost nothing until they are over."""

from __future__ import annotations

import gc
from functools import partial
from weakref import ref

from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from llamaproxy.watchdog import Watchdog


class Dog:
    def __init__(self, seconds: float = 10) -> None:
        self.clock = Clock()
        self.barks: list[float] = []
        self.watchdog = Watchdog(
            self.clock, seconds, lambda: self.barks.append(self.clock.seconds())
        )


def test_a_watchdog_barks_once_if_it_is_not_fed() -> None:
    dog = Dog()
    dog.watchdog.start()
    dog.clock.advance(9.5)
    assert dog.barks == []
    dog.clock.advance(0.5)
    dog.clock.advance(100)
    assert dog.barks == [10]


def test_feeding_puts_the_bark_off() -> None:
    dog = Dog()
    dog.watchdog.start()
    for _ in range(10):
        dog.clock.advance(6)
        dog.watchdog.feed()
    assert dog.barks == []
    dog.clock.pump([5, 5])
    assert dog.barks == [70]


def test_feeding_costs_no_delayed_call() -> None:
    dog = Dog()
    dog.watchdog.start()
    [call] = dog.clock.getDelayedCalls()
    for _ in range(100):
        dog.watchdog.feed()
        dog.watchdog.start()
    assert dog.clock.getDelayedCalls() == [call]


def test_a_stopped_watchdog_never_barks_until_it_is_started_again() -> None:
    dog = Dog()
    dog.watchdog.stop()
    dog.watchdog.start()
    dog.watchdog.stop()
    dog.watchdog.stop()
    dog.clock.advance(100)
    assert dog.barks == []
    assert dog.clock.getDelayedCalls() == []
    dog.watchdog.start()
    dog.clock.advance(10)
    assert dog.barks == [110]


def test_a_watchdog_may_be_started_again_by_its_bark() -> None:
    clock = Clock()
    barks: list[float] = []

    def bark() -> None:
        barks.append(clock.seconds())
        watchdog.start()

    watchdog = Watchdog(clock, 10, bark)
    watchdog.start()
    clock.pump([10] * 3)
    assert barks == [10, 20, 30]


def test_a_thousand_watchdogs_that_come_and_go_cost_one_delayed_call() -> None:
    clock = Clock()
    first = Watchdog(clock, 10, lambda: None)
    first.start()
    [call] = clock.getDelayedCalls()
    for _ in range(1000):
        clock.advance(0.001)
        dog = Watchdog(clock, 10, lambda: None)
        dog.start()
        dog.stop()
    first.stop()
    assert clock.getDelayedCalls() == [call]
    clock.advance(10)
    assert clock.getDelayedCalls() == []


def test_many_that_are_due_at_different_times_are_looked_at_now_and_then() -> None:
    clock = Clock()
    barks: list[float] = []
    for number in range(1000):
        Watchdog(clock, 10 + number / 1000, lambda: barks.append(clock.seconds())).start()
    sweeps = 0
    for _ in range(12_000):
        before = len(barks)
        clock.advance(0.001)
        sweeps += len(barks) > before
    assert len(barks) == 1000
    # As the thousand become fewer, the sweeps come faster.
    assert sweeps <= 60


def test_one_that_is_due_sooner_than_the_others_is_not_late() -> None:
    clock = Clock()
    barks: list[float] = []
    for seconds in (100, 5, 50):
        Watchdog(clock, seconds, lambda: barks.append(clock.seconds())).start()
    for _ in range(100):
        clock.advance(1)
    assert barks == [5, 50, 100]


def test_a_bark_may_stop_another_and_one_that_fails_costs_the_others_nothing() -> None:
    clock = Clock()
    barks: list[str] = []
    stopped: list[Watchdog] = []

    def bark_and_stop(name: str) -> None:
        barks.append(name)
        for dog in stopped:
            dog.stop()

    def fail() -> None:
        barks.append("fails")
        raise ZeroDivisionError

    pair = [Watchdog(clock, 10, partial(bark_and_stop, name)) for name in "ab"]
    stopped.extend(pair)
    for dog in (*pair, Watchdog(clock, 10, fail), Watchdog(clock, 20, lambda: barks.append("c"))):
        dog.start()
    with capturedLogs() as events:
        clock.pump([10, 10])
    assert len(barks) == 3 and "fails" in barks and barks[-1] == "c"
    assert [event["log_failure"].type for event in events] == [ZeroDivisionError]


def test_those_that_are_due_in_one_sweep_bark_in_their_order() -> None:
    clock = Clock()
    barks: list[int] = []
    for seconds in (7, 3, 9, 1, 8, 2, 6, 4, 5):
        Watchdog(clock, seconds, partial(barks.append, seconds)).start()
    clock.advance(100)
    assert barks == sorted(barks) and len(barks) == 9


def test_one_that_a_bark_has_put_off_does_not_bark() -> None:
    clock = Clock()
    barks: list[float] = []
    put_off = [Watchdog(clock, 10, lambda: barks.append(clock.seconds())) for _ in range(2)]

    def bark() -> None:
        put_off[0].feed()
        put_off[1].start()

    for dog in (Watchdog(clock, 5, bark), *put_off):
        dog.start()
    clock.advance(20)
    assert barks == []
    clock.advance(10)
    assert barks == [30, 30]


def test_a_clock_is_not_kept_by_its_watchdogs() -> None:
    clock = Clock()
    dog = Watchdog(clock, 10, lambda: None)
    dog.start()
    clock.advance(10)
    alive = ref(clock)
    del clock, dog
    gc.collect()
    assert alive() is None
