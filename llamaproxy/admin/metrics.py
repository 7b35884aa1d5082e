"""Metrics: counters of events, and gauges, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge

from llamaproxy.events import CallEnded, Event, ListRefreshed, LoopLimited, RequestEnded


class Metrics:
    """A listener with counters in a registry of its own: two services in one process do not mix."""

    hears = (CallEnded, ListRefreshed, LoopLimited, RequestEnded)

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._tool_calls = Counter(
            "llamaproxy_tool_calls", "Server tools run.", ["outcome"], registry=self.registry
        )
        self._listing_failures = Counter(
            "llamaproxy_tool_listing_failures",
            "Tool lists, or groups of one, that could not be had.",
            registry=self.registry,
        )
        self._loops_ended = Counter(
            "llamaproxy_loops_ended",
            "Tool loops that were ended by a limit.",
            ["limit"],
            registry=self.registry,
        )
        self._errors = Counter(
            "llamaproxy_errors",
            "Requests that were answered with an error of the proxy's own, or the server's.",
            ["kind"],
            registry=self.registry,
        )

    def __call__(self, event: Event) -> None:
        match event:
            case CallEnded():
                self._tool_calls.labels("failed" if event.failed else "answered").inc()
            case ListRefreshed():
                missing = len(event.failures) + (event.groups_error is not None)
                self._listing_failures.inc(missing)
            case LoopLimited():
                self._loops_ended.labels(event.limit).inc()
            case RequestEnded() if "kind" in event.fields:
                self._errors.labels(event.fields["kind"]).inc()

    def watch(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        """Add the gauge *name*, whose value is that which *value* returns when it is read."""
        Gauge(name, meaning, registry=self.registry).set_function(value)
