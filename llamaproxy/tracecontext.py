"""The span that a coroutine works for, and what other servers are sent of it (W3C Trace Context).

There is one only where traces are on (:mod:`llamaproxy.admin.tracing`); without one, what a client
has sent is sent on (DESIGN: T4).
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Protocol

from llamaproxy.heads import Fields, without

#: The names of its fields, in lower case.
TRACE_FIELDS = (b"traceparent", b"tracestate")


class CurrentSpan(Protocol):
    """A span, for those who ask other servers on its behalf."""

    @property
    def fields(self) -> Fields:
        """Its ``traceparent``, and its ``tracestate`` if there is one."""

    def asks_mcp(self, method: str, number: int, revision: str) -> None:
        """An MCP server is sent a request of that *number* and *method*, in a *revision* of MCP."""


#: Coroutines keep it (PEP 567); what is called by a connection must have been given it.
current_span: ContextVar[CurrentSpan | None] = ContextVar("current_span", default=None)


def traced(fields: Fields) -> Fields:
    """*fields* with those of the current span, if there is one, in place of the client's."""
    span = current_span.get()
    return fields if span is None else [*without(fields, TRACE_FIELDS), *span.fields]
