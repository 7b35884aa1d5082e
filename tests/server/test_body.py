"""Bodies that are stored as they come, and those that cannot be."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from llamaproxy.errors import BodyTooLarge
from llamaproxy.server.body import MAX_IN_MEMORY, StoredBody
from tests.server.door import FrontDoor

HEAD = b"POST /x HTTP/1.1\r\nHost: proxy\r\n"
COUNTED = HEAD + b"Content-Length: %d\r\n\r\n" % (MAX_IN_MEMORY + 1)
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
LARGE = b"x" * (MAX_IN_MEMORY + 1)


def test_a_body_is_stored_up_to_its_end_and_what_follows_is_returned() -> None:
    body = StoredBody(5, limit=10)
    assert body.receive(b"abc") is None
    assert body.receive(b"deGET /") == b"GET /"
    body.file.seek(0)
    assert body.file.read() == b"abcde"


def test_a_chunked_body_is_stored_without_its_framing() -> None:
    body = StoredBody(None, limit=10)
    with body.file:
        assert body.receive(b"3\r\nabc\r") is None
        assert body.receive(b"\n2\r\nde\r\n0\r\n\r\n") == b""
        body.file.seek(0)
        assert body.file.read() == b"abcde"


def test_a_chunked_body_over_the_limit_is_refused() -> None:
    body = StoredBody(None, limit=10)
    with body.file, pytest.raises(BodyTooLarge, match="10 bytes"):
        body.receive(b"b\r\n")


@pytest.mark.parametrize(
    ("head", "body"),
    [(COUNTED, b""), (CHUNKED, b"%x\r\n%b\r\n0\r\n\r\n" % (len(LARGE), LARGE))],
    ids=["when it is announced", "when it has become large"],
)
def test_a_body_that_cannot_be_stored_is_an_error_of_ours(
    head: bytes, body: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    door = FrontDoor()
    client = door.client()
    client.send(head)
    if body:
        client.send(body)
    [answer] = client.answers()
    assert answer.status == 500
    assert json.loads(answer.body)["error"]["message"] == "The request body could not be stored."
    assert door.inside.passed == []
    assert client.ended
