"""A crowd of clients that cost a server memory and give it nothing to do, and one that has work.

``python -m tests.benchmarks.crowd`` holds 2,000 idle connections, 500 half-sent requests and 500
slow readers at once against a started daemon, and tells what they cost: the delay of everybody
else's requests, and memory for each. No figure fails a build; ``tests/server/test_load.py`` has a
smaller crowd that can.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import re
import resource
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from tests.test_sockets import memory
from tests.test_twistd import Daemon

#: Bytes of the answer that slow readers ask for, and that each reads in a second.
BIG = 4 * 1024 * 1024
PACE = 4096


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An upstream: a big body under ``/big``, a small one elsewhere."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)\ncontent-length: *(\d+)", head)
            if length:
                await reader.readexactly(int(length[1]))
            while b"chunked" in head.lower():
                size = int(await reader.readuntil(b"\r\n"), 16)
                await reader.readexactly(size + 2)
                if not size:
                    break
            body = bytes(BIG) if b" /big " in head else b'{"data": []}'
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            await writer.drain()
    writer.close()


@contextlib.contextmanager
def upstream() -> Iterator[str]:
    """Run the upstream in a thread; its URL."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(
        asyncio.start_server(_serve, "127.0.0.1", 0, backlog=1024, limit=65536)
    )
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:

        async def end() -> None:
            server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            loop.stop()

        asyncio.run_coroutine_threadsafe(end(), loop)
        thread.join()
        loop.close()


@attrs.define
class Crowd:
    """Connections that are held open; the slow readers among them read a little each second."""

    port: int
    _held: list[socket.socket] = attrs.Factory(list)
    _slow: list[socket.socket] = attrs.Factory(list)
    _over: threading.Event = attrs.Factory(threading.Event)
    _reader: threading.Thread | None = None

    def idle(self, count: int) -> None:
        """Connections that have had an answer, and ask for nothing more."""
        for _ in range(count):
            held = self._connect()
            held.sendall(b"GET /health HTTP/1.1\r\nHost: proxy\r\n\r\n")
            held.recv(4096)

    def half_sent(self, count: int) -> None:
        """Requests whose head never ends."""
        for _ in range(count):
            self._connect().sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: proxy\r\n"
                b"Content-Type: application/json\r\nAuthoriz"
            )

    def slow_readers(self, count: int) -> None:
        """Readers of an answer of some megabytes, a few kilobytes each second."""
        for _ in range(count):
            held = self._connect(receive_buffer=8192)
            held.sendall(b"GET /big HTTP/1.1\r\nHost: proxy\r\n\r\n")
            self._slow.append(held)
        for held in self._slow:
            if not held.recv(PACE).startswith(b"HTTP/1.1 200 "):
                raise ValueError("a slow reader got no answer")
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def leave(self) -> None:
        """Everybody goes at once."""
        self._over.set()
        if self._reader is not None:
            self._reader.join()
        for held in self._held:
            held.close()

    def _connect(self, receive_buffer: int | None = None) -> socket.socket:
        held = socket.socket()
        self._held.append(held)
        held.settimeout(30)
        if receive_buffer is not None:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        held.connect(("127.0.0.1", self.port))
        return held

    def _read(self) -> None:
        while not self._over.is_set():
            for held in self._slow:
                with contextlib.suppress(BlockingIOError):
                    held.recv(PACE, socket.MSG_DONTWAIT)
                self._over.wait(1 / len(self._slow))


@contextlib.contextmanager
def crowded(port: int) -> Iterator[Crowd]:
    """A crowd that has left at the end of the block."""
    crowd = Crowd(port)
    try:
        yield crowd
    finally:
        crowd.leave()


# --- those who have work

#: Requests of the kinds that are timed: method, path, body.
KINDS = {
    "health": ("GET", "/health", None),
    "pass-through": ("GET", "/v1/models", None),
    "new connection": ("GET", "/health", None),
}


def ask(port: int, kind: str, count: int) -> list[float]:
    """Seconds that each of *count* requests took, one after the other."""
    method, path, body = KINDS[kind]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    waits = []
    with contextlib.closing(connection):
        for _ in range(count):
            began = time.perf_counter()
            connection.request(method, path, body)
            response = connection.getresponse()
            response.read()
            waits.append(time.perf_counter() - began)
            if response.status != 200:
                raise ValueError(f"{kind}: status {response.status}")
            if kind == "new connection":
                connection.close()
            time.sleep(0.002)  # a client, not a flood
    return waits


def metrics(admin: int) -> dict[str, float]:
    """What a daemon counts, by name."""
    connection = http.client.HTTPConnection("127.0.0.1", admin, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        said = connection.getresponse().read().decode()
    found = re.findall(r"(?m)^(\w+) ([\d.e+-]+)$", said)
    return {name: float(value) for name, value in found}


def allow_descriptors() -> None:
    """Raise the limit of descriptors as far as this process, and those it starts, may."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def settled(process: int) -> int:
    """Bytes of resident memory, once they no longer change."""
    before = -1
    for _ in range(50):
        now = memory(process)
        if now == before:
            break
        before = now
        time.sleep(0.3)  # a measurement: nothing tells when buffers are full
    return before


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.crowd")
    parser.add_argument("--idle", type=int, default=2000)
    parser.add_argument("--half", type=int, default=500)
    parser.add_argument("--slow", type=int, default=500)
    parser.add_argument("--requests", type=int, default=300, help="of each kind")
    options = parser.parse_args()
    allow_descriptors()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = stack.enter_context(upstream())
        daemon = Daemon(directory / "log", "--llamastack-url", url, "--header-timeout", "600")
        stack.callback(daemon.process.wait)
        stack.callback(daemon.process.kill)
        for kind in KINDS:
            ask(daemon.port, kind, 100)
        alone = {kind: ask(daemon.port, kind, options.requests) for kind in KINDS}
        crowd = stack.enter_context(crowded(daemon.port))
        steps: dict[str, tuple[Callable[[int], None], int]] = {
            "idle connection": (crowd.idle, options.idle),
            "half-sent request": (crowd.half_sent, options.half),
            "slow reader": (crowd.slow_readers, options.slow),
        }
        before = settled(daemon.process.pid)
        print(f"alone: {before / 1e6:.0f} MB")
        for name, (come, count) in steps.items():
            come(count)
            now = settled(daemon.process.pid)
            print(f"{count} times {name}: {(now - before) / 1000 / max(count, 1):.1f} kB each")
            before = now
        for kind in KINDS:
            amid = ask(daemon.port, kind, options.requests)
            medians = statistics.median(alone[kind]) * 1000, statistics.median(amid) * 1000
            worst = max(amid) * 1000
            print(
                f"{kind}: median {medians[0]:.2f} ms alone, {medians[1]:.2f} ms in the crowd "
                f"({medians[1] - medians[0]:+.2f}), at most {worst:.0f} ms"
            )
        print(f"altogether: {before / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
