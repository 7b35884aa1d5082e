"""The order of the front door's checks: of a request that fails two, the earlier one answers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import attrs
import pytest

from llamaproxy.server.checks import HEAD_CHECKS
from llamaproxy.server.hosts import AllowedHosts
from llamaproxy.server.keys import ApiKeys
from tests.server.door import FrontDoor


@attrs.define
class Sent:
    """A request that is served, until something about it is changed."""

    method: bytes = b"POST"
    target: bytes = b"/x"
    version: bytes = b"HTTP/1.1"
    separator: bytes = b" "
    host: list[bytes] = attrs.Factory(lambda: [b"Host: proxy"])
    authorization: list[bytes] = attrs.Factory(lambda: [b"Authorization: Bearer key"])
    length: bytes = b"Content-Length: 1"
    fields: list[bytes] = attrs.Factory(list)
    over_limit: bool = False

    def head(self) -> bytes:
        line = self.separator.join([self.method, self.target, self.version])
        fields = [*self.fields, *self.host, *self.authorization, self.length]
        return b"\r\n".join([line, *fields, b"", b""])


Change = Callable[[Sent], object]


def malformed_line(sent: Sent) -> None:
    sent.separator = b"  "


def wrong_version(sent: Sent) -> None:
    sent.version = b"HTTP/2.0"


def long_target(sent: Sent) -> None:
    sent.target += b"a" * 8192


def wrong_method(sent: Sent) -> None:
    sent.method = b"TRACE"


def wrong_target(sent: Sent) -> None:
    sent.target = b"x" + sent.target


def malformed_field(sent: Sent) -> None:
    sent.fields = [b"X : a", *sent.fields]


def too_many_fields(sent: Sent) -> None:
    sent.fields = [*sent.fields, *[b"X: a"] * 129]


def invalid_host(sent: Sent) -> None:
    sent.host = sent.host * 2


def unknown_host(sent: Sent) -> None:
    sent.host = [b"Host: elsewhere" for _ in sent.host]


def invalid_length(sent: Sent) -> None:
    sent.length += b"x"


def two_authorizations(sent: Sent) -> None:
    sent.authorization = sent.authorization * 2


def unknown_expectation(sent: Sent) -> None:
    sent.fields.append(b"Expect: a miracle")


def over_limit(sent: Sent) -> None:
    sent.over_limit = True


def wrong_key(sent: Sent) -> None:
    sent.authorization = [each + b"s" for each in sent.authorization]


def large_body(sent: Sent) -> None:
    sent.length = sent.length.replace(b"1", b"11")


#: In the order of the checks: what makes each fail, and the status and message then.
REQUEST_LINE: list[tuple[Change, int, str]] = [
    (malformed_line, 400, "line is not well-formed"),
    (wrong_version, 505, "Only HTTP/1.0 and HTTP/1.1"),
    (long_target, 414, "target is longer"),
    (wrong_method, 405, "TRACE is not served"),
    (wrong_target, 400, "must begin with '/'"),
]
FIELDS: list[tuple[Change, int, str]] = [
    (malformed_field, 400, "field of the request is not well-formed"),
    (too_many_fields, 431, "more than 128 fields"),
]
HEAD: list[tuple[Change, int, str]] = [
    (invalid_host, 400, "Host field is repeated"),
    (unknown_host, 421, "host is not served"),
    (invalid_length, 400, "Content-Length is repeated or not a number"),
    (two_authorizations, 400, "Authorization field is repeated"),
    (unknown_expectation, 417, "only expectation understood"),
    (over_limit, 503, "too many connections"),
    (wrong_key, 401, "Incorrect API key"),
    (large_body, 413, "larger than 10 bytes"),
]
FAILURES = [*REQUEST_LINE, *FIELDS, *HEAD]


def front_door(directory: Path) -> FrontDoor:
    keys = directory / "keys"
    keys.write_text("key\n")
    door = FrontDoor(keys=ApiKeys.read(str(keys)), connections=1, body=10)
    door.site.hosts = AllowedHosts(["proxy"])
    return door


def answer_to(directory: Path, *changes: Change) -> tuple[int, bytes]:
    """Status and body of the answer to a request with these *changes*."""
    sent = Sent()
    for change in changes:
        change(sent)
    door = front_door(directory)
    if sent.over_limit:
        door.client()
    client = door.client()
    client.send(sent.head(), b"1")
    [answer] = client.answers()
    assert len(door.inside.passed) == (answer.status == 200)
    return answer.status, answer.body


def test_a_request_that_fails_no_check_is_served(tmp_path: Path) -> None:
    assert answer_to(tmp_path) == (200, b"1")


@pytest.mark.parametrize(
    ("change", "status", "message"), FAILURES, ids=[each[0].__name__ for each in FAILURES]
)
def test_each_check_answers(tmp_path: Path, change: Change, status: int, message: str) -> None:
    answered, body = answer_to(tmp_path, change)
    assert answered == status
    assert message in body.decode()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(first, second, id=f"{first[0].__name__} {second[0].__name__}")
        for first, second in combinations(FAILURES, 2)
    ],
)
def test_the_first_failing_check_answers(
    tmp_path: Path, first: tuple[Change, int, str], second: tuple[Change, int, str]
) -> None:
    change, status, message = first
    for changes in ((change, second[0]), (second[0], change)):
        answered, body = answer_to(tmp_path, *changes)
        assert answered == status
        assert message in body.decode()


def test_the_table_has_every_check_of_a_whole_head() -> None:
    assert len(HEAD) == len(HEAD_CHECKS)
