"""The servers that take part, each a process pinned to one CPU, and what /proc says of them."""

import contextlib
import http.client
import json
import os
import subprocess
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import attrs

from tests.real.processes import free_port as free_port  # those who compare have it from here

ROOT: Final = Path(__file__).resolve().parents[2]
"""The project's root, from which `llamaproxy` and its plugin are loaded."""

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_OURS: Final = ("LLAMAPROXY_", "LLAMASTACK_", "PROXY_PORT", "PYTHON")


class NotServing(Exception):
    """A server did not start; the message ends with the last lines that it wrote."""


@attrs.frozen
class Server:
    """A running server."""

    pid: int
    port: int

    def cpu(self) -> float:
        """CPU seconds used so far, in user and system mode, by all its threads and workers."""
        return sum(self.cpus().values())

    def cpus(self) -> dict[int, float]:
        """CPU seconds by process: itself, and those that it has started."""
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        own = [int(each) for task in tasks for each in (task / "children").read_text().split()]
        return {pid: _cpu_of(pid) for pid in (self.pid, *own)}

    def memory(self) -> float:
        """Resident memory now, in MB (millions of bytes)."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024 / 1e6
        raise LookupError("VmRSS")

    def get(self, path: str, seconds: float = 10) -> Any:
        """The JSON that it answers a GET with."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read()
            if response.status != 200:
                raise OSError(f"{path}: status {response.status}")
            return json.loads(body)
        finally:
            connection.close()


def _cpu_of(pid: int) -> float:
    """CPU seconds that one process has used.

    From the scheduler's own account, in nanoseconds, where the kernel keeps it; clock ticks of
    10 ms would be a percent of a second's run.
    """
    try:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    except FileNotFoundError:
        pass
    stat = Path(f"/proc/{pid}/stat").read_text()
    # The second field, the command in brackets, may itself hold spaces.
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


@contextlib.contextmanager
def serving(
    command: Sequence[str],
    port: int,
    cpus: Collection[int],
    log: Path,
    root: Path = ROOT,
    seconds: float = 20,
    ready: str = "/health",
) -> Iterator[Server]:
    """Run a server on some CPUs, from its first answer to GET `ready` until the end of the block.

    `root` is the checkout that it is loaded from, `seconds` how long it may take to start.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    # Its metrics belong to the cost; port 0 keeps clear of a daemon that already runs here.
    environment |= {
        "GOMAXPROCS": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # nothing here asks the internet
        "LLAMAPROXY_ADMIN": "tcp:0:interface=127.0.0.1",
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": f"{root}:{ROOT}",
    }
    with log.open("wb") as output, on(cpus):
        process = subprocess.Popen(
            command, cwd=root, env=environment, stdout=output, stderr=output, close_fds=True
        )
    try:
        server = Server(process.pid, port)
        if not _healthy(server, process, ready, seconds):
            last = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise NotServing(f"{' '.join(command)}\n{last}")
        yield server
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def on(cpus: Collection[int]) -> Iterator[None]:
    """Run on those CPUs what is started in the block: a process's threads inherit it."""
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)


def _healthy(server: Server, process: subprocess.Popen[bytes], ready: str, seconds: float) -> bool:
    """Wait until a server answers; false if it ended or the time is up."""
    limit = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < limit:
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            server.get(ready, 1)
            return True
        time.sleep(0.002)
    return False
