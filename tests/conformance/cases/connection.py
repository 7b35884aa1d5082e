"""Connections: RFC 9112 section 9, Expect of RFC 9110 section 10.1.1, and slow clients."""

from __future__ import annotations

from ..case import CLOSED, OPEN, SILENCE, Check, Outcome, case, chunked, closing, post, request
from ..checks import (
    forwarded_body,
    framing,
    interim,
    interim_within,
    never_whole,
    reply,
    reply_body,
)
from ..servers import CLIENT_PATIENCE
from ..upstream import Answer
from ..wire import HALF_CLOSE, Pause, Until

_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
_PERSISTENT, _PIPELINE, _EXPECT = "9112 9.3", "9112 9.3.2", "9110 10.1.1"
_EXPECTS = "Expect: 100-continue"


def in_order(*targets: bytes) -> Check:
    """The answers were those to these targets, in this order."""

    def check(outcome: Outcome) -> str:
        found = [each.body.rpartition(b" ")[2] for each in outcome.finals]
        return "" if found == list(targets) else f"answers to {found}"

    return check


def statuses(*wanted: int) -> Check:
    """The answers, interim ones among them, came in this order."""

    def check(outcome: Outcome) -> str:
        found = [each.status for each in outcome.replies]
        return "" if found == list(wanted) else f"answers {found}"

    return check


PERSISTENCE = [
    case("1.1 stays open", _PERSISTENT, request(), after=OPEN),
    case("1.1 with close", _PERSISTENT, request("Connection: close"), after=CLOSED,
         checks=[reply("connection", "close")]),
    case("1.1 with Close", _PERSISTENT, request("Connection: Close"), after=CLOSED),
    case("close in a list", _PERSISTENT, request("Connection: x-a, close"), after=CLOSED),
    case("close in a second field", _PERSISTENT,
         request("Connection: x-a", "Connection: close"), after=CLOSED),
    case("keep-alive and close", _PERSISTENT, request("Connection: keep-alive, close"),
         after=CLOSED),
    case("1.1 with keep-alive", _PERSISTENT, request("Connection: keep-alive"), after=OPEN),
    case("1.0 closes", _PERSISTENT, request(version="HTTP/1.0"), after=CLOSED),
    case("1.0 with keep-alive", _PERSISTENT,
         request("Connection: keep-alive", version="HTTP/1.0")),
    case("1.0 with keep-alive and close", _PERSISTENT,
         request("Connection: keep-alive, close", version="HTTP/1.0"), after=CLOSED),
    case("1.0 with a body", _PERSISTENT, post(body=b"hello", version="HTTP/1.0"), after=CLOSED,
         checks=[forwarded_body(b"hello")]),
    case("1.0 gets no chunks", "9112 7.1", request(version="HTTP/1.0"),
         answers=[Answer((_CHUNKED,))], checks=[framing("close", "length"), reply_body(b"ok")]),
    case("1.0 with keep-alive gets no chunks", "9112 7.1",
         request("Connection: keep-alive", version="HTTP/1.0"), answers=[Answer((_CHUNKED,))],
         checks=[framing("close", "length"), reply_body(b"ok")]),
    case("1.0 HEAD", _PERSISTENT, request(method="HEAD", version="HTTP/1.0"), after=CLOSED),
    case("the upstream closes, we do not", "9110 7.6.1", request(),
         answers=[Answer(closing(_OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")))],
         after=OPEN),
    case("close on a POST", _PERSISTENT, post("Connection: close", body=b"hello"), after=CLOSED,
         checks=[forwarded_body(b"hello")]),
    case("nothing is answered after close", _PERSISTENT,
         request("Connection: close") + request(target="/second"), after=CLOSED, seen=1),
    # A client that has left looks the same, and is no reason to go on: nginx does not answer.
    case("half-closed after a request", "9112 9.6", request(), HALF_CLOSE,
         status={200, SILENCE}, seen={0, 1}),
    case("half-closed after a POST", "9112 9.6", post(body=b"hello"), HALF_CLOSE,
         status={200, SILENCE}, seen={0, 1}),
    case("half-closed, and a slow upstream", "9112 9.6", request(), HALF_CLOSE,
         answers=[Answer((Pause(0.3), _OK))], status={200, SILENCE}, seen={0, 1}),
]  # fmt: skip

PIPELINES = [
    case("two at once", _PIPELINE, request(target="/1") + request(target="/2"), more=[200],
         after=OPEN, checks=[in_order(b"/1", b"/2")]),
    case("ten at once", _PIPELINE, b"".join(request(target=f"/{n}") for n in range(10)),
         more=[200] * 9, after=OPEN, checks=[in_order(*(b"/%d" % n for n in range(10)))]),
    case("the first is slow", _PIPELINE, request(target="/1") + request(target="/2"),
         more=[200], answers=[Answer((Pause(0.3), _OK)), Answer()], seen=2),
    case("the first is slow, the second bad", _PIPELINE, request() + request(host=None),
         more=[400], answers=[Answer((Pause(0.3), _OK))], seen=1, after=CLOSED),
    case("a hundred at once", _PIPELINE, b"".join(request(target=f"/{n}") for n in range(100)),
         more=[200] * 99, after=OPEN, checks=[in_order(*(b"/%d" % n for n in range(100)))]),
    case("the second waits for 100, the first is slow", _PIPELINE,
         request() + request(_EXPECTS, "Content-Length: 5", method="POST", target="/2"),
         Until(b" 100 "), b"hello", more=[200], answers=[Answer((Pause(0.3), _OK)), Answer()],
         seen=2, checks=[statuses(200, 100, 200)]),
    case("POST and GET", _PIPELINE, post(body=b"hello") + request(target="/2"), more=[200]),
    case("chunked POST and GET", _PIPELINE,
         chunked(b"5\r\nhello\r\n0\r\n\r\n", target="/1") + request(target="/2"), more=[200],
         checks=[in_order(b"/1", b"/2")]),
    case("two POSTs", _PIPELINE,
         post(body=b"hello", target="/1") + post(body=b"hello", target="/2"), more=[200],
         checks=[in_order(b"/1", b"/2"), forwarded_body(b"hello")]),
    case("HEAD and GET", _PIPELINE, request(method="HEAD") + request(target="/2"), more=[200]),
    case("a good and a bad one", _PIPELINE, request() + request(host=None), more=[400], seen=1,
         after=CLOSED),
    case("a good, a bad and a good one", _PIPELINE,
         request() + request("X : y") + request(target="/3"), more=[400], seen=1, after=CLOSED),
    case("cut between two writes", _PIPELINE, request() + request()[:20], Pause(0.05),
         request()[20:], more=[200]),
    case("the second after the first's answer", _PIPELINE, request(), Until(b"GET /echo"),
         request(target="/2"), more=[200], after=OPEN),
    case("an upstream that closes in between", _PIPELINE, request() + request(), more=[200],
         answers=[Answer(closing(_OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")))]),
    case("a chunked answer, then another", _PIPELINE, request() + request(), more=[200],
         answers=[Answer((_CHUNKED,)), Answer()]),
]  # fmt: skip

EXPECT = [
    case("100-continue, and the body after it", _EXPECT,
         request(_EXPECTS, "Content-Length: 5", method="POST"), Until(b"100 "), b"hello",
         checks=[interim(100), forwarded_body(b"hello")], after=OPEN),
    case("100-continue, chunked", _EXPECT,
         request(_EXPECTS, "Transfer-Encoding: chunked", method="POST"), Until(b"100 "),
         b"5\r\nhello\r\n0\r\n\r\n", checks=[interim(100), forwarded_body(b"hello")]),
    case("100-continue, in capitals", _EXPECT,
         request("Expect: 100-CONTINUE", "Content-Length: 5", method="PUT"), Until(b"100 "),
         b"hello", checks=[interim(100), forwarded_body(b"hello")]),
    case("100-continue, and the body at once", _EXPECT, post(_EXPECTS, body=b"hello"),
         checks=[interim_within(100), forwarded_body(b"hello")]),
    case("100-continue without a body", _EXPECT, request(_EXPECTS), checks=[interim_within(100)]),
    case("100-continue in HTTP/1.0", _EXPECT, post(_EXPECTS, body=b"hello", version="HTTP/1.0"),
         checks=[interim(), forwarded_body(b"hello")]),
    case("another expectation", _EXPECT, request("Expect: 200-maybe"), status={200, 400, 417}),
    case("100-continue over the limit", _EXPECT,
         request(_EXPECTS, "Content-Length: 9999999999999", method="POST"), status={413, 417},
         seen=0, checks=[interim()]),
    case("100-continue, and a bad request", _EXPECT,
         request(_EXPECTS, "Content-Length: x", method="POST"), status=400, seen=0,
         after=CLOSED, checks=[interim()]),
    case("100-continue, and then silence", _EXPECT,
         request(_EXPECTS, "Content-Length: 5", method="POST"), Until(b"100 "), HALF_CLOSE,
         status={SILENCE, 400}, seen={0, 1}),
    case("two at once with 100-continue", _EXPECT,
         post(_EXPECTS, body=b"hello") + post(_EXPECTS, body=b"hello"), more=[200],
         methods=[b"POST", b"POST"], checks=[forwarded_body(b"hello")]),
]  # fmt: skip

SLOW = [
    case("byte by byte", "9112 2.2", *[bytes([each]) for each in post("X-A: b", body=b"hello")],
         checks=[forwarded_body(b"hello")], after=OPEN),
    case("a line at a time", "9112 2.2",
         *[part for line in post("X-A: b", body=b"hello").split(b"\r\n")[:-2]
           for part in (line + b"\r\n", Pause(0.02))], b"\r\nhello",
         checks=[forwarded_body(b"hello")]),
    case("CR and LF apart", "9112 2.2", b"GET /echo HTTP/1.1\r", Pause(0.05), b"\nHost: a\r",
         Pause(0.05), b"\n\r", Pause(0.05), b"\n", after=OPEN),
    case("half a head, and no more", "9110 15.5.9", request()[:-10],
         Pause(CLIENT_PATIENCE + 2), status={SILENCE, 408}, seen=0, timeout=CLIENT_PATIENCE + 3),
    case("half a body, and no more", "9110 15.5.9", post(body=b"hello")[:-2],
         Pause(CLIENT_PATIENCE + 2), status={SILENCE, 408}, seen={0, 1}, checks=[never_whole],
         timeout=CLIENT_PATIENCE + 3),
    case("a head that drips", "9110 15.5.9", request()[:-2],
         *[step for _ in range(CLIENT_PATIENCE * 2 + 4) for step in (b"X: y\r\n", Pause(0.5))],
         status={SILENCE, 408}, seen=0, timeout=CLIENT_PATIENCE + 5),
    case("a websocket", "9110 7.8",
         request("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
                 "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
         status={200, 400, 426, 501}),
]  # fmt: skip

CASES = [*PERSISTENCE, *PIPELINES, *EXPECT, *SLOW]
