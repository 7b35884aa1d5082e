"""Request bodies: RFC 9112 sections 6 and 7, and the ways to smuggle a request past them."""

from __future__ import annotations

from ..case import OPEN, SILENCE, UNSUPPORTED, Case, case, chunked, post, refused, request
from ..checks import forwarded_body, never_whole, not_forwarded
from ..wire import HALF_CLOSE, Pause

_LENGTH, _CODING, _CHUNK, _TRAILER = "9112 6.2", "9112 6.1", "9112 7.1", "9112 7.1.2"
_HELLO = forwarded_body(b"hello")
_SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: example.com\r\n\r\n"
_BODY = b"5\r\nhello\r\n0\r\n\r\n"


def _raw(*lines: bytes | str, body: bytes) -> bytes:
    return request(*lines, method="POST", body=body)


def _length(value: bytes | str) -> Case:
    line = b"Content-Length:" + (value if isinstance(value, bytes) else value.encode())
    return refused(f"Content-Length {value!r}", _LENGTH, _raw(line, body=b"hello"))


def _coding(value: bytes | str) -> Case:
    line = b"Transfer-Encoding:" + (value if isinstance(value, bytes) else value.encode())
    return refused(
        f"Transfer-Encoding {value!r}", _CODING, _raw(line, body=_BODY), status=UNSUPPORTED
    )


def _both(name: str, *lines: bytes | str) -> Case:
    """A Content-Length that ends before a smuggled request, and a coding that does not."""
    return refused(
        f"CL and TE: {name}", "9112 6.3", _raw(*lines, body=_BODY + _SMUGGLED), status=UNSUPPORTED
    )


def _bad(name: str, body: bytes) -> Case:
    """A chunked body that must be refused; the upstream may have seen its beginning."""
    return case(
        f"chunks: {name}", _CHUNK, chunked(body), status={400, 413}, seen={0, 1}, after="closed",
        checks=[never_whole],
    )  # fmt: skip


def _good(name: str, body: bytes, whole: bytes = b"hello") -> Case:
    return case(f"chunks: {name}", _CHUNK, chunked(body), checks=[forwarded_body(whole)])


def _lenient(name: str, body: bytes, *whole: bytes) -> Case:
    """A chunked body that may be refused, or else understood in this one way."""
    return case(
        f"chunks: {name}", _CHUNK, chunked(body), status={200, 400, 413}, seen={0, 1},
        checks=[forwarded_body(whole[0] if whole else b"hello")] if whole else [],
    )  # fmt: skip


LENGTHS = [
    case("Content-Length", _LENGTH, post(body=b"hello"), after=OPEN, checks=[_HELLO]),
    case("Content-Length: 0", _LENGTH, post(), after=OPEN, checks=[forwarded_body(b"")]),
    case("a POST with neither", _LENGTH, request(method="POST"), after=OPEN,
         checks=[forwarded_body(b"")]),
    case("a GET with a body", "9110 9.3.1", request("Content-Length: 5", body=b"hello"),
         checks=[_HELLO]),
    case("a HEAD with a body", "9110 9.3.2",
         request("Content-Length: 5", method="HEAD", body=b"hello"), checks=[_HELLO]),
    case("an OPTIONS with a body", "9110 9.3.7",
         request("Content-Length: 5", method="OPTIONS", body=b"hello"), checks=[_HELLO]),
    case("a DELETE with a body", "9110 9.3.5",
         request("Content-Length: 5", method="DELETE", body=b"hello"), checks=[_HELLO]),
    case("leading zeros", _LENGTH, _raw("Content-Length: 0005", body=b"hello"),
         status={200, 400}, checks=[_HELLO]),
    case("whitespace around it", _LENGTH, _raw("Content-Length: \t 5 \t", body=b"hello"),
         checks=[_HELLO]),
    case("the same twice", "9110 8.6",
         _raw("Content-Length: 5", "Content-Length: 5", body=b"hello"), status={200, 400},
         checks=[_HELLO]),
    case("the same twice in a list", "9110 8.6", _raw("Content-Length: 5, 5", body=b"hello"),
         status={200, 400}, checks=[_HELLO]),
    case("in pieces", _LENGTH, _raw("Content-Length: 5", body=b"he"), Pause(0.05), b"llo",
         checks=[_HELLO]),
    case("bytes that look like a request", _LENGTH, post(body=_SMUGGLED),
         checks=[forwarded_body(_SMUGGLED)]),
    case("every byte there is", _LENGTH, post(body=bytes(range(256)) * 64),
         checks=[forwarded_body(bytes(range(256)) * 64)]),
    *[_length(value) for value in (
        *(" +5", " -5", " 0x5", " 5 5", " 5;", " 5.0", " 1e1", " five", "", " ", " 5_0", " '5'"),
        *(b" \xd9\xa5", b" 5\x0b", b" \x0b5", b" 5\0", b" \xa05", " 5,6", " 5, 6", " 5,", " ,5"),
        *(" -1", " 0b101", " 5\r\n 6"),
    )],
    refused("two lengths", _LENGTH, _raw("Content-Length: 5", "Content-Length: 6", body=b"hello!")),
    refused("two lengths, the other order", _LENGTH,
            _raw("Content-Length: 6", "Content-Length: 5", body=b"hello!")),
    refused("two lengths, one empty", _LENGTH,
            _raw("Content-Length: 5", "Content-Length:", body=b"hello")),
    refused("two lengths, one 0", _LENGTH,
            _raw("Content-Length: 0", "Content-Length: 47", body=_SMUGGLED)),
    refused("two lengths in HTTP/1.0", _LENGTH,
            request("Content-Length: 5", "Content-Length: 6", method="POST", version="HTTP/1.0",
                    body=b"hello!")),
    refused("a length on a GET that is none", _LENGTH, request("Content-Length: x")),
    case("a body that breaks off", "9112 8", _raw("Content-Length: 50", body=b"hello"),
         HALF_CLOSE, status={400, SILENCE}, seen={0, 1}, checks=[never_whole]),
    refused("over the limit, by far", "9110 15.5.14",
            _raw("Content-Length: 9999999999999", body=b""), status=413, after="any"),
    *[refused(f"a length of {value}", _LENGTH, _raw("Content-Length: " + value, body=b"hello"),
              status={400, 413}, after="any")
      for value in ("99999999999999999999", "18446744073709551621", "9223372036854775813")],
]  # fmt: skip

CODINGS = [
    case("chunked", _CODING, chunked(_BODY), after=OPEN, checks=[_HELLO]),
    case("Chunked in capitals", "9112 7", _raw("Transfer-Encoding: CHUNKED", body=_BODY),
         checks=[_HELLO]),
    case("chunked after a tab", _CODING, _raw("Transfer-Encoding:\tchunked", body=_BODY),
         checks=[_HELLO]),
    case("chunked on a GET", _CODING, request("Transfer-Encoding: chunked", body=_BODY),
         checks=[_HELLO]),
    case("chunked, and nothing in it", _CODING, chunked(b"0\r\n\r\n"), after=OPEN,
         checks=[forwarded_body(b"")]),
    case("empty list elements", "9110 5.6.1", _raw("Transfer-Encoding: ,chunked,", body=_BODY),
         status={200, 400, 501}, checks=[_HELLO]),
    *[_coding(value) for value in (
        *(" gzip", " identity", " chunked, chunked", " gzip, chunked", " chunked, gzip"),
        *(" xchunked", " chunkedx", ' "chunked"', " chunked;q=1", " chunked, identity"),
        *(" identity, chunked",),
        *(b" \x0bchunked", b" chunked\x0b", b" chunked\0", b" \xa0chunked", " chun ked", ""),
        *(" chunked chunked", " x, chunked", " chunked;", " trailers", " c\thunked", " 'chunked'"),
    )],
    refused("chunked twice, in two fields", _CODING,
            _raw("Transfer-Encoding: chunked", "Transfer-Encoding: chunked", body=_BODY),
            status=UNSUPPORTED),
    refused("chunked and identity, in two fields", _CODING,
            _raw("Transfer-Encoding: chunked", "Transfer-Encoding: identity", body=_BODY),
            status=UNSUPPORTED),
    refused("identity and chunked, in two fields", _CODING,
            _raw("Transfer-Encoding: identity", "transfer-encoding: chunked", body=_BODY),
            status=UNSUPPORTED),
    case("chunked and an empty one, in two fields", _CODING,
         _raw("Transfer-Encoding: chunked", "Transfer-Encoding:", body=_BODY),
         status={200, 400, 501}, checks=[_HELLO]),
    case("chunked in HTTP/1.0", _CODING,
         request("Transfer-Encoding: chunked", method="POST", version="HTTP/1.0", body=_BODY),
         status={200, 400, 501}, after="closed", checks=[_HELLO]),
    refused("chunked in HTTP/1.0, kept alive", _CODING,
            request("Transfer-Encoding: chunked", "Connection: keep-alive", method="POST",
                    version="HTTP/1.0", body=_BODY)),
]  # fmt: skip

SMUGGLING = [
    _both("length first", "Content-Length: 15", "Transfer-Encoding: chunked"),
    _both("coding first", "Transfer-Encoding: chunked", "Content-Length: 15"),
    _both("the length ends early", "Content-Length: 3", "Transfer-Encoding: chunked"),
    _both("a length of 0", "Content-Length: 0", "Transfer-Encoding: chunked"),
    _both("other capitals", "content-LENGTH: 15", "tRANSFER-eNCODING: Chunked"),
    _both("identity", "Content-Length: 15", "Transfer-Encoding: identity"),
    _both("an unknown coding", "Content-Length: 15", "Transfer-Encoding: xchunked"),
    _both("an empty coding", "Content-Length: 15", "Transfer-Encoding:"),
    _both("a tab before it", "Content-Length: 15", "Transfer-Encoding:\tchunked"),
    _both("a space before the colon", "Content-Length: 15", "Transfer-Encoding : chunked"),
    _both("a tab before the colon", "Content-Length: 15", "Transfer-Encoding\t: chunked"),
    _both("a vertical tab", "Content-Length: 15", b"Transfer-Encoding: \x0bchunked"),
    _both("a NUL", "Content-Length: 15", b"Transfer-Encoding: chunked\0"),
    _both("a CR before the name", "Content-Length: 15", b"X: y\rTransfer-Encoding: chunked"),
    _both("an LF before the name", "Content-Length: 15", b"X: y\nTransfer-Encoding: chunked"),
    _both("a space before the name", "Content-Length: 15", " Transfer-Encoding: chunked"),
    _both("a folded value", "Content-Length: 15", "Transfer-Encoding:", " chunked"),
    _both("a CR in the name", "Content-Length: 15", b"Transfer\r-Encoding: chunked"),
    _both("a NUL in the name", "Content-Length: 15", b"Transfer-Encoding\0: chunked"),
    _both("obs-text in the name", "Content-Length: 15", b"Transfer-Encoding\xff: chunked"),
    _both("two codings", "Content-Length: 15", "Transfer-Encoding: chunked",
          "Transfer-Encoding: cow"),
    _both("a broken length", "Content-Length: x", "Transfer-Encoding: chunked"),
    case("CL and Transfer_Encoding", "9112 6.3",
         _raw("Content-Length: 15", "Transfer_Encoding: chunked", body=_BODY), after=OPEN,
         checks=[forwarded_body(_BODY)]),
    case("CL and Content_Length", "9112 6.3",
         _raw("Content-Length: 15", "Content_Length: 3", body=_BODY), after=OPEN,
         checks=[forwarded_body(_BODY)]),
    case("CL nominated", "9110 7.6.1",
         _raw("Content-Length: 5", "Connection: Content-Length", body=b"hello"),
         status={200, 400}, checks=[_HELLO]),
    case("TE nominated", "9110 7.6.1",
         _raw("Transfer-Encoding: chunked", "Connection: Transfer-Encoding", body=_BODY),
         status={200, 400}, checks=[_HELLO]),
    case("a request right after a chunked one", "9112 9.3.2", chunked(_BODY) + request(),
         more=[200]),
    case("garbage after a length", "9112 6.3", post(body=b"hello") + b"XX / garbage\r\n\r\n",
         more=[{400}], seen=1),
]  # fmt: skip

CHUNKS = [
    _good("several", b"1\r\nh\r\n2\r\nel\r\n2\r\nlo\r\n0\r\n\r\n"),
    _good("capital letters", b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
    _good("small letters", b"a\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
    _good("20,000 of a byte", b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n", b"x" * 20_000),
    _good("leading zeros", b"0005\r\nhello\r\n000\r\n\r\n"),
    _good("CR LF in the data", b"8\r\na\r\n0\r\n\r\n\r\n0\r\n\r\n", b"a\r\n0\r\n\r\n"),
    _good("an extension", b"5;a=b\r\nhello\r\n0;c\r\n\r\n"),
    _good("a quoted extension", b'5;a="b;c\\"d"\r\nhello\r\n0\r\n\r\n'),
    _lenient("whitespace around an extension", b"5 ; a = b\r\nhello\r\n0\r\n\r\n", b"hello"),
    _lenient("an empty extension", b"5;\r\nhello\r\n0\r\n\r\n", b"hello"),
    _lenient("a space after the size", b"5 \r\nhello\r\n0\r\n\r\n", b"hello"),
    _lenient("a tab after the size", b"5\t\r\nhello\r\n0\r\n\r\n", b"hello"),
    _lenient("an extension of 3 kB", b"5;a=" + b"b" * 3000 + b"\r\nhello\r\n0\r\n\r\n", b"hello"),
    _bad("extensions of 1 MB", b"1;a=" + b"b" * 1_000_000 + b"\r\nh\r\n0\r\n\r\n"),
    *[_bad(f"size {size!r}", size + b"\r\nhello\r\n0\r\n\r\n") for size in (
        *(b"0x5", b"-5", b"+5", b"", b"5g", b"g", b"5 5", b" 5", b"\t5", b"5.0", b"5,", b"5_0"),
        *(b"\xd9\xa5", b"5\0", b"5\x0b", b"FFFFFFFFFFFFFFFFF", b"10000000000000005", b"h5"),
        *(b"-0", b"+0", b"0x0", b"5\r", b"5;a\rb", b"5;a\0", b"0x", b"8000000000000000"),
    )],
    _bad("no CR LF after the data", b"5\r\nhello0\r\n\r\n"),
    _bad("too much data", b"5\r\nhelloX\r\n0\r\n\r\n"),
    _bad("other bytes after the data", b"5\r\nhelloXX0\r\n\r\n"),
    _bad("too little data", b"5\r\nhell\r\n0\r\n\r\n00\r\n"),
    _bad("a bare CR after the data", b"5\r\nhello\r0\r\n\r\n"),
    _bad("a bare LF after the data", b"5\r\nhello\n0\r\n\r\n"),
    _bad("a bare LF after the size", b"5\nhello\r\n0\r\n\r\n"),
    _bad("a bare LF in an extension", b"5;\nxx\r\nhello\r\n0\r\n\r\n"),
    _bad("a bare LF after the last size", b"5\r\nhello\r\n0\n\r\n"),
    _bad("a bare CR after the size", b"5\rhello\r\n0\r\n\r\n"),
    _bad("LF CR instead of CR LF", b"5\n\rhello\r\n0\r\n\r\n"),
    _bad("nothing like chunks", b"hello, this is no chunk\r\n\r\n"),
    _bad("leading zeros without end", b"0" * 1_000_000),
    *[case(f"chunks: the end {name}", "9112 8", chunked(body), HALF_CLOSE,
           status={400, SILENCE}, seen={0, 1}, checks=[never_whole])
      for name, body in (
          ("in the data", b"5\r\nhel"), ("in a size", b"5\r\nhello\r\n1"),
          ("before the last one", b"5\r\nhello\r\n"), ("before its CR LF", b"5\r\nhello\r\n0\r\n"),
      )],
    case("chunks: byte by byte", _CHUNK, chunked(b""),
         *[bytes([each]) for each in b"5;x=y\r\nhello\r\n0\r\nX-T: u\r\n\r\n"], checks=[_HELLO]),
]  # fmt: skip

TRAILERS = [
    case("a trailer", _TRAILER, chunked(b"5\r\nhello\r\n0\r\nX-Trailer: a\r\n\r\n"), after=OPEN,
         checks=[_HELLO, not_forwarded("x-trailer")]),
    case("trailers that would mean something", "9110 6.5.1",
         chunked(b"5\r\nhello\r\n0\r\nContent-Length: 3\r\nAuthorization: x\r\n"
                 b"X-Forwarded-For: 192.0.2.1\r\nTransfer-Encoding: gzip\r\n\r\n"),
         status={200, 400},
         checks=[_HELLO, not_forwarded("authorization")]),
    case("50 trailers", _TRAILER,
         chunked(b"0\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(50)) + b"\r\n"),
         status={200, 400, 431}, seen={0, 1}),
    *[case(f"a trailer that is none: {name}", _TRAILER,
           chunked(b"5\r\nhello\r\n0\r\n" + line + b"\r\n\r\n"), status=400, seen={0, 1},
           after="closed")
      for name, line in (
          ("no colon", b"no colon"), ("a space before the colon", b"X : y"), ("NUL", b"X: \0"),
          ("a bare CR", b"X: y\rz"), ("no name", b": y"), ("a fold", b"X: y\r\n z"),
          ("a name that is no token", b"X(: y"),
      )],
    case("1 MB of trailers", _TRAILER, chunked(b"0\r\n" + b"X-A: b\r\n" * 130_000 + b"\r\n"),
         status={400, 413, 431}, seen={0, 1}, after="closed"),
    case("a trailer of 1 MB", _TRAILER, chunked(b"0\r\nX-A: " + b"b" * 1_000_000 + b"\r\n\r\n"),
         status={400, 413, 431}, seen={0, 1}, after="closed"),
]  # fmt: skip

CASES = [*LENGTHS, *CODINGS, *SMUGGLING, *CHUNKS, *TRAILERS]
