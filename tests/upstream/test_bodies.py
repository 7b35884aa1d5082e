"""Bodies of requests: sent at the upstream's pace, and closed whatever happens."""

from __future__ import annotations

import sys
from io import BytesIO
from typing import Any

import pytest

from llamaproxy.upstream.bodies import PIECE_BYTES, BytesUpload, Upload

HEAD = b"POST / HTTP/1.1\r\n\r\n"


class Consumer:
    """Takes so many pieces at a time."""

    def __init__(self, room: int) -> None:
        self.taken: list[bytes] = []
        self.room = room
        self.producer: Any = None
        self.registered = 0
        self.aborted = False

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert streaming and self.producer is None
        self.producer = producer
        self.registered += 1

    def unregisterProducer(self) -> None:
        self.producer = None

    def write(self, piece: bytes) -> None:
        self.taken.append(piece)
        if len(self.taken) >= self.room and self.producer is not None:
            self.producer.pauseProducing()

    def abortConnection(self) -> None:
        self.aborted = True

    @property
    def body(self) -> bytes:
        sent = b"".join(self.taken)
        assert sent.startswith(HEAD)
        return sent.removeprefix(HEAD)


def uploading(size: int, room: int) -> tuple[Upload, BytesIO, Consumer]:
    file = BytesIO(b"x" * size)
    file.seek(size)
    upload = Upload(file)
    consumer = Consumer(room)
    upload.send(consumer, HEAD)
    return upload, file, consumer


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, PIECE_BYTES + 1])
def test_what_is_taken_at_once_is_sent_at_once(size: int) -> None:
    upload, file, consumer = uploading(size, room=10)
    assert upload.length == len(consumer.body) == size
    assert upload.finished and file.closed and consumer.producer is None


@pytest.mark.parametrize(("size", "registered"), [(64 * 1024, 0), (64 * 1024 + 1, 1)])
def test_a_body_that_a_transport_takes_at_once_goes_with_the_head(
    size: int, registered: int
) -> None:
    _, _, consumer = uploading(size, room=10)
    assert (len(consumer.taken), consumer.registered) == (1, registered)


def test_nothing_is_read_ahead_of_the_consumer() -> None:
    upload, file, consumer = uploading(3 * PIECE_BYTES, room=1)
    assert len(consumer.taken) == 1
    progress: list[int] = []
    upload.progressed = lambda: progress.append(len(consumer.taken))
    for _ in range(2):
        consumer.room += 1
        upload.resumeProducing()
    assert (len(consumer.taken), upload.finished, file.closed) == (3, False, False)
    upload.resumeProducing()
    assert (upload.finished, file.closed, progress) == (True, True, [1, 2, 3])
    assert consumer.producer is None


def test_a_body_in_memory_is_sent_in_one_piece() -> None:
    body = BytesUpload(b"whole")
    consumer = Consumer(10)
    body.send(consumer, HEAD)
    assert consumer.taken == [HEAD + b"whole"]


def test_a_body_in_memory_is_let_go_of_when_it_has_been_sent() -> None:
    text = b"x" * (3 * PIECE_BYTES + 5)
    held = sys.getrefcount(text)
    body = BytesUpload(text)
    consumer = Consumer(1)
    body.send(consumer, HEAD)
    assert sys.getrefcount(text) == held + 1
    for _ in range(4):
        consumer.room += 1
        body.resumeProducing()
    assert consumer.body == text and body.finished
    assert sys.getrefcount(text) == held


def test_an_upload_that_is_stopped_closes_its_file() -> None:
    upload, file, consumer = uploading(3 * PIECE_BYTES + 5, room=1)
    upload.stopProducing()
    assert (upload.finished, file.closed, consumer.producer) == (True, True, None)
    upload.resumeProducing()
    assert len(consumer.taken) == 1


def test_a_file_that_cannot_be_read_ends_the_connection() -> None:
    upload, file, consumer = uploading(2 * PIECE_BYTES, room=1)
    file.close()
    upload.resumeProducing()
    assert consumer.aborted and upload.finished
    assert len(consumer.taken) == 1


def test_a_file_that_has_become_shorter_ends_the_connection() -> None:
    upload, file, consumer = uploading(3 * PIECE_BYTES, room=1)
    file.truncate(PIECE_BYTES)
    upload.resumeProducing()
    assert consumer.aborted and file.closed
