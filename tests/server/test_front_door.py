"""What the front door lets in and what it refuses, by section of RFC 9112 and RFC 9110."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from socket import SHUT_WR, socket, socketpair
from typing import Any

import attrs
import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.testing import MemoryReactorClock

from llamaproxy.events import ConnectionsTurnedAway, Event
from llamaproxy.server.proxyprotocol import endpoint_of
from tests.server.door import Client, FrontDoor, Line
from tests.support import pending_calls

HOST = b"Host: proxy\r\n"


def get(*lines: bytes, target: bytes = b"/", version: bytes = b"HTTP/1.1") -> bytes:
    return b"GET %b %b\r\n%b%b\r\n" % (target, version, HOST, b"".join(e + b"\r\n" for e in lines))


def post(*lines: bytes, body: bytes = b"") -> bytes:
    head = b"POST /x HTTP/1.1\r\n" + HOST + b"".join(line + b"\r\n" for line in lines)
    return head + b"\r\n" + body


def chunked(body: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked", body=body)


def bare(*lines: bytes) -> bytes:
    """A GET whose lines after the first are all given."""
    return b"GET / HTTP/1.1\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


REFUSED: dict[str, list[tuple[int, bytes]]] = {
    "9112-2.2 message parsing": [
        (400, b"\r\n" * 9),
        (400, b"GET / HTTP/1.1\nHost: proxy\n\n"),
        (400, b"GET / HTTP/1.1\r\nHost: proxy\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nHost: proxy\r\n\n"),
        (400, b"GET / HTTP/1.1\rHost: proxy\r\r"),
        (400, b"GET / HTTP/1.1\r\nX: a\rb\r\n" + HOST + b"\r\n"),
        (400, b"GET / HTTP/1.1\r\n " + HOST + b"\r\n"),
        (400, b"GET / HTTP/1.1\r\n\t" + HOST + b"\r\n"),
        (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
        (400, b"\x00"),
    ],
    "9112-2.3 version": [
        (400, get(version=b"http/1.1")),
        (400, get(version=b"HTTP/1")),
        (400, get(version=b"HTTP/1.10")),
        (400, get(version=b"HTTP/01.1")),
        (400, get(version=b"HTTP /1.1")),
        (400, get(version=b"HTP/1.1")),
        (400, get(version=b"HTTP/1.x")),
        (505, get(version=b"HTTP/2.0")),
        (505, get(version=b"HTTP/0.9")),
        (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    ],
    "9112-3 request line": [
        (400, b"GET /\r\n\r\n"),
        (400, b"GET\r\n\r\n"),
        (400, b"GET / a HTTP/1.1\r\n" + HOST + b"\r\n"),
        (400, b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n"),
        (400, b"GET /  HTTP/1.1\r\n" + HOST + b"\r\n"),
        (400, b"GET / HTTP/1.1 \r\n" + HOST + b"\r\n"),
        (400, b" GET / HTTP/1.1\r\n" + HOST + b"\r\n"),
        (400, b"GET\t/\tHTTP/1.1\r\n" + HOST + b"\r\n"),
        (400, b"GET / HTTP/1.1\x0b\r\n" + HOST + b"\r\n"),
        (400, b"G@T / HTTP/1.1\r\n" + HOST + b"\r\n"),
        (400, b"G\xc3\x8bT / HTTP/1.1\r\n" + HOST + b"\r\n"),
        (400, b"GET: / HTTP/1.1\r\n" + HOST + b"\r\n"),
        (405, b"TRACE / HTTP/1.1\r\n" + HOST + b"\r\n"),
        (405, b"CONNECT proxy:80 HTTP/1.1\r\n" + HOST + b"\r\n"),
        (414, get(target=b"/" + b"a" * 8192)),
        (414, b"GET /" + b"a" * 100_000),
    ],
    "9112-3.2 target": [
        (400, get(target=b"x")),
        (400, get(target=b"proxy:80")),
        (400, get(target=b"*")),
        (400, get(target=b"@proxy/")),
        (400, get(target=b"/a#b")),
        (400, get(target=b"/\xc3\xa9")),
        (400, get(target=b"/a\x7f")),
        (400, get(target=b"/a\x00b")),
        (400, get(target=b"http://elsewhere/x")),
        (400, get(target=b"http://proxy:81/x")),
        (400, get(target=b"http://user@proxy/x")),
        (400, get(target=b"http:///x")),
        (400, get(target=b"http://")),
        (400, get(target=b"ftp://proxy/x")),
        (400, b"GET http://proxy/ HTTP/1.0\r\n\r\n"),
    ],
    "9112-3.2 host": [
        (400, bare()),
        (400, bare(b"Host: a", b"Host: a")),
        (400, bare(b"Host: a", b"host: b")),
        (400, bare(b"Host:")),
        (400, bare(b"Host: a, b")),
        (400, bare(b"Host: a b")),
        (400, bare(b"Host: user@a")),
        (400, bare(b"Host: a/b")),
        (400, bare(b"Host: a?b")),
        (400, bare(b"Host: a#b")),
        (400, bare(b"Host: a\\b")),
        (400, bare(b"Host: a:b")),
        (400, bare(b"Host: a:80:80")),
        (400, bare(b"Host: a:-1")),
        (400, bare(b"Host: a:65536")),
        (400, bare(b"Host: a:" + b"0" * 5000)),
        (400, bare(b"Host: [::1")),
        (400, bare(b"Host: [::1]x")),
        (400, bare(b"Host: [1.2.3]")),
        (400, bare(b"Host: [::g]")),
        (400, bare(b"Host: ::1")),
        (400, bare(b"Host: a%zz")),
        (400, bare(b"Host: a\x80")),
        (400, b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n"),
        (400, b"GET / HTTP/1.0\r\nHost: a b\r\n\r\n"),
    ],
    "9112-5 fields": [
        (400, get(b"X : a")),
        (400, get(b"X\t: a")),
        (400, get(b": a")),
        (400, get(b"X")),
        (400, get(b"X Y: a")),
        (400, get(b"X@: a")),
        (400, get(b"X\xc3\xa9: a")),
        (400, get(b"X\x00: a")),
        (400, get(b"X: a\x00b")),
        (400, get(b"X: a\x01b")),
        (400, get(b"X: a\x0bb")),
        (400, get(b"X: a\x7fb")),
        (400, get(b"X: a\x1b[0m")),
        (400, get(b"X: a\nY: b")),
        (400, get(b"X: a", b" folded")),
        (400, get(b"X: a", b"\tfolded")),
        (400, get(b"X:", b" chunked")),
    ],
    "9110-5.4 limits": [
        (431, get(b"X: " + b"a" * 17_000)),
        (431, get()[:-2] + b"X: " + b"a" * 17_000),
        (431, get(*[b"X: a"] * 129)),
        (431, get(*[b"X: " + b"a" * 9000] * 8)),
    ],
    "9112-6.1 transfer-encoding": [
        (400, post(b"Transfer-Encoding: gzip", body=b"x")),
        (400, post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n")),
        (400, post(b"Transfer-Encoding: chunked, gzip", body=b"0\r\n\r\n")),
        (400, post(b"Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n")),
        (400, post(b"Transfer-Encoding: chunked,", body=b"0\r\n\r\n")),
        (400, post(b"Transfer-Encoding: identity", body=b"0\r\n\r\n")),
        (400, post(b"Transfer-Encoding: identity, chunked", body=b"0\r\n\r\n")),
        (400, post(b"Transfer-Encoding:", body=b"0\r\n\r\n")),
        (400, post(b"Transfer-Encoding: x-chunked", body=b"0\r\n\r\n")),
        (400, post(b"Transfer-Encoding: chunked;q=1", body=b"0\r\n\r\n")),
        (400, post(b'Transfer-Encoding: "chunked"', body=b"0\r\n\r\n")),
        (400, post(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n")),
        (400, post(b"Transfer-Encoding : chunked", body=b"0\r\n\r\n")),
        (400, post(b"Transfer-Encoding:\r\n chunked", body=b"0\r\n\r\n")),
        (400, post(*[b"Transfer-Encoding: chunked"] * 2, body=b"0\r\n\r\n")),
        (400, b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ],
    "9112-6.2 content-length": [
        (400, post(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n")),
        (400, post(b"Transfer-Encoding: chunked", b"Content-Length: 0", body=b"0\r\n\r\n")),
        (400, post(b"Content-Length: 5", b"Transfer-Encoding: identity", body=b"12345")),
        (400, post(b"Content-Length: 5", b"Content-Length: 5", body=b"12345")),
        (400, post(b"Content-Length: 5", b"Content-Length: 6", body=b"12345")),
        (400, post(b"Content-Length: 5, 5", body=b"12345")),
        (400, post(b"Content-Length: +5", body=b"12345")),
        (400, post(b"Content-Length: -5", body=b"12345")),
        (400, post(b"Content-Length: 5_0", body=b"12345")),
        (400, post(b"Content-Length: 0x5", body=b"12345")),
        (400, post(b"Content-Length: 5 5", body=b"12345")),
        (400, post(b"Content-Length: 5.0", body=b"12345")),
        (400, post(b"Content-Length: 5;", body=b"12345")),
        (400, post(b'Content-Length: "5"', body=b"12345")),
        (400, post(b"Content-Length: \xb2", body=b"12345")),
        (400, post(b"Content-Length:", body=b"12345")),
        (413, post(b"Content-Length: %d" % 2**70)),
        (413, post(b"Content-Length: " + b"9" * 9000)),
        (413, post(b"Content-Length: 1073741825")),
    ],
    "9112-7.1 chunks": [
        (400, chunked(b"+5\r\nabcde\r\n0\r\n\r\n")),
        (400, chunked(b"-5\r\nabcde\r\n0\r\n\r\n")),
        (400, chunked(b"0x5\r\nabcde\r\n0\r\n\r\n")),
        (400, chunked(b"5_0\r\nabcde\r\n0\r\n\r\n")),
        (400, chunked(b" 5\r\nabcde\r\n0\r\n\r\n")),
        (400, chunked(b"5 \r\nabcde\r\n0\r\n\r\n")),
        (400, chunked(b"5\t\r\nabcde\r\n0\r\n\r\n")),
        (400, chunked(b"g\r\n")),
        (400, chunked(b"\r\nabcde\r\n0\r\n\r\n")),
        (400, chunked(b";a\r\nabcde\r\n0\r\n\r\n")),
        (400, chunked(b"5\nabcde\r\n0\r\n\r\n")),
        (400, chunked(b"5\rabcde\r\n0\r\n\r\n")),
        (400, chunked(b"5;a\nabcde\r\n0\r\n\r\n")),
        (400, chunked(b"5;a\rb\r\nabcde\r\n0\r\n\r\n")),
        (400, chunked(b"5;\x00\r\nabcde\r\n0\r\n\r\n")),
        (400, chunked(b"5\r\nabcde\n0\r\n\r\n")),
        (400, chunked(b"5\r\nabcde\r0\r\n\r\n")),
        (400, chunked(b"5\r\nabcde0\r\n\r\n")),
        (400, chunked(b"5\r\nabcdef\r\n0\r\n\r\n")),
        (400, chunked(b"5\r\nabcd\r\n0\r\n\r\n")),
        (400, chunked(b"5\r\nabcde\r\n\r\n0\r\n\r\n")),
        (400, chunked(b"0" * 17 + b"\r\n\r\n")),
        (400, chunked(b"5;" + b"a" * 2000 + b"\r\nabcde\r\n0\r\n\r\n")),
        (400, chunked(b"5;" + b"a" * 2000)),
        (413, chunked(b"40000001\r\n")),
        (413, chunked(b"f" * 16 + b"\r\n")),
    ],
    "9112-7.1.2 trailers": [
        (400, chunked(b"0\r\nX : a\r\n\r\n")),
        (400, chunked(b"0\r\nX\r\n\r\n")),
        (400, chunked(b"0\r\nX: a\x00\r\n\r\n")),
        (400, chunked(b"0\r\nX: a\r\n folded\r\n\r\n")),
        (400, chunked(b"0\r\nX: a\n\r\n\r\n")),
        (400, chunked(b"0\r\nX: a\n\n")),
        (400, chunked(b"0\r\n\nGET / HTTP/1.1\r\n" + HOST + b"\r\n")),
        (400, chunked(b"0\n\n")),
        (431, chunked(b"0\r\n" + b"X: abcdef\r\n" * 1000)),
        (431, chunked(b"0\r\nX: " + b"a" * 9000)),
    ],
    "9110-10.1.1 expect": [
        (417, post(b"Expect: 200-ok", b"Content-Length: 1", body=b"x")),
        (417, post(b"Expect: 100-continue, x", b"Content-Length: 1", body=b"x")),
        (413, post(b"Expect: 100-continue", b"Content-Length: 9999999999")),
    ],
    "9110-11.6.2 authorization": [
        (400, get(b"Authorization: Bearer a", b"Authorization: Bearer b")),
        (400, get(b"Authorization: Bearer a", b"authorization: Bearer a")),
    ],
}


@pytest.mark.parametrize(
    ("status", "request_"),
    [
        pytest.param(status, sent, id=f"{section} {number}")
        for section, cases in REFUSED.items()
        for number, (status, sent) in enumerate(cases)
    ],
)
@pytest.mark.parametrize("torn", [False, True], ids=["whole", "torn"])
def test_a_doubtful_request_is_refused(status: int, request_: bytes, torn: bool) -> None:
    door = FrontDoor()
    client = door.client()
    parts = [request_[i : i + 1] for i in range(len(request_))] if torn else [request_]
    client.send(*parts)
    # What comes afterwards on the same connection is not heard any more.
    client.send(get())
    [answer] = client.answers()
    assert answer.status == status
    assert door.inside.passed == []
    assert client.ended
    error = json.loads(answer.body)["error"]
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert error["message"].endswith(".")
    assert answer.fields["connection"] == ["close"]
    for name in ("date", "server", "x-request-id", "content-type", "content-length"):
        assert len(answer.fields[name]) == 1


ACCEPTED: dict[str, list[tuple[bytes, bytes, bytes]]] = {
    "message parsing": [
        (b"\r\n" + get(), b"/", b""),
        (b"\r\n" * 8 + get(), b"/", b""),
        (get(b"X:a", b"Y:", b"Z:  a b\t"), b"/", b""),
        (get(b"x-lower: \xc3\xa9\t\x80"), b"/", b""),
        (get(*[b"X: a"] * 127), b"/", b""),
        (get(b"Authorization: Bearer " + b"a" * 12_000, b"X: " + b"b" * 16_000), b"/", b""),
    ],
    "version": [
        (get(version=b"HTTP/1.2"), b"/", b""),
        (get(version=b"HTTP/1.9"), b"/", b""),
        (b"GET / HTTP/1.0\r\n\r\n", b"/", b""),
    ],
    "target": [
        (get(target=b'/a/../%2e//b?c=[d]{}|\\^`"<>'), b'/a/../%2e//b?c=[d]{}|\\^`"<>', b""),
        (get(target=b"//a"), b"//a", b""),
        (get(target=b"/" + b"a" * 8191), b"/" + b"a" * 8191, b""),
        (get(target=b"http://proxy/x?y"), b"/x?y", b""),
        (get(target=b"HTTP://PROXY:80"), b"/", b""),
        (get(target=b"http://proxy?y"), b"/?y", b""),
        (get(target=b"https://proxy/x"), b"/x", b""),
        (get(target=b"https://proxy:443/x"), b"/x", b""),
    ],
    "host": [
        (bare(b"Host: proxy.example.:8322"), b"/", b""),
        (bare(b"HOST: a_b-c~1"), b"/", b""),
        (bare(b"Host: proxy:"), b"/", b""),
        (bare(b"Host: 127.0.0.1:80"), b"/", b""),
        (bare(b"Host: [::1]:8322"), b"/", b""),
        (bare(b"Host: [fe80::1:127.0.0.1]"), b"/", b""),
        (bare(b"Host: \t proxy \t"), b"/", b""),
        (bare(b"Host: xn--bcher-kva.example%41"), b"/", b""),
    ],
    "content-length": [
        (post(b"Content-Length: 5", body=b"a\nb\r\n"), b"/x", b"a\nb\r\n"),
        (post(b"Content-Length: 0005", body=b"12345"), b"/x", b"12345"),
        (post(b"content-length:\t5 ", body=b"12345"), b"/x", b"12345"),
        (post(b"Content-Length: " + b"0" * 5000 + b"5", body=b"12345"), b"/x", b"12345"),
        (post(b"Content-Length: 0"), b"/x", b""),
        (post(), b"/x", b""),
        (b"POST /x HTTP/1.0\r\nContent-Length: 2\r\n\r\nab", b"/x", b"ab"),
    ],
    "chunks": [
        (chunked(b"0\r\n\r\n"), b"/x", b""),
        (chunked(b"5\r\nabcde\r\n0\r\n\r\n"), b"/x", b"abcde"),
        (
            chunked(b"00000005\r\na\r\nbc\r\n0a\r\n0123456789\r\n000\r\n\r\n"),
            b"/x",
            b"a\r\nbc0123456789",
        ),
        (chunked(b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n"), b"/x", b"0123456789" * 2),
        (chunked(b'5;a="b;\xff";c ; d\r\nabcde\r\n0;e\r\n\r\n'), b"/x", b"abcde"),
        (chunked(b"5 ;a=b\r\nabcde\r\n0\t;\r\n\r\n"), b"/x", b"abcde"),
        (
            chunked(b"5\r\nabcde\r\n0\r\nX: a\r\nHost: b\r\nContent-Length: 7\r\n\r\n"),
            b"/x",
            b"abcde",
        ),
        (post(b"Transfer-Encoding: Chunked", body=b"1\r\na\r\n0\r\n\r\n"), b"/x", b"a"),
        (post(b"transfer-encoding:chunked\t", body=b"1\r\na\r\n0\r\n\r\n"), b"/x", b"a"),
    ],
    "upgrade": [
        (get(b"Upgrade: websocket", b"Connection: Upgrade"), b"/", b""),
        (
            get(b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: a"),
            b"/",
            b"",
        ),
    ],
}


@pytest.mark.parametrize(
    ("request_", "target", "body"),
    [
        pytest.param(*case, id=f"{section} {number}")
        for section, cases in ACCEPTED.items()
        for number, case in enumerate(cases)
    ],
)
@pytest.mark.parametrize("torn", [False, True], ids=["whole", "torn"])
def test_a_proper_request_is_let_in(
    request_: bytes, target: bytes, body: bytes, torn: bool
) -> None:
    door = FrontDoor()
    client = door.client()
    client.send(*([request_[i : i + 1] for i in range(len(request_))] if torn else [request_]))
    [passed] = door.inside.passed
    assert (passed.target, passed.body) == (target, body)
    assert client.statuses() == [200]
    client.send(get(target=b"/next"))
    more = [] if b"HTTP/1.0" in request_ else [b"/next"]
    assert [each.target for each in door.inside.passed] == [target, *more]
    assert client.ended is not bool(more)


def test_fields_keep_their_bytes_and_their_repetitions() -> None:
    door = FrontDoor()
    door.client().send(get(b"X-Many: 1", b"x-many: \xe9\t 2 ", b"X-Empty:", b"X-Many: 1"))
    [passed] = door.inside.passed
    assert passed.fields[b"X-Many"] == [b"1", b"\xe9\t 2", b"1"]
    assert passed.fields[b"X-Empty"] == [b""]


# --- pipelining and closing (RFC 9112 section 9)


def test_pipelined_requests_are_answered_in_their_order() -> None:
    door = FrontDoor(at_once=False)
    client = door.client()
    client.send(get(target=b"/1") + post(b"Content-Length: 2", body=b"\n\n") + get(target=b"/3"))
    for number in (1, 2, 3):
        [request] = door.inside.waiting
        door.inside.waiting.clear()
        assert len(door.inside.passed) == number
        request.setHeader(b"Content-Length", b"1")
        request.write(b"%d" % number)
        request.finish()
    assert [each.target for each in door.inside.passed] == [b"/1", b"/x", b"/3"]
    assert [each.body for each in client.answers()] == [b"1", b"2", b"3"]
    assert not client.ended


def test_a_client_that_reads_nothing_cannot_have_requests_piled_up() -> None:
    door = FrontDoor(at_once=False)
    client = door.client()
    client.send(get())
    client.channel.pauseProducing()  # by the transport, which has more than the client reads
    client.send(b"x" * 16384)
    assert client.line.producerState == "producing"
    client.send(b"x")
    assert client.line.producerState == "paused"


def test_the_next_request_waits_until_the_answer_before_has_been_read() -> None:
    door = FrontDoor(at_once=False)
    client = door.client()
    client.send(get() * 3)
    client.channel.pauseProducing()
    answer_with(door, (b"Content-Length", b"2"))
    assert door.inside.waiting == [] and client.line.producerState == "paused"
    client.send(get())  # was on its way
    door.clock.pump([1] * 590)
    assert door.inside.waiting == [] and not client.ended
    client.channel.resumeProducing()
    for _ in range(3):
        answer_with(door, (b"Content-Length", b"2"))
    assert client.statuses() == [200] * 4 and client.line.producerState == "producing"


def test_a_client_that_reads_no_answer_is_left_with_one() -> None:
    door = FrontDoor()
    client = door.client()
    client.channel.pauseProducing()
    for _ in range(100):
        client.send(get())
    assert door.inside.passed == []
    door.clock.pump([1] * 1300)
    assert client.line.disconnected


def test_requests_are_read_again_when_those_before_are_answered() -> None:
    door = FrontDoor(at_once=False)
    client = door.client()
    client.send(get(), get(b"X: " + b"a" * 16_000) * 2)
    assert client.line.producerState == "paused"
    for _ in range(3):
        answer_with(door, (b"Content-Length", b"2"))
    assert client.line.producerState == "producing"
    assert client.statuses() == [200] * 3


def test_one_who_sends_hundreds_of_requests_at_once_does_not_keep_the_others_waiting() -> None:
    door = FrontDoor()
    client = door.client()
    client.send(get() * 300)
    assert len(door.inside.passed) <= 8
    door.client().send(get(target=b"/other"))
    assert door.inside.passed[-1].target == b"/other"
    for _ in range(300):
        door.clock.advance(0)
    assert client.statuses() == [200] * 300
    assert not client.ended


def test_one_of_hundreds_is_not_served_to_a_client_that_has_gone() -> None:
    door = FrontDoor()
    client = door.client()
    client.send(get() * 300)
    served = len(door.inside.passed)
    client.leave()
    door.clock.advance(1)
    assert len(door.inside.passed) == served
    assert door.site.connections.running == 0


@pytest.mark.parametrize(
    "bad", [get(b"X : a"), b"x\r\n", chunked(b"x\r\n"), b"GET / HTTP/1.1\nHost: a\n\n"]
)
def test_a_bad_request_behind_good_ones_is_refused_after_their_answers(bad: bytes) -> None:
    door = FrontDoor()
    client = door.client()
    client.send(get() + post(b"Content-Length: 2", body=b"\n\n") + bad + get())
    assert client.statuses() == [200, 200, 400]
    assert len(door.inside.passed) == 2
    assert client.ended


@pytest.mark.parametrize(
    "lines",
    [
        [b"Connection: close"],
        [b"Connection: Close"],
        [b"Connection: x,close"],
        [b"Connection: close, x"],
        [b"Connection: x", b"Connection: close"],
    ],
)
def test_nothing_is_read_after_a_last_request(lines: list[bytes]) -> None:
    door = FrontDoor()
    client = door.client()
    client.send(get(*lines) + get(target=b"/next"))
    client.send(get(target=b"/later"))
    assert len(door.inside.passed) == 1
    [answer] = client.answers()
    assert answer.fields["connection"] == ["close"]
    assert client.ended


def test_a_refused_head_request_gets_no_body() -> None:
    client = FrontDoor().client()
    client.send(b"HEAD /x HTTP/1.1\r\n\r\n")
    [answer] = client.answers(heads=1)
    assert answer.status == 400
    assert int(answer.fields["content-length"][0]) > 0


def test_options_of_the_proxy_as_a_whole_are_answered_by_it() -> None:
    door = FrontDoor()
    client = door.client()
    client.send(b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n" + get())
    assert client.statuses() == [200, 200]
    assert [each.method for each in door.inside.passed] == [b"GET"]


# --- 100 Continue (RFC 9110 section 10.1.1)


def test_a_client_that_waits_is_told_to_continue() -> None:
    door = FrontDoor()
    client = door.client()
    client.send(post(b"Expect: 100-Continue", b"Content-Length: 2"))
    assert client.line.value() == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(b"ab")
    assert client.statuses() == [100, 200]
    assert door.inside.passed[0].body == b"ab"


@pytest.mark.parametrize(
    "request_",
    [
        get(b"Expect: 100-continue"),
        post(b"Expect:", b"Content-Length: 1", body=b"x"),
        post(b"Expect: ,", b"Content-Length: 1", body=b"x"),
        b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx",
        b"POST / HTTP/1.0\r\nExpect: a miracle\r\nContent-Length: 1\r\n\r\nx",
    ],
)
def test_nobody_is_told_to_continue_who_does_not_wait(request_: bytes) -> None:
    client = FrontDoor().client()
    client.send(request_)
    assert client.statuses() == [200]


# --- bodies over the limit


@pytest.mark.parametrize("expecting", [False, True])
def test_an_announced_body_over_the_limit_is_refused_before_it_is_read(expecting: bool) -> None:
    door = FrontDoor(body=10)
    client = door.client()
    lines = [b"Expect: 100-continue"] if expecting else []
    client.send(post(b"Content-Length: 11", *lines))
    [answer] = client.answers()
    assert answer.status == 413
    assert json.loads(answer.body)["error"]["code"] == "body_too_large"


@pytest.mark.parametrize(("target", "limit"), [(b"/x", 20), (b"/chat", 10), (b"/chat?a=b", 10)])
@pytest.mark.parametrize("chunks", [False, True], ids=["counted", "chunked"])
def test_each_path_has_its_limit(target: bytes, limit: int, chunks: bool) -> None:
    for size, status in ((limit, 200), (limit + 1, 413)):
        door = FrontDoor(body=20, bodies={b"/chat": 10})
        client = door.client()
        head = b"POST %b HTTP/1.1\r\nHost: a\r\n" % target
        if chunks:
            client.send(head + b"Transfer-Encoding: chunked\r\n\r\n")
            client.send(b"6\r\n123456\r\n", b"%x\r\n" % (size - 6))
            if status == 200:
                client.send(b"x" * (size - 6), b"\r\n0\r\n\r\n")
        else:
            client.send(head + b"Content-Length: %d\r\n\r\n" % size)
            if status == 200:
                client.send(b"x" * size)
        assert client.statuses() == [status]
        assert len(door.inside.passed) == (status == 200)


def test_a_refused_client_may_go_on_sending_for_a_while() -> None:
    door = FrontDoor(body=10)
    client = door.client()
    client.send(post(b"Content-Length: 11"))
    assert client.line.half_closed
    for _ in range(4 * 29):
        client.send(b"x" * 1024 * 1024)
        door.clock.advance(0.25)
    assert not client.line.disconnected
    door.clock.pump([1] * 2)
    assert client.line.disconnected
    assert client.statuses() == [413]


def test_a_refused_client_that_says_nothing_more_is_waited_on_for_a_moment() -> None:
    door = FrontDoor(body=10)
    client = door.client()
    client.send(post(b"Content-Length: 11"))
    door.clock.pump([1] * 4)
    assert not client.line.disconnected
    door.clock.pump([1] * 2)
    assert client.line.disconnected


# --- time


def test_half_a_head_is_refused_after_the_header_timeout_however_it_drips() -> None:
    door = FrontDoor(header_timeout=5)
    client = door.client()
    for byte in b"GET /":
        assert not client.ended
        client.send(bytes([byte]))
        door.clock.advance(1)
    assert client.statuses() == [408]
    assert client.ended


def test_a_client_that_says_nothing_is_closed_without_a_word() -> None:
    door = FrontDoor(header_timeout=5)
    client = door.client()
    door.clock.pump([1] * 4)
    assert not client.ended
    door.clock.pump([1] * 2)
    assert client.ended
    assert client.answers() == []


def test_a_second_head_has_its_own_time() -> None:
    door = FrontDoor(header_timeout=5, client_timeout=20)
    client = door.client()
    client.send(get())
    door.clock.pump([1] * 15)
    assert not client.ended
    client.send(b"GET /")
    door.clock.pump([1] * 4)
    assert not client.ended
    door.clock.pump([1] * 2)
    assert client.statuses() == [200, 408]


def test_an_idle_connection_is_closed_after_the_client_timeout() -> None:
    door = FrontDoor(client_timeout=5)
    client = door.client()
    client.send(get())
    door.clock.pump([1] * 6)
    assert client.ended
    assert client.statuses() == [200]


def test_a_body_may_come_slowly_but_not_stop() -> None:
    door = FrontDoor(client_timeout=5)
    client = door.client()
    client.send(post(b"Content-Length: 9"))
    for _ in range(8):
        door.clock.advance(4)
        client.send(b"x")
    assert not client.ended
    door.clock.pump([1] * 6)
    assert client.statuses() == [408]
    assert door.inside.passed == []


def test_an_answer_may_take_as_long_as_it_takes() -> None:
    door = FrontDoor(at_once=False, header_timeout=1, client_timeout=1)
    client = door.client()
    client.send(get())
    door.clock.pump([1] * 1000)
    assert not client.ended


def test_a_client_that_does_not_read_its_answer_is_cut_off_in_the_end() -> None:
    door = FrontDoor(at_once=False)
    client = door.client()
    client.send(get())
    client.channel.pauseProducing()
    door.clock.pump([1] * 590)
    client.channel.resumeProducing()
    client.channel.pauseProducing()
    door.clock.pump([1] * 590)
    assert not client.ended
    door.clock.pump([1] * 20)
    assert client.line.disconnected


def test_a_client_that_reads_slowly_may_wait_for_the_next_of_its_answer() -> None:
    door = FrontDoor(at_once=False)
    client = door.client()
    client.send(get())
    client.channel.pauseProducing()
    client.channel.resumeProducing()
    door.clock.pump([1] * 1000)
    assert not client.ended


# --- HTTP/1.0


def get_1_0(*lines: bytes) -> bytes:
    return get(*lines, version=b"HTTP/1.0")


def answer_with(door: FrontDoor, *fields: tuple[bytes, bytes]) -> None:
    request = door.inside.waiting.pop()
    for name, value in fields:
        request.setHeader(name, value)
    request.write(b"ok")
    request.finish()


@pytest.mark.parametrize("option", [b"keep-alive", b"Keep-Alive", b"x, keep-alive"])
def test_an_old_client_keeps_its_connection_if_it_asks_for_that(option: bytes) -> None:
    door = FrontDoor(at_once=False)
    client = door.client()
    for _ in range(2):
        client.send(get_1_0(b"Connection: " + option))
        answer_with(door, (b"Content-Length", b"2"))
        assert not client.ended
    assert [each.fields["connection"] for each in client.answers()] == [["keep-alive"]] * 2


@pytest.mark.parametrize("lines", [[], [b"Connection: keep-alive, close"], [b"Connection: x"]])
def test_an_old_clients_connection_is_closed_otherwise(lines: list[bytes]) -> None:
    door = FrontDoor(at_once=False)
    client = door.client()
    client.send(get_1_0(*lines))
    answer_with(door, (b"Content-Length", b"2"))
    assert client.ended
    assert client.answers()[0].fields["connection"] == ["close"]


def test_an_old_client_sees_the_end_of_an_answer_of_unknown_length_as_that_of_the_connection() -> (
    None
):
    door = FrontDoor(at_once=False)
    client = door.client()
    client.send(get_1_0(b"Connection: keep-alive") + get())
    answer_with(door)
    assert client.ended
    assert door.inside.waiting == []
    head, _, body = client.line.value().partition(b"\r\n\r\n")
    assert b"\r\nConnection: close\r\n" in head + b"\r\n"
    assert body == b"ok"


# --- clients that close their side (RFC 9112 section 9.6)


def test_a_client_that_has_closed_its_side_gets_its_answers() -> None:
    door = FrontDoor(at_once=False)
    client = door.client()
    client.send(get() * 3)
    client.half_close()
    for _ in range(3):
        door.clock.pump([0.1] * 4)
        assert not client.ended
        answer_with(door, (b"Content-Length", b"2"))
    assert client.statuses() == [200] * 3
    assert client.line.disconnecting


def test_it_gets_an_answer_that_goes_on_and_on() -> None:
    door = FrontDoor(at_once=False)
    client = door.client()
    client.send(get())
    client.half_close()
    request = door.inside.waiting.pop()
    for _ in range(20):
        request.write(b"x")
        door.clock.pump([0.1] * 4)
    client.channel.pauseProducing()
    door.clock.pump([1] * 10)
    assert not client.ended


@pytest.mark.parametrize("begun", [False, True])
def test_but_it_has_left_if_there_is_nothing_to_be_sent_to_it(begun: bool) -> None:
    door = FrontDoor(at_once=False)
    client = door.client()
    client.send(get())
    if begun:
        door.inside.waiting[0].write(b"x")
    client.half_close()
    door.clock.pump([0.1] * 6)
    assert client.line.disconnected
    client.leave()
    door.clock.advance(1)
    assert pending_calls(door.clock) == []


def test_one_for_whom_a_chat_runs_has_left_at_once() -> None:
    door = FrontDoor(at_once=False)
    client = door.client()
    client.send(get() * 2)
    request: Any = door.inside.waiting[0]
    request.half_closable = False
    client.half_close()
    assert client.line.disconnected


@pytest.mark.parametrize(
    "sent", [b"", get(), get() + b"GET", post(b"Content-Length: 2", body=b"x")]
)
def test_a_client_that_closes_its_side_without_a_whole_request_has_left(sent: bytes) -> None:
    door = FrontDoor()
    client = door.client()
    client.send(sent)
    client.half_close()
    assert client.line.disconnecting


def test_requests_that_are_answered_at_once_are_all_answered_to_a_half_closed_client() -> None:
    door = FrontDoor(at_once=False)
    client = door.client()
    client.send(get() + b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n" + get())
    client.half_close()
    answer_with(door, (b"Content-Length", b"2"))
    assert client.statuses() == [200, 200]
    assert not client.ended
    answer_with(door, (b"Content-Length", b"2"))
    assert client.statuses() == [200, 200, 200]
    assert client.ended


@pytest.mark.parametrize("half_closed_first", [True, False])
def test_a_half_closed_client_that_reads_slowly_gets_all_its_answers(
    half_closed_first: bool,
) -> None:
    door = FrontDoor(at_once=False)
    client = door.client()
    client.send(get() * 2)
    if half_closed_first:
        client.half_close()
    client.channel.pauseProducing()
    answer_with(door, (b"Content-Length", b"2"))
    if not half_closed_first:
        client.half_close()
    door.site.connections.drain()
    door.clock.pump([1] * 60)
    assert not client.ended and door.inside.waiting == []
    client.channel.resumeProducing()
    answer_with(door, (b"Content-Length", b"2"))
    assert client.statuses() == [200] * 2 and client.ended


def test_a_half_closed_client_is_told_of_a_bad_request() -> None:
    door = FrontDoor(at_once=False)
    client = door.client()
    client.send(get() + get(b"X : a"))
    client.half_close()
    answer_with(door, (b"Content-Length", b"2"))
    assert client.statuses() == [200, 400]
    client.half_close()  # what is read of it now is its end, again
    assert client.line.disconnecting


# --- clients that leave behind more than is read of them

PIPELINED = get(b"X: " + b"a" * 16_000) * 2


@attrs.frozen
class Crowding:
    """A client of whom nothing more is read until it is answered, on a socket of the system's."""

    door: FrontDoor
    client: Client
    ours: socket
    theirs: socket


@pytest.fixture
def crowding() -> Iterator[Crowding]:
    door = FrontDoor(at_once=False)
    client = door.client()
    ours, theirs = socketpair()
    with ours, theirs:
        client.line.socket = ours
        client.send(get(), PIPELINED)
        assert client.line.producerState == "paused"
        yield Crowding(door, client, ours, theirs)


def test_one_who_leaves_is_missed_by_the_next_second(crowding: Crowding) -> None:
    door, client = crowding.door, crowding.client
    door.clock.pump([0.1] * 30)
    assert not client.ended
    crowding.theirs.close()
    door.clock.advance(1)
    assert client.line.disconnected
    client.leave()
    door.clock.advance(1)
    assert pending_calls(door.clock) == []


def test_one_who_has_closed_its_side_is_served_as_long_as_it_is_sent_something(
    crowding: Crowding,
) -> None:
    door, client = crowding.door, crowding.client
    crowding.theirs.shutdown(SHUT_WR)
    [request] = door.inside.waiting
    for _ in range(20):
        request.write(b"x")
        door.clock.pump([0.1] * 4)
    assert not client.ended
    door.clock.pump([0.1] * 6)
    assert client.line.disconnected


def test_one_who_has_closed_its_side_gets_all_its_answers(crowding: Crowding) -> None:
    door, client = crowding.door, crowding.client
    crowding.theirs.shutdown(SHUT_WR)
    door.clock.advance(1)
    for _ in range(3):
        door.clock.pump([0.1] * 4)
        answer_with(door, (b"Content-Length", b"2"))
    assert client.line.producerState == "producing"
    client.half_close()  # is read now
    assert client.statuses() == [200] * 3 and client.line.disconnecting


def test_a_chat_of_one_who_has_closed_its_side_ends(crowding: Crowding) -> None:
    request: Any = crowding.door.inside.waiting[0]
    request.half_closable = False
    crowding.theirs.shutdown(SHUT_WR)
    crowding.door.clock.advance(1)
    assert crowding.client.line.disconnected


def test_nobody_of_whom_all_is_read_is_looked_after(crowding: Crowding) -> None:
    door, client = crowding.door, crowding.client
    for _ in range(3):
        answer_with(door, (b"Content-Length", b"2"))
    crowding.theirs.close()  # what that means, reading tells
    door.clock.pump([1] * 3)
    assert not client.ended


# --- too many


def test_connections_over_the_limit_are_told_to_come_back() -> None:
    door = FrontDoor(connections=2)
    first, second, third = door.client(), door.client(), door.client()
    for client in (first, second, third):
        client.send(get())
    assert [client.statuses() for client in (first, second, third)] == [[200], [200], [503]]
    [answer] = third.answers()
    assert answer.fields["retry-after"] == ["1"]
    error = json.loads(answer.body)["error"]
    assert (error["type"], error["code"]) == ("server_error", "too_many_connections")
    third.leave()
    first.leave()
    assert door.client().send(get()).statuses() == [200]


def test_connections_far_over_the_limit_are_not_even_told() -> None:
    door = FrontDoor(connections=1)
    clients = [door.client() for _ in range(258)]
    assert [client.line.disconnected for client in clients] == [False] * 257 + [True]


def test_connections_that_are_not_even_told_are_told_of_at_a_bounded_rate() -> None:
    events: list[ConnectionsTurnedAway] = []
    door = FrontDoor(connections=1, over_limit_connections=2, over_limit_timeout=5)

    def tell(event: Event) -> None:
        if isinstance(event, ConnectionsTurnedAway):
            events.append(event)

    door.site._tell = tell
    silent = [door.client() for _ in range(3)]
    assert events == []
    aborted = [door.client() for _ in range(1000)]
    assert [event.count for event in events] == [1]
    door.clock.advance(10)
    # With the two that were over the limit and have asked for nothing.
    assert [event.count for event in events] == [1, 999 + 2]
    assert [client.line.ended for client in silent] == [False, True, True]
    assert {event.limit for event in events} == {1}
    door.clock.advance(10)
    assert len(events) == 2
    for client in (*silent, *aborted):
        client.leave()
    door.clock.advance(10)
    assert not pending_calls(door.clock)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n", "head_too_large"),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200, "head_too_large"),
        (b"GET / HTTP/1.1\r\nHost: ", "request_timeout"),
        (b"GET / HTTP/2.0\r\n\r\n", "malformed_request"),
    ],
)
def test_a_refusal_has_a_code_of_its_own(sent: bytes, code: str) -> None:
    door = FrontDoor()
    client = door.client().send(sent)
    for _ in range(31):
        door.clock.advance(1)
    [answer] = client.answers()
    assert json.loads(answer.body)["error"]["code"] == code


# --- request ids


def test_a_request_id_is_made_sent_on_and_returned() -> None:
    door = FrontDoor()
    client = door.client()
    client.send(get(), get())
    ids = [passed.fields[b"X-Request-Id"] for passed in door.inside.passed]
    assert ids[0] != ids[1]
    for made, answer in zip(ids, client.answers(), strict=True):
        assert answer.fields["x-request-id"] == [each.decode() for each in made]


@pytest.mark.parametrize("client_id", [b"1", b"req_1-2.3:4/5+6=", b"x" * 128])
def test_a_clients_request_id_is_kept(client_id: bytes) -> None:
    door = FrontDoor()
    client = door.client()
    client.send(get(b"X-Request-Id: " + client_id))
    assert door.inside.passed[0].fields[b"X-Request-Id"] == [client_id]
    assert client.answers()[0].fields["x-request-id"] == [client_id.decode()]


@pytest.mark.parametrize("client_ids", [[b""], [b"a b"], [b"\xe9"], [b"x" * 129], [b"a", b"b"]])
def test_an_unfit_request_id_is_replaced(client_ids: list[bytes]) -> None:
    door = FrontDoor()
    client = door.client()
    client.send(get(*[b"X-Request-Id: " + each for each in client_ids]))
    [made] = door.inside.passed[0].fields[b"X-Request-Id"]
    assert made not in client_ids
    assert len(made) == 32


def test_our_own_answers_say_server_and_date_once_and_invent_no_type() -> None:
    client = FrontDoor().client()
    client.send(get())
    [answer] = client.answers()
    assert len(answer.fields["server"]) == len(answer.fields["date"]) == 1
    assert "content-type" not in answer.fields


def test_what_answers_a_client_that_does_not_read_is_paused_from_the_start() -> None:
    """Over TLS, nobody is told a second time that more is written than is read."""
    door = FrontDoor(at_once=False)
    client = door.client().send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    told: list[str] = []

    class Producer:
        def pauseProducing(self) -> None:
            told.append("pause")

        def resumeProducing(self) -> None:
            told.append("resume")

        def stopProducing(self) -> None:
            told.append("stop")

    client.channel.pauseProducing()  # for the head of the answer, on top of the answer before
    request: Any = door.inside.waiting[0]
    request.registerProducer(Producer(), True)
    assert told == ["pause"]
    client.channel.resumeProducing()
    assert told == ["pause", "resume"]


def test_one_who_reads_nothing_of_another_protocol_is_cut_off_in_the_end() -> None:
    door = FrontDoor(at_once=False, read_timeout=10)
    client = door.client().send(get())
    taken: list[bytes] = []
    client.channel.switch(b"HTTP/1.1 101 Switching Protocols\r\n\r\n", taken.append)
    door.clock.pump([1] * 100)
    client.channel.pauseProducing()
    door.clock.pump([1] * 9)
    client.channel.resumeProducing()
    door.clock.pump([1] * 100)
    assert not client.ended
    client.channel.pauseProducing()
    door.clock.pump([1] * 12)
    assert client.line.disconnected


def balanced(door: FrontDoor) -> Callable[..., Line]:
    """Sends what a load balancer does at an endpoint of its own."""
    reactor: Any = MemoryReactorClock()
    line: Any = Line
    balancer = IPv4Address("TCP", "10.0.0.9", 1)
    endpoint_of(reactor, "haproxy:tcp:8322").listen(door.site)
    connection = reactor.tcpServers[0][1].buildProtocol(balancer)
    transport: Line = line(peerAddress=balancer)
    connection.makeConnection(transport)

    def send(*parts: bytes) -> Line:
        for part in parts:
            connection.dataReceived(part)
        return transport

    return send


def test_behind_a_balancer_that_names_the_client_it_is_the_client() -> None:
    door = FrontDoor(at_once=False)
    balanced(door)(b"PROXY TCP4 203.0.113.7 10.0.0.1 4711 8322\r\n", get())
    request: Any = door.inside.waiting[0]
    assert request.client_host == request.record.client == "203.0.113.7"


@pytest.mark.parametrize(
    "line",
    [
        b"PROXY UNKNOWN\r\n",  # section 2.1: all that HAProxy's and Google's health checks say
        b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",  # of version 2, "LOCAL"
    ],
)
def test_a_balancer_that_names_nobody_is_the_client(line: bytes) -> None:
    door = FrontDoor(at_once=False)
    balanced(door)(line + get())
    balanced(door)(line, get())
    balanced(door)(line + get()[:9], get()[9:])
    if line.startswith(b"PROXY UNKNOWN\r"):
        for cut in range(1, len(line)):
            balanced(door)(line[:cut], line[cut:] + get())
    assert len(door.inside.waiting) == len(door.inside.passed) >= 3
    assert {getattr(each, "client_host", None) for each in door.inside.waiting} == {"10.0.0.9"}


@pytest.mark.parametrize("line", [b"PROXY UNKNOWN\n", b"PROXY UNKNOWNS\r\n", get()])
def test_what_names_the_client_in_no_way_is_closed(line: bytes) -> None:
    door = FrontDoor(at_once=False)
    transport = balanced(door)(line + get())
    assert door.inside.waiting == [] and transport.disconnecting
