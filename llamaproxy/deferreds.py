"""Work under way: shared by all who wait for it, many pieces side by side, and its cancelling."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any, Generic, TypeVar

from twisted.internet.defer import CancelledError, Deferred, DeferredList, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaproxy.errors import ProxyError
from llamaproxy.watchdog import Watchdog

_log = Logger()

T = TypeVar("T")

#: What work may come to without being broken.
_NO_FAULTS = (CancelledError, ProxyError)


async def within(seconds: float, clock: IReactorTime, work: Coroutine[Any, Any, T]) -> T:
    """What *work* returns or raises; it is cancelled when it has not ended after so many *seconds*.

    :raises TimeoutError: Twisted's, in that case.
    """
    over = False

    def expire() -> None:
        nonlocal over
        over = True
        running.cancel()

    running = Deferred.fromCoroutine(work)
    limit = Watchdog(clock, seconds, expire)
    limit.start()
    try:
        return await running
    except CancelledError:
        if over:
            raise TimeoutError(seconds) from None
        raise
    finally:
        limit.stop()


def let_go_of_frames(error: BaseException | None) -> None:
    """Let *error*, with which all is over, and those before it keep no frames.

    An error that has gone through a coroutine of a Deferred is in a cycle of Twisted's: it would
    keep until the garbage collector comes what all of those frames have, such as a chat's body. To
    clear the frames would end others' coroutines that wait, for an error may be shared.
    """
    while error is not None and error.__traceback__ is not None:
        error.__traceback__ = None
        error = error.__context__


class SharedCall(Generic[T]):
    """Runs a coroutine once for all who ask while it runs.

    One who no longer waits (a cancelled request) leaves the others alone.
    """

    def __init__(self) -> None:
        self._work: Deferred[Any] | None = None
        self._waiting: list[Deferred[T]] = []
        #: Whether the work is under way.
        self.running = False

    async def result(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What *work* returns, or raises; it is started unless it is already under way."""
        waiter: Deferred[T] = Deferred(self._waiting.remove)
        self._waiting.append(waiter)
        self.start(work)
        return await waiter

    def start(self, work: Callable[[], Coroutine[Any, Any, T]]) -> None:
        """Run *work*, unless it is under way, though nobody waits for it yet."""
        if not self.running:
            self.running = True
            self._work = Deferred.fromCoroutine(work())
            self._work.addBoth(self._done)

    def cancel(self) -> None:
        """Stop the work; whoever waits gets :class:`CancelledError`."""
        if self._work is not None and self.running:
            self._work.cancel()

    def _done(self, outcome: T | Failure) -> None:
        self.running = False
        waiting, self._waiting = self._waiting, []
        if isinstance(outcome, Failure) and not waiting and not outcome.check(*_NO_FAULTS):
            _log.failure("work that nobody waits for failed", outcome)
        for waiter in waiting:
            if isinstance(outcome, Failure):
                waiter.errback(outcome)
            else:
                waiter.callback(outcome)


class Semaphore:
    """At most *tokens* at a time; the rest wait in their order.

    Unlike :class:`twisted.internet.defer.DeferredSemaphore` it does not recurse when hundreds wait
    that end as soon as their turn has come.
    """

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        # Made when somebody waits: an empty deque is as large as one of sixty-four.
        self._waiting: deque[Deferred[None]] | None = None
        self._waking = False

    async def acquire(self) -> None:
        """Wait until there is a token, which the caller then has."""
        if self._tokens and not self._waiting:
            self._tokens -= 1
            return
        if self._waiting is None:
            self._waiting = deque()
        waiter: Deferred[None] = Deferred(self._waiting.remove)
        self._waiting.append(waiter)
        await waiter

    def release(self) -> None:
        """Give a token back."""
        self._tokens += 1
        if self._waking:
            return
        self._waking = True
        try:
            while self._tokens and self._waiting:
                self._tokens -= 1
                self._waiting.popleft().callback(None)
        finally:
            self._waking = False


def _in_turns(
    work: Iterable[Coroutine[Any, Any, T]], at_once: int
) -> Iterator[Coroutine[Any, Any, T]]:
    places = Semaphore(at_once)

    async def in_turn(one: Coroutine[Any, Any, T]) -> T:
        try:
            await places.acquire()
        except BaseException:
            one.close()
            raise
        try:
            return await one
        finally:
            places.release()

    return map(in_turn, work)


async def all_of(work: Iterable[Coroutine[Any, Any, T]], at_once: int = 0) -> list[T]:
    """What each coroutine returns, in their order, once all have ended.

    :param at_once: how many may run at the same time, 0 for all of them.

    Cancelling cancels all of them. The first exception, if there is one, is raised, cancellation
    before any other, and as itself: :func:`twisted.internet.defer.gatherResults` would wrap it.
    """
    pieces = list(_in_turns(work, at_once) if at_once else work)
    if len(pieces) <= 1:  # as most often, and costs nothing
        return [await one for one in pieces]
    running = [Deferred.fromCoroutine(one) for one in pieces]
    # The last is cancelled first, so that no place becomes free for one that waits for its turn.
    backwards = DeferredList(running[::-1], consumeErrors=True)
    outcomes: list[tuple[bool, Any]] = (await backwards)[::-1]
    failures: list[Failure] = [outcome for succeeded, outcome in outcomes if not succeeded]
    for failure in sorted(failures, key=lambda failure: not failure.check(CancelledError)):
        failure.raiseException()
    return [outcome for _, outcome in outcomes]
