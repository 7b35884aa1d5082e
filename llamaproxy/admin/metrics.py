"""Metrics: counters of events, and gauges, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import attrs

from llamaproxy.events import CallEnded, Event, ListRefreshed, LoopLimited, RequestEnded

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric


@attrs.define(eq=False, repr=False)
class _Count:
    """What has been counted of one thing, and the Unix time since when."""

    value: int = 0
    since: float = attrs.Factory(time.time)


@attrs.frozen(eq=False, repr=False)
class _Counter:
    """Counts by the values of one label, or with no label under the empty value alone."""

    name: str
    meaning: str
    label: str = ""
    counts: dict[str, _Count] = attrs.Factory(dict)

    def add(self, value: str = "", amount: int = 1) -> None:
        self.counts.setdefault(value, _Count()).value += amount


class Metrics:
    """A listener with counters of its own: two services in one process do not mix.

    It is a collector of prometheus_client's, which many a daemon never needs.
    """

    hears = (CallEnded, ListRefreshed, LoopLimited, RequestEnded)

    def __init__(self) -> None:
        self._tool_calls = _Counter("llamaproxy_tool_calls", "Server tools run.", "outcome")
        self._listing_failures = _Counter(
            "llamaproxy_tool_listing_failures",
            "Tool lists, or groups of one, that could not be had.",
        )
        self._listing_failures.add(amount=0)
        self._loops_ended = _Counter(
            "llamaproxy_loops_ended", "Tool loops that were ended by a limit.", "limit"
        )
        self._errors = _Counter(
            "llamaproxy_errors",
            "Requests that were answered with an error of the proxy's own, or the server's.",
            "kind",
        )
        self._gauges: list[tuple[str, str, Callable[[], float]]] = []

    def __call__(self, event: Event) -> None:
        match event:
            case CallEnded():
                self._tool_calls.add(event.call.outcome)
            case ListRefreshed():
                missing = len(event.failures) + (event.groups_error is not None)
                self._listing_failures.add(amount=missing)
            case LoopLimited():
                self._loops_ended.add(event.chat.limit)
            case RequestEnded() if event.request.kind:
                self._errors.add(event.request.kind)

    def watch(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        """Add the gauge *name*, whose value is that which *value* returns when it is read."""
        self._gauges.append((name, meaning, value))

    @cached_property
    def registry(self) -> CollectorRegistry:
        """All of it, for prometheus_client."""
        from prometheus_client import CollectorRegistry  # loaded when somebody wants metrics

        registry = CollectorRegistry()
        registry.register(self)
        return registry

    def collect(self) -> Iterator[Metric]:
        """What prometheus_client asks its collectors for."""
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

        for each in (self._tool_calls, self._listing_failures, self._loops_ended, self._errors):
            labels = [each.label] if each.label else []
            family = CounterMetricFamily(each.name, each.meaning, labels=labels)
            for label, count in each.counts.items():
                family.add_metric([label] if each.label else [], count.value, count.since)
            yield family
        for name, meaning, value in self._gauges:
            yield GaugeMetricFamily(name, meaning, value())
