"""The log lines of requests and tool calls: one for each that has ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from twisted.logger import LogEvent, Logger, LogLevel

from llamaproxy.config import logformat
from llamaproxy.config.logformat import (
    FORMATTED,
    MAY_WAIT,
    MORE_FIELDS,
    LateMessage,
    of_request,
    safe,
    threshold,
)
from llamaproxy.events import (
    CallEnded,
    ConnectionsTurnedAway,
    Event,
    LoopLimited,
    RequestEnded,
    request_id,
)
from llamaproxy.records import CallRecord, ChatRecord, RequestRecord, RoundRecord

_log = Logger()

#: Calls of one answer that its line names.
_MAX_CALLS = 32

#: To ask LogLevel for it takes a call of a function each time.
_INFO = LogLevel.info

_EVERY_LINE: LogEvent = {
    "log_logger": _log,
    "log_namespace": _log.namespace,
    "log_source": None,
    "log_level": _INFO,
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
    if call.began is None or _INFO in threshold.hidden:
        return
    _write(partial(_words_of_call, call), partial(_call_fields, call), request_id.get())


def _words_of_call(call: CallRecord) -> str:
    if call.outcome == "cancelled":
        words = f"tool {call.tool} was cancelled"
    else:
        became = "answered" if call.outcome == "answered" else "failed"
        words = f"tool {call.tool} of {call.group} {became} in {call.seconds:.3f} s"
    return f"{words}{call.reason}{_where(call)}"


def _where(call: CallRecord) -> str:
    return f" ({call.endpoint})" if call.reason and call.endpoint else ""


def _call_fields(call: CallRecord) -> dict[str, Any]:
    return {**_call_of(call), "reason": call.reason, "where": _where(call)}


def _call_of(call: CallRecord) -> dict[str, Any]:
    return {
        "tool": call.tool,
        "group": call.group,
        "outcome": call.outcome,
        "seconds": call.seconds,
    }


def _log_request(request: RequestRecord) -> None:
    """The one line of a request; nothing of a query, a body or a credential is in it."""
    if _INFO not in threshold.hidden:
        _write(partial(_words_of, request), partial(_request_fields, request), request.id)


def _words_of(request: RequestRecord) -> str:
    """The line of *request* for people: where there is something to say, as there are many."""
    words = (
        f"{request.client} {request.method} {request.path} {request.status} "
        f"{request.sent} bytes {request.seconds:.3f} s"
    )
    if request.first_byte is not None:
        words += f", first byte: {request.first_byte - request.began:.3f} s"
    if request.who:
        words += f", who: {request.who}"
    if (chat := request.chat) is not None:
        words += _words_of_chat(chat)
    if request.kind:
        words += f", error: {request.error}"
    if request.trace_id:
        words += f", trace: {request.trace_id}"
    return words


def _words_of_chat(chat: ChatRecord) -> str:
    words = f", model: {chat.model}" if chat.model else ""
    rounds, calls = chat.rounds, chat.calls
    if not rounds:
        return words
    words += f", tools: {len(chat.offered)}, rounds: {len(rounds)}, calls: {len(calls)}"
    if calls:
        if failed := chat.failed:
            words += f", failed: {failed}"
        words += f", ran: {'; '.join(_ran(calls[:_MAX_CALLS]))}"
    taken, given = _tokens(rounds)
    if taken is not None:
        words += f", input tokens: {taken}"
    if given is not None:
        words += f", output tokens: {given}"
    return f"{words}, limit: {chat.limit}" if chat.limit else words


def _ran(calls: Sequence[CallRecord]) -> Iterator[str]:
    """What became of each; one group of a tool's name needs no naming."""
    several = len(calls) > 1 and (
        len({(call.tool, call.group) for call in calls}) > len({call.tool for call in calls})
    )
    for call in calls:
        of_group = f" of {call.group}" if several and call.group else ""
        yield f"{call.tool or 'unknown tool'}{of_group} {call.outcome} {call.seconds:.3f} s"


def _tokens(rounds: Sequence[RoundRecord]) -> tuple[int | None, int | None]:
    """What the model has taken in, and put out, as far as the server has told."""
    taken = [each.input_tokens for each in rounds if each.input_tokens is not None]
    given = [each.output_tokens for each in rounds if each.output_tokens is not None]
    return sum(taken) if taken else None, sum(given) if given else None


def _request_fields(request: RequestRecord) -> dict[str, Any]:
    """The line of *request* for machines."""
    fields: dict[str, Any] = {
        "client": request.client,
        "method": request.method,
        "path": request.path,
        "status": request.status,
        "sent": request.sent,
        "seconds": request.seconds,
    }
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
        fields["ran"] = [_call_of(call) for call in chat.calls[:_MAX_CALLS]]
    tokens = zip(("input_tokens", "output_tokens"), _tokens(chat.rounds), strict=True)
    fields |= {name: count for name, count in tokens if count is not None}
    if chat.limit:
        fields["limit"] = chat.limit
    return fields


def _write(words: Callable[[], str], fields: Callable[[], Mapping[str, Any]], request: str) -> None:
    """Log a line: what Logger.info() takes several times as long for.

    There is one for every request, and for every call.

    :param words: returns the message; *fields*: the fields of the line, should anybody want them.
    :param request: the id of the request that it is about.
    """
    event = {**_EVERY_LINE, "log_time": time.time(), "request": request}
    if logformat.current is None:
        # twistd was given a log that knows nothing of functions, nor of requests.
        event["message"] = of_request(safe(words()), request)
        event |= fields()
    else:
        event["message"], event[MORE_FIELDS] = LateMessage(words), fields
    _log.observer(event)
