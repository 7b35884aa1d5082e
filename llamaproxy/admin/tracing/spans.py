"""Spans: a listener that makes a span of each request, of its answer, its rounds and its calls.

They have the times of the records, and each is the current span
(:mod:`llamaproxy.tracecontext`) of the coroutine that tells of its beginning.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

import attrs
from opentelemetry.context import Context
from opentelemetry.trace import (
    Span,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    format_trace_id,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from llamaproxy.admin.names import ERROR_TYPE
from llamaproxy.admin.tracing import attributes as names
from llamaproxy.admin.tracing.attributes import Attributes
from llamaproxy.events import (
    CallBegan,
    CallEnded,
    ChatBegan,
    Event,
    RequestBegan,
    RequestEnded,
    RoundBegan,
    RoundEnded,
)
from llamaproxy.heads import Fields
from llamaproxy.records import CallRecord, ChatRecord, RequestRecord, RoundRecord
from llamaproxy.tracecontext import current_span

_PROPAGATOR = TraceContextTextMapPropagator()

_Part: TypeAlias = RoundRecord | CallRecord


@attrs.frozen(eq=False, repr=False)
class OpenSpan:
    """A span that has begun. Implements :class:`llamaproxy.tracecontext.CurrentSpan`.

    *context* is what its children begin in; *call* is what it is the span of, if that is a call.
    """

    span: Span
    context: Context
    fields: Fields
    call: CallRecord | None = None

    def asks_mcp(self, method: str, number: int, revision: str) -> None:
        if self.call is not None and self.span.is_recording():
            attributes = names.mcp_attributes(self.call, method, number, revision)
            self.span.set_attributes(attributes)

    def end(self, attributes: Attributes, error: str, ended: int, reason: str = "") -> None:
        """End it at the time *ended*, with an *error* if that is the type of one."""
        if self.span.is_recording():
            self.span.set_attributes(attributes)
            if error:
                self.span.set_attribute(ERROR_TYPE, error)
                self.span.set_status(Status(StatusCode.ERROR, names.words(reason) or None))
        self.span.end(ended)


@attrs.define(eq=False, repr=False)
class _Trace:
    """The spans of one request that have not ended.

    *offset* is the time of day, in ns, when the records' time was 0. It is that at the request's
    beginning, so that setting the clock moves no span of it.
    """

    offset: int
    request: OpenSpan
    agent: OpenSpan | None = None
    parts: dict[_Part, OpenSpan] = attrs.Factory(dict)

    def at(self, seconds: float) -> int:
        """The time of day, in ns, of a record's time."""
        return self.offset + round(seconds * 1e9)


class Spans:
    """Makes and ends spans. It holds those of requests that have not ended, and no others."""

    #: The events to be told of.
    hears = (
        *(RequestBegan, RequestEnded, ChatBegan),
        *(RoundBegan, RoundEnded, CallBegan, CallEnded),
    )

    def __init__(
        self,
        tracer: Tracer,
        now: Callable[[], float],
        upstream: str = "",
        scheme: str = "",
        newest: bool = False,
        time_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """:param now: returns the time as records have it; *time_ns* the time of day.

        :param upstream: the URL of the server that completions are asked for.

        :param scheme: that of all clients' requests; empty if there are several.

        :param newest: see :mod:`llamaproxy.admin.tracing.attributes`.
        """
        self._tracer = tracer
        self._now = now
        self._upstream = names.server_attributes(upstream)
        self._scheme: Attributes = {"url.scheme": scheme} if scheme else {}
        self._newest = newest
        self._time_ns = time_ns
        self._open: dict[RequestRecord, _Trace] = {}

    def __len__(self) -> int:
        return len(self._open)

    def __call__(self, event: Event) -> None:
        match event:
            case RequestBegan():
                current_span.set(self._request_began(event.request).request)
            case RequestEnded():
                self._request_ended(event.request)
            case ChatBegan():
                self._chat_began(event.chat)
            case RoundBegan():
                self._part_began(event.round)
            case RoundEnded():
                self._part_ended(event.round)
            case CallBegan():
                self._part_began(event.call)
            case CallEnded():
                self._part_ended(event.call)

    def end_all(self) -> None:
        """End what has not ended: the daemon stops."""
        for request in list(self._open):
            self._request_ended(request)

    def _request_began(self, request: RequestRecord) -> _Trace:
        offset = self._time_ns() - round(self._now() * 1e9)
        carrier = {"traceparent": request.traceparent, "tracestate": request.tracestate}
        span = self._tracer.start_span(
            names.request_name(request),
            _PROPAGATOR.extract(carrier, Context()),
            SpanKind.SERVER,
            names.request_attributes(request) | self._scheme,
            start_time=offset + round(request.began * 1e9),
        )
        request.trace_id = format_trace_id(span.get_span_context().trace_id)
        trace = self._open[request] = _Trace(offset, _opened(span))
        return trace

    def _request_ended(self, request: RequestRecord) -> None:
        # One that was refused has never begun.
        trace = self._open.get(request) or self._request_began(request)
        del self._open[request]
        ended = trace.at(self._now() if request.ended is None else request.ended)
        for part, open_span in trace.parts.items():
            # The client has left: what is done for it ends now.
            open_span.end(self._answer_of(part), "cancelled", ended)
        error, reason = names.request_error(request), request.error
        if trace.agent is not None and request.chat is not None:
            attributes = names.agent_answer_attributes(request.chat)
            trace.agent.end(attributes, error, ended, reason)
        attributes = names.answer_attributes(request)
        if error and names.is_clients_error(request):
            attributes[ERROR_TYPE] = error
            error = ""
        trace.request.span.update_name(names.request_name(request))
        trace.request.end(attributes, error, ended, reason)

    def _chat_began(self, chat: ChatRecord) -> None:
        if (trace := self._trace_of(chat)) is not None:
            attributes = names.agent_attributes(chat)
            began = trace.at(self._now())
            trace.agent = _opened(self._child(trace.request, "invoke_agent", attributes, began))
            current_span.set(trace.agent)

    def _part_began(self, part: _Part) -> None:
        if (trace := self._trace_of(part.chat)) is not None:
            trace.parts[part] = open_span = self._started(trace, part)
            current_span.set(open_span)

    def _part_ended(self, part: _Part) -> None:
        if (trace := self._trace_of(part.chat)) is None:
            return
        # A call that was not run has never begun.
        open_span = trace.parts.pop(part, None) or self._started(trace, part)
        current_span.set(trace.agent or trace.request)
        ended = trace.at(self._now() if part.ended is None else part.ended)
        if isinstance(part, RoundRecord):
            open_span.end(self._answer_of(part), part.kind, ended)
        else:
            open_span.end(self._answer_of(part), names.call_error(part), ended, part.reason)

    def _started(self, trace: _Trace, part: _Part) -> OpenSpan:
        parent = trace.agent or trace.request
        if isinstance(part, RoundRecord):
            attributes = names.round_attributes(part, self._newest) | self._upstream
            name, began = names.round_name(part), trace.at(part.began)
            return _opened(self._child(parent, name, attributes, began, SpanKind.CLIENT))
        began = trace.at(part.asked if part.began is None else part.began)
        span = self._child(parent, names.call_name(part), names.call_attributes(part), began)
        return _opened(span, part)

    def _child(
        self,
        parent: OpenSpan,
        name: str,
        attributes: Attributes,
        began: int,
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> Span:
        return self._tracer.start_span(name, parent.context, kind, attributes, start_time=began)

    def _trace_of(self, chat: ChatRecord) -> _Trace | None:
        """That of the request of *chat*, None once that has ended."""
        return None if chat.request is None else self._open.get(chat.request)

    def _answer_of(self, part: _Part) -> Attributes:
        if isinstance(part, RoundRecord):
            return names.round_answer_attributes(part, self._newest)
        return names.call_answer_attributes(part)


def _opened(span: Span, call: CallRecord | None = None) -> OpenSpan:
    """*span*, which has begun, with what is sent on of it."""
    context = set_span_in_context(span, Context())
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, context)
    fields = [(name.encode(), value.encode("latin-1")) for name, value in carrier.items()]
    return OpenSpan(span, context, fields, call)
