"""An upstream of threads and blocking sockets: records every request, answers as it is told."""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import struct
import threading
import time
from collections.abc import Callable

import attrs

from .wire import (
    CLOSE,
    READ_BODY,
    RESET,
    Fields,
    Malformed,
    Pause,
    Sign,
    Step,
    dechunked,
    fields_of,
    values,
)

KEPT = 1024 * 1024
"""Bytes of a body that are kept; the rest only counts in its length and its hash."""

ECHO: tuple[Step, ...] = ()
"""No steps of its own: the answer names the request's method and target."""


@attrs.define
class Seen:
    """A request that the upstream saw; it is *complete* once its body has come to its end."""

    line: bytes
    head: bytes
    fields: Fields
    body: bytes = b""
    size: int = 0
    sha: str = ""
    complete: bool = False
    trailers: Fields = ()

    @property
    def method(self) -> bytes:
        return self.line.partition(b" ")[0]

    @property
    def target(self) -> bytes:
        return self.line.partition(b" ")[2].rpartition(b" ")[0]

    def values(self, name: str) -> list[bytes]:
        """The values of a field, in their order."""
        return values(self.fields, name)


@attrs.frozen
class Answer:
    """What the upstream does when asked: once the whole request has come, or after its head."""

    steps: tuple[Step, ...] = ECHO
    early: bool = False


class Upstream:
    """Listens on a loopback port of the system's choice until the end of its block."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._seen: list[Seen] = []
        self._garbage: list[str] = []
        self._answers: list[Answer] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Upstream:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def prepare(self, answers: tuple[Answer, ...]) -> None:
        """Forget what was seen; give these answers in turn, the last one again and again."""
        with self._lock:
            self._seen, self._garbage, self._answers = [], [], list(answers)

    @property
    def seen(self) -> list[Seen]:
        """The requests seen since :meth:`prepare`."""
        with self._lock:
            return list(self._seen)

    @property
    def garbage(self) -> list[str]:
        """What came since :meth:`prepare` and was no request."""
        with self._lock:
            return list(self._garbage)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._connections.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                _Conversation(self, connection).run()
        except (OSError, EOFError):
            pass
        except Malformed as error:
            with self._lock:
                self._garbage.append(str(error))
        finally:
            with self._lock:
                self._connections.discard(connection)

    def record(self, request: Seen) -> Answer:
        """Note a request, and say what is to be done about it."""
        # The probes of the runner do not count, nor do the daemon's questions what the server is,
        # and whether it has tools.
        if request.target.startswith((b"/probe", b"/health")):
            return Answer()
        if request.target in (b"/v1/version", b"/tools"):
            return Answer((b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",))
        with self._lock:
            self._seen.append(request)
            return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


class _Conversation:
    """The requests of one connection, one after the other."""

    def __init__(self, upstream: Upstream, connection: socket.socket) -> None:
        self._upstream = upstream
        self._connection = connection
        self._buffer = b""

    def run(self) -> None:
        while True:
            head = self._until(b"\r\n\r\n")
            if head is None:
                return
            line, _, lines = head.partition(b"\r\n")
            if not re.fullmatch(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ [^ \r\n\0]+ HTTP/1\.[01]", line):
                raise Malformed(f"request line {line[:80]!r}")
            request = Seen(line, head, fields_of(lines))
            answer = self._upstream.record(request)
            if not answer.early:
                self._body(request)
            if not self._answer(request, answer):
                return
            if not request.complete:
                self._body(request)

    def _answer(self, request: Seen, answer: Answer) -> bool:
        """Carry an answer out; whether the connection stays."""
        if not answer.steps:
            body = request.method + b" " + request.target
            self._connection.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%b"
                % (len(body), b"" if request.method == b"HEAD" else body)
            )
        for step in answer.steps:
            if isinstance(step, bytes):
                self._connection.sendall(step)
            elif isinstance(step, Pause):
                time.sleep(step.seconds)
            elif step is READ_BODY:
                self._body(request)
            elif step is RESET:
                linger = struct.pack("ii", 1, 0)
                self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                return False
            elif isinstance(step, Sign):
                assert step is CLOSE
                return False
        return True

    def _body(self, request: Seen) -> None:
        digest = hashlib.sha1()

        def keep(data: bytes) -> None:
            digest.update(data)
            request.size += len(data)
            if request.size <= KEPT:
                request.body += data

        length, codings = request.values("content-length"), request.values("transfer-encoding")
        if length and codings:
            raise Malformed("a request with Content-Length and Transfer-Encoding")
        if codings:
            if [c.lower() for c in codings] != [b"chunked"]:
                raise Malformed(f"a request with Transfer-Encoding {codings}")
            while size := self._chunk_size():
                self._exactly(size, keep)
                self._line(b"")
            trailers = b""
            while line := self._line():
                trailers += line + b"\r\n"
            request.trailers = fields_of(trailers.removesuffix(b"\r\n"))
        elif length:
            if len(length) > 1 or not re.fullmatch(rb"\d+", length[0]):
                raise Malformed(f"a request with Content-Length {length}")
            self._exactly(int(length[0]), keep)
        request.sha = digest.hexdigest()
        request.complete = True

    def _chunk_size(self) -> int:
        line = self._line()
        dechunked(line + b"\r\n")  # raises if it is none
        return int(line.partition(b";")[0], 16)

    def _line(self, wanted: bytes | None = None) -> bytes:
        line = self._until(b"\r\n")
        if line is None:
            raise EOFError
        if wanted is not None and line != wanted:
            raise Malformed(f"{line[:40]!r} instead of {wanted!r}")
        return line

    def _exactly(self, size: int, keep: Callable[[bytes], None]) -> None:
        while size:
            if not self._buffer:
                self._buffer = self._connection.recv(262144)
                if not self._buffer:
                    raise EOFError
            part, self._buffer = self._buffer[:size], self._buffer[size:]
            size -= len(part)
            keep(part)

    def _until(self, end: bytes) -> bytes | None:
        """What comes before *end*; None if the connection was closed instead."""
        while end not in self._buffer:
            data = self._connection.recv(262144)
            if not data:
                if self._buffer:
                    raise Malformed(f"{self._buffer[:60]!r} and the end")
                return None
            self._buffer += data
        found, _, self._buffer = self._buffer.partition(end)
        return found
