"""Metrics: counters of events, and gauges, for Prometheus.

While requests are answered, only plain numbers are counted (:mod:`llamaproxy.admin.tallies`);
prometheus_client is not even loaded before somebody asks.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from llamaproxy import __version__
from llamaproxy.admin import names
from llamaproxy.admin.answermetrics import LIMITS, AnswerMetrics
from llamaproxy.admin.exposition import Collector
from llamaproxy.admin.modelmetrics import ModelMetrics
from llamaproxy.admin.names import Series
from llamaproxy.admin.tallies import Histogram, Measured, by_label
from llamaproxy.admin.toolmetrics import CallMetrics, ListMetrics
from llamaproxy.events import (
    CallEnded,
    ConnectionsTurnedAway,
    Event,
    ListRefreshed,
    LoopLimited,
    Observers,
    RequestEnded,
    RoundEnded,
)

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric


class Metrics:
    """A listener with counters of its own: two services in one process do not mix.

    prometheus_client, which many a daemon never needs, collects it.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        """:param now: the clock's seconds."""
        self._limits = Counter(dict.fromkeys(LIMITS, 0))
        self._answers = AnswerMetrics(self._limits)
        self._models = ModelMetrics(self._answers.failed)
        self._calls = CallMetrics(self._limits, self._answers.failed)
        self._lists = ListMetrics(now)
        self._watched: dict[Series, dict[tuple[str, ...], Callable[[], float | Histogram]]] = {}
        self._deliver: Callable[[], None] = _nothing
        self.watch(names.BUILD, lambda: 1, __version__)

    def listen(self, tell: Observers) -> None:
        """Hear of what *tell* tells from now on; each kind goes to who counts it."""
        tell.listen_later(self._models.rounds_ended, RoundEnded)
        tell.listen_later(self._calls.ended, CallEnded)
        tell.listen_later(self._answers.ended, RequestEnded)
        seldom: dict[type[Event], Callable[[Any], None]] = {
            ConnectionsTurnedAway: self._answers.turned_away,
            ListRefreshed: self._lists.refreshed,
            LoopLimited: self._answers.limited,
        }
        for kind, listener in seldom.items():
            tell.listen(listener, kind)
        self._deliver = tell.deliver

    def watch(self, series: Series, value: Callable[[], float | Histogram], *labels: str) -> None:
        """Export as *series*, with these values of its *labels*, what *value* then returns."""
        self._watched.setdefault(series, {})[labels] = value

    def declare(self, *every: Series) -> None:
        """Export these series though they have no value before any is watched."""
        for series in every:
            self._watched.setdefault(series, {})

    def watch_figure(
        self, series: Series, figures: Callable[[], Mapping[str, float]], key: str, *labels: str
    ) -> None:
        """Export one of the *figures* that something has of itself."""
        self.watch(series, lambda: figures()[key], *labels)

    @cached_property
    def registry(self) -> CollectorRegistry:
        """All of it, and what the system knows of the process, for prometheus_client."""
        return Collector(self._measured).registry()

    def collect(self) -> Iterator[Metric]:
        """What prometheus_client asks its collectors for."""
        return Collector(self._measured).collect()

    async def measured(self) -> list[Measured]:
        """All that this process has counted."""
        return list(self._measured())

    def _measured(self) -> Iterator[Measured]:
        self._deliver()
        yield from self._answers.measured()
        yield names.LIMITS_HIT, by_label(self._limits)
        yield from self._models.measured()
        yield from self._calls.measured()
        yield from self._lists.measured()
        for series, values in self._watched.items():
            yield series, [(labels, value()) for labels, value in values.items()]


def _nothing() -> None:
    """It hears of nothing."""
