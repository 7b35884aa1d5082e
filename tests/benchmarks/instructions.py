"""Instructions that the daemon executes for a piece of work, counted by valgrind's callgrind.

A count is the same on a busy machine as on a quiet one, to about half a percent, that of a loop to
two: it tells what a change brought where times cannot. The kernel's work is not in it.
"""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import attrs

from . import contenders, processes
from .canned import WORD
from .http1 import request, whole
from .works import BURST, BURSTS, CHAT, HEALTH, LOOP, completion

_LIMIT: Final = 60.0
"""Seconds without a byte after which the daemon counts as dead."""
_EVENTS: Final = 3
"""Events for each request that is made: an event costs little."""

REQUESTS: Final = {
    "pass-through": (HEALTH, 1.0),
    "chat, ten tools": (CHAT, 1.0),
    "one-tool loop": (LOOP, 1.0),
    f"{BURST} events at once": (BURSTS, 0.2),
}
"""What is asked, and how often for each request that is made of the others."""


@attrs.frozen
class Counted:
    """A daemon under callgrind, and where it leaves its counts."""

    server: processes.Server
    upstream: processes.Server
    directory: Path

    def control(self, *command: str) -> None:
        """Give callgrind a command, such as ``instrumentation on``."""
        subprocess.run(
            ["vgdb", f"--pid={self.server.pid}", "--wait=10", *command],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def spent(self, work: Callable[[int, int], None], amount: int) -> int:
        """Instructions from before `work` until after it."""
        self.control("zero")
        work(self.server.port, amount)
        before = set(self.directory.glob("callgrind.out.*"))
        self.control("dump", "benchmark")
        (dump,) = set(self.directory.glob("callgrind.out.*")) - before
        total = re.search(r"^(?:totals|summary): *(\d+)", dump.read_text(), re.MULTILINE)
        dump.unlink()
        if total is None:
            raise ValueError(f"no total in {dump.name}")
        return int(total[1])


def per_piece(counted: Counted, work: Callable[[int, int], None], amount: int) -> float:
    """Thousands of instructions for one of `amount` pieces of work.

    What twice as many cost, less what so many cost: what a connection or a stream costs once is in
    neither.
    """
    work(counted.server.port, amount)
    once = counted.spent(work, amount)
    twice = counted.spent(work, 2 * amount)
    return (twice - once) / amount / 1000


def answered(connection: socket.socket, asked: bytes) -> bytes:
    """The whole answer; :exc:`ValueError` if it is not a good one."""
    connection.sendall(asked)
    answer = b""
    while not whole(answer):
        if not (received := connection.recv(65536)):
            raise ValueError("closed before the answer's end")
        answer += received
    if not answer.startswith(b"HTTP/1.1 200"):
        raise ValueError(answer[:200].decode("latin-1"))
    return answer


def arrived(connection: socket.socket, ending: bytes) -> None:
    """Wait for bytes, among all that has come since this was last called."""
    received = b""
    while ending not in received:
        if not (more := connection.recv(65536)):
            raise ValueError("closed before the stream's end")
        received += more


def asking(asked: bytes) -> Callable[[int, int], None]:
    """The work of answering `asked` so many times, on one connection, one at a time."""

    def ask(port: int, amount: int) -> None:
        with socket.create_connection(("127.0.0.1", port), _LIMIT) as connection:
            for _ in range(amount):
                answered(connection, asked)

    return ask


def hearing(upstream: int) -> Callable[[int, int], None]:
    """The work of a stream of so many events, the next of which comes when the last has arrived."""
    following = request("GET", "/stub/next")

    def hear(port: int, amount: int) -> None:
        asked = completion("Tell me.", stream=True, max_tokens=amount, seed=0)
        with (
            socket.create_connection(("127.0.0.1", port), _LIMIT) as client,
            socket.create_connection(("127.0.0.1", upstream), _LIMIT) as stub,
        ):
            client.sendall(asked)
            arrived(client, b'"role"')
            for _ in range(amount):
                answered(stub, following)
                arrived(client, WORD)
            answered(stub, following)
            arrived(client, b"\r\n0\r\n\r\n")

    return hear


def measured(counted: Counted, amount: int) -> Iterator[tuple[str, float]]:
    """Name and thousands of instructions, of a piece of each kind of work."""
    for name, (asked, share) in REQUESTS.items():
        yield name, per_piece(counted, asking(asked), max(1, round(share * amount)))
    yield "streamed event", per_piece(counted, hearing(counted.upstream.port), _EVENTS * amount)


@contextlib.contextmanager
def counting(root: Path, logs: Path) -> Iterator[Counted]:
    """Run the daemon of the checkout `root` under callgrind, its counting switched on."""
    with contextlib.ExitStack() as running:
        cpus = sorted(os.sched_getaffinity(0))
        port = processes.free_port()
        upstream = running.enter_context(
            processes.serving(contenders.stub(port), port, cpus[:1], logs / "upstream.log")
        )
        port = processes.free_port()
        command = [
            *("valgrind", "--tool=callgrind", "--instr-atstart=no", "-q"),
            f"--callgrind-out-file={logs}/callgrind.out.%p",
            *contenders.llamaproxy(port, upstream.port),
        ]
        log = logs / "proxy.log"
        server = running.enter_context(
            processes.serving(command, port, cpus[-1:], log, root=root, seconds=120)
        )
        counted = Counted(server, upstream, logs)
        counted.control("instrumentation", "on")
        yield counted


def main(root: Path, amount: int) -> dict[str, float]:
    """Print a line for each kind of work; the same as a result, in thousands of instructions."""
    missing = [name for name in ("valgrind", "vgdb") if not shutil.which(name)]
    if missing:
        print(f"NOTHING IS COUNTED: there is no {' and no '.join(missing)}", file=sys.stderr)
        return {}
    result = {}
    with tempfile.TemporaryDirectory() as logs, counting(root, Path(logs)) as counted:
        for name, thousands in measured(counted, amount):
            print(f"{name:<20}{thousands:>10.1f} thousand instructions", flush=True)
            result[name] = thousands
    return result
