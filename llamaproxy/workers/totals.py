"""Totals: what several processes have counted together. Pure but for what it remembers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from llamaproxy.admin import names
from llamaproxy.admin.names import OTHER, Series
from llamaproxy.admin.tallies import Histogram, Measured
from llamaproxy.jsontext import Json

_SERIES = {series.name: series for series in names.EVERY}

#: A series, and the values of its labels.
_Key: TypeAlias = tuple[Series, tuple[str, ...]]

#: What one process has for each.
Samples: TypeAlias = Mapping[_Key, "float | Histogram"]

#: Names of peers, or pairs of them, that have a series of their own: as many as one process may
#: have of models that have answered and of models that have failed.
_MOST_NAMES = 200

#: Figures of the status that are no amounts, and so are not added up.
_NOT_ADDED = frozenset(
    {
        *("drain_timeout_seconds", "max_age_seconds", "max_tools", "max_bytes_of_tools"),
        *("servers", "max_idle_connections_of_one"),
    }
)


def as_json(measured: Iterable[Measured]) -> list[Any]:
    """All that is *measured*, for another process."""
    return [
        [series.name, [[labels, _value_as_json(value)] for labels, value in samples]]
        for series, samples in measured
    ]


def _value_as_json(value: float | Histogram) -> Any:
    return [value.counts, value.total] if isinstance(value, Histogram) else value


def samples_of(measured: Iterable[Any]) -> Samples:
    """What another process has told with :func:`as_json`."""
    samples: dict[_Key, float | Histogram] = {}
    for name, values in measured:
        series = _SERIES[name]
        for labels, value in values:
            samples[series, tuple(labels)] = (
                _histogram(series, *value) if series.kind == "histogram" else value
            )
    return samples


def _histogram(series: Series, counts: list[int], total: float) -> Histogram:
    histogram = Histogram(series)
    histogram.counts, histogram.total = counts, total
    return histogram


class Totals:
    """Adds up, for each series by its labels, what the parent and its workers have.

    What workers had counted that are gone stays counted. No counter goes back, not even by what a
    sum of fractions in another order differs by: Prometheus would take that for a new beginning.
    """

    def __init__(self) -> None:
        self._gone: dict[_Key, float | Histogram] = {}
        #: The values of peers' labels that have series of their own, by the names of these labels.
        self._admitted: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
        #: The largest value so far of each counter, and each histogram's total.
        self._largest: dict[_Key, float] = {}

    def bury(self, samples: Samples) -> None:
        """Keep what a worker had counted that is gone; what it had at the moment has gone too."""
        counted = {
            key: value for key, value in _of_workers(samples).items() if key[0].kind != "gauge"
        }
        _merge(self._gone, self._admit(counted))

    def of(self, parent: Samples, workers: Iterable[Samples]) -> Iterator[Measured]:
        """All series, with what all have of them."""
        merged: dict[_Key, float | Histogram] = {}
        _merge(merged, self._gone.items())
        for samples in workers:
            _merge(merged, self._admit(_of_workers(samples)))
        own = {key: value for key, value in parent.items() if key[0].together != "workers"}
        _merge(merged, self._admit(own))
        found: dict[Series, list[tuple[tuple[str, ...], float | Histogram]]] = {
            series: [] for series in names.EVERY
        }
        for key, value in merged.items():
            series, labels = key
            found[series].append((labels, self._never_back(key, value)))
        yield from found.items()

    def _admit(self, samples: Samples) -> Iterator[tuple[_Key, float | Histogram]]:
        """*samples*, those of names that there is no room for under one name."""
        for (series, labels), value in samples.items():
            if series.peers:
                labels = self._admitted_labels(series, labels)
            yield (series, labels), value

    def _admitted_labels(self, series: Series, labels: tuple[str, ...]) -> tuple[str, ...]:
        admitted = self._admitted.setdefault(series.peers, set())
        at = [series.labels.index(name) for name in series.peers]
        chosen = tuple(labels[index] for index in at)
        if chosen in admitted:
            return labels
        if len(admitted) < _MOST_NAMES:
            admitted.add(chosen)
            return labels
        return tuple(OTHER if index in at else label for index, label in enumerate(labels))

    def _never_back(self, key: _Key, value: float | Histogram) -> float | Histogram:
        if key[0].kind == "gauge":
            return value
        number = value.total if isinstance(value, Histogram) else value
        largest = self._largest[key] = max(number, self._largest.get(key, 0))
        if isinstance(value, Histogram):
            return _histogram(key[0], value.counts, largest)
        return largest


def _of_workers(samples: Samples) -> Samples:
    return {key: value for key, value in samples.items() if key[0].together != "parent"}


def _merge(
    into: dict[_Key, float | Histogram], samples: Iterable[tuple[_Key, float | Histogram]]
) -> None:
    for key, value in samples:
        before = into.get(key)
        if isinstance(value, Histogram):
            counts = list(value.counts)
            total = value.total
            if isinstance(before, Histogram):
                counts = [a + b for a, b in zip(before.counts, counts, strict=True)]
                total += before.total
            into[key] = _histogram(key[0], counts, total)
        elif isinstance(before, Histogram) or before is None:
            into[key] = value
        elif key[0].together == "largest":
            into[key] = max(before, value)
        elif key[0].together == "least":
            into[key] = min(before, value)
        else:
            into[key] = before + value


def figures_together(every: Iterable[Json]) -> Json:
    """The figures of the status of several processes as those of one."""
    merged: Json = {}
    for figures in every:
        for name, value in figures.items():
            before = merged.get(name)
            if isinstance(value, dict):
                merged[name] = figures_together([before or {}, value])
            elif before is None or value is None:
                merged[name] = value if before is None else before
            elif isinstance(value, bool):
                merged[name] = before and value
            elif isinstance(value, str):
                merged[name] = before  # that of a store that all use
            else:
                merged[name] = max(before, value) if name in _NOT_ADDED else before + value
    return merged
