"""Reaper: a process that starts one program, and leaves nothing of it when that, or itself, ends.

It is run by its path, ``reaper.py PARENT FOLDER PROGRAM ARGUMENT...``, with no other module of this
package. SIGTERM is for the program and all that it has started; so is ``KILL``, and nothing of them
outlives it. On Linux that holds for those too that have left the program's process group, or whose
parents have ended (``PR_SET_CHILD_SUBREAPER``), and when the daemon is killed
(``PR_SET_PDEATHSIG``); elsewhere it holds for the process group.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import NoReturn

#: What Python ignores, and what a shell ignores for those that it starts in the background.
_IGNORED = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGQUIT)

#: The signal with which the daemon has everything killed at once; SIGKILL would end the reaper.
KILL = signal.SIGUSR1

#: What the reaper itself takes.
_SIGNALS = (signal.SIGTERM, KILL, signal.SIGALRM)

#: What is meant for the daemon, and sent to whatever has its name in its command line.
_NOT_FOR_IT = (signal.SIGHUP, signal.SIGINT)

#: Seconds that everything is given to end after SIGTERM once the daemon is gone, and to be gone
#: once it is killed: longer takes only what hangs in the kernel.
_GRACE_SECONDS, _KILL_SECONDS = 2.0, 5.0

#: prctl's.
_PDEATHSIG, _CHILD_SUBREAPER = 1, 36


class Reaper:
    """Of the program that *command* starts in *folder*, for the daemon whose pid is *parent*."""

    def __init__(self, parent: int, folder: str, command: list[str]) -> None:
        self._parent = parent
        self._folder = folder
        self._command = command
        #: Its pid, and the id of its process group; 0 until there is one.
        self._program = 0
        self._status: int | None = None

    def run(self) -> int:
        """Start it, and wait for its end; its status, as of :func:`os.waitpid`."""
        os.setsid()  # what is sent to the daemon's process group is not for it
        # What comes before this ends the reaper; what comes after it waits for the program.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        for number in _SIGNALS:
            signal.signal(number, self.terminate if number == signal.SIGTERM else self.kill)
        for number in _NOT_FOR_IT:
            signal.signal(number, signal.SIG_IGN)
        _prctl(_CHILD_SUBREAPER, 1)
        _prctl(_PDEATHSIG, signal.SIGTERM)
        self._program = os.fork()
        if not self._program:
            self._become_program()
        for descriptor in (0, 1, 2):  # they are the program's alone
            os.close(descriptor)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        if os.getppid() != self._parent:  # it was gone before that could be noticed
            self.terminate()
        with suppress(ChildProcessError):
            while self._status is None:
                self._reap(0)
        self.kill()
        return self._status or 0

    def _become_program(self) -> NoReturn:
        try:
            os.setsid()
            _prctl(_PDEATHSIG, signal.SIGKILL)
            for number in (*_SIGNALS, *_NOT_FOR_IT, *_IGNORED):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            what = f"cannot be started in {self._folder}"
            os.chdir(self._folder)
            what = "cannot be started"
            os.execvp(self._command[0], self._command)
        except OSError as error:
            os.write(2, f"{what}: {error.strerror}\n".encode("utf-8", "replace"))
        finally:
            os._exit(1)

    def terminate(self, *_: object) -> None:
        """Have all of them end, and see to it if nobody else will."""
        self._signal(signal.SIGTERM)
        if os.getppid() != self._parent:
            signal.setitimer(signal.ITIMER_REAL, _GRACE_SECONDS)

    def kill(self, *_: object) -> None:
        """Kill all of them, and what they start meanwhile; return when none are left."""
        until = time.monotonic() + _KILL_SECONDS
        with suppress(ChildProcessError):  # there are no more
            while time.monotonic() < until:
                self._signal(signal.SIGKILL)
                if not self._reap(os.WNOHANG):
                    time.sleep(0.005)

    def _reap(self, options: int) -> bool:
        """Take note of one that has ended; whether there was one.

        :raises ChildProcessError: if there are no processes any more.
        """
        pid, status = os.waitpid(-1, options)
        if pid == self._program:
            self._status = status
        return pid != 0

    def _signal(self, number: int) -> None:
        """Send it to the program, and to all that it has started."""
        if self._program:
            with suppress(OSError):
                os.killpg(self._program, number)
        for pid in _descendants(os.getpid()):
            with suppress(OSError):
                os.kill(pid, number)


def _descendants(pid: int) -> Iterator[int]:
    """The processes that *pid* has started, those that these have, and so on."""
    children: dict[int, list[int]] = {}
    with suppress(OSError):  # there is no /proc elsewhere than on Linux
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with suppress(OSError), open(f"/proc/{entry}/stat", "rb") as file:
                    parent = int(file.read().rpartition(b")")[2].split()[1])
                    children.setdefault(parent, []).append(int(entry))
    waiting = children.pop(pid, [])
    while waiting:
        each = waiting.pop()
        yield each
        waiting += children.pop(each, [])


def _prctl(option: int, value: int) -> None:
    """Linux's prctl, for what it is worth."""
    with suppress(Exception):
        import ctypes

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _end_as(status: int) -> NoReturn:
    """End as the program did that had that *status*."""
    if os.WIFSIGNALED(status):
        with suppress(Exception):
            import resource

            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the program has left one, if wanted
        number = os.WTERMSIG(status)
        with suppress(OSError):  # SIGKILL has no handler
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(status))


if __name__ == "__main__":
    _end_as(Reaper(int(sys.argv[1]), sys.argv[2], sys.argv[3:]).run())
