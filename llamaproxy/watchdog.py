"""Watchdog: a time limit that is put off whenever something happens; one sweep serves them all."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from operator import attrgetter
from weakref import WeakKeyDictionary, ref

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import Clock
from twisted.logger import Logger

_log = Logger()

#: Seconds for each watchdog that no sweep follows another: so late may a bark be when there are
#: many, and looking at all of them never takes more than a small share of the time.
REST_SECONDS = 1e-4


def _nothing() -> None:
    """Nothing follows."""


class Watchdog:
    """Calls *callback* when :meth:`feed` was not called for *seconds*.

    Feeding only notes the time, starting and stopping only that there is a limit: neither costs a
    delayed call of its own, however many requests and events there are. What is a watchdog itself
    has :meth:`bark` do something else.
    """

    __slots__ = ("_callback", "_fed", "_now", "_seconds", "_sweep")

    def __init__(
        self, clock: IReactorTime, seconds: float, callback: Callable[[], None] = _nothing
    ) -> None:
        self._sweep = _last if _last.clock() is clock else _sweep_of(clock)
        self._now = clock.seconds
        self._seconds = seconds
        self._callback = callback
        self._fed = 0.0

    @property
    def due(self) -> float:
        """When it barks, unless it is fed before that."""
        return self._fed + self._seconds

    def start(self) -> None:
        """Begin, or begin again, to count from now."""
        self._fed = self._now()
        self._sweep.add(self)

    def feed(self) -> None:
        """Begin to count anew."""
        self._fed = self._now()

    def stop(self) -> None:
        """Do not call back, until started again."""
        self._sweep.watched.discard(self)

    def end(self) -> None:
        """Stop for good, and forget whom to call: who has a watchdog is often who it calls."""
        self.stop()
        self._callback = _nothing

    def bark(self) -> None:
        """Call back."""
        self._callback()


class _Sweep:
    """Looks, at the time when the first of a clock's watchdogs may bark, at all of them."""

    def __init__(self, clock: IReactorTime) -> None:
        self.watched: set[Watchdog] = set()
        # Weak, for a clock must not be kept by what it is the key of.
        self.clock = ref(clock)
        self._call: IDelayedCall | None = None
        self._at = inf
        #: No sweep is made before this time.
        self._rests_until = -inf

    def add(self, dog: Watchdog) -> None:
        """Let *dog* bark when it is due."""
        self.watched.add(dog)
        if dog.due < self._at:
            self._sweep_at(dog.due)

    def _sweep_at(self, time: float) -> None:
        time = max(time, self._rests_until)
        clock = self.clock()
        if time < self._at and clock is not None:
            self._at = time
            seconds = max(0.0, time - clock.seconds())
            if self._call is None:
                self._call = clock.callLater(seconds, self._run)
            else:
                self._call.reset(seconds)

    def _run(self) -> None:
        clock = self.clock()
        assert clock is not None  # which has called this
        now = clock.seconds()
        self._call, self._at = None, inf
        self._rests_until = now + REST_SECONDS * len(self.watched)
        hungry = [dog for dog in self.watched if dog.due <= now]
        for dog in sorted(hungry, key=attrgetter("due")):
            # Unless the bark of another has stopped it, or put it off.
            if dog in self.watched and dog.due <= now:
                self.watched.discard(dog)
                try:
                    dog.bark()
                except Exception:
                    _log.failure("what follows a time limit failed")
        if self.watched:
            self._sweep_at(min(dog.due for dog in self.watched))


def watched(clock: IReactorTime) -> set[Watchdog]:
    """The watchdogs of *clock* that have been started, and not stopped."""
    sweep = _sweeps.get(clock)
    return set() if sweep is None else set(sweep.watched)


_sweeps: WeakKeyDictionary[IReactorTime, _Sweep] = WeakKeyDictionary()

#: That of the last clock, for a process has one.
_last = _Sweep(Clock())


def _sweep_of(clock: IReactorTime) -> _Sweep:
    global _last
    sweep = _sweeps.get(clock)
    if sweep is None:
        sweep = _sweeps[clock] = _Sweep(clock)
    _last = sweep
    return sweep
