"""The memory of each server while bytes pass that nobody should keep: ``--memory``."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .servers import Running, serving

GIB = 1024**3
UPLOAD = 2 * GIB
DOWNLOAD = 200 * 1024 * 1024
READERS = 500
_PIECE = bytes(65536)


class _Sink:
    """An upstream that takes any upload, and gives ``DOWNLOAD`` bytes to any GET."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        self.received = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError), connection.makefile("rb") as stream:
            while line := stream.readline():
                fields = dict(_fields(stream))
                self._upload(stream, fields)
                if line.startswith(b"GET /big"):
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % DOWNLOAD)
                    for _ in range(DOWNLOAD // len(_PIECE)):
                        connection.sendall(_PIECE)
                else:
                    status = b"404 Not Found" if b"/version" in line else b"200 OK"
                    connection.sendall(b"HTTP/1.1 %b\r\nContent-Length: 0\r\n\r\n" % status)

    def _upload(self, stream: object, fields: dict[bytes, bytes]) -> None:
        read: Callable[[int], bytes] = stream.read  # type: ignore[attr-defined]
        self.received = 0
        left = int(fields.get(b"content-length", b"0"))
        chunks = fields.get(b"transfer-encoding") == b"chunked"
        while left or chunks:
            if not left:
                line: bytes = stream.readline()  # type: ignore[attr-defined]
                left = int(line, 16)
                if not left:
                    stream.readline()  # type: ignore[attr-defined]
                    return
            data = read(min(left, 1024 * 1024))
            if not data:
                return
            left -= len(data)
            self.received += len(data)
            if not left and chunks:
                stream.readline()  # type: ignore[attr-defined]


def _fields(stream: object) -> Iterator[tuple[bytes, bytes]]:
    while line := stream.readline().strip():  # type: ignore[attr-defined]
        name, _, value = line.partition(b":")
        yield name.lower(), value.strip().lower()


def _connect(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=600)


def _upload(server: Running, head: bytes, frame: bytes, end: bytes) -> bytes:
    """Send ``UPLOAD`` bytes of body; the status line of the answer."""
    with _connect(server) as connection:
        connection.sendall(b"POST /v1/files HTTP/1.1\r\nHost: a\r\n" + head + b"\r\n\r\n")
        piece = frame % len(_PIECE) + _PIECE + b"\r\n" if frame else _PIECE
        for _ in range(UPLOAD // len(_PIECE)):
            connection.sendall(piece)
        connection.sendall(end)
        return connection.recv(4096).partition(b"\r\n")[0]


def _with_length(server: Running) -> str:
    return _upload(server, b"Content-Length: %d" % UPLOAD, b"", b"").decode()


def _in_chunks(server: Running) -> str:
    end = b"0\r\n\r\n"
    return _upload(server, b"Transfer-Encoding: chunked", b"%x\r\n", end).decode()


def _slow_readers(count: int) -> Callable[[Running], str]:
    def stall(server: Running) -> str:
        with contextlib.ExitStack() as open_ones:
            for _ in range(count):
                connection = open_ones.enter_context(_connect(server))
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
                connection.sendall(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
                connection.recv(1000)
            time.sleep(1)  # in which a server that ignores back-pressure takes all it can get
            return f"{server.memory('VmRSS'):.1f} MiB while they stall"

    return stall


def _left_behind(pid: int, seconds: float = 3) -> int:
    """How many temporary files a process has open, once it has had time to close them."""
    limit = time.monotonic() + seconds
    while (count := _temporary(pid)) and time.monotonic() < limit:
        time.sleep(0.1)  # until the connections are closed on its side, too
    return count


def _temporary(pid: int) -> int:
    count = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            count += str(link.readlink()).startswith("/tmp/") and "(deleted)" in str(
                link.readlink()
            )
    return count


def report(names: list[str]) -> None:
    """Print a line for each server and each thing that is watched."""
    watched: list[tuple[str, Callable[[Running], str]]] = [
        (f"{UPLOAD // GIB} GiB up with a length", _with_length),
        (f"{UPLOAD // GIB} GiB up in chunks", _in_chunks),
        ("200 MiB down, the client stops reading", _slow_readers(1)),
        (f"{READERS} slow readers", _slow_readers(READERS)),
    ]
    for name in names:
        for title, work in watched:
            sink = _Sink()
            with (
                tempfile.TemporaryDirectory() as directory,
                serving(name, sink.port, Path(directory), patience=600) as server,
            ):
                before, started = server.memory("VmRSS"), time.monotonic()
                said = work(server)
                seconds = time.monotonic() - started
                print(
                    f"{name:10} {title:40} at most {server.memory():6.1f} MiB (idle {before:.1f}),"
                    f" {seconds:.1f} s, {_left_behind(server.pid)} files left: {said}",
                    flush=True,
                )
            sink.close()
