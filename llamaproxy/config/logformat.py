"""The log: one observer for text and for JSON, in which every line of a request has its id.

A line is one line, whatever names or errors stand in it, and no longer than anybody reads.
"""

from __future__ import annotations

import atexit
import io
import json
import re
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any

from twisted.logger import (
    FileLogObserver,
    ILogObserver,
    LogEvent,
    LogLevel,
    formatEvent,
    formatTime,
)
from zope.interface import implementer

from llamaproxy.config.logfile import LogFile
from llamaproxy.events import request_id

#: The file to write to, None or ``-`` for the standard output, and the format: twistd's
#: ``--logger`` names a function without arguments, so both must be kept until that is called.
path: str | None = None
as_json = False

#: The number of the worker that this process is; None if it is none.
worker: int | None = None

#: The levels that can be asked for, the one that shows the most first. What is critical, a fault of
#: the program's own, is always shown.
LEVELS = ("debug", "info", "warn", "error")

#: The format of events that bring their message, as ``message``.
FORMATTED = "{message}"

#: What an event has whose line may wait for the end of the turn: those of requests are many.
MAY_WAIT = "may_wait"


class LateMessage:
    """The message of an event, which is made when it is read: of those of a turn, all at once.

    With many requests in a turn, each takes 1 to 2 % less CPU than if its lines were made between
    other work (measured with 32 clients).
    """

    __slots__ = ("_make",)

    def __init__(self, make: Callable[[], str]) -> None:
        self._make = make

    def __str__(self) -> str:
        return self._make()


#: What an event may have instead of fields: a function that returns them, for they are seldom
#: wanted.
MORE_FIELDS = "more_fields"

#: Characters of a message; what is longer is no message.
MAX_MESSAGE = 4000

#: What a line of JSON may have beside its time, level, logger, message, request and traceback.
#: Whatever else an event has stays out: a message, an argument, a result, a credential.
FIELDS = frozenset(
    {
        *("client", "method", "path", "route", "status", "sent", "seconds", "first_byte"),
        *("who", "trace", "model", "tools", "rounds", "calls", "failed", "ran"),
        *("input_tokens", "output_tokens", "limit", "error", "kind"),
        *("tool", "group", "endpoint", "outcome", "reason", "where"),
        *(
            "url",
            "version",
            "clients",
            "admin",
            "page",
            "interface",
            "count",
            "names",
            "name",
            "hint",
        ),
        *("groups", "groups_error", "requested", "possible", "hard", "worker", "pid", "line"),
    }
)

#: What would be a line of its own, or would make a terminal do something: controls, and those that
#: show nothing or turn the writing around.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


class Threshold:
    """The least level of the lines that are written; it can be changed while they are.

    *in_use*: whether there is a log that obeys it, for twistd may have been given another.
    """

    def __init__(self) -> None:
        self.in_use = False
        self.level = "info"

    @property
    def level(self) -> str:
        """One of :data:`LEVELS`."""
        return self._level

    @level.setter
    def level(self, level: str) -> None:
        self._level = level
        #: Levels, of ``LogLevel``, of which no line is written: who would take trouble over a line
        #: asks first.
        self.hidden = frozenset(map(LogLevel.levelWithName, LEVELS[: LEVELS.index(level)]))


#: That of this process's log.
threshold = Threshold()


@implementer(ILogObserver)
class LineLog:
    """Writes the lines that :data:`threshold` does not hide to *stream*, in a *format*.

    Lines that may wait (:data:`MAY_WAIT`) are made and written at the end of the reactor's turn,
    all of them by one call of the system; any other at once, after those that wait.
    """

    #: Has a function called at the end of the turn; None while no reactor runs.
    at_end_of_turn: Callable[[Callable[[], None]], None] | None = None

    def __init__(self, stream: Any, format: Callable[[LogEvent], str | None]) -> None:
        self._stream = stream
        self._format = format
        #: Events that wait, and lines of workers.
        self._waiting: list[LogEvent | str] = []

    def __call__(self, event: LogEvent) -> None:
        if event.get("log_level") in threshold.hidden:
            return
        self._waiting.append(event)
        if self.at_end_of_turn is None or not event.get(MAY_WAIT):
            self.flush()
        elif len(self._waiting) == 1:
            self.at_end_of_turn(self.flush)

    def write(self, lines: str) -> None:
        """Write *lines* that are formatted already, those of workers.

        Where the stream is broken they are lost, and there is no log to say so in.
        """
        self._waiting.append(lines)
        self.flush_anyhow()

    def flush(self) -> None:
        """Write what waits for the end of the turn."""
        waiting, self._waiting = self._waiting, []
        lines: list[str] = []
        failure: Exception | None = None
        for each in waiting:
            try:
                lines.append(each if isinstance(each, str) else self._format(each) or "")
            except Exception as error:
                failure = error  # no reason to lose the others
        if text := "".join(lines):
            self._stream.write(text)
            self._stream.flush()
        if failure is not None:
            raise failure

    def flush_anyhow(self) -> None:
        """The same, where nobody could do anything about a broken stream, or a broken line."""
        with suppress(Exception):
            self.flush()


#: That of this process; None if twistd was given another.
current: LineLog | None = None


def twistd_observer() -> ILogObserver:
    """An observer for twistd's ``--logger``.

    SIGUSR1, by which logrotate says that it has moved the file, has it opened anew; it never ends
    the process, as it would by itself.

    :raises SystemExit: with one clear line, if there can be no such file.
    """
    stream: Any = sys.stdout
    reopen: Callable[[], None] = _no_file_to_reopen
    if path is not None and path != "-":
        try:
            stream = LogFile(path)
        except OSError as error:
            raise SystemExit(f"twistd llamaproxy: the log cannot be written: {error}") from None
        reopen = stream.reopen
    elif isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")  # no line is lost for a letter in it

    def reopen_soon(number: int, frame: object) -> None:
        from twisted.internet import reactor

        scheduler: Any = reactor
        scheduler.callFromThread(reopen)

    signal.signal(signal.SIGUSR1, reopen_soon)
    return observer_on(stream)


def observer_on(stream: Any) -> ILogObserver:
    """The log of this process, on *stream*, in the format that was asked for."""
    global current
    threshold.in_use = True
    current = LineLog(stream, format_json if as_json else format_text)
    atexit.register(current.flush_anyhow)  # of a reactor that has not come to the end of its turn
    return current


def _no_file_to_reopen() -> None:
    """There is no file."""


def json_observer(stream: Any) -> ILogObserver:
    """An observer that writes JSON lines to *stream*."""
    return FileLogObserver(stream, format_json)


def safe(text: str) -> str:
    """*text* on one line, with escapes for what no terminal should be sent, and not too long."""
    if len(text) <= MAX_MESSAGE and text.isascii() and text.isprintable():
        return text
    if len(text) > MAX_MESSAGE:
        text = f"{text[:MAX_MESSAGE]} [and {len(text) - MAX_MESSAGE} characters more]"
    return _UNSAFE.sub(lambda unsafe: unsafe[0].encode("unicode_escape").decode("ascii"), text)


def format_text(event: LogEvent) -> str | None:
    """One event as a line of text, such as twistd itself would write."""
    message = _message(event)
    failure = event.get("log_failure")
    if failure is not None:
        message = "\n\t".join([message, *map(safe, failure.getTraceback().splitlines())])
    if not message:
        return None
    system = event.get("log_system")
    if system:
        system = safe(str(system))
    else:
        system = _system_of(str(event.get("log_namespace", "-")), event.get("log_level"))
    if worker is not None:
        message = f"worker {worker}: {message}"
    message = of_request(message, _request_of(event))
    return f"{_stamp(event)} [{system}] {message}\n"


def of_request(message: str, id: str) -> str:
    """*message* with the *id* of the request that it is about, if it is about one."""
    return f"{message} [{id}]" if id else message


@lru_cache(maxsize=256)
def _system_of(namespace: str, level: Any) -> str:
    return safe(f"{namespace}#{'-' if level is None else level.name}")


def format_json(event: LogEvent) -> str:
    """One event as one line: time, level, logger, message, and the plain values in it."""
    level = event.get("log_level")
    line: dict[str, Any] = {
        "time": _stamp(event),
        "level": level.name if level is not None else "info",
        "logger": event.get("log_namespace"),
        "message": _message(event),
    }
    if worker is not None:
        line["worker"] = worker
    if id := _request_of(event):
        line["request"] = id
    failure = event.get("log_failure")
    if failure is not None:
        line["traceback"] = failure.getTraceback()
    more: Callable[[], LogEvent] = event.get(MORE_FIELDS, dict)
    for key, value in {**event, **more()}.items():
        if key in FIELDS:
            line[key] = _plain(value)
    return json.dumps(line) + "\n"


def _plain(value: object) -> object:
    """*value* as JSON: what is text is safe, and what is anything else than plain is text."""
    if isinstance(value, float):
        return round(value, 6)
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {safe(str(key)): _plain(each) for key, each in value.items()}
    return safe(str(value))


def _message(event: LogEvent) -> str:
    """The words of *event*, safe; those that came formatted are not formatted again."""
    message: object = event.get("message")
    if event.get("log_format") == FORMATTED and message is not None:
        return safe(str(message))
    return safe(formatEvent(event))


def _stamp(event: LogEvent) -> str:
    """The time of *event*, to the second."""
    seconds: float | None = event.get("log_time")
    return "-" if seconds is None else _stamp_of(int(seconds))


@lru_cache(maxsize=2)
def _stamp_of(seconds: int) -> str:
    return formatTime(seconds)


def _request_of(event: LogEvent) -> str:
    """The id of the request that *event* is about; empty if it is about none."""
    id = event.get("request")
    return request_id.get() if id is None else str(id)
