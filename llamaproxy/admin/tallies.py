"""Counts as plain numbers, by names of which there are never too many."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, TypeAlias, TypeVar

import attrs

from llamaproxy.admin.names import Series

T = TypeVar("T")


class Histogram:
    """How often values came to lie in each bucket; a value on a bound is in the one below it."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, series: Series) -> None:
        self.bounds = series.bounds
        #: Of each bucket alone; the last is for what is above all bounds.
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def add_all(self, values: list[float]) -> None:
        """Add them, which are then in another order."""
        if not values:
            return
        values.sort()
        bounds, counts = self.bounds, self.counts
        last = bisect_left(bounds, values[-1])
        below = 0
        for bucket in range(bisect_left(bounds, values[0]), last):
            up_to = bisect_right(values, bounds[bucket], below)
            counts[bucket] += up_to - below
            below = up_to
        counts[last] += len(values) - below
        self.total += sum(values)


#: The values of a series' labels, and what it has for them.
Sample: TypeAlias = "tuple[tuple[str, ...], float | Histogram]"

#: A series with all that it has.
Measured: TypeAlias = tuple[Series, Iterable[Sample]]


@attrs.frozen(eq=False, repr=False)
class Named(Generic[T]):
    """Something that *make* makes for each of the first *most* names; all others share one.

    A name is made of the values of several labels; *other* is that of the shared one. A name that
    cannot be shown as it is has no place of its own.
    """

    make: Callable[[], T]
    most: int
    other: tuple[str, ...]
    kept: dict[tuple[str, ...], T] = attrs.Factory(dict)

    def of(self, name: tuple[str, ...]) -> T:
        kept = self.kept
        if name in kept:
            return kept[name]
        if len(kept) >= self.most or not all(map(is_showable, name)):
            name = self.other
            if name in kept:
                return kept[name]
        made = kept[name] = self.make()
        return made


def is_showable(name: str) -> bool:
    """Whether *name* can be a label: half a surrogate pair would fail the answer as a whole."""
    return name.isprintable()


def by_label(counts: Mapping[str, int]) -> Iterable[Sample]:
    """*counts* by the values of one label."""
    return [((value,), count) for value, count in counts.items()]
