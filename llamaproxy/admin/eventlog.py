"""The log lines of requests and tool calls: one for each that has ended."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from twisted.logger import LogEvent, Logger, LogLevel

from llamaproxy.config.logformat import FORMATTED, MAY_WAIT, threshold
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
    MAY_WAIT: True,
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
            "seconds": call.seconds,
            "reason": call.reason,
            "where": where,
        },
    )


def _log_request(request: RequestRecord) -> None:
    """The one line of a request; nothing of a query, a body or a credential is in it."""
    if threshold.hides(LogLevel.info):
        return
    more = _more_of(request)
    seconds = request.seconds
    _write(
        f"{request.client} {request.method} {request.path} {request.status} {request.sent} bytes "
        f"{seconds:.3f} s{_text_of(more)}",
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
        fields["first_byte"] = request.first_byte - request.began
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
            {
                "tool": call.tool,
                "group": call.group,
                "outcome": call.outcome,
                "seconds": call.seconds,
            }
            for call in chat.calls[:_MAX_CALLS]
        ]
    for direction in ("input_tokens", "output_tokens"):
        counts = [n for each in chat.rounds if (n := getattr(each, direction)) is not None]
        if counts:
            fields[direction] = sum(counts)
    if chat.limit:
        fields["limit"] = chat.limit
    return fields


def _text_of(fields: dict[str, Any]) -> str:
    """What people read of *fields*, behind the beginning of the line."""
    if calls := fields.get("ran"):
        fields = {**fields, "ran": "; ".join(_ran(calls))}
    return _format_of(tuple(fields)) % fields


def _ran(calls: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What became of each; one group of a tool's name needs no naming."""
    names = {call["tool"] for call in calls}
    several = len({(call["tool"], call["group"]) for call in calls}) > len(names)
    for call in calls:
        of_group = f" of {call['group']}" if several and call["group"] else ""
        name = call["tool"] or "unknown tool"
        yield f"{name}{of_group} {call['outcome']} {call['seconds']:.3f} s"


@lru_cache(maxsize=256)
def _format_of(names: tuple[str, ...]) -> str:
    """What shows the fields of these *names*: one format takes a third of the time of ten."""
    return "".join([_FORMATS.get(name, "") for name in names])


#: What shows a field; the others are not shown.
_FORMATS = {
    "first_byte": ", first byte: %(first_byte).3f s",
    **{
        name: f", {name.replace('_', ' ')}: %({name})s"
        for name in (
            *("who", "model", "tools", "rounds", "calls", "failed", "ran"),
            *("input_tokens", "output_tokens", "limit", "error", "trace"),
        )
    },
}


def _write(message: str, fields: Mapping[str, Any]) -> None:
    """Log *message* with its *fields*: what Logger.info() takes several times as long for.

    There is a line for every request, and for every call.
    """
    _log.observer({**_EVERY_LINE, **fields, "log_time": time.time(), "message": message})
