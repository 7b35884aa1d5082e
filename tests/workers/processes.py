"""A daemon with workers, and what the system says of its processes and their connections."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from tests.test_twistd import Daemon, question


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)  # until another process has done it; nothing tells


def children_of(pid: int) -> set[int]:
    """Processes that *pid* has started, and that have not been let go of."""
    with contextlib.suppress(OSError):
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return {int(each) for task in tasks for each in (task / "children").read_text().split()}
    return set()


def is_there(pid: int) -> bool:
    """Whether that process runs: one that has ended and is not let go of yet does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def server_of(client: http.client.HTTPConnection, pids: set[int]) -> int | None:
    """Which of the processes *pids* has accepted the connection of *client*."""
    assert client.sock is not None
    (_, near), (_, far) = client.sock.getsockname(), client.sock.getpeername()
    ends = f":{far:04X} ", f":{near:04X} "
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, *_, inode = line.split()[:10]
        if (f"{local[8:]} ", f"{remote[8:]} ") == ends:
            name = f"socket:[{inode}]"
            for pid in pids:
                for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                    with contextlib.suppress(OSError):
                        if os.readlink(descriptor) == name:
                            return pid
    return None


@attrs.define
class Stream:
    """A streamed chat under way."""

    connection: http.client.HTTPConnection
    response: http.client.HTTPResponse
    #: The process that answers.
    pid: int

    def end(self) -> bytes:
        """The rest of the answer, as far as it comes."""
        try:
            return self.response.read()
        except (http.client.IncompleteRead, ConnectionError):
            return b"cut"
        finally:
            self.connection.close()


class Workers:
    """A daemon with workers, all of which serve."""

    def __init__(self, log: Path, *arguments: str, count: int = 2) -> None:
        self.count = count
        demo = () if "--llamastack-url" in arguments else ("--demo",)
        self.daemon = Daemon(log, *demo, "--workers", str(count), *arguments)
        self.pid = self.daemon.process.pid
        self.seen: set[int] = set()
        self.wait_for(count)

    @property
    def log(self) -> str:
        return self.daemon.log.read_text()

    def wait_for(self, count: int) -> None:
        """Until so many workers have begun to serve since the start."""
        until(lambda: len(re.findall("serves as process", self.log)) >= count)
        self.seen |= self.pids

    @property
    def pids(self) -> set[int]:
        return children_of(self.pid)

    def stream(self, text: str) -> Stream:
        """A streamed chat whose head has come."""
        connection = http.client.HTTPConnection("127.0.0.1", self.daemon.port, timeout=60)
        body = json.dumps(question(text, stream=True))
        connection.request("POST", "/v1/chat/completions", body)
        pid = None
        for _ in range(100):  # it is accepted soon, if not yet
            if (pid := server_of(connection, self.pids)) is not None:
                break
            time.sleep(0.02)
        assert pid is not None
        return Stream(connection, connection.getresponse(), pid)

    def streams(self, text: str) -> list[Stream]:
        """Several, with at least one at every worker."""
        streams = [self.stream(text)]
        while len({each.pid for each in streams}) < self.count or len(streams) < 4:
            assert len(streams) < 50, "one worker takes all"
            streams.append(self.stream(text))
        return streams

    def send(self, number: int) -> None:
        self.daemon.process.send_signal(number)

    def ended(self) -> int:
        """The exit status; nothing is left of it."""
        status = self.daemon.process.wait(60)
        assert not any(map(is_there, self.seen))
        return status


@contextlib.contextmanager
def workers(log: Path, *arguments: str, count: int = 2) -> Iterator[Workers]:
    """Run a daemon with workers; whatever is left of it in the end is killed."""
    running = Workers(log, *arguments, count=count)
    try:
        yield running
    finally:
        left = running.seen | running.pids
        running.daemon.process.kill()
        running.daemon.process.wait()
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
