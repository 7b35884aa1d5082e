"""The log as JSON, one object a line, for those who feed it to a machine."""

from __future__ import annotations

import json
import sys
from typing import Any, TextIO

from twisted.logger import (
    FileLogObserver,
    ILogObserver,
    LogEvent,
    formatEvent,
    formatTime,
)


def json_to_stdout() -> ILogObserver:
    """An observer for twistd's ``--logger``."""
    return json_observer(sys.stdout)


def json_observer(stream: TextIO) -> ILogObserver:
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
