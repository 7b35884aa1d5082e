"""Those who watch a daemon on its admin port: a page that is open, and Prometheus.

Run as a module, with that port, it is both; in a process of its own, so that it is not the load
that its work delays.
"""

import contextlib
import http.client
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from .processes import ROOT, Server

_SCRAPES: Final = 1.0
"""Seconds between two scrapes: fifteen times as often as is usual."""
_LISTEN: Final = "0A"
"""The state of a socket that listens, in /proc/net/tcp."""


def admin_port(server: Server) -> int | None:
    """The port that it listens on besides that for clients; `None` if there is none."""
    own = set()
    for descriptor in Path(f"/proc/{server.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it has been closed meanwhile
            own.add(os.readlink(descriptor))
    for line in Path(f"/proc/{server.pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        port = int(fields[1].rpartition(":")[2], 16)
        if fields[3] == _LISTEN and f"socket:[{fields[9]}]" in own and port != server.port:
            return port
    return None


@contextlib.contextmanager
def watching(server: Server) -> Iterator[None]:
    """Have it watched while the block runs, if it has an admin port."""
    port = admin_port(server)
    if port is None:
        yield
        return
    command = [sys.executable, "-m", __name__, str(port)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as watchers:
        assert watchers.stdout is not None
        try:
            if watchers.stdout.readline() != b"watching\n":
                raise OSError("nobody watches")
            yield
            if watchers.poll() is not None:
                raise OSError("those who watched have given up")
        finally:
            watchers.kill()


def _read_feed(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/feed")
    answer = connection.getresponse()
    while answer.status == 200 and answer.read1(65536):
        pass


def _scrape(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        if answer.status != 200 or b"llamaproxy_" not in answer.read():
            raise OSError("no metrics")


def main(port: int) -> None:
    """Watch until killed; the first line that is printed says when it has begun."""
    threading.Thread(target=_read_feed, args=(port,), daemon=True).start()
    _scrape(port)
    print("watching", flush=True)
    while True:
        time.sleep(_SCRAPES)
        _scrape(port)


if __name__ == "__main__":
    main(int(sys.argv[1]))
