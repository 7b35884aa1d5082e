"""The log lines of requests and tool calls: one for each that has ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from twisted.logger import LogEvent, Logger, LogLevel

from llamaproxy.config.logformat import FORMATTED, threshold
from llamaproxy.events import (
    CallEnded,
    ConnectionsTurnedAway,
    Event,
    LoopLimited,
    RequestEnded,
)
from llamaproxy.records import CallRecord, ChatRecord, RequestRecord

_log = Logger()

#: Calls of one answer that its line names.
_MAX_CALLS = 32

_EVERY_LINE: LogEvent = {
    "log_logger": _log,
    "log_namespace": _log.namespace,
    "log_source": None,
    "log_level": LogLevel.info,
    "log_format": FORMATTED,
}

#: What is logged.
LOGGED = (RequestEnded, CallEnded, LoopLimited, ConnectionsTurnedAway)


def log_event(event: Event) -> None:
    """A listener that writes the log."""
    match event:
        case RequestEnded():
            _log_request(event.request)
        case CallEnded():
            _log_call(event.call)
        case LoopLimited():
            _log.warn("a tool loop was ended by the limit of {limit}", limit=event.chat.limit)
        case ConnectionsTurnedAway():
            _log.warn(
                "{count} connections were closed without an answer: more than {limit} were open",
                count=event.count,
                limit=event.limit,
            )


def _log_call(call: CallRecord) -> None:
    if call.outcome == "unknown":
        # The name is the model's, which may be anything.
        _log.warn("the model called a tool that there is not")
        return
    if call.began is None or threshold.hides(LogLevel.info):
        return
    where = f" ({call.endpoint})" if call.reason and call.endpoint else ""
    if call.outcome == "cancelled":
        words = f"tool {call.tool} was cancelled"
    else:
        became = "answered" if call.outcome == "answered" else "failed"
        words = f"tool {call.tool} of {call.group} {became} in {call.seconds:.3f} s"
    _write(
        f"{words}{call.reason}{where}",
        {
            "tool": call.tool,
            "group": call.group,
            "outcome": call.outcome,
            "seconds": round(call.seconds, 6),
            "reason": call.reason,
            "where": where,
        },
    )


def _log_request(request: RequestRecord) -> None:
    """The one line of a request; nothing of a query, a body or a credential is in it."""
    if threshold.hides(LogLevel.info):
        return
    more = _more_of(request)
    extra = "".join([_TEXTS[name](value) for name, value in more.items() if name in _TEXTS])
    seconds = round(request.seconds, 6)
    _write(
        f"{request.client} {request.method} {request.path} {request.status} {request.sent} bytes "
        f"{seconds:.3f} s{extra}",
        {
            "client": request.client,
            "method": request.method,
            "path": request.path,
            "status": request.status,
            "sent": request.sent,
            "seconds": seconds,
            "request": request.id,
            **more,
        },
    )


def _more_of(request: RequestRecord) -> dict[str, Any]:
    """What a line says of a request where there is something to say."""
    fields: dict[str, Any] = {}
    if request.route:
        fields["route"] = request.route
    if request.first_byte is not None:
        fields["first_byte"] = round(request.first_byte - request.began, 6)
    if request.who:
        fields["who"] = request.who
    if (chat := request.chat) is not None:
        fields |= _chat_fields(chat)
    if request.kind:
        fields |= {"error": request.error, "kind": request.kind}
    if request.trace_id:
        fields["trace"] = request.trace_id
    return fields


def _chat_fields(chat: ChatRecord) -> dict[str, Any]:
    fields: dict[str, Any] = {"model": chat.model} if chat.model else {}
    if not chat.rounds:
        return fields
    fields |= {"tools": len(chat.offered), "rounds": len(chat.rounds), "calls": len(chat.calls)}
    if chat.calls:
        if failed := chat.failed:
            fields["failed"] = failed
        fields["ran"] = [
            {"tool": call.tool, "outcome": call.outcome, "seconds": round(call.seconds, 6)}
            for call in chat.calls[:_MAX_CALLS]
        ]
    for direction in ("input_tokens", "output_tokens"):
        counts = [n for each in chat.rounds if (n := getattr(each, direction)) is not None]
        if counts:
            fields[direction] = sum(counts)
    if chat.limit:
        fields["limit"] = chat.limit
    return fields


def _ran(calls: list[Any]) -> str:
    """The calls of an answer as text for people."""
    shown = "; ".join(
        f"{call['tool'] or 'unknown tool'} {call['outcome']} {call['seconds']:.3f} s"
        for call in calls
    )
    return f", ran: {shown}"


#: What people read of a field behind the beginning of the line; of the others nothing.
_TEXTS: dict[str, Callable[[Any], str]] = {
    "first_byte": ", first byte: {:.3f} s".format,
    **{
        name: f", {name.replace('_', ' ')}: {{}}".format
        for name in (
            *("who", "model", "tools", "rounds", "calls", "failed"),
            *("input_tokens", "output_tokens", "limit", "error", "trace"),
        )
    },
    "ran": _ran,
}


def _write(message: str, fields: Mapping[str, Any]) -> None:
    """Log *message* with its *fields*: what Logger.info() takes several times as long for.

    There is a line for every request, and for every call.
    """
    _log.observer({**fields, **_EVERY_LINE, "log_time": time.time(), "message": message})
