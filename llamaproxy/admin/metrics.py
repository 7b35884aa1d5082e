"""Metrics: what is counted. Told of events; asked by nobody but the operator."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from llamaproxy.server.connections import Connections


class Metrics:
    """Counters in a registry of their own, so that two services in one process do not mix."""

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

    def watch(self, connections: Connections) -> None:
        """Tell, when asked, what *connections* there are."""
        for name, doc, count in (
            ("llamaproxy_connections", "Client connections.", lambda: connections.connected),
            ("llamaproxy_requests_running", "Requests served now.", lambda: connections.running),
        ):
            Gauge(name, doc, registry=self.registry).set_function(count)

    def tool_called(self, failed: bool) -> None:
        """A server tool was run."""
        self._tool_calls.labels("failed" if failed else "answered").inc()

    def listing_failed(self) -> None:
        """Tools could not be listed, of one group or all of them."""
        self._listing_failures.inc()

    def loop_ended(self, limit: str) -> None:
        """A tool loop was cut short by *limit*: ``rounds`` or ``repetition``."""
        self._loops_ended.labels(limit).inc()
