"""The whole application in memory, whose spans are kept in memory too."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from twisted.internet.task import Clock

from llamaproxy.admin.tracing.spans import Spans

#: The time of day, in ns, when a test's clock is at 0.
MIDNIGHT = 1_700_000_000 * 10**9

#: A client's span, which is sampled, and its fields.
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}


class Traced:
    """Makes spans for a proxy of :mod:`tests.support`, which is given :attr:`options`."""

    def __init__(self, newest: bool = False, sampler: Any = None) -> None:
        self.clock = Clock()
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        tracer = provider.get_tracer("test")
        self.spans = Spans(
            tracer,
            self.clock.seconds,
            "http://stack:8321",
            "http",
            newest,
            lambda: MIDNIGHT + round(self.clock.seconds() * 1e9),
        )

    @property
    def options(self) -> dict[str, Any]:
        """For the proxy: its clock, and what hears of requests."""
        return {"clock": self.clock, "spans": self.spans}

    @property
    def ended(self) -> list[ReadableSpan]:
        """The spans that have ended, those that began earlier first."""
        spans: list[ReadableSpan] = list(self.exporter.get_finished_spans())
        return sorted(spans, key=lambda span: (span.start_time or 0, -(span.end_time or 0)))

    def named(self, name: str) -> ReadableSpan:
        """The one span of that name."""
        [span] = [span for span in self.ended if span.name == name]
        return span

    def tree(self) -> list[tuple[str, str]]:
        """The names of all spans, sorted, each with that of its parent."""
        names = {"": ""} | {id_of(span): span.name for span in self.ended}
        return sorted((span.name, names[parent_of(span)]) for span in self.ended)

    def traceparents(self, *names: str) -> list[str]:
        """What is sent on of each span of these names, those that began earlier first."""
        spans = [span for span in self.ended if span.name in names]
        flags = [f"{span.context.trace_flags:02x}" for span in spans]
        return [
            f"00-{trace_of(span)}-{id_of(span)}-{sampled}"
            for span, sampled in zip(spans, flags, strict=True)
        ]


def id_of(span: ReadableSpan) -> str:
    """The id of *span* as ``traceparent`` has it."""
    return f"{span.context.span_id:016x}"


def trace_of(span: ReadableSpan) -> str:
    """The id of the trace of *span*."""
    return f"{span.context.trace_id:032x}"


def parent_of(span: ReadableSpan) -> str:
    """The id of the parent of *span*, empty if it has none."""
    return "" if span.parent is None else f"{span.parent.span_id:016x}"


def said_of(span: ReadableSpan) -> dict[str, Any]:
    """The attributes of *span*."""
    return dict(span.attributes or {})
