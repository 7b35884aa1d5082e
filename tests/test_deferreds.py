"""Coroutines side by side."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.task import Clock, deferLater

from llamaproxy.deferreds import Semaphore, SharedCall, all_of, let_go_of_frames, within
from tests.support import outcome, pending_calls


class Work:
    """Work that is ended by the test."""

    def __init__(self) -> None:
        self.started = 0
        self.ended: Deferred[str] = Deferred()

    async def __call__(self) -> str:
        self.started += 1
        self.ended = Deferred()
        return await self.ended


def ask(shared: SharedCall[str], work: Work) -> Deferred[str]:
    return Deferred.fromCoroutine(shared.result(work))


def test_one_call_serves_all_who_ask_while_it_runs() -> None:
    shared, work = SharedCall[str](), Work()
    waiting = [ask(shared, work) for _ in range(3)]
    assert (work.started, shared.running) == (1, True)
    work.ended.callback("done")
    assert [outcome(each) for each in waiting] == ["done"] * 3
    assert not shared.running


def test_who_asks_later_starts_a_new_call() -> None:
    shared, work = SharedCall[str](), Work()
    for number in range(3):
        waiting = ask(shared, work)
        work.ended.callback(str(number))
        assert outcome(waiting) == str(number)
    assert work.started == 3


def test_work_that_does_not_wait_is_done_at_once() -> None:
    async def work() -> str:
        return "now"

    shared = SharedCall[str]()
    for _ in range(2):
        assert outcome(Deferred.fromCoroutine(shared.result(work))) == "now"


def test_a_failure_is_everybodys_and_not_remembered() -> None:
    shared, work = SharedCall[str](), Work()
    waiting = [ask(shared, work) for _ in range(2)]
    work.ended.errback(ValueError("no"))
    for each in waiting:
        with pytest.raises(ValueError, match="no"):
            outcome(each)
    again = ask(shared, work)
    work.ended.callback("yes")
    assert outcome(again) == "yes"


@pytest.mark.parametrize("leaver", [0, 1, 2])
def test_one_who_leaves_leaves_the_others_alone(leaver: int) -> None:
    shared, work = SharedCall[str](), Work()
    waiting = [ask(shared, work) for _ in range(3)]
    waiting[leaver].cancel()
    with pytest.raises(CancelledError):
        outcome(waiting.pop(leaver))
    work.ended.callback("done")
    assert [outcome(each) for each in waiting] == ["done"] * 2


def test_one_who_is_served_may_send_another_away() -> None:
    """As when one request's end closes the connection that another has come over."""
    shared, work = SharedCall[str](), Work()
    first, second, third = (ask(shared, work) for _ in range(3))
    first.addCallback(lambda _: second.cancel())
    work.ended.callback("done")
    with pytest.raises(CancelledError):
        outcome(second)
    assert outcome(third) == "done"


def test_one_who_is_served_may_ask_again() -> None:
    shared, work = SharedCall[str](), Work()
    again: list[Deferred[str]] = []
    ask(shared, work).addCallback(lambda _: again.append(ask(shared, work)))
    second = ask(shared, work)
    work.ended.callback("done")
    assert outcome(second) == "done"
    assert work.started == 2
    work.ended.callback("more")
    assert outcome(again[0]) == "more"


def test_the_work_goes_on_when_all_have_left() -> None:
    shared, work = SharedCall[str](), Work()
    left = ask(shared, work)
    left.cancel()
    with pytest.raises(CancelledError):
        outcome(left)
    assert shared.running
    stayed = ask(shared, work)
    work.ended.callback("done")
    assert outcome(stayed) == "done"
    assert work.started == 1


def test_work_can_be_started_though_nobody_waits() -> None:
    shared, work = SharedCall[str](), Work()
    shared.start(work)
    shared.start(work)
    waiting = ask(shared, work)
    work.ended.callback("done")
    assert (outcome(waiting), work.started) == ("done", 1)


def test_a_failure_that_nobody_waits_for_is_no_ones() -> None:
    shared, work = SharedCall[str](), Work()
    shared.start(work)
    work.ended.errback(ValueError())
    assert not shared.running


def test_cancelling_the_work_cancels_all_who_wait() -> None:
    shared, work = SharedCall[str](), Work()
    waiting = [ask(shared, work) for _ in range(2)]
    shared.cancel()
    for each in waiting:
        with pytest.raises(CancelledError):
            outcome(each)
    assert work.ended.called
    SharedCall[str]().cancel()


# --- within


def test_work_that_takes_too_long_is_cancelled() -> None:
    clock = Clock()
    cancelled: list[bool] = []

    async def work() -> str:
        await Deferred(lambda _: cancelled.append(True))
        return "late"

    waiting = Deferred.fromCoroutine(within(5, clock, work()))
    clock.advance(4.9)
    assert not waiting.called
    clock.advance(0.1)
    with pytest.raises(TimeoutError):
        outcome(waiting)
    assert cancelled == [True]


@pytest.mark.parametrize("ending", ["returns", "raises", "is cancelled"])
def test_work_that_ends_in_time_leaves_no_limit_behind(ending: str) -> None:
    clock = Clock()
    going: Deferred[str] = Deferred()

    async def work() -> str:
        return await going

    waiting = Deferred.fromCoroutine(within(5, clock, work()))
    if ending == "returns":
        going.callback("done")
        assert outcome(waiting) == "done"
    elif ending == "raises":
        going.errback(ValueError("no"))
        with pytest.raises(ValueError, match="no"):
            outcome(waiting)
    else:
        waiting.cancel()
        with pytest.raises(CancelledError):
            outcome(waiting)
    assert pending_calls(clock) == []


# --- all_of


def test_all_run_at_the_same_time_and_answer_in_their_order() -> None:
    clock = Clock()

    async def after(seconds: float) -> float:
        return await deferLater(clock, seconds, lambda: seconds)

    waiting = Deferred.fromCoroutine(all_of(after(seconds) for seconds in (3, 1, 2)))
    clock.pump([1, 1])
    assert not waiting.called
    clock.advance(1)
    assert outcome(waiting) == [3, 1, 2]


def test_none_is_done_at_once() -> None:
    assert outcome(Deferred.fromCoroutine(all_of([]))) == []


def test_an_exception_is_raised_as_itself_once_all_have_ended() -> None:
    clock = Clock()
    ended: list[str] = []

    async def fails() -> None:
        raise ValueError("no")

    async def works() -> None:
        await deferLater(clock, 1)
        ended.append("works")

    waiting = Deferred.fromCoroutine(all_of([works(), fails(), works()]))
    assert not waiting.called
    clock.advance(1)
    with pytest.raises(ValueError, match="no"):
        outcome(waiting)
    assert ended == ["works", "works"]


def test_cancelling_cancels_all() -> None:
    waiting_for: list[Deferred[None]] = [Deferred(), Deferred()]

    async def wait(what: Deferred[None]) -> None:
        await what

    waiting = Deferred.fromCoroutine(all_of(wait(what) for what in waiting_for))
    waiting.cancel()
    with pytest.raises(CancelledError):
        outcome(waiting)
    assert all(what.called for what in waiting_for)


def test_cancelling_is_told_though_one_has_failed_before() -> None:
    async def fails() -> None:
        raise ValueError("no")

    async def waits() -> None:
        await Deferred[None]()

    waiting = Deferred.fromCoroutine(all_of([fails(), waits()]))
    waiting.cancel()
    with pytest.raises(CancelledError):
        outcome(waiting)


@pytest.mark.parametrize("tokens", [1, 3])
def test_thousands_may_wait_that_end_as_soon_as_their_turn_has_come(tokens: int) -> None:
    semaphore = Semaphore(tokens)
    order: list[int] = []
    first: Deferred[None] = Deferred()

    async def turn(number: int) -> None:
        await semaphore.acquire()
        try:
            if number < tokens:
                await first
            order.append(number)
        finally:
            semaphore.release()

    running = [Deferred.fromCoroutine(turn(number)) for number in range(5000)]
    assert not order
    first.callback(None)
    assert [outcome(each) for each in running] == [None] * 5000
    assert sorted(order) == list(range(5000))


def test_who_is_cancelled_while_he_waits_takes_no_token() -> None:
    semaphore = Semaphore(1)

    def acquire() -> Deferred[None]:
        return Deferred.fromCoroutine(semaphore.acquire())

    assert acquire().called
    gone, waiting = acquire(), acquire()
    gone.cancel()
    with pytest.raises(CancelledError):
        outcome(gone)
    semaphore.release()
    assert waiting.called and not acquire().called


def test_work_that_asks_for_itself_is_not_begun_twice() -> None:
    shared: SharedCall[str] = SharedCall()
    begun: list[int] = []

    async def work() -> str:
        begun.append(1)
        shared.start(work)
        return "done"

    shared.start(work)
    assert begun == [1] and not shared.running


def test_to_let_go_of_frames_ends_nobody_who_still_handles_the_same_error() -> None:
    """Whoever cleared them instead would end the coroutines whose frames they are."""
    shared: SharedCall[str] = SharedCall()
    work = Work()
    told: list[Deferred[None]] = [Deferred(), Deferred()]

    async def handle(number: int) -> str:
        try:
            return await shared.result(work)
        except ValueError as error:
            await told[number]
            let_go_of_frames(error)
            return str(error)

    handled = [Deferred.fromCoroutine(handle(number)) for number in range(2)]
    work.ended.errback(ValueError("shared"))
    for number in range(2):
        told[number].callback(None)
        assert outcome(handled[number]) == "shared"


@pytest.mark.parametrize("let_go", [let_go_of_frames, None])
def test_what_frames_had_is_free_when_they_are_let_go_of(
    let_go: Callable[[BaseException], None] | None,
) -> None:
    class Body:
        """What is much."""

    async def wait() -> None:
        await answered

    async def work() -> None:
        body = Body()
        bodies.append(weakref.ref(body))
        await Deferred.fromCoroutine(wait())

    async def handle() -> None:
        try:
            await work()
        except ValueError:
            try:
                raise KeyError
            except KeyError as later:
                if let_go is not None:
                    let_go(later)

    bodies: list[weakref.ref[Body]] = []
    answered: Deferred[None] = Deferred()
    gc.disable()
    try:
        Deferred.fromCoroutine(handle())
        answered.errback(ValueError())
        assert [each() is None for each in bodies] == [let_go is not None]
    finally:
        gc.enable()
