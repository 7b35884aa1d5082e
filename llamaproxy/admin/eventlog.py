"""The log lines of requests and tool calls: one for each that has ended."""

from __future__ import annotations

import time
from collections.abc import Mapping

from twisted.logger import LogEvent, Logger, LogLevel

from llamaproxy.config.logformat import FORMATTED
from llamaproxy.events import (
    CallCancelled,
    CallEnded,
    CallUnknown,
    Event,
    LoopLimited,
    RequestEnded,
)

_log = Logger()

#: Fields that are not repeated in the text of the access line.
_TEXT_OMITS = frozenset({"request", "kind"})


_EVERY_LINE: LogEvent = {
    "log_logger": _log,
    "log_namespace": _log.namespace,
    "log_source": None,
    "log_level": LogLevel.info,
    "log_format": FORMATTED,
}

#: What is logged.
LOGGED = (RequestEnded, CallEnded, CallCancelled, CallUnknown, LoopLimited)


def log_event(event: Event) -> None:
    """A listener that writes the log."""
    match event:
        case RequestEnded():
            _log_request(event)
        case CallEnded():
            _log_call(event)
        case CallCancelled():
            _log.info("tool {tool} was cancelled", tool=event.tool)
        case CallUnknown():
            # The name is the model's, which may be anything.
            _log.warn("the model called a tool that there is not")
        case LoopLimited():
            _log.warn("a tool loop was ended by the limit of {limit}", limit=event.limit)


def _log_call(ended: CallEnded) -> None:
    outcome = "failed" if ended.failed else "answered"
    where = f" ({ended.endpoint})" if ended.reason and ended.endpoint else ""
    _write(
        f"tool {ended.tool} of {ended.group} {outcome} in {ended.seconds:.3f} s"
        f"{ended.reason}{where}",
        {
            "tool": ended.tool,
            "group": ended.group,
            "outcome": outcome,
            "seconds": ended.seconds,
            "reason": ended.reason,
            "where": where,
        },
    )


def _log_request(ended: RequestEnded) -> None:
    """The access line; nothing of a query, a body or a credential is in it."""
    extra = "".join(
        [f", {name}: {value}" for name, value in ended.fields.items() if name not in _TEXT_OMITS]
    )
    _write(
        f"{ended.client} {ended.method} {ended.path} {ended.status} {ended.sent} bytes "
        f"{ended.seconds:.3f} s{extra}",
        {
            "client": ended.client,
            "method": ended.method,
            "path": ended.path,
            "status": ended.status,
            "sent": ended.sent,
            "seconds": ended.seconds,
            **ended.fields,
        },
    )


def _write(message: str, fields: Mapping[str, str | int | float]) -> None:
    """Log *message* with its *fields*: what Logger.info() takes several times as long for.

    There is a line for every request, and for every call.
    """
    _log.observer({**fields, **_EVERY_LINE, "log_time": time.time(), "message": message})
