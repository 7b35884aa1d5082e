"""The process that starts a program: nothing of that is left, whoever ends, and however."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llamaproxy.tools.mcp import reaper

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it cannot find them all")

#: Has two processes, of which one has left the group and the parent, and neither heeds SIGTERM.
STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
reading, writing = os.pipe()
if not os.fork():
    os.setsid()
    if not os.fork():
        os.write(writing, b"%d" % os.getpid())
        time.sleep(600)
    os._exit(0)
print(os.getpid(), os.read(reading, 99).decode(), flush=True)
if sys.argv[1] == "ends":
    os._exit(7)
time.sleep(600)
"""

#: A daemon that starts one.
DAEMON = """
import os, subprocess, sys, time
python, reaper, *rest = sys.argv[1:]
subprocess.Popen([python, reaper, str(os.getpid()), *rest])
time.sleep(600)
"""

PYTHON = (sys.executable, "-I", "-S")
PROGRAM = (*PYTHON, "-c", STUBBORN)


def started(*command: str, folder: str = "/") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PYTHON, reaper.__file__, str(os.getpid()), folder, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def pids(process: subprocess.Popen[str]) -> list[int]:
    assert process.stdout is not None
    return [int(pid) for pid in process.stdout.readline().split()]


def eventually(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def are_gone(numbers: list[int]) -> bool:
    return len(numbers) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in numbers)


def test_all_is_gone_when_the_program_ends() -> None:
    process = started(*PROGRAM, "ends")
    its = pids(process)
    assert process.wait(30) == 7
    assert are_gone(its)
    process.communicate()


def test_all_is_gone_when_it_is_to_be_killed() -> None:
    process = started(*PROGRAM, "stays")
    its = pids(process)
    process.send_signal(signal.SIGTERM)  # which they do not heed
    process.send_signal(reaper.KILL)
    assert process.wait(30) == -signal.SIGKILL
    assert are_gone(its)
    process.communicate()


def test_all_is_gone_when_the_daemon_is_killed() -> None:
    daemon = subprocess.Popen(
        [*PYTHON, "-c", DAEMON, sys.executable, reaper.__file__, "/", *PROGRAM, "stays"],
        stdout=subprocess.PIPE,
        text=True,
    )
    its = pids(daemon)
    daemon.kill()
    daemon.wait(30)
    eventually(lambda: are_gone(its))
    daemon.communicate()


def test_sigterm_reaches_what_the_program_has_started() -> None:
    process = started("sh", "-c", "sleep 600; echo ended by $?")
    eventually(lambda: len(list(reaper._descendants(process.pid))) == 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM
    process.communicate()


def test_a_program_begins_without_signals_ignored_or_blocked() -> None:
    before = signal.signal(signal.SIGQUIT, signal.SIG_IGN)  # as a shell does in the background
    try:
        process = started("grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status")
    finally:
        signal.signal(signal.SIGQUIT, before)
    text, _ = process.communicate(timeout=30)
    usual = (1 << 31) - 1  # the rest are the C library's own
    assert [int(line.split()[1], 16) & usual for line in text.splitlines()] == [0, 0]


def test_it_says_what_is_missing() -> None:
    process = started("sh", folder="/no/such")
    _, errors = process.communicate(timeout=30)
    assert errors == "cannot be started in /no/such: No such file or directory\n"
    assert process.wait(30) == 1


def test_a_signal_that_comes_while_it_starts_is_not_lost() -> None:
    for wait in range(20):
        process = started("sleep", "600")
        time.sleep(0.005 * wait)
        process.send_signal(reaper.KILL)
        assert process.wait(30) < 0
        process.communicate()


def test_what_is_for_the_daemon_does_not_end_it() -> None:
    process = started("sh", "-c", "echo started; read line; echo $line")
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGINT)
    assert process.communicate("still there\n", timeout=30)[0] == "still there\n"
    assert process.wait(30) == 0
