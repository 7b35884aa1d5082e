"""Answers: how they are framed (RFC 9112 section 6.3), and what comes before them."""

from __future__ import annotations

from ..case import OPEN, answered, request
from ..checks import interim, interim_within, reply, reply_body, reply_without
from ..wire import CLOSE, Pause

_FRAMING = "9112 6.3"
_HEAD = b"HTTP/1.1 200 OK\r\n"
_OK = _HEAD + b"Content-Length: 2\r\n\r\nok"
_TE = _HEAD + b"Transfer-Encoding: chunked\r\n"
_OKAY = reply_body(b"ok")
_BIG = bytes(range(256)) * 16384


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
    answered("20,000 chunks of a byte", _FRAMING, _TE + b"\r\n", b"1\r\nx\r\n" * 20_000,
             b"0\r\n\r\n", checks=[reply_body(b"x" * 20_000)], after=OPEN),
    answered("a field of 3 kB", "9110 5.4", _OK.replace(b"\r\n\r\n", b"\r\nX-A: ")[:-2]
             + b"b" * 3000 + b"\r\n\r\nok", checks=[reply("x-a", b"b" * 3000)]),
    answered("HEAD, and the connection ends", "9110 9.3.2", _HEAD + b"\r\n", CLOSE,
             send=request(method="HEAD"), after=OPEN),
    answered("a 204 that says it is chunked", "9112 6.1",
             b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", CLOSE,
             status={204, 502}),
    answered("a 304 that says it is chunked", "9112 6.1",
             b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", CLOSE,
             status={304, 502}),
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
             status=502),
    answered("101 that nobody asked for", "9110 15.2.2",
             b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nhello", CLOSE,
             status=502),
    answered("10,000 interim answers", "9110 15.2",
             b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000 + _OK, status={200, 502}),
]  # fmt: skip

CASES = [*FRAMINGS, *INTERIM]
