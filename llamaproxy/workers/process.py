"""Worker: one process that serves clients, as its parent sees it."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import Factory, ProcessProtocol
from twisted.python.failure import Failure

from llamaproxy.config.options import Options
from llamaproxy.workers.life import Liveness
from llamaproxy.workers.lines import WholeLines
from llamaproxy.workers.link import LINK_FD, Link

#: The variable by which a process knows that it is a worker: its number, how many there are, the
#: module of its reactor, and the directory in which the paths of its arguments begin.
WORKER_VARIABLE = "LLAMAPROXY_WORKER"

#: A worker's descriptors beside its end of the link: of the memory that all share
#: (:class:`llamaproxy.workers.balance.Board`), and of the first of the sockets.
BOARD_FD = LINK_FD + 1
FIRST_PORT_FD = BOARD_FD + 1

#: What is said to one process alone: its service manager, and the sockets that it was given.
_NOT_INHERITED = frozenset(
    {
        *("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "MAINPID"),
        *("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID"),
    }
)

#: What a terminal and a service manager send to all processes of the daemon, and only the parent
#: acts on. A worker is started with them blocked, so that there is no moment in which it is not;
#: it takes SIGTERM when it is ready for it.
_BLOCKED = {signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM}


#: Bytes that are read at a time when there are so many (twisted.internet.fdesc), and seconds for
#: which what a worker writes may wait for more of it.
_READ_BYTES, _LOG_SECONDS = 8192, 0.02


class Worker(ProcessProtocol):
    """One process, from its start to its end; the next one in its place is another."""

    def __init__(
        self,
        number: int,
        since: float,
        restarts: int,
        link: Link,
        written: Callable[[bytes], object],
        complained: Callable[[Worker, bytes], object],
        ended: Callable[[Worker, str], object],
    ) -> None:
        """:param written: takes lines of its log; *complained*: those on its standard error;
        *ended* hears of its end, and how that came.
        """
        #: Its place, from 1 on.
        self.number = number
        #: The process id; 0 before there is one.
        self.pid = 0
        #: Where it is asked.
        self.link = link
        #: The Unix time of its start.
        self.since = since
        #: How many have ended in its place before.
        self.restarts = restarts
        #: Whether it serves clients.
        self.ready = False
        #: Whether it has been asked for a sign of life, and not given one yet.
        self.asked = False
        self.liveness = Liveness()
        self._lines = {
            1: WholeLines(written),
            2: WholeLines(lambda lines: complained(self, lines)),
        }
        self._ended = ended
        self._call_later: Callable[..., object]

    def start(self, reactor: Any, options: Options, board: int, ports: list[int]) -> None:
        """Start the process, with the daemon's own options.

        :param board: the descriptor of the memory that all share.

        :param ports: the descriptors of the sockets that it accepts connections of.

        :raises OSError: if it cannot be started.
        """
        self._call_later = reactor.callLater
        here, there = socket.socketpair()
        with here, there, open(os.devnull, "rb") as nothing:
            here.setblocking(False)
            there.setblocking(False)
            given = [nothing.fileno(), there.fileno(), board, *ports]
            places = [0, LINK_FD, BOARD_FD, *range(FIRST_PORT_FD, FIRST_PORT_FD + len(ports))]
            module = type(reactor).__module__
            role = f"{self.number} {options['workers']} {module} {options.directory}"
            with _signals_blocked():
                process = reactor.spawnProcess(
                    self,
                    sys.executable,
                    # Without -P the directory that it is started in would be searched for modules.
                    [sys.executable, "-P", "-m", "llamaproxy.worker", *options.arguments],
                    _environment(os.environ, role),
                    childFDs={1: "r", 2: "r", **dict(zip(places, given, strict=True))},
                )
            self.pid = process.pid
            linking = Factory.forProtocol(lambda: self.link)
            reactor.adoptStreamConnection(here.fileno(), socket.AF_UNIX, linking)

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it is still there."""
        transport: Any = self.transport
        with suppress(ProcessExitedAlready):
            transport.signalProcess(number)

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        self._lines[childFD].feed(data)
        if len(data) < _READ_BYTES:
            # That was all. What comes next is read together: each reading costs more than a line.
            transport: Any = self.transport
            transport.pauseProducing()
            self._call_later(_LOG_SECONDS, transport.resumeProducing)

    def processEnded(self, reason: Failure) -> None:
        for lines in self._lines.values():
            lines.end()
        status: Any = reason.value
        by_signal = getattr(status, "signal", None)
        self._ended(self, f"signal {by_signal}" if by_signal else f"status {status.exitCode}")


def _environment(environment: Mapping[str, str], role: str) -> dict[str, str]:
    """The environment of a worker: its parent's, its role, and where its parent finds modules."""
    kept = {name: value for name, value in environment.items() if name not in _NOT_INHERITED}
    places = [os.path.abspath(place) for place in sys.path]
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(places),
        WORKER_VARIABLE: role,
    }


@contextmanager
def _signals_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def reap_strangers(mine: Container[int]) -> None:
    """Let go of child processes that have ended, and that this process has not started.

    Those without a parent become children of process 1, which in a container may be this one.

    :param mine: processes that somebody else waits for.
    """
    with suppress(ChildProcessError):  # there is none
        while True:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None or ended.si_pid in mine:
                return
            os.waitpid(ended.si_pid, 0)
