"""Answers: their framing (RFC 9112 section 6.3), and upstreams that fail or lie."""

from __future__ import annotations

from ..case import OPEN, Case, answered, case, post, request
from ..checks import (
    forwarded_body,
    interim,
    interim_within,
    raw_without,
    reply,
    reply_body,
    reply_without,
)
from ..servers import UPSTREAM_PATIENCE
from ..upstream import Answer
from ..wire import CLOSE, READ_BODY, RESET, Pause

_FRAMING, _BAD = "9112 6.3", {502}
_HEAD = b"HTTP/1.1 200 OK\r\n"
_OK = _HEAD + b"Content-Length: 2\r\n\r\nok"
_TE = _HEAD + b"Transfer-Encoding: chunked\r\n"
_REFUSED = b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno"
_OKAY = reply_body(b"ok")
_BIG = bytes(range(256)) * 16384


def _bad(name: str, *steps: bytes, rfc: str = "9110 15.6.3") -> Case:
    """An answer that is none: the client must see a 502."""
    return answered(f"bad answer: {name}", rfc, *steps, CLOSE, status=_BAD)


def _cut(name: str, *steps: object) -> Case:
    """An answer that breaks off: the client must see that it does."""
    return answered(f"cut: {name}", "9112 8", *steps, status={200, 502}, cut=True)  # type: ignore[arg-type]


def _either(name: str, head: bytes, body: bytes = b"ok", rfc: str = _FRAMING) -> Case:
    """An answer that may be refused, or else relayed with this body."""
    return answered(f"odd answer: {name}", rfc, head, CLOSE, status={200, 502},
                    checks=[reply_body(body)])  # fmt: skip


FRAMINGS = [
    answered("a length", _FRAMING, _OK, checks=[_OKAY, reply("content-length", "2")], after=OPEN),
    answered("a length of 0", _FRAMING, _HEAD + b"Content-Length: 0\r\n\r\n",
             checks=[reply_body(b"")], after=OPEN),
    answered("chunked", _FRAMING, _TE + b"\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n", checks=[_OKAY],
             after=OPEN),
    answered("chunked, and nothing in it", _FRAMING, _TE + b"\r\n0\r\n\r\n",
             checks=[reply_body(b"")], after=OPEN),
    answered("chunked in capitals", _FRAMING,
             _TE.replace(b"chunked", b"Chunked") + b"\r\n2\r\nok\r\n0\r\n\r\n", checks=[_OKAY]),
    answered("chunked with extensions", _FRAMING, _TE + b"\r\n2;a=b\r\nok\r\n0;c\r\n\r\n",
             checks=[_OKAY]),
    answered("chunked with trailers", "9112 7.1.2",
             _TE + b"Trailer: X-T\r\n\r\n2\r\nok\r\n0\r\nX-T: a\r\n\r\n",
             checks=[_OKAY, reply_without("x-t")], after=OPEN),
    answered("the end of the connection", _FRAMING, _HEAD + b"\r\nok", CLOSE, checks=[_OKAY]),
    answered("the end of the connection, announced", _FRAMING,
             _HEAD + b"Connection: close\r\n\r\nok", CLOSE, checks=[_OKAY]),
    answered("HTTP/1.0 and the end", _FRAMING, b"HTTP/1.0 200 OK\r\n\r\nok", CLOSE,
             checks=[_OKAY]),
    answered("HTTP/1.0 and a length", _FRAMING,
             b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", CLOSE, checks=[_OKAY]),
    answered("an empty body by the end", _FRAMING, _HEAD + b"\r\n", CLOSE,
             checks=[reply_body(b"")]),
    answered("204", "9110 15.3.5", b"HTTP/1.1 204 No Content\r\n\r\n", status=204, after=OPEN,
             checks=[reply_without("content-length", "transfer-encoding")]),
    answered("304 with a length", "9110 15.4.5",
             b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\nContent-Length: 1000\r\n\r\n', status=304,
             after=OPEN, checks=[reply("etag", '"a"')]),
    answered("304 without", "9110 15.4.5", b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\n\r\n',
             status=304, after=OPEN, checks=[reply_without("transfer-encoding")]),
    answered("205", "9110 15.3.6", b"HTTP/1.1 205 Reset\r\nContent-Length: 0\r\n\r\n", status=205,
             after=OPEN),
    answered("206", "9110 15.3.7",
             b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 0-1/9\r\nContent-Length: 2\r\n\r\nok",
             status=206, checks=[reply("content-range", "bytes 0-1/9"), _OKAY]),
    answered("HEAD with a length", "9110 9.3.2", _HEAD + b"Content-Length: 1000\r\n\r\n",
             send=request(method="HEAD"), after=OPEN, checks=[reply("content-length", "1000")]),
    answered("HEAD, chunked", "9110 9.3.2", _TE + b"\r\n", send=request(method="HEAD"), after=OPEN),
    answered("HEAD with neither", "9110 9.3.2", _HEAD + b"X-A: b\r\n\r\n",
             send=request(method="HEAD"), after=OPEN,
             checks=[reply_without("content-length")]),
    answered("HEAD of a 404", "9110 9.3.2",
             b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\n", send=request(method="HEAD"),
             status=404, after=OPEN, checks=[]),
    answered("4 MB with a length", _FRAMING, _HEAD + b"Content-Length: %d\r\n\r\n" % len(_BIG),
             _BIG, checks=[reply_body(_BIG)], after=OPEN),
    answered("4 MB in chunks", _FRAMING, _TE + b"\r\n",
             b"".join(b"1000\r\n%b\r\n" % _BIG[n:n + 4096] for n in range(0, len(_BIG), 4096)),
             b"0\r\n\r\n", checks=[reply_body(_BIG)], after=OPEN),
    answered("4 MB to the end", _FRAMING, _HEAD + b"\r\n", _BIG, CLOSE, checks=[reply_body(_BIG)]),
    answered("byte by byte", _FRAMING, *[bytes([b]) for b in _TE + b"\r\n2\r\nok\r\n0\r\n\r\n"],
             checks=[_OKAY], after=OPEN),
    *[answered(f"status {status}", "9110 15", _OK.replace(b"200 OK", b"%d Some thing" % status),
               status=status)
      for status in (201, 202, 203, 207, 299, 300, 400, 401, 404, 409, 418, 422, 429, 451, 499,
                     500, 501, 502, 503, 504, 507, 511, 599)],
    answered("no reason", "9112 4", _OK.replace(b"200 OK", b"200 "), checks=[_OKAY]),
    answered("no reason and no space", "9112 4", _OK.replace(b"200 OK", b"200"), checks=[_OKAY]),
    answered("obs-text in the reason", "9112 4", _OK.replace(b"OK", b"caf\xe9"), checks=[_OKAY]),
    answered("400 does not close for us", "9112 9.3", _OK.replace(b"200 OK", b"404 Not Found"),
             status=404, after=OPEN),
]  # fmt: skip

INTERIM = [
    answered("100 before the answer", "9110 15.2.1", b"HTTP/1.1 100 Continue\r\n\r\n" + _OK,
             checks=[_OKAY, interim_within(100)], after=OPEN),
    answered("103 before the answer", "8297", b"HTTP/1.1 103 Hints\r\nLink: </a>\r\n\r\n" + _OK,
             checks=[_OKAY, interim_within(103), reply_without("link")], after=OPEN),
    answered("102 apart from the answer", "9110 15.2", b"HTTP/1.1 102 Processing\r\n\r\n",
             Pause(0.05), _OK, checks=[_OKAY, interim_within(102)]),
    answered("three interim answers", "9110 15.2",
             b"HTTP/1.1 100 A\r\n\r\nHTTP/1.1 102 B\r\n\r\nHTTP/1.1 103 C\r\n\r\n" + _OK,
             checks=[_OKAY, interim_within(100, 102, 103)]),
    answered("an interim answer to HTTP/1.0", "9110 15.2",
             b"HTTP/1.1 103 Hints\r\n\r\n" + _OK, send=request(version="HTTP/1.0"),
             checks=[_OKAY, interim()]),
    answered("an interim answer and the end", "9110 15.2", b"HTTP/1.1 100 Continue\r\n\r\n", CLOSE,
             status=_BAD),
    answered("101 that nobody asked for", "9110 15.2.2",
             b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nhello", CLOSE,
             status=_BAD),
    answered("10,000 interim answers", "9110 15.2",
             b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000 + _OK, status={200, 502}),
]  # fmt: skip

GARBAGE = [
    _bad("nothing"),
    _bad("garbage", b"hello, this is no answer\r\n\r\n"),
    _bad("binary garbage", bytes(range(256)) * 4),
    _bad("half a status line", b"HTTP/1.1 20"),
    _bad("half a head", _HEAD + b"Content-Le"),
    _bad("a head without its end", _HEAD + b"Content-Length: 2\r\n"),
    *[_bad(f"status line {line!r}", line + b"\r\nContent-Length: 2\r\n\r\nok", rfc="9112 4")
      for line in (b"HTTP/1.1 20 OK", b"HTTP/1.1 abc OK", b"HTTP/1.1 2000 OK", b"HTTP/1.1",
                   b"ICY 200 OK", b"HTTP/x.y 200 OK", b"200 OK", b"HTTP/1.1 -200 OK",
                   b"HTTP/1.1 000 OK", b"SSH-2.0-OpenSSH_9.2", b"HTTP/1.1200 OK")],
    _bad("two lengths", _HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nok!"),
    *[_bad(f"Content-Length {value!r}", _HEAD + b"Content-Length: " + value + b"\r\n\r\nok")
      for value in (b"x", b"-2", b"+2", b"2x", b"2 2", b"0x2", b"", b"2, 3",
                    b"2;", b"2.0")],
    _bad("a field with no colon", _HEAD + b"no colon\r\nContent-Length: 2\r\n\r\nok"),
    _bad("a field of 1 MB", _HEAD + b"X: " + b"a" * 1_000_000 + b"\r\nContent-Length: 2\r\n\r\nok"),
    _bad("a head of 1 MB", _HEAD + b"X: y\r\n" * 170_000 + b"Content-Length: 2\r\n\r\nok"),
    _bad("a head without end", _HEAD + b"X: " + b"a" * 1_000_000),
    _bad("a coding that is unknown", _HEAD + b"Transfer-Encoding: gzip\r\n\r\nok"),
    _bad("chunked twice", _HEAD + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
    _either("length and coding", _TE + b"Content-Length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
    _either("the same length twice", _OK.replace(b"\r\n\r\n", b"\r\nContent-Length: 2\r\n\r\n")),
    _either("HTTP/2.0", _OK.replace(b"HTTP/1.1", b"HTTP/2.0")),
    _either("HTTP/1.2", _OK.replace(b"HTTP/1.1", b"HTTP/1.2")),
    _either("bare LF as line end", _OK.replace(b"\r\n", b"\n")),
    _either("a space before the colon", _OK.replace(b"Length:", b"Length :"), rfc="9112 5.1"),
    _either("an empty line before it", b"\r\n" + _OK),
    _either("a CR in a field", _OK.replace(b"\r\n\r\n", b"\r\nX: a\rb\r\n\r\n"), rfc="9110 5.5"),
    _either("a NUL in a field", _OK.replace(b"\r\n\r\n", b"\r\nX: a\0b\r\n\r\n"), rfc="9110 5.5"),
    answered("odd answer: obs-fold", "9112 5.2",
             _HEAD + b"X-A: b\r\n c\r\nContent-Length: 2\r\n\r\nok", status={200, 502},
             checks=[raw_without(b"\r\n c"), _OKAY]),
    answered("odd answer: chunked in HTTP/1.0", _FRAMING,
             _TE.replace(b"1.1", b"1.0") + b"\r\n2\r\nok\r\n0\r\n\r\n", CLOSE, status={200, 502}),
    answered("reset before an answer", "9110 15.6.3", RESET, status=_BAD),
    answered("reset in the head", "9110 15.6.3", _HEAD, RESET, status=_BAD),
    answered("reset, asked with a POST", "9110 9.2.2", RESET, send=post(body=b"hello"),
             status=_BAD, seen=1),
    answered("closed, asked with a POST", "9110 9.2.2", CLOSE, send=post(body=b"hello"),
             status=_BAD, seen=1),
    answered("stalls before an answer", "9110 15.6.5", Pause(UPSTREAM_PATIENCE + 2), CLOSE,
             status=504, seen=1, timeout=UPSTREAM_PATIENCE + 3),
    answered("status 600", "9110 15", _OK.replace(b"200 OK", b"600 Odd"), status={600, 502}),
    answered("status 999", "9110 15", _OK.replace(b"200 OK", b"999 Odd"), status={999, 502}),
]  # fmt: skip

CUTS = [
    _cut("less than the length", _HEAD + b"Content-Length: 9\r\n\r\nok", CLOSE),
    _cut("less than the length, after a while", _HEAD + b"Content-Length: 9\r\n\r\nok", Pause(0.1),
         CLOSE),
    _cut("reset in a length", _HEAD + b"Content-Length: 9\r\n\r\nok", Pause(0.1), RESET),
    _cut("chunks without the last", _TE + b"\r\n2\r\nok\r\n", CLOSE),
    _cut("in a chunk", _TE + b"\r\n9\r\nok", CLOSE),
    _cut("before the last CR LF", _TE + b"\r\n2\r\nok\r\n0\r\n", CLOSE),
    _cut("reset in a chunk", _TE + b"\r\n9\r\nok", Pause(0.1), RESET),
    _cut("a length and nothing of it", _HEAD + b"Content-Length: 9\r\n\r\n", CLOSE),
    _cut("a length over 64 bits", _HEAD + b"Content-Length: 99999999999999999999\r\n\r\nok", CLOSE),
    _cut("a chunk size that is none", _TE + b"\r\n2\r\nok\r\nxyz\r\n\r\n", CLOSE),
    _cut("a negative chunk size", _TE + b"\r\n-2\r\nok\r\n0\r\n\r\n", CLOSE),
    _cut("a chunk longer than its size", _TE + b"\r\n2\r\nokay\r\n0\r\n\r\n", CLOSE),
    _cut("a chunk size over 64 bits", _TE + b"\r\n10000000000000002\r\nok\r\n0\r\n\r\n", CLOSE),
    answered("cut: stalls in the body", "9112 8", _HEAD + b"Content-Length: 9\r\n\r\nok",
             Pause(UPSTREAM_PATIENCE + 2), CLOSE, cut=True, seen=1, timeout=UPSTREAM_PATIENCE + 3),
]  # fmt: skip


def _twice(name: str, first: tuple[object, ...], method: str = "GET", rfc: str = _FRAMING) -> Case:
    """Two requests on one connection: what is wrong with the first answer is not the second's."""
    return case(
        f"then another: {name}", rfc,
        request(method=method) + request(target="/second"), more=[200],
        answers=[Answer(first), Answer()], methods=[method.encode()], seen={2, 3},  # type: ignore[arg-type]
        checks=[reply_body(b"GET /second", nth=1), raw_without(b"SPLIT")],
    )  # fmt: skip


_SPLIT = b"HTTP/1.1 200 SPLIT\r\nContent-Length: 5\r\n\r\nSPLIT"

SEQUENCES = [
    _twice("more than the length", (_OK + _SPLIT,)),
    _twice("more than the length, later", (_OK, Pause(0.05), _SPLIT)),
    _twice("more after the last chunk", (_TE + b"\r\n2\r\nok\r\n0\r\n\r\n" + _SPLIT,)),
    _twice("a body for HEAD", (_HEAD + b"Content-Length: 55\r\n\r\n" + _SPLIT,), method="HEAD"),
    _twice("chunks for HEAD", (_TE + b"\r\n5\r\nSPLIT\r\n0\r\n\r\n",), method="HEAD"),
    case("then another: a body for 204", _FRAMING, request() + request(target="/second"),
         status=204, more=[200],
         answers=[Answer((b"HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\nSPLIT",)), Answer()],
         seen={2, 3}, checks=[raw_without(b"SPLIT")]),
    case("then another: a body for 304", _FRAMING, request() + request(target="/second"),
         status=304, more=[200],
         answers=[Answer((b"HTTP/1.1 304 No\r\nContent-Length: 5\r\n\r\nSPLIT",)), Answer()],
         seen={2, 3}, checks=[raw_without(b"SPLIT")]),
    _twice("the upstream closes unannounced", (_OK, CLOSE), rfc="9112 9.3.1"),
    _twice("the upstream resets afterwards", (_OK, RESET), rfc="9112 9.3.1"),
    case("a pooled connection closed long ago, and a POST", "9112 9.3.1", request(), Pause(0.3),
         post(body=b"hello", target="/second"), more=[200],
         answers=[Answer((_OK, CLOSE)), Answer()], seen=2),
    case("a pooled connection that closes when asked, and a GET", "9110 9.2.2",
         request(target="/first"), Pause(0.1), request(target="/second"), more=[{200, 502}],
         answers=[Answer(), Answer((CLOSE,)), Answer()], seen={2, 3}),
    case("a pooled connection that closes when asked, and a POST", "9110 9.2.2",
         request(target="/first"), Pause(0.1), post(body=b"hello", target="/second"), more=[502],
         answers=[Answer(), Answer((CLOSE,)), Answer()], seen=2),
    case("a pooled connection that resets when asked, and a PUT", "9110 9.2.2",
         request(target="/first"), Pause(0.1),
         request("Content-Length: 5", method="PUT", target="/second", body=b"hello"),
         more=[{200, 502}], answers=[Answer(), Answer((RESET,)), Answer()], seen={2, 3},
         checks=[]),
]  # fmt: skip

EARLY = [
    case("an early 413 to a small upload", "9110 9.3.3", post(body=b"hello"), status=413, seen=1,
         answers=[Answer((_REFUSED, READ_BODY, CLOSE), early=True)]),
    case("an early 413 to 4 MB", "9112 9.5", post(body=_BIG), status=413, seen=1,
         answers=[Answer((_REFUSED, READ_BODY, CLOSE), early=True)]),
    case("an early 413 to 4 MB, and closed", "9112 9.5", post(body=_BIG), status={413, 502},
         seen={1, 2}, answers=[Answer((_REFUSED, Pause(0.2), CLOSE), early=True)]),
    case("an early 413 to 4 MB, and closed at once", "9112 9.5", post(body=_BIG),
         status={413, 502}, seen={1, 2}, answers=[Answer((_REFUSED, CLOSE), early=True)]),
    case("an early 413 to a chunked upload", "9112 9.5",
         request("Transfer-Encoding: chunked", method="POST",
                 body=b"400000\r\n" + _BIG + b"\r\n0\r\n\r\n"), status=413, seen=1,
         answers=[Answer((_REFUSED, READ_BODY, CLOSE), early=True)]),
    case("an early 200 to 4 MB, read to its end", "9112 9.5", post(body=_BIG), seen=1,
         answers=[Answer((_OK, READ_BODY), early=True)], checks=[_OKAY]),
    case("4 MB up with a length", _FRAMING, post(body=_BIG), after=OPEN,
         checks=[forwarded_body(_BIG)]),
    case("4 MB up in chunks", _FRAMING,
         request("Transfer-Encoding: chunked", method="POST", body=b"".join(
             b"1000\r\n%b\r\n" % _BIG[n:n + 4096] for n in range(0, len(_BIG), 4096))
             + b"0\r\n\r\n"), after=OPEN, checks=[forwarded_body(_BIG)]),
    case("an upload that is reset by the upstream", "9110 15.6.3", post(body=_BIG), status=_BAD,
         seen={1, 2}, answers=[Answer((RESET,), early=True)]),
]  # fmt: skip

CASES = [*FRAMINGS, *INTERIM, *GARBAGE, *CUTS, *SEQUENCES, *EARLY]
