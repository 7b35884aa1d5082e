"""Upstreams that fail or lie, and connections to them that are used again."""

from __future__ import annotations

from ..case import OPEN, Case, answered, case, post, request
from ..checks import forwarded_body, raw_without, reply_body, reply_once
from ..servers import UPSTREAM_PATIENCE
from ..upstream import Answer
from ..wire import CLOSE, READ_BODY, RESET, Pause, Step

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


def _cut(name: str, *steps: Step) -> Case:
    """An answer that breaks off: the client must see that it does."""
    return answered(f"cut: {name}", "9112 8", *steps, status={200, 502}, cut=True)


def _either(name: str, head: bytes, body: bytes = b"ok", rfc: str = _FRAMING) -> Case:
    """An answer that may be refused, or else relayed with this body."""
    return answered(f"odd answer: {name}", rfc, head, CLOSE, status={200, 502},
                    checks=[reply_body(body)])  # fmt: skip


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
    _bad("a field with no name", _HEAD + b": b\r\nContent-Length: 2\r\n\r\nok"),
    _bad("a blank before the first field", _HEAD + b" X: b\r\nContent-Length: 2\r\n\r\nok"),
    *[_bad(f"field {line!r}", _HEAD + line + b"\r\nContent-Length: 2\r\n\r\nok", rfc="9112 5")
      for line in (b"X A: b", b"X(A): b", b"X\xe9: b", b"X\x01: b", b"X\0A: b")],
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
    _either("the same length twice in a list", _OK.replace(b"th: 2", b"th: 2, 2")),
    _either("Transfer-Encoding identity", _HEAD + b"Transfer-Encoding: identity\r\n\r\nok"),
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
    answered("Date in an answer that is our own", "9110 6.6.1", CLOSE, status=_BAD,
             checks=[reply_once("date", "content-type", "content-length")]),
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


def _twice(name: str, first: tuple[Step, ...], method: str = "GET", rfc: str = _FRAMING) -> Case:
    """Two requests on one connection: what is wrong with the first answer is not the second's."""
    return case(
        f"then another: {name}", rfc,
        request(method=method) + request(target="/second"), more=[200],
        answers=[Answer(first), Answer()], methods=[method.encode()], seen={2, 3},
        checks=[reply_body(b"GET /second", nth=1), raw_without(b"SPLIT")],
    )  # fmt: skip


_SPLIT = b"HTTP/1.1 200 SPLIT\r\nContent-Length: 5\r\n\r\nSPLIT"

SEQUENCES = [
    _twice("more than the length", (_OK + _SPLIT,)),
    # Once the next request is on its way, nothing tells such bytes from its answer.
    case("then another: more than the length, while nothing is asked", _FRAMING,
         request(), Pause(0.2), request(target="/second"), more=[200],
         answers=[Answer((_OK, Pause(0.05), _SPLIT)), Answer()], seen={2, 3},
         checks=[reply_body(b"GET /second", nth=1), raw_without(b"SPLIT")]),
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
         request(target="/first"), Pause(0.1), request(target="/second"), more=[200],
         answers=[Answer(), Answer((CLOSE,)), Answer()], seen=3),
    case("a pooled connection that resets when asked, and a HEAD", "9110 9.2.2",
         request(target="/first"), Pause(0.1), request(method="HEAD", target="/second"),
         more=[200], answers=[Answer(), Answer((RESET,)), Answer()], seen=3,
         methods=[b"GET", b"HEAD"]),
    case("a pooled connection that closes when asked, and a POST", "9110 9.2.2",
         request(target="/first"), Pause(0.1), post(body=b"hello", target="/second"), more=[502],
         answers=[Answer(), Answer((CLOSE,)), Answer()], seen=2),
    case("a pooled connection that resets when asked, and a PUT", "9110 9.2.2",
         request(target="/first"), Pause(0.1),
         request("Content-Length: 5", method="PUT", target="/second", body=b"hello"),
         more=[{200, 502}], answers=[Answer(), Answer((RESET,)), Answer()], seen={2, 3}),
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

CASES = [*GARBAGE, *CUTS, *SEQUENCES, *EARLY]
