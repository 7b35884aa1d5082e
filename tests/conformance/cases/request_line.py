"""The request line: RFC 9112 section 3, methods of RFC 9110 section 9, limits of both."""

from __future__ import annotations

from ..case import AUTHORITY, OPEN, SILENCE, Case, case, refused, request
from ..checks import forwarded, forwarded_method, forwarded_target, raw_without
from ..wire import HALF_CLOSE

_LINE = "9112 3"
_HOST = b"\r\nHost: example.com\r\n\r\n"
_VERSIONS = {400, 505}


def _line(text: bytes) -> bytes:
    return text + _HOST


def _kept(name: str, target: bytes) -> Case:
    """A target that must reach the upstream byte for byte."""
    return case(
        f"target kept: {name}",
        "9110 7.6",
        request(target=target),
        checks=[forwarded_target(target)],
    )


def _kept_or_refused(name: str, target: bytes) -> Case:
    return case(
        f"target kept or refused: {name}",
        "9112 3.2",
        request(target=target),
        status={200, 400},
        checks=[forwarded_target(target)],
    )


LINES = [
    case("a plain request", _LINE, request(), after=OPEN),
    case("an empty line before it", "9112 2.2", b"\r\n" + request()),
    case(
        "an empty line between requests",
        "9112 2.2",
        request() + b"\r\n" + request(),
        more=[200],
    ),
    case(
        "two empty lines between requests",
        "9112 2.2",
        request() + b"\r\n\r\n" + request(),
        more=[{200, 400}],
    ),
    refused("no method", _LINE, _line(b" /echo HTTP/1.1")),
    refused("nothing but a word", _LINE, _line(b"GET")),
    refused("no target", _LINE, _line(b"GET HTTP/1.1")),
    refused("an empty target", _LINE, _line(b"GET  HTTP/1.1")),
    refused("a space in the target", _LINE, _line(b"GET /a b HTTP/1.1")),
    refused("something after the version", _LINE, _line(b"GET /echo HTTP/1.1 x")),
    case(
        "two spaces before the target",
        _LINE,
        _line(b"GET  /echo HTTP/1.1"),
        status={200, 400},
        checks=[forwarded_target(b"/echo")],
    ),
    case(
        "two spaces before the version",
        _LINE,
        _line(b"GET /echo  HTTP/1.1"),
        status={200, 400},
        checks=[forwarded_target(b"/echo")],
    ),
    case(
        "a space after the version",
        _LINE,
        _line(b"GET /echo HTTP/1.1 "),
        status={200, 400},
        checks=[forwarded_target(b"/echo")],
    ),
    refused("a tab as separator", _LINE, _line(b"GET\t/echo\tHTTP/1.1")),
    refused("a space before the method", _LINE, _line(b" GET /echo HTTP/1.1")),
    refused("a bare CR in the line", "9112 2.2", _line(b"GET /ec\rho HTTP/1.1")),
    refused("a bare CR instead of a line end", "9112 2.2", b"GET /echo HTTP/1.1\rHost: a\r\n\r\n"),
    refused("NUL in the target", _LINE, _line(b"GET /ec\0ho HTTP/1.1")),
    refused("NUL in the method", _LINE, _line(b"G\0ET /echo HTTP/1.1")),
    refused("a control in the target", _LINE, _line(b"GET /ec\x01ho HTTP/1.1")),
    refused("DEL in the target", _LINE, _line(b"GET /ec\x7fho HTTP/1.1")),
    refused("a TLS greeting", _LINE, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64),
    refused("an HTTP/2 preface", _LINE, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", status=_VERSIONS),
    refused("half a line and the end", _LINE, b"GET /ec", HALF_CLOSE, status={SILENCE, 400}),
    refused("nothing and the end", _LINE, HALF_CLOSE, status=SILENCE),
]

VERSIONS = [
    *[
        refused(
            f"version {text.decode()}", "9112 2.3", _line(b"GET /echo " + text), status=_VERSIONS
        )
        for text in (
            *(
                b"HTTP/2.0",
                b"HTTP/3.0",
                b"HTTP/0.9",
                b"http/1.1",
                b"HTTP/1",
                b"HTTP/1.",
                b"HTTP/.1",
            ),
            *(b"HTTP/1.1.1", b"HTTP/01.1", b"HTTP/1.01", b"HTTP/11.1", b"HTTP/1,1", b"HTP/1.1"),
            *(b"HTTP/-1.1", b"HTTP/+1.1", b"HTTP/1.1x", b"HTTP/1. 1", b"HTTP 1.1", b"ICE/1.0"),
        )
    ],
    case("version HTTP/1.2", "9110 2.5", _line(b"GET /echo HTTP/1.2"), status={200, 400, 505}),
    refused("HTTP/0.9: no version", "9112 3", b"GET /echo\r\n\r\n", status={400, 505, SILENCE}),
    refused("HTTP/0.9 with fields", "9112 3", _line(b"GET /echo"), status={400, 505, SILENCE}),
]

METHODS = [
    *[
        case(
            f"method {name}",
            "9110 9",
            request(method=name, target="/echo"),
            methods=[name.encode()],
            checks=[forwarded_method(name.encode())],
        )
        for name in (
            "GET",
            "HEAD",
            "POST",
            "PUT",
            "DELETE",
            "OPTIONS",
            "PATCH",
            "PURGE",
            "PROPFIND",
        )
    ],
    *[
        case(
            f"method {name}: as it is, or not at all",
            "9110 9.1",
            request(method=name),
            status={200, 400, 405, 501},
            checks=[forwarded_method(name.encode())],
        )
        for name in ("get", "Get", "M-SEARCH", "X!#$%&'*+.^_`|~", "A" * 200)
    ],
    *[
        refused(f"method {name!r}", "9110 5.6.2", _line(name + b" /echo HTTP/1.1"))
        for name in (b"G(ET", b"GET,", b"G=T", b'"GET"', b"G\xe9T", b"G/T", b"GET:", b"G[T]")
    ],
    refused(
        "CONNECT to an authority",
        "9110 9.3.6",
        request(method="CONNECT", target="example.com:443", host="example.com:443"),
        status={400, 405, 501},
    ),
    case(
        "CONNECT to a path",
        "9110 9.3.6",
        request(method="CONNECT", target="/echo"),
        status={400, 405, 501},
        seen=0,
    ),
    case(
        "TRACE",
        "9110 9.3.8",
        request("X-Secret: tell-nobody", method="TRACE"),
        status={405, 501},
        seen=0,
        checks=[raw_without(b"tell-nobody")],
    ),
]

TARGETS = [
    _kept("an encoded slash", b"/a%2Fb%2fc"),
    _kept("encoded letters", b"/%41%62c"),
    _kept("dot segments", b"/a/../b/./c"),
    _kept("encoded dot segments", b"/a/%2e%2E/b"),
    _kept("two slashes in front", b"//x/y"),
    _kept("slashes within and at the end", b"/a//b///"),
    _kept("semicolons and commas", b"/a;b=c,d;e"),
    _kept("all sub-delims", b"/!$&'()*+,;=:@-._~"),
    _kept("a query", b"/a?b=c&b=d&&e=&=f"),
    _kept("an empty query", b"/a?"),
    _kept("a question mark in the query", b"/a?b?c/d?"),
    _kept("plus and encoded space", b"/a+b%20c?d=e+f%20g"),
    _kept("dot segments in the query", b"/a?b=/../c//d"),
    _kept("a URL in the path", b"/http://example.org/x"),
    _kept("a URL in the query", b"/a?u=http://example.org/x?y"),
    _kept("an encoded percent sign", b"/a%252Fb"),
    _kept("encoded non-ASCII", b"/caf%C3%A9?%FF"),
    _kept("odd ones below /v1", b"/v1/files/a%2Fb/../c//d?e=%2F"),
    _kept("a path that is a dot", b"/."),
    _kept("4,000 bytes", b"/" + b"a" * 3999),
    _kept("8,000 bytes", b"/" + b"a" * 7999),
    _kept("a query of 7,000 bytes", b"/?" + b"a=b&" * 1750),
    _kept_or_refused("above the root", b"/../../etc/passwd"),
    _kept_or_refused("a bad percent encoding", b"/a%zzb%4"),
    _kept_or_refused("encoded NUL", b"/a%00b"),
    _kept_or_refused("encoded CR LF", b"/a%0d%0aX:%20y"),
    _kept_or_refused("a backslash", b"/a\\b"),
    _kept_or_refused("brackets and such", b'/a[b]{c}|d^e`f"g<h>'),
    _kept_or_refused("obs-text", b"/caf\xc3\xa9\xff"),
    case(
        "a fragment in the target",
        "9112 3.2",
        request(target="/a#b"),
        status={200, 400},
        checks=[forwarded_target(b"/a#b", b"/a")],
    ),
]

FORMS = [
    *[
        refused(f"target {target!r}", "9112 3.2", request(target=target))
        for target in (
            *(b"example.com/x", b"@example.com/x", b":80/x", b"?x", b"http:/x", b"http:x", b"x"),
            *(b"http:///x", b"*", b"ftp://example.com/x", b"\\x", b"%2Fx", b".", b"example.com:80"),
        )
    ],
    case(
        "absolute-form for our own authority",
        "9112 3.2.2",
        request(target=b"http://" + AUTHORITY + b"/a/../b?c", host=AUTHORITY),
        status={200, 400},
        checks=[forwarded_target(b"/a/../b?c")],
    ),
    case(
        "absolute-form with no path",
        "9112 3.2.2",
        request(target=b"http://" + AUTHORITY, host=AUTHORITY),
        status={200, 400},
        checks=[forwarded_target(b"/")],
    ),
    case(
        "absolute-form with a query and no path",
        "9112 3.2.2",
        request(target=b"http://" + AUTHORITY + b"?x", host=AUTHORITY),
        status={200, 400},
        checks=[forwarded_target(b"/?x")],
    ),
    case(
        "absolute-form, scheme in capitals",
        "9112 3.2.2",
        request(target=b"HTTP://" + AUTHORITY + b"/x", host=AUTHORITY),
        status={200, 400},
        checks=[forwarded_target(b"/x")],
    ),
    case(
        "absolute-form, another authority than Host",
        "9112 3.2.2",
        request(target=b"http://other.example/x", host=AUTHORITY),
        status={200, 400, 421},
        checks=[forwarded_target(b"/x"), forwarded("x-forwarded-host", "other.example")],
    ),
    refused(
        "absolute-form without Host",
        "9112 3.2",
        request(target=b"http://" + AUTHORITY + b"/x", host=None),
    ),
    refused(
        "absolute-form with a user",
        "9110 4.2.4",
        request(target=b"http://user@" + AUTHORITY + b"/x", host=AUTHORITY),
    ),
    case(
        "asterisk-form",
        "9112 3.2.4",
        request(method="OPTIONS", target="*"),
        status={200, 204, 400, 405, 501},
        seen={0, 1},
        checks=[forwarded_target(b"*")],
    ),
]

LIMITS = [
    refused("a target of 100 kB", "9110 15.5.15", request(target="/" + "a" * 100_000), status=414),
    refused("a query of 100 kB", "9110 15.5.15", request(target="/?" + "a" * 100_000), status=414),
    refused("a target of 1 MB", "9110 15.5.15", request(target="/" + "a" * 1_000_000), status=414),
    refused("a line of 1 MB with no end", "9112 3", b"GET /" + b"a" * 1_000_000, status={400, 414}),
    refused(
        "a method of 100 kB",
        "9112 3",
        _line(b"A" * 100_000 + b" /echo HTTP/1.1"),
        status={400, 414, 501},
    ),
    refused(
        "1 MB of empty lines", "9112 2.2", b"\r\n" * 500_000, HALF_CLOSE, status={SILENCE, 400}
    ),
]

CASES = [*LINES, *VERSIONS, *METHODS, *TARGETS, *FORMS, *LIMITS]
