"""Large uploads through the daemon: never in memory, and nothing of them is left behind."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.test_sockets import memory
from tests.test_twistd import Daemon

MEGABYTE = 1024 * 1024
SIZE = 96 * MEGABYTE
HEAD = b"POST /x HTTP/1.1\r\nHost: proxy\r\nConnection: close\r\n"


class Sink(threading.Thread):
    """An upstream that counts the bytes of each upload, and answers with their number."""

    def __init__(self) -> None:
        threading.Thread.__init__(self, daemon=True)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.requests = 0

    def run(self) -> None:
        while True:
            try:
                peer, _ = self._listening.accept()
            except OSError:
                return
            with peer:
                self._serve(peer)

    def _serve(self, peer: socket.socket) -> None:
        received = b""
        while b"\r\n\r\n" not in received:
            received += peer.recv(65536)
        head, _, body = received.partition(b"\r\n\r\n")
        [length] = re.findall(rb"(?i)\r\ncontent-length: (\d+)", head) or [b"0"]
        self.requests += not head.startswith(b"GET ")  # with which the daemon asks who this is
        count = len(body)
        while count < int(length) and (data := peer.recv(MEGABYTE)):
            count += len(data)
        answer = b"%d" % count
        peer.sendall(
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b"
            % (len(answer), answer)
        )

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.join()


@pytest.fixture
def sink() -> Iterator[Sink]:
    opened = Sink()
    opened.start()
    yield opened
    opened.close()


@pytest.fixture
def daemon(sink: Sink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    started = Daemon(tmp_path / "log", "--llamastack-url", sink.url, "--max-body", str(SIZE))
    yield started
    started.stop()


def upload(port: int, *parts: bytes) -> bytes:
    """Send all of *parts* and only then read, as simple clients do; the answer is returned."""
    with socket.create_connection(("127.0.0.1", port), 60) as client:
        for part in parts:
            client.sendall(part)
        answer = b""
        while data := client.recv(65536):
            answer += data
        return answer


def open_files(daemon: Daemon) -> int:
    """How many temporary files the daemon has open."""
    directory = Path(f"/proc/{daemon.process.pid}/fd")
    names = []
    for number in directory.iterdir():
        with suppress(FileNotFoundError):  # closed since
            names.append(os.readlink(number))
    return sum("/tmp/" in name and "deleted" in name for name in names)


def wait_for(daemon: Daemon, files: int) -> None:
    """Wait until the daemon has so many temporary *files* open; nothing tells."""
    for _ in range(500):
        if open_files(daemon) == files:
            return
        time.sleep(0.02)
    raise AssertionError(open_files(daemon))


@pytest.mark.parametrize("chunked", [False, True], ids=["counted", "chunked"])
def test_a_large_upload_is_never_in_memory_and_leaves_nothing(
    daemon: Daemon, tmp_path: Path, chunked: bool
) -> None:
    before = memory(daemon.process.pid)
    piece = bytes(MEGABYTE)
    if chunked:
        parts = [b"%x\r\n%b\r\n" % (len(piece), piece)] * (SIZE // len(piece))
        answer = upload(
            daemon.port, HEAD, b"Transfer-Encoding: chunked\r\n\r\n", *parts, b"0\r\n\r\n"
        )
    else:
        parts = [piece] * (SIZE // len(piece))
        answer = upload(daemon.port, HEAD, b"Content-Length: %d\r\n\r\n" % SIZE, *parts)
    assert answer.endswith(b"\r\n\r\n%d" % SIZE)
    assert memory(daemon.process.pid, "VmHWM") - before < 16 * MEGABYTE
    assert os.listdir(tmp_path / "tmp") == []
    wait_for(daemon, files=0)


@pytest.mark.parametrize("chunked", [False, True], ids=["counted", "chunked"])
def test_a_client_that_reads_only_after_sending_still_learns_that_it_was_too_much(
    daemon: Daemon, sink: Sink, chunked: bool
) -> None:
    if chunked:
        size = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % (SIZE + 1)
    else:
        size = b"Content-Length: %d\r\n\r\n" % (SIZE + 1)
    answer = upload(daemon.port, HEAD + size, *[bytes(MEGABYTE)] * 16)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"body_too_large" in answer
    assert sink.requests == 0


def test_a_client_that_leaves_in_the_middle_leaves_nothing(daemon: Daemon, tmp_path: Path) -> None:
    with socket.create_connection(("127.0.0.1", daemon.port), 60) as client:
        client.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % SIZE)
        assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(bytes(MEGABYTE))
        wait_for(daemon, files=1)
        assert os.listdir(tmp_path / "tmp") == []
    wait_for(daemon, files=0)
