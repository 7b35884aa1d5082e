"""What a proxy says of itself: X-Forwarded-*, X-Request-Id, Date, Server; and what it invents."""

from __future__ import annotations

from ..case import Case, Outcome, answered, case, post, request
from ..checks import forwarded, forwarded_once, not_forwarded, reply, reply_once, reply_without

_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"


def _spoofed(name: str, *lines: str) -> Case:
    return case(f"{name} is not believed", "7239 8.1", request(*lines),
                checks=[forwarded("x-forwarded-for", "127.0.0.1")])  # fmt: skip


def same_request_id(outcome: Outcome) -> str:
    """What the upstream saw as X-Request-Id is what the client was told."""
    seen = outcome.seen[0].values("x-request-id") if outcome.seen else []
    told = outcome.finals[0].values("x-request-id") if outcome.finals else []
    fine = len(seen) == 1 and seen == told and seen[0]
    return "" if fine else f"X-Request-Id: upstream saw {seen}, client {told}"


REQUESTS = [
    case("X-Forwarded-For", "7239", request(), checks=[forwarded("x-forwarded-for", "127.0.0.1")]),
    case("X-Forwarded-Proto", "7239", request(), checks=[forwarded("x-forwarded-proto", "http")]),
    case("X-Forwarded-Host", "7239", request(host="a.example:81"),
         checks=[forwarded("x-forwarded-host", "a.example:81")]),
    _spoofed("X-Forwarded-For", "X-Forwarded-For: 192.0.2.1"),
    _spoofed("a list in X-Forwarded-For", "X-Forwarded-For: 192.0.2.1, 192.0.2.2"),
    _spoofed("a repeated X-Forwarded-For", "X-Forwarded-For: 192.0.2.1", "x-forwarded-for: ::1"),
    _spoofed("an empty X-Forwarded-For", "X-Forwarded-For:"),
    case("X-Forwarded-Proto is not believed", "7239 8.1", request("X-Forwarded-Proto: https"),
         checks=[forwarded("x-forwarded-proto", "http")]),
    case("X-Forwarded-Host is not believed", "7239 8.1", request("X-Forwarded-Host: evil.example"),
         checks=[forwarded("x-forwarded-host", "example.com")]),
    case("X-Request-Id is made", "-", request(), checks=[same_request_id]),
    case("X-Request-Id is kept and returned", "-", request("X-Request-Id: abc-123"),
         checks=[forwarded("x-request-id", "abc-123"), reply("x-request-id", "abc-123")]),
    case("X-Request-Id is made for an empty one", "-", request("X-Request-Id:"),
         checks=[same_request_id]),
    case("nothing is invented", "9110 7.7", request(),
         checks=[not_forwarded("accept", "accept-encoding", "user-agent", "content-type", "cookie",
                               "authorization", "content-length", "transfer-encoding", "expect")]),
    case("nothing is invented for a POST", "9110 7.7", post(body=b"hello"),
         checks=[not_forwarded("accept", "accept-encoding", "user-agent", "content-type")]),
    case("Accept-Encoding is kept", "9110 12.5.3", request("Accept-Encoding: gzip;q=1, br"),
         checks=[forwarded("accept-encoding", "gzip;q=1, br")]),
    case("conditions and ranges are kept", "9110 13",
         request('If-None-Match: "a", W/"b"', "Range: bytes=0-4", "If-Range: x"),
         checks=[forwarded("if-none-match", '"a", W/"b"'), forwarded("range", "bytes=0-4"),
                 forwarded("if-range", "x")]),
    case("User-Agent and Referer are kept", "9110 10.1.5", request("User-Agent: x/1 (y)",
                                                                   "Referer: http://a/b"),
         checks=[forwarded("user-agent", "x/1 (y)"), forwarded("referer", "http://a/b")]),
    case("Content-Type is kept", "9110 8.3",
         post('Content-Type: multipart/form-data; boundary="a b"', body=b"hello"),
         checks=[forwarded("content-type", 'multipart/form-data; boundary="a b"')]),
    case("one Host for the upstream", "9112 3.2", request(), checks=[forwarded_once("host")]),
]  # fmt: skip

RESPONSES = [
    answered("Date and Server of the upstream", "9110 6.6.1",
             _OK + b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\nServer: up/1\r\n\r\nok",
             checks=[reply_once("date", "server")]),
    answered("Date made where there is none", "9110 6.6.1", _OK + b"\r\nok",
             checks=[reply_once("date")]),
    answered("no Content-Type is invented", "9110 8.3", _OK + b"\r\nok",
             checks=[reply_without("content-type")]),
    answered("no ETag, cache or cookie field is invented", "9110 7.7", _OK + b"\r\nok",
             checks=[reply_without("etag", "cache-control", "last-modified", "set-cookie", "vary",
                                   "accept-ranges", "expires")]),
    answered("Set-Cookie is repeated", "6265 3",
             _OK + b"Set-Cookie: a=1; Path=/\r\nX-A: b\r\nSet-Cookie: b=2\r\n\r\nok",
             checks=[reply("set-cookie", "a=1; Path=/", "b=2")]),
    answered("repeated fields", "9110 5.3", _OK + b"X-A: 1\r\nX-B: x\r\nx-a: 2\r\n\r\nok",
             checks=[reply("x-a", "1", "2")]),
    answered("WWW-Authenticate is repeated", "9110 11.6.1",
             _OK.replace(b"200 OK", b"401 No")
             + b'WWW-Authenticate: A\r\nWWW-Authenticate: B x="y, z"\r\n\r\nno',
             status=401, checks=[]),
    answered("obs-text in a value", "9110 5.5", _OK + b"X-A: caf\xe9\xff\r\n\r\nok",
             checks=[reply("x-a", b"caf\xe9\xff")]),
    answered("an empty value", "9112 5.1", _OK + b"X-A:\r\n\r\nok", checks=[reply("x-a", "")]),
    answered("whitespace around a value", "9112 5.1", _OK + b"X-A: \t b \t\r\n\r\nok",
             checks=[reply("x-a", "b")]),
    answered("the hop-by-hop fields", "9110 7.6.1",
             _OK + b"Connection: X-Hop, keep-alive\r\nKeep-Alive: timeout=5\r\nX-Hop: a\r\n"
             b"Proxy-Connection: keep-alive\r\nX-End: b\r\n\r\nok",
             checks=[reply_without("keep-alive", "proxy-connection"), reply("x-end", "b")]),
    answered("a nominated field in an answer", "9110 7.6.1",
             _OK + b"Connection: X-Hop, x-other\r\nX-Hop: a\r\nX-Other: b\r\n\r\nok",
             checks=[reply_without("x-hop", "x-other")]),
    answered("Upgrade in an answer", "9110 7.8",
             _OK + b"Connection: upgrade\r\nUpgrade: h2c\r\n\r\nok",
             checks=[reply_without("upgrade")]),
    answered("a nominated Content-Length", "9110 7.6.1",
             _OK + b"Connection: Content-Length\r\n\r\nok", status={200, 502}),
    answered("a Location is kept", "9110 10.2.2",
             b"HTTP/1.1 302 Found\r\nLocation: http://other.example/a?b\r\n"
             b"Content-Length: 0\r\n\r\n",
             status=302, checks=[reply("location", "http://other.example/a?b")]),
    answered("gzip is not touched", "9110 8.4",
             b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n"
             b"\x1f\x8b\0\xff",
             checks=[reply("content-encoding", "gzip"), reply("content-length", "4")]),
    answered("ETag, Vary and Cache-Control are kept", "9110 8.8",
             _OK + b'ETag: W/"a"\r\nVary: Origin, Accept\r\nCache-Control: no-store\r\n\r\nok',
             checks=[reply("etag", 'W/"a"'), reply("vary", "Origin, Accept"),
                     reply("cache-control", "no-store")]),
    answered("X-Request-Id is the client's", "-", _OK + b"\r\nok",
             send=request("X-Request-Id: abc"), checks=[reply("x-request-id", "abc")]),
]  # fmt: skip

CASES = [*REQUESTS, *RESPONSES]
