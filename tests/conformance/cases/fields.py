"""Field lines: RFC 9112 section 5, RFC 9110 sections 5, 7.2 (Host) and 11.6.2 (Authorization)."""

from __future__ import annotations

from ..case import OPEN, SILENCE, Case, case, chunked, post, refused, request
from ..checks import forwarded, forwarded_once, not_forwarded
from ..wire import HALF_CLOSE

_SYNTAX = "9112 5"
_TOO_LONG = {431}


def _host(value: bytes | str, name: str = "") -> Case:
    return refused(f"Host: {name or repr(value)}", "9110 7.2", request(host=value))


HOST = [
    refused("no Host", "9112 3.2", request(host=None)),
    refused("no Host, but other fields", "9112 3.2", request("X-A: b", host=None)),
    refused("two Hosts", "9112 3.2", request("Host: example.org")),
    refused("the same Host twice", "9112 3.2", request("Host: example.com")),
    refused("two Hosts, apart", "9112 3.2", request("X-A: b", "host: example.org")),
    refused("two Hosts in HTTP/1.0", "9112 3.2", request("Host: b", version="HTTP/1.0")),
    refused("an invalid Host in HTTP/1.0", "9112 3.2", request(host="a/b", version="HTTP/1.0")),
    case("no Host in HTTP/1.0", "9112 3.2", request(host=None, version="HTTP/1.0")),
    _host("", "empty"),
    _host(" \t ", "nothing but whitespace"),
    *[
        _host(value)
        for value in (
            *("a b", "a/b", "a?b", "a#b", "user@a", "http://a", "a:abc", "a:80:80", "a\\b", "<a>"),
            *("[::1", "[::1]x", "[", "a:-1", "a:+80", "a:8 0", '"a"', "a\tb", "a^b", "a|b", "{a}"),
            *(b"a\xe9", b"a\x01b", b"a\x7f", b"a\0b", "::1", "a:80,b:80", "%zz"),
        )
    ],
    *[
        case(f"Host: {value}", "9110 7.2", request(host=value), checks=[forwarded_once("host")])
        for value in (
            *("a", "EXAMPLE.com", "a:80", "a.b-c.example", "127.0.0.1", "127.0.0.1:8080"),
            *("[::1]", "[::1]:8080", "a_b.example", "example.com.", "xn--caf-dma.example"),
        )
    ],
    *[
        case(f"Host, odd: {value}", "9110 7.2", request(host=value), status={200, 400})
        for value in ("a:", "a:99999", "a,b", "a%41", "a!$&'()*+;=", "1.2.3.4.5", "..", "a" * 300)
    ],
    case("Host in whitespace", "9112 5.1", request(host=" \t a \t ")),
    case("Host last", "9110 7.2", request("X-A: b", "Host: a", host=None)),
    refused("a space before the first field", "9112 2.2", request(" X-A: b", host=None)),
    refused("Host after a space", "9112 2.2", b"GET /echo HTTP/1.1\r\n Host: a\r\n\r\n"),
]

NAMES = [
    *[
        refused(f"field {line!r}", _SYNTAX, request(line))
        for line in (
            *(b"X-A : b", b"X-A\t: b", b"Host : b", b"no colon", b": b", b" : b", b"X A: b"),
            *(b"X(A): b", b"X@A: b", b"X,A: b", b"X;A: b", b'"X": b', b"X/A: b", b"X[A]: b"),
            *(b"X=A: b", b"X?A: b", b"X{A}: b", b"X\\A: b", b"X\xe9: b", b"X\0A: b"),
            *(b"X\x01A: b", b"X\x7fA: b", b"\xef\xbb\xbfX: b", b"X\x0bA: b", b"X-A\r: b"),
        )
    ],
    *[
        case(f"field {line!r}", "9110 5.1", request(line), checks=[forwarded(line[:-3], "b")])
        for line in ("x-a: b", "X-A!#$%&'*+.^`|~: b", "1: b", "X--A: b")
    ],
    case("a name with an underscore", "9110 5.1", request("X_A: b")),
]

VALUES = [
    refused("a bare CR in a value", "9110 5.5", request(b"X-A: b\rc")),
    refused("a bare CR at the end of a value", "9112 2.2", request(b"X-A: b\r")),
    refused("a bare CR and a field after it", "9112 2.2", request(b"X-A: b\rX-B: c")),
    refused("a bare LF and a field after it", "9112 2.2", request(b"X-A: b\nX-B: c")),
    refused("a bare LF and a framing after it", "9112 2.2", post("X-A: b\nTransfer-Encoding: x")),
    refused("NUL in a value", "9110 5.5", request(b"X-A: b\0c")),
    refused("NUL at the end of a value", "9110 5.5", request(b"X-A: b\0")),
    refused("a value that is NUL", "9110 5.5", request(b"X-A: \0")),
    case("bare LF as the only line end", "9112 2.2", b"GET /echo HTTP/1.1\nHost: a\n\n",
         status={200, 400}),
    refused("a bare LF at the end of the head", "9112 2.2", b"GET /echo HTTP/1.1\r\nHost: a\r\n\n",
            HALF_CLOSE, status={400, SILENCE}),
    refused("obs-fold with a space", "9112 5.2", request("X-A: b", " c")),
    refused("obs-fold with a tab", "9112 5.2", request("X-A: b", "\tc")),
    refused("obs-fold of nothing", "9112 5.2", request("X-A: b", " ")),
    refused("obs-fold in Host", "9112 5.2", request(" x.example")),
    refused("obs-fold before the framing", "9112 5.2",
            request("X-A:", " Content-Length: 5", method="POST", body=b"hello")),
    refused("obs-fold in Transfer-Encoding", "9112 5.2",
            request("Transfer-Encoding:", " chunked", method="POST", body=b"0\r\n\r\n")),
    *[
        case(f"control {value!r} in a value", "9110 5.5", request(b"X-A: " + value),
             status={200, 400})
        for value in (b"b\x01c", b"b\x0bc", b"b\x7fc", b"\x1b[2J")
    ],
    case("a tab in a value", "9110 5.5", request("X-A: b\tc"), checks=[forwarded("x-a", "b\tc")]),
    case("whitespace around a value", "9112 5.1", request("X-A: \t b c \t "),
         checks=[forwarded("x-a", "b c")]),
    case("no whitespace", "9112 5.1", request("X-A:b"), checks=[forwarded("x-a", "b")]),
    case("an empty value", "9112 5.1", request("X-A:"), checks=[forwarded("x-a", "")]),
    case("a value of whitespace", "9112 5.1", request("X-A:  \t "),
         checks=[forwarded("x-a", "")]),
    case("colons in a value", "9112 5", request("X-A: b:c: d"),
         checks=[forwarded("x-a", "b:c: d")]),
    case("obs-text in a value", "9110 5.5", request(b"X-A: caf\xe9\xff\x80"),
         checks=[forwarded("x-a", b"caf\xe9\xff\x80")]),
    case("UTF-8 in a value", "9110 5.5", request("X-A: café €".encode()),
         checks=[forwarded("x-a", "café €".encode())]),
    case("repeated fields, apart", "9110 5.3", request("X-A: 1", "X-B: x", "x-a: 2", "X-A: 1"),
         checks=[forwarded("x-a", "1", "2", "1")]),
    case("a list in one field", "9110 5.3", request("X-A: 1, 2 ,,3"),
         checks=[forwarded("x-a", "1, 2 ,,3")]),
    case("repeated Cookie", "6265 5.4", request("Cookie: a=1", "Cookie: b=2"),
         checks=[forwarded("cookie", "a=1", "b=2")]),
    case("repeated Accept", "9110 5.3", request("Accept: a/b", "Accept: c/d;q=0.5"),
         checks=[forwarded("accept", "a/b", "c/d;q=0.5")]),
]  # fmt: skip

CREDENTIALS = [
    refused("two Authorizations", "9110 11.6.2",
            request("Authorization: Bearer a", "Authorization: Bearer b")),
    refused("the same Authorization twice", "9110 11.6.2",
            request("Authorization: Bearer a", "authorization: Bearer a")),
    case("Authorization", "9110 11.6.2", request("Authorization: Basic YTpi"),
         checks=[forwarded("authorization", "Basic YTpi")]),
    case("an odd Authorization", "9110 11.6.2", request("Authorization: Odd a=\"b\", c"),
         checks=[forwarded("authorization", 'Odd a="b", c')]),
]  # fmt: skip

LIMITS = [
    refused("a field of 100 kB", "6585 5", request("X-A: " + "b" * 100_000), status=_TOO_LONG),
    refused("a field of 1 MB", "6585 5", request("X-A: " + "b" * 1_000_000), status=_TOO_LONG),
    refused("a name of 100 kB", "6585 5", request("X" * 100_000 + ": b"), status=_TOO_LONG),
    refused("a field of 1 MB with no end", "6585 5", request("X-A: ")[:-4] + b"b" * 1_000_000,
            status=_TOO_LONG),
    refused("10,000 fields", "6585 5", request(*(f"X-{n}: b" for n in range(10_000))),
            status=_TOO_LONG),
    refused("10,000 times the same field", "6585 5", request(*["X-A: b"] * 10_000),
            status=_TOO_LONG),
    refused("1 MB of fields", "6585 5", request(*["X-A: " + "b" * 1000] * 1000), status=_TOO_LONG),
    refused("a cookie of 200 kB", "6585 5", request("Cookie: a=" + "b" * 200_000),
            status=_TOO_LONG),
    refused("too long a head on a POST", "6585 5",
            post("X-A: " + "b" * 100_000, body=b"hello" * 1000), status=_TOO_LONG),
    refused("too many fields before a chunked body", "6585 5",
            chunked(b"5\r\nhello\r\n0\r\n\r\n", *(f"X-{n}: b" for n in range(10_000))),
            status=_TOO_LONG),
    case("50 fields", "9110 5.4", request(*(f"X-{n}: {n}" for n in range(50))), after=OPEN,
         checks=[forwarded("x-49", "49")]),
    case("a field of 4 kB", "9110 5.4", request("X-A: " + "b" * 4000), after=OPEN,
         checks=[forwarded("x-a", "b" * 4000)]),
    case("a token of 7 kB", "9110 5.4", request("Authorization: Bearer " + "b" * 7000), after=OPEN,
         checks=[forwarded("authorization", "Bearer " + "b" * 7000)]),
]  # fmt: skip

HOPS = [
    case("the hop-by-hop fields", "9110 7.6.1",
         request("Keep-Alive: timeout=5", "Proxy-Connection: keep-alive", "TE: trailers",
                 "Connection: keep-alive, TE, Upgrade", "Upgrade: IRC/6.9"),
         checks=[not_forwarded("keep-alive", "proxy-connection", "upgrade")]),
    case("TE", "9110 10.1.4", request("TE: trailers, gzip;q=0.5", "Connection: TE"),
         checks=[not_forwarded("te")]),
    case("TE not nominated", "9110 10.1.4", request("TE: trailers, deflate;q=0.5"),
         checks=[not_forwarded("te")]),
    case("Trailer", "9110 6.6.2", chunked(b"0\r\n\r\n", "Trailer: X-T"),
         checks=[not_forwarded("trailer")]),
    case("Proxy-Authorization", "9110 11.7.2", request("Proxy-Authorization: Basic YTpi"),
         checks=[not_forwarded("proxy-authorization")]),
    case("a nominated field", "9110 7.6.1", request("X-Hop: a", "X-End: b", "Connection: X-Hop"),
         checks=[not_forwarded("x-hop"), forwarded("x-end", "b")]),
    case("nominated before it comes", "9110 7.6.1", request("Connection: x-hop", "X-Hop: a"),
         checks=[not_forwarded("x-hop")]),
    case("several nominations", "9110 7.6.1",
         request("Connection: ,X-Hop , close,", "Connection:x-other", "X-Hop: a", "x-OTHER: b"),
         checks=[not_forwarded("x-hop", "x-other")]),
    case("nominated, and repeated", "9110 7.6.1",
         request("X-Hop: a", "Connection: X-Hop", "X-Hop: b"), checks=[not_forwarded("x-hop")]),
    case("a nominated Host", "9110 7.6.1", request("Connection: Host"), status={200, 400},
         checks=[forwarded_once("host")]),
    case("a nominated X-Forwarded-For", "9110 7.6.1",
         request("Connection: X-Forwarded-For", "X-Forwarded-For: 192.0.2.1"),
         checks=[forwarded("x-forwarded-for", "127.0.0.1")]),
    case("nominated X-Forwarded-Host and -Proto", "9110 7.6.1",
         request("Connection: X-Forwarded-Host, X-Forwarded-Proto"),
         checks=[forwarded_once("x-forwarded-host"), forwarded("x-forwarded-proto", "http")]),
    case("an h2c upgrade", "9113 3.1",
         request("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"),
         checks=[not_forwarded("upgrade", "http2-settings")]),
    case("an h2c upgrade, badly nominated", "9113 3.1",
         request("Connection: Upgrade", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"),
         checks=[not_forwarded("upgrade")]),
]  # fmt: skip

CASES = [*HOST, *NAMES, *VALUES, *CREDENTIALS, *LIMITS, *HOPS]
