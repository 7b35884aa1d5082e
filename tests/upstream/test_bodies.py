"""Bodies of requests: sent at the upstream's pace, and closed whatever happens."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
from twisted.internet.defer import CancelledError
from twisted.python.failure import Failure

from llamaproxy.upstream.bodies import PIECE_BYTES, BytesUpload, Upload
from llamaproxy.upstream.twisted_client import end_upload


class Consumer:
    """Takes so many pieces at a time."""

    def __init__(self, upload: Upload, room: int) -> None:
        self.taken: list[bytes] = []
        self._upload = upload
        self.room = room

    def write(self, piece: bytes) -> None:
        self.taken.append(piece)
        if len(self.taken) >= self.room:
            self._upload.pauseProducing()


def uploading(size: int, room: int) -> tuple[Upload, BytesIO, Any, list[Any]]:
    file = BytesIO(b"x" * size)
    file.seek(size)
    upload = Upload(file)
    consumer: Any = Consumer(upload, room)
    ends: list[Any] = []
    upload.startProducing(consumer).addBoth(ends.append)
    return upload, file, consumer, ends


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, PIECE_BYTES + 1])
def test_what_is_taken_at_once_is_sent_at_once(size: int) -> None:
    upload, file, consumer, ends = uploading(size, room=10)
    assert upload.length == sum(map(len, consumer.taken)) == size
    assert ends == [None]
    assert file.closed


def test_nothing_is_read_ahead_of_the_consumer() -> None:
    upload, file, consumer, ends = uploading(3 * PIECE_BYTES, room=1)
    assert len(consumer.taken) == 1
    progress: list[int] = []
    upload.progressed = lambda: progress.append(len(consumer.taken))
    for _ in range(2):
        consumer.room += 1
        upload.resumeProducing()
    assert (len(consumer.taken), ends, file.closed) == (3, [], False)
    upload.resumeProducing()
    assert (ends, file.closed, progress) == ([None], True, [1, 2, 3])


def test_a_body_in_memory_is_sent_in_one_piece() -> None:
    body = BytesUpload(b"whole")
    consumer: Any = Consumer(body, 10)
    assert body.startProducing(consumer).called
    assert consumer.taken == [b"whole"]


def test_the_rest_of_an_upload_that_nobody_wants_is_not_read() -> None:
    upload, file, consumer, ends = uploading(3 * PIECE_BYTES + 5, room=1)
    end_upload(upload)
    assert file.closed
    assert sum(map(len, consumer.taken)) == 3 * PIECE_BYTES + 5, (
        "what was announced is still counted"
    )
    assert ends == [None]
    upload.resumeProducing()
    assert ends == [None]


@pytest.mark.parametrize("end", ["stop", "cancel"])
def test_an_upload_that_is_stopped_closes_its_file(end: str) -> None:
    file = BytesIO(b"x" * PIECE_BYTES)
    upload = Upload(file)
    consumer: Any = Consumer(upload, 1)
    sending = upload.startProducing(consumer)
    if end == "stop":
        upload.stopProducing()
        assert not sending.called
    else:
        ends: list[Any] = []
        sending.addErrback(ends.append)
        sending.cancel()
        assert ends[0].check(CancelledError)
    assert file.closed
    upload.resumeProducing()
    assert len(consumer.taken) == 1


def test_a_file_that_cannot_be_read_is_a_failure() -> None:
    upload, file, consumer, ends = uploading(2 * PIECE_BYTES, room=1)
    file.close()
    upload.resumeProducing()
    assert isinstance(ends[0], Failure)
    assert len(consumer.taken) == 1
