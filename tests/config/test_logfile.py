"""The file of the log: moved, full, put aside and back again, and never lost."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.logger import globalLogPublisher

from llamaproxy.config import logfile
from llamaproxy.config.logfile import LogFile
from tests.test_twistd import TWISTD, environment


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """Why the old file is written on, each time that this is logged."""
    reasons: list[str] = []
    observe: Any = lambda event: reasons.append(event["reason"])  # noqa: E731
    globalLogPublisher.addObserver(observe)
    yield reasons
    globalLogPublisher.removeObserver(observe)


def test_a_file_that_was_moved_is_begun_anew_with_the_same_rights(
    tmp_path: Path, complaints: list[str]
) -> None:
    path = tmp_path / "log"
    path.touch()
    path.chmod(0o664)
    log = LogFile(str(path))
    log.write("one\n")
    path.rename(tmp_path / "moved")
    log.write("two\n")
    before = os.umask(0o077)
    try:
        log.reopen()
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    log.write("three\n")
    assert (tmp_path / "moved").read_text() == "one\ntwo\n"
    assert path.read_text() == "three\n" and path.stat().st_mode & 0o777 == 0o664
    assert not complaints


def test_a_file_that_cannot_be_opened_anew_is_written_on_until_it_can(
    tmp_path: Path, complaints: list[str]
) -> None:
    path, away = tmp_path / "logs" / "log", tmp_path / "away"
    path.parent.mkdir()
    log = LogFile(str(path))
    log.write("one\n")
    path.parent.rename(away)
    log.reopen()
    log.write("two\n")
    log.reopen()
    assert len(complaints) == 2 and all("No such file" in each for each in complaints)
    path.parent.mkdir()
    log.reopen()
    log.write("three\n")
    assert (away / "log").read_text() == "one\ntwo\n" and path.read_text() == "three\n"
    assert len(complaints) == 2


def test_what_comes_after_half_a_line_is_a_line_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    log = LogFile(str(path))
    room, write = 6, os.write

    def write_what_fits(descriptor: int, text: bytes) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        room -= (written := write(descriptor, text[:room]))
        return written

    monkeypatch.setattr(os, "write", write_what_fits)
    for _ in range(2):
        with pytest.raises(OSError, match="No space"):
            log.write("one\ntwo\n")
    room = 100
    log.write("three\n")
    log.write("four\n")
    assert path.read_text() == "one\ntw\nthree\nfour\n"


@pytest.fixture
def ten_bytes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files are full with ten bytes; the times of their ends, to be filled."""
    times: list[str] = []
    monkeypatch.setattr(logfile, "MAX_BYTES", 10)
    monkeypatch.setattr(time, "strftime", lambda _: times.pop(0))
    return times


def contents(directory: Path) -> dict[str, str]:
    return {each.name: each.read_text() for each in directory.iterdir()}


def test_a_full_file_is_put_aside_under_the_time_and_no_other_is_touched(
    tmp_path: Path, ten_bytes: list[str], complaints: list[str]
) -> None:
    (tmp_path / "log.1").write_text("older")
    log = LogFile(str(tmp_path / "log"))
    ten_bytes += ["T1", "T1", "T2"]
    for line in ("the first", "the second", "the third", "the fourth"):
        log.write(f"{line}\n")
    assert contents(tmp_path) == {
        "log.1": "older",
        "log.T1": "the first\n",
        "log.T2": "the second\nthe third\n",  # there was one of that second
        "log": "the fourth\n",
    }
    assert not ten_bytes and not complaints


def test_a_full_file_that_cannot_be_put_aside_is_written_on(
    tmp_path: Path, ten_bytes: list[str], complaints: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    log = LogFile(str(tmp_path / "log"))
    ten_bytes += ["T1", "T2"]
    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", refused)
        for line in ("one", "two", "three", "four"):
            log.write(f"{line}\n")
    assert contents(tmp_path) == {"log": "one\ntwo\nthree\nfour\n"}
    [reason] = complaints
    assert "Permission denied" in reason
    log.write("five\n")
    log.write("six\n")
    assert contents(tmp_path) == {"log.T2": "one\ntwo\nthree\nfour\nfive\n", "log": "six\n"}


def test_one_that_others_move_when_it_is_full_is_begun_anew(
    tmp_path: Path, ten_bytes: list[str], complaints: list[str]
) -> None:
    log = LogFile(str(tmp_path / "log"))
    ten_bytes += ["T1"]
    log.write("the first\n")
    (tmp_path / "log").rename(tmp_path / "moved")
    log.write("the second\n")
    assert contents(tmp_path) == {"moved": "the first\n", "log": "the second\n"}
    assert not complaints


def test_what_is_no_file_is_never_put_aside(ten_bytes: list[str]) -> None:
    log = LogFile("/dev/null")
    for _ in range(3):
        log.write("the same\n")
    assert Path("/dev/null").is_char_device() and not ten_bytes


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("-n", "--logfile=none/log"), "No such file or directory: '{at}/none/log'"),
        (("--logfile=none/log",), "No such file or directory: '{at}/none/log'"),
        ((), "Is a directory: '{at}/twistd.log'"),
    ],
)
def test_a_log_that_cannot_be_written_stops_the_start_with_one_line(
    tmp_path: Path, arguments: tuple[str, ...], reason: str
) -> None:
    (tmp_path / "twistd.log").mkdir()
    ended = subprocess.run(
        [*TWISTD, "--pidfile=", *arguments, "llamaproxy", "--demo", "--listen", "tcp:0"],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1 and ended.stdout == ""
    [line] = ended.stderr.splitlines()
    assert line.startswith("twistd llamaproxy: the log cannot be written: ")
    assert line.endswith(reason.format(at=tmp_path))
