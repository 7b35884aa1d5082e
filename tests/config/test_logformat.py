"""The log: one line for each event, with the id of its request."""

from __future__ import annotations

import contextvars
import errno
import io
import json
import signal
import subprocess
import sys
import time
import unicodedata
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import Logger, LogLevel

from llamaproxy.admin.eventlog import log_event
from llamaproxy.config.logformat import (
    FORMATTED,
    MAX_MESSAGE,
    LateMessage,
    LineLog,
    format_json,
    format_text,
    safe,
    threshold,
)
from llamaproxy.events import RequestEnded, request_id
from llamaproxy.records import RequestRecord
from llamaproxy.server.logturns import LogTurns
from llamaproxy.server.prompt_writes import PromptWrites
from tests.test_twistd import PORT_LINE, TWISTD, Daemon, environment, free_port, question


def event(message: str, **more: Any) -> dict[str, Any]:
    head = {"log_time": 0.0, "log_namespace": "x", "log_level": LogLevel.info}
    return {**head, "log_format": "{said}", "said": message, **more}


@given(st.text())
def test_whatever_is_logged_is_one_line_that_does_nothing_to_a_terminal(message: str) -> None:
    line = format_text(event(message)) or "\n"
    assert line.endswith("\n") and len(line.splitlines()) == 1
    assert not [c for c in line[:-1] if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    assert len(line) < 12 * MAX_MESSAGE
    assert json.loads(format_json(event(message)))["message"] == safe(message)


@pytest.mark.parametrize(("level", "shown"), [("debug", 5), ("info", 4), ("warn", 3), ("error", 2)])
def test_what_is_below_the_level_is_not_even_formatted(level: str, shown: int) -> None:
    formatted: list[object] = []
    log = Logger(observer=LineLog(io.StringIO(), formatted.append))
    before = threshold.level
    threshold.level = level
    try:
        for each in ("debug", "info", "warn", "error", "critical"):
            getattr(log, each)("{value}", value=each)
    finally:
        threshold.level = before
    assert len(formatted) == shown


def test_a_line_of_a_request_that_nobody_sees_is_not_made() -> None:
    request = Mock(spec=RequestRecord)
    before = threshold.level
    threshold.level = "warn"
    try:
        log_event(RequestEnded(request))
    finally:
        threshold.level = before
    assert request.mock_calls == []


class Stream(io.StringIO):
    """Notes what is written at a time."""

    def __init__(self) -> None:
        io.StringIO.__init__(self)
        self.written: list[str] = []

    def write(self, text: str) -> int:
        self.written.append(text)
        return len(text)


def test_the_lines_of_a_turn_are_written_at_its_end_in_one_piece() -> None:
    stream, ends = Stream(), list[Any]()
    log = LineLog(stream, lambda each: f"{each['log_format']}\n")
    logger = Logger(observer=log)
    logger.info("before the first turn")
    log.at_end_of_turn = ends.append
    logger.info("one", may_wait=True)
    logger.info("two", may_wait=True)
    assert stream.written == ["before the first turn\n"]
    (end,) = ends
    end()
    assert stream.written[1:] == ["one\ntwo\n"]
    logger.info("three", may_wait=True)
    logger.info("another waits for nothing, and comes after what was before it")
    assert stream.written[2].startswith("three\nanother")
    ends[1]()
    assert len(stream.written) == 3 and len(ends) == 2
    logger.info("mine", may_wait=True)
    log.write("a worker's\n")
    assert stream.written[3] == "mine\na worker's\n"
    logger.info("the next turn", may_wait=True)
    assert len(ends) == 4, "its end is asked for again"


def test_a_line_that_cannot_be_made_is_told_of_and_the_others_are_written() -> None:
    def words() -> str:
        raise ValueError("no words")

    stream, ends = Stream(), list[Any]()
    log = LineLog(stream, format_text)
    log.at_end_of_turn = ends.append
    for message in ("one", LateMessage(words), LateMessage(lambda: "two")):
        log({"log_format": FORMATTED, "message": message, "may_wait": True})
    with pytest.raises(ValueError, match="no words"):
        ends[0]()
    (written,) = stream.written
    assert [line.split()[-1] for line in written.splitlines()] == ["one", "two"]
    log({"log_format": "three"})
    assert len(stream.written) == 2
    log({"log_format": FORMATTED, "message": LateMessage(words), "may_wait": True})
    log.write("a worker's\n")
    LogTurns(Clock(), lambda: log).stopService()
    assert stream.written[2:] == ["a worker's\n"]


def test_a_line_that_waits_has_the_id_of_its_own_request() -> None:
    stream, ends = Stream(), list[Any]()
    log = LineLog(stream, format_text)
    log.at_end_of_turn = ends.append
    for id in ("mine", ""):
        log({"log_format": "it waits", "may_wait": True, "request": id})
    contextvars.copy_context().run(_log_as, "another's", log)
    waited, of_none, another = stream.written[0].splitlines()
    assert waited.endswith("it waits [mine]") and another.endswith("at once [another's]")
    assert of_none.endswith("it waits")


def _log_as(id: str, log: LineLog) -> None:
    request_id.set(id)
    log({"log_format": "at once"})


def test_the_log_waits_for_ends_of_turns_only_while_there_are_any() -> None:
    clock = RunningClock()
    sockets, stream = PromptWrites(clock), Stream()
    log = LineLog(stream, lambda each: f"{each['log_format']}\n")
    turns = LogTurns(sockets, lambda: log)
    logger = Logger(observer=log)
    turns.startService()
    logger.info("not running yet", may_wait=True)
    assert len(stream.written) == 1
    clock.running.pop()()
    logger.info("running", may_wait=True)
    assert len(stream.written) == 1
    clock.advance(0)
    assert len(stream.written) == 2
    logger.info("stopping", may_wait=True)
    turns.stopService()
    logger.info("stopped", may_wait=True)
    assert stream.written[2:] == ["stopping\n", "stopped\n"]
    LogTurns(Clock(), lambda: log).startService()
    turns.startService()
    turns.stopService()
    clock.running.pop()()
    assert log.at_end_of_turn is None, "it had stopped before there were any"


class RunningClock(Clock):
    """A clock that begins to run when its user says so."""

    def __init__(self) -> None:
        Clock.__init__(self)
        self.running: list[Any] = []

    def callWhenRunning(self, called: Any) -> None:
        self.running.append(called)


@pytest.mark.parametrize(
    "unsafe", ["\x1b[2J", "\r", "\n2026 [x] forged", "\x9b", "\u202e", "\U000e0041"]
)
def test_controls_are_escaped(unsafe: str) -> None:
    line = format_text(event(f"tool a{unsafe}b"))
    assert line is not None and unsafe not in line and "tool a\\" in line


def test_a_long_message_is_cut() -> None:
    line = format_text(event("x" * 100_000))
    assert line is not None and len(line) < MAX_MESSAGE + 200
    assert "[and 96000 characters more]" in line


def test_a_line_has_the_id_of_its_request() -> None:
    assert "[r1]" in str(format_text(event("said", request="r1")))
    token = request_id.set("r2")
    try:
        assert str(format_text(event("said"))).endswith("said [r2]\n")
        assert json.loads(format_json(event("said")))["request"] == "r2"
    finally:
        request_id.reset(token)
    assert str(format_text(event("said"))).endswith("said\n")


def test_a_traceback_is_kept_in_lines_of_its_own() -> None:
    lines: list[str] = []
    log = Logger(observer=lambda each: lines.append(str(format_text(each))))  # type: ignore[arg-type]
    try:
        raise ValueError("a\nb\x1b")
    except ValueError:
        log.failure("it broke")
    assert lines[0].splitlines()[1].startswith("\tTraceback")
    assert "\x1b" not in lines[0]


def test_every_line_of_a_chat_has_its_id(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "log", "--demo")
    for number in range(2):
        daemon.get("/v1/chat/completions", "POST", question(f"What is {number}*7?"))
    daemon.get("/health")
    daemon.stop()
    lines = (tmp_path / "log").read_text().splitlines()
    chats = [line for line in lines if "tool calculate" in line or "POST /v1/chat" in line]
    ids = [line.rpartition("[")[2] for line in chats]
    assert len(ids) == 4 and ids[0] == ids[1] != ids[2] == ids[3]
    access = next(line for line in chats if "POST" in line)
    assert "tools: 4, rounds: 2, calls: 1" in access
    [health] = [line for line in lines if "GET /health 200" in line][-1:]
    assert health.rpartition("[")[2] not in ids


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_sigusr1_has_the_log_opened_anew_and_ends_nothing(tmp_path: Path, log_format: str) -> None:
    port = free_port()
    log, moved = tmp_path / "log", tmp_path / "log.1"
    listen = PORT_LINE.format(port=port)
    arguments = ["--demo", "--admin", "off", "--listen", listen, "--log-format", log_format]
    process = subprocess.Popen(
        [*TWISTD, "-n", "--pidfile=", "--logfile", str(log), "llamaproxy", *arguments],
        env=environment(),
    )
    waited_for(lambda: log.exists() and "the server at" in log.read_text())
    log.rename(moved)
    process.send_signal(signal.SIGUSR1)
    waited_for(log.exists)
    process.terminate()
    assert process.wait(20) == -signal.SIGTERM
    assert "Server Shut Down" in log.read_text()
    assert "Server Shut Down" not in moved.read_text()


def test_sigusr1_ends_nothing_where_there_is_no_file(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "log", "--demo")
    daemon.process.send_signal(signal.SIGUSR1)
    assert daemon.get("/health")[0] == 200
    daemon.stop()


def waited_for(reached: Any) -> None:
    for _ in range(300):
        if reached():
            return
        time.sleep(0.1)  # until another process has done it; nothing tells
    raise AssertionError("it did not come to that")


def test_the_formats_are_observers() -> None:
    from llamaproxy.config.logformat import json_observer

    stream = io.StringIO()
    observe: Any = json_observer(stream)
    observe(event("said"))
    assert json.loads(stream.getvalue())["message"] == "said"


class FullStream(io.StringIO):
    """One for which there is no room."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_where_there_is_no_room_lines_of_workers_are_lost_and_nothing_else() -> None:
    log = LineLog(FullStream(), lambda each: "line\n")
    log.write("a worker's\n")  # or the reactor would drop the worker's pipe
    log.at_end_of_turn = lambda work: None
    log({"log_format": "it waits", "may_wait": True})
    LogTurns(Clock(), lambda: log).stopService()
    with pytest.raises(OSError):
        Logger(observer=log).observer({"log_level": LogLevel.info})  # Twisted sees to it


@pytest.mark.parametrize("failing", [False, True])
def test_a_process_that_ends_in_the_middle_of_a_turn_writes_what_waits(failing: bool) -> None:
    script = f"""
import sys
from twisted.internet import reactor
from llamaproxy.config import logformat
from llamaproxy.workers.exit import end_with_failure
log = logformat.observer_on(sys.stdout)
log.at_end_of_turn = lambda work: None
if {failing}:
    end_with_failure(reactor)
log({{"log_format": "it waits", "may_wait": True}})
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True
    )
    assert ended.stdout.endswith("it waits\n") and ended.returncode == int(failing)


@pytest.mark.parametrize("to_file", [False, True])
def test_no_line_is_lost_for_a_letter_that_the_output_cannot_hold(
    tmp_path: Path, to_file: bool
) -> None:
    path = tmp_path / "log" if to_file else "-"
    script = f"""
from llamaproxy.config import logformat
logformat.path = {str(path)!r}
logformat.twistd_observer()({{"log_format": "\u20ac"}})
"""
    said = subprocess.run(
        [sys.executable, "-c", script],
        env={**environment(), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert said.stderr == ""
    written = (tmp_path / "log").read_text("utf-8") if to_file else said.stdout
    assert written.endswith("\u20ac\n" if to_file else "\\u20ac\n")
