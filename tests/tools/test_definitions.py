"""Definitions of tools, and how long one turn of the reactor looks at many."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import Clock

from llamaproxy import jsontext
from llamaproxy.jsontext import Json
from llamaproxy.tools.definitions import in_slices
from tests.support import outcome


class Turns(Clock):
    """A clock that notes how much had been looked at whenever other work had its turn."""

    def __init__(self, looked_at: list[Json]) -> None:
        Clock.__init__(self)
        self.counts: list[int] = []
        self._looked_at = looked_at

    def callLater(self, delay: float, callable: Any, *args: Any, **kwargs: Any) -> IDelayedCall:
        self.counts.append(len(self._looked_at))
        return Clock.callLater(self, delay, callable, *args, **kwargs)


def test_other_work_goes_on_while_a_long_list_is_looked_at() -> None:
    looked_at: list[Json] = []
    clock = Turns(looked_at)
    entries: list[Json] = [{"name": f"t{n}", "description": "x" * 1000} for n in range(1000)]
    work = Deferred.fromCoroutine(in_slices(looked_at.append, entries, clock))
    clock.advance(0)
    assert outcome(work) == [None] * 1000 and looked_at == entries
    ends = [*clock.counts, 1000]
    slices = [looked_at[begin:end] for begin, end in pairwise([0, *ends])]
    assert len(slices) > 10
    assert all(len(jsontext.dumps(each)) <= 67 * 1024 for each in slices)


def test_a_short_list_is_looked_at_at_once() -> None:
    entries: list[Json] = [{"name": "a"}, {"name": "b"}]
    work = Deferred.fromCoroutine(in_slices(lambda entry: entry["name"], entries, Clock()))
    assert outcome(work) == ["a", "b"]
