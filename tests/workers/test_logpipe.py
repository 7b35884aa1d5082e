"""A worker's log, and a parent that reads it, or does not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.logger import globalLogPublisher

from llamaproxy.workers.logpipe import LogPipe

LINE = "x" * 5000 + "\n"


class CountingLogPipe(LogPipe):
    """Its waits are counted, and in vain."""

    waits = 0

    def _writable(self, seconds: float) -> bool:
        if seconds:
            self.waits += 1
        return LogPipe._writable(self, 0)


class Pipe:
    """A pipe with a worker at one end."""

    def __init__(self) -> None:
        self.end, descriptor = os.pipe()
        os.set_blocking(self.end, False)
        self.descriptor = descriptor
        self.log = CountingLogPipe(descriptor)

    @property
    def waits(self) -> int:
        return self.log.waits

    def note(self, event: Any) -> None:
        self.log.write(event["log_format"].format(**event) + "\n")

    def read(self, size: int = 4 * 1024 * 1024) -> str:
        parts = []
        try:
            while size and (part := os.read(self.end, size)):
                parts.append(part)
                size -= len(part)
        except BlockingIOError:
            pass
        return b"".join(parts).decode()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    observer: Any = made.note
    globalLogPublisher.addObserver(observer)
    yield made
    globalLogPublisher.removeObserver(observer)
    for descriptor in (made.end, made.descriptor):
        os.close(descriptor)


def test_lines_come_as_they_are(pipe: Pipe) -> None:
    pipe.log.write("one line\n")
    pipe.log.write("another: \ud800\n")
    pipe.log.flush()
    assert pipe.read() == "one line\nanother: \\ud800\n" and not pipe.waits


@pytest.mark.parametrize("at_a_time", [1, 4])
def test_a_parent_that_reads_nothing_is_waited_for_once(pipe: Pipe, at_a_time: int) -> None:
    for _ in range(1000 // at_a_time):
        pipe.log.write(LINE * at_a_time)
    assert pipe.waits == 1
    come = pipe.read()
    pipe.log.write("later\n")
    come += pipe.read()
    *lines, note, last = come.splitlines(keepends=True)
    assert set(lines) == {LINE} and last == "later\n"
    assert note == f"{1000 - len(lines)} lines are lost: the parent did not read them\n"
    # It is waited for again.
    for _ in range(1000):
        pipe.log.write(LINE)
    assert pipe.waits == 2


def test_one_that_reads_a_little_gets_whole_lines(pipe: Pipe) -> None:
    come = ""
    for number in range(3000):
        pipe.log.write(f"{number} {LINE}")
        if number % 10 == 0:
            come += pipe.read(7001)
    come += pipe.read()
    pipe.log.write("later\n")
    come += pipe.read()
    *lines, last = come.splitlines()
    assert last == "later"
    whole = [line for line in lines if line.endswith(LINE.strip())]
    notes = [line for line in lines if line.endswith("the parent did not read them")]
    assert len(whole) + len(notes) == len(lines) and len(notes) > 2
    assert all(line.partition(" ")[2] + "\n" == LINE for line in whole)
    assert len(whole) + sum(int(note.partition(" ")[0]) for note in notes) == 3000


def test_where_nobody_is_any_more_lines_are_for_nobody(pipe: Pipe) -> None:
    os.close(pipe.end)
    pipe.log.write("nobody reads it\n")
    assert not pipe.waits
    pipe.end = os.dup(pipe.descriptor)


def test_lines_that_were_to_be_written_together_are_all_counted(pipe: Pipe) -> None:
    line = "x" * 4095 + "\n"
    for _ in range(1000):
        pipe.log.write(line * 2)  # whole pages: of the first that has no room nothing is sent
    come = pipe.read()
    pipe.log.write("later\n")
    *lines, note, _ = (come + pipe.read()).splitlines()
    assert note == f"{2000 - len(lines)} lines are lost: the parent did not read them"
