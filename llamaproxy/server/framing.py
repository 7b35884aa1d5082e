"""What a well-formed head of an HTTP/1.1 request is. Pure.

Stricter than twisted.web, and than the standard where that leaves a choice: whatever two parsers
could read in two ways is refused, for the next one on the way may read it the other way.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv6Address

from llamaproxy.errors import ProxyError
from llamaproxy.heads import TOKEN, RequestHead, RequestLine, members

#: Bytes of a request target (RFC 9112 section 3: at least 8000), of a line, of a whole head.
MAX_TARGET = 8192
MAX_LINE = 16384
MAX_HEAD = 65536

#: Empty lines before a request, which are to be ignored (RFC 9112 section 2.2: at least one).
MAX_EMPTY_LINES = 8

#: Fields of a request.
MAX_FIELDS = 128

#: With the method, the target and the two numbers of the version.
REQUEST_LINE = rb"(%b) ([!\"$-~]+) HTTP/([0-9])\.([0-9])" % TOKEN
_REQUEST_LINE = re.compile(REQUEST_LINE)
_ABSOLUTE = re.compile(rb"https?://([^/?]+)(.*)", re.IGNORECASE)
_HOST = re.compile(
    rb"(?:\[([0-9A-Fa-f:.]+)\]|(?:[A-Za-z0-9\-._~!$&'()*+;=]|%[0-9A-Fa-f]{2})+)(?::([0-9]*))?"
)
_REQUEST_ID = re.compile(rb"[!-~]{1,128}")

MALFORMED_FIELD = "A field of the request is not well-formed."

#: What no field may contain: control characters but the tab (RFC 9110 section 5.5).
_CONTROLS = bytes([*range(9), *range(10, 32), 127])
is_token = re.compile(TOKEN).fullmatch

#: Whether part of a head can no longer become well-formed, whatever follows.
is_hopeless = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r[^\n]").search


#: The kinds of refusals by status, where a request may be well-formed all the same.
_KINDS = {
    408: "request_timeout",
    414: "head_too_large",
    421: "host_not_served",
    431: "head_too_large",
    503: "too_many_connections",
}


class RequestRefused(ProxyError):
    """The request is not well-formed, or not served here and now."""

    kind = "malformed_request"

    def __init__(self, status: int, message: str, fields: dict[str, str] | None = None) -> None:
        self.status = status
        self.kind = _KINDS.get(status, self.kind)
        self._fields = fields or {}
        super().__init__(message)

    @property
    def headers(self) -> dict[str, str]:
        return self._fields


def request_line(line: bytes) -> RequestLine:
    """The request that *line* begins (RFC 9112 section 3).

    A target in absolute form is turned into origin form (section 3.2.2).

    :raises RequestRefused: 400; 405 for a method that is not for proxies like this; 414; 505.
    """
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise RequestRefused(400, "The request line is not well-formed.")
    return request_line_of(*match.groups())


def request_line_of(method: bytes, target: bytes, major: bytes, minor: bytes) -> RequestLine:
    """The same, of the parts of a line that is well-formed."""
    if major != b"1":
        raise RequestRefused(505, "Only HTTP/1.0 and HTTP/1.1 are spoken here.")
    if len(target) > MAX_TARGET:
        raise RequestRefused(414, f"The request target is longer than {MAX_TARGET} bytes.")
    if method in (b"CONNECT", b"TRACE"):
        allowed = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
        raise RequestRefused(405, f"{method.decode()} is not served here.", {"Allow": allowed})
    version = 0 if minor == b"0" else 1
    if target.startswith(b"/") or (target == b"*" and method == b"OPTIONS"):
        return RequestLine(method, target, version)
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        raise RequestRefused(400, "The request target must begin with '/'.")
    authority, rest = absolute.groups()
    path = rest if rest.startswith(b"/") else b"/" + rest
    return RequestLine(method, path, version, authority)


def field(line: bytes) -> tuple[bytes, bytes]:
    """A field's name and its value, of one *line* (RFC 9112 section 5).

    There is no control character in it but the tab. That the name is a token (so that there is no
    blank before the colon, and no folding) is for the caller to see.

    :raises RequestRefused: 400.
    """
    name, colon, value = line.partition(b":")
    if not colon or len(value.translate(None, _CONTROLS)) != len(value):
        raise RequestRefused(400, MALFORMED_FIELD)
    return name, value.strip(b" \t")


def check_host(head: RequestHead) -> None:
    """Refuse a request whose host is missing, doubtful or not ours (RFC 9112 section 3.2).

    :raises RequestRefused: 400.
    """
    hosts, line = head.by_name.get(b"host"), head.line
    if not hosts:
        if line.minor == 0 and line.authority is None:
            return
        raise RequestRefused(400, "The request has no Host field.")
    if len(hosts) > 1 or not _is_host(hosts[0]):
        raise RequestRefused(400, "The Host field is repeated or not valid.")
    if line.authority is not None and _host(line.authority) != _host(hosts[0]):
        raise RequestRefused(400, "The request target names another host than the Host field.")


@lru_cache(maxsize=128)  # clients come again with the same one
def _is_host(value: bytes) -> bool:
    """Whether *value* is a host, with a port or without."""
    match = _HOST.fullmatch(value)
    if match is None:
        return False
    address, port = match.groups()
    if address is not None:
        try:
            IPv6Address(address.decode())
        except ValueError:
            return False
    return not port or (len(port) <= 5 and int(port) <= 65535)


def _host(authority: bytes) -> bytes:
    return authority.lower().removesuffix(b":80").removesuffix(b":443")


def body_length(head: RequestHead) -> int | None:
    """Bytes of a request's body, None if it is chunked (RFC 9112 section 6).

    A repeated Content-Length is refused even if it repeats the same number.

    :raises RequestRefused: 400.
    """
    lengths = head.by_name.get(b"content-length")
    codings = head.by_name.get(b"transfer-encoding")
    if codings:
        if lengths:
            raise RequestRefused(400, "Content-Length and Transfer-Encoding exclude each other.")
        if head.line.minor == 0:
            raise RequestRefused(400, "HTTP/1.0 has no Transfer-Encoding.")
        if len(codings) > 1 or codings[0].lower() != b"chunked":
            raise RequestRefused(400, "The only Transfer-Encoding understood is chunked, once.")
        return None
    if not lengths:
        return 0
    if len(lengths) > 1 or not lengths[0].isdigit():
        raise RequestRefused(400, "The Content-Length is repeated or not a number.")
    # Python refuses to convert thousands of digits; no limit has as many as twenty.
    return int(lengths[0].lstrip(b"0")[:20] or b"0")


def expects_continue(head: RequestHead) -> bool:
    """Whether the client waits to be told to send the body (RFC 9110 section 10.1.1).

    :raises RequestRefused: 417 for any other expectation.
    """
    expectations = head.by_name.get(b"expect")
    # Of HTTP/1.0 it means nothing.
    if not expectations or head.line.minor == 0:
        return False
    expected = set(members(expectations)) - {b""}
    if not expected <= {b"100-continue"}:
        raise RequestRefused(417, "The only expectation understood is 100-continue.")
    return bool(expected)


def keeps_connection(head: RequestHead) -> bool:
    """Whether another request may follow (RFC 9112 section 9.3)."""
    minor, options = head.line.minor, head.by_name.get(b"connection")
    if not options:
        return minor == 1
    tokens = members(options)
    return b"close" not in tokens and (minor == 1 or b"keep-alive" in tokens)


def request_id(values: Sequence[bytes]) -> bytes:
    """The id that a client has sent in X-Request-Id fields of these *values*, or a new one.

    A new one is 32 hexadecimal digits; a client's has up to 128 visible ASCII characters.
    """
    if len(values) == 1 and _REQUEST_ID.fullmatch(values[0]):
        return values[0]
    return b"%032x" % random.getrandbits(128)
