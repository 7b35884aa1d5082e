"""The log lines of requests and tool calls: one for each that has ended."""

from __future__ import annotations

import time

from twisted.logger import LogEvent, Logger, LogLevel

from llamaproxy.config.logformat import FORMATTED, threshold
from llamaproxy.events import (
    CallEnded,
    Event,
    LoopLimited,
    RequestEnded,
)
from llamaproxy.records import CallRecord, RequestRecord

_log = Logger()

#: What is logged.
LOGGED = (RequestEnded, CallEnded, LoopLimited)


def log_event(event: Event) -> None:
    """A listener that writes the log."""
    match event:
        case RequestEnded():
            _log_request(event.request)
        case CallEnded():
            _log_call(event.call)
        case LoopLimited():
            _log.warn("a tool loop was ended by the limit of {limit}", limit=event.chat.limit)


def _log_call(call: CallRecord) -> None:
    if call.outcome == "unknown":
        # The name is the model's, which may be anything.
        _log.warn("the model called a tool that there is not")
        return
    if call.began is None or threshold.hides(LogLevel.info):
        return
    if call.outcome == "cancelled":
        _log.info("tool {tool} was cancelled", tool=call.tool)
        return
    outcome = "answered" if call.outcome == "answered" else "failed"
    where = f" ({call.endpoint})" if call.reason and call.endpoint else ""
    _write(
        f"tool {call.tool} of {call.group} {outcome} in {call.seconds:.3f} s{call.reason}{where}",
        tool=call.tool,
        group=call.group,
        outcome=outcome,
        seconds=call.seconds,
        reason=call.reason,
        where=where,
    )


def _log_request(request: RequestRecord) -> None:
    """The access line; nothing of a query, a body or a credential is in it."""
    if threshold.hides(LogLevel.info):
        return
    fields: dict[str, str | int | float] = {}
    chat = request.chat
    if chat is not None and chat.rounds:
        fields |= {
            "tools": len(chat.offered),
            "rounds": len(chat.rounds),
            "calls": len(chat.calls),
        }
        if failed := chat.failed:
            fields["failed"] = failed
    if request.kind:
        fields["error"] = request.error
    extra = "".join([f", {name}: {value}" for name, value in fields.items()])
    if request.kind:
        fields["kind"] = request.kind
    _write(
        f"{request.client} {request.method} {request.path} {request.status} {request.sent} bytes "
        f"{request.seconds:.3f} s{extra}",
        client=request.client,
        method=request.method,
        path=request.path,
        status=request.status,
        sent=request.sent,
        seconds=request.seconds,
        request=request.id,
        **fields,
    )


def _write(message: str, **fields: str | int | float) -> None:
    """Log *message* with its *fields*: what Logger.info() takes several times as long for.

    There is a line for every request, and for every call.
    """
    line: LogEvent = {
        **fields,
        "log_logger": _log,
        "log_namespace": _log.namespace,
        "log_source": None,
        "log_level": LogLevel.info,
        "log_time": time.time(),
        "log_format": FORMATTED,
        "message": message,
    }
    _log.observer(line)
