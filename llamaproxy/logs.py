"""The log as JSON, one object a line; and what the access line says besides."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from twisted.logger import (
    FileLogObserver,
    ILogObserver,
    LogEvent,
    formatEvent,
    formatTime,
)
from twisted.python.logfile import LogFile

#: The file to write to, None or ``-`` for the standard output: twistd's ``--logger`` names a
#: function without arguments, so what its ``--logfile`` says must be kept until that is called.
path: str | None = None


def note(request: Any, **fields: str | int | float) -> None:
    """Have the access line of *request* say *fields* too, which hold nothing that a peer wrote."""
    request.log_fields = {**getattr(request, "log_fields", {}), **fields}


def twistd_observer() -> ILogObserver:
    """An observer for twistd's ``--logger``, which rotates files as twistd does."""
    if path in (None, "-"):
        return json_observer(sys.stdout)
    return json_observer(LogFile.fromFullPath(os.path.abspath(path)))


def json_observer(stream: Any) -> ILogObserver:
    """An observer that writes JSON lines to *stream*."""
    return FileLogObserver(stream, format_json)


def format_json(event: LogEvent) -> str:
    """One event as one line: time, level, logger, message, and the plain values in it."""
    level = event.get("log_level")
    line: dict[str, Any] = {
        "time": formatTime(event.get("log_time")),
        "level": level.name if level is not None else "info",
        "logger": event.get("log_namespace"),
        "message": formatEvent(event),
    }
    failure = event.get("log_failure")
    if failure is not None:
        line["traceback"] = failure.getTraceback()
    for key, value in event.items():
        if not key.startswith("log_") and isinstance(value, str | int | float | bool):
            line.setdefault(key, value)
    return json.dumps(line) + "\n"
