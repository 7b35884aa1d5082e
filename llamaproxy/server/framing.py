"""What a well-formed HTTP/1.1 request is, and where its body ends. Pure.

Stricter than twisted.web, and than the standard where that leaves a choice: whatever two parsers
could read in two ways is refused, for the next one on the way may read it the other way.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from ipaddress import IPv6Address
from typing import NamedTuple

from llamaproxy.errors import BodyTooLarge, ProxyError

#: Bytes of a request target (RFC 9112 section 3: at least 8000), of a line, of a whole head.
MAX_TARGET = 8192
MAX_LINE = 16384
MAX_HEAD = 65536

#: Empty lines before a request, which are to be ignored (RFC 9112 section 2.2: at least one).
MAX_EMPTY_LINES = 8

#: Fields of a request.
MAX_FIELDS = 128

#: Bytes of a chunk's size with its extensions, and of all trailers together.
MAX_CHUNK_LINE = 1024
MAX_TRAILERS = 8192

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_VALUE = rb"[\t -~\x80-\xff]*"
_REQUEST_LINE = re.compile(rb"(%b) ([!\"$-~]+) HTTP/([0-9])\.([0-9])" % _TOKEN)
_ABSOLUTE = re.compile(rb"https?://([^/?]+)(.*)", re.IGNORECASE)
_HOST = re.compile(
    rb"(?:\[([0-9A-Fa-f:.]+)\]|(?:[A-Za-z0-9\-._~!$&'()*+;=]|%[0-9A-Fa-f]{2})+)(?::([0-9]*))?"
)
_REQUEST_ID = re.compile(rb"[!-~]{1,128}")

_EXTENSIONS = rb"(?:[ \t]*;%b)?" % _VALUE
_FIRST_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})%b\r\n" % _EXTENSIONS)
_NEXT_SIZE = re.compile(rb"\r\n([0-9A-Fa-f]{1,16})%b\r\n" % _EXTENSIONS)
_FIRST_SIZE_BEGUN = re.compile(rb"(?:[0-9A-Fa-f]{1,16}(?:[ \t]*|%b)\r?)?" % _EXTENSIONS)
_NEXT_SIZE_BEGUN = re.compile(rb"\r(?:\n%b)?" % _FIRST_SIZE_BEGUN.pattern)

MALFORMED_FIELD = "A field of the request is not well-formed."

#: What no field may contain: control characters but the tab (RFC 9110 section 5.5).
_CONTROLS = bytes([*range(9), *range(10, 32), 127])
_is_token = re.compile(_TOKEN).fullmatch

#: Whether part of a head can no longer become well-formed, whatever follows.
is_hopeless = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r[^\n]").search


class Refused(ProxyError):
    """The request is not well-formed."""

    kind = "malformed_request"

    def __init__(self, status: int, message: str, fields: dict[str, str] | None = None) -> None:
        self.status = status
        self._fields = fields or {}
        super().__init__(message)

    @property
    def headers(self) -> dict[str, str]:
        return self._fields


class RequestLine(NamedTuple):
    """A request line; *authority* is that of a target in absolute form."""

    method: bytes
    target: bytes
    minor: int
    authority: bytes | None = None


def request_line(line: bytes) -> RequestLine:
    """The request that *line* begins (RFC 9112 section 3).

    A target in absolute form is turned into origin form (section 3.2.2).

    :raises Refused: 400; 405 for a method that is not for proxies like this; 414; 505.
    """
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise Refused(400, "The request line is not well-formed.")
    method, target, major, minor = match.groups()
    if major != b"1":
        raise Refused(505, "Only HTTP/1.0 and HTTP/1.1 are spoken here.")
    if len(target) > MAX_TARGET:
        raise Refused(414, f"The request target is longer than {MAX_TARGET} bytes.")
    if method in (b"CONNECT", b"TRACE"):
        allowed = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
        raise Refused(405, f"{method.decode()} is not served here.", {"Allow": allowed})
    version = 0 if minor == b"0" else 1
    if target.startswith(b"/") or (target == b"*" and method == b"OPTIONS"):
        return RequestLine(method, target, version)
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        raise Refused(400, "The request target must begin with '/'.")
    authority, rest = absolute.groups()
    path = rest if rest.startswith(b"/") else b"/" + rest
    return RequestLine(method, path, version, authority)


def field(line: bytes) -> tuple[bytes, bytes]:
    """A field's name and its value, of one *line* (RFC 9112 section 5).

    There is no control character in it but the tab. That the name is a token (so that there is no
    blank before the colon, and no folding) is for the caller to see: Twisted's ``Headers`` know
    those that they have seen before.

    :raises Refused: 400.
    """
    name, colon, value = line.partition(b":")
    if not colon or len(value.translate(None, _CONTROLS)) != len(value):
        raise Refused(400, MALFORMED_FIELD)
    return name, value.strip(b" \t")


def check_host(hosts: Sequence[bytes] | None, line: RequestLine) -> None:
    """Refuse a request whose host is missing, doubtful or not ours (RFC 9112 section 3.2).

    :raises Refused: 400.
    """
    if not hosts:
        if line.minor == 0 and line.authority is None:
            return
        raise Refused(400, "The request has no Host field.")
    match = _HOST.fullmatch(hosts[0])
    if len(hosts) > 1 or match is None:
        raise Refused(400, "The Host field is repeated or not valid.")
    address, port = match.groups()
    if address is not None:
        try:
            IPv6Address(address.decode())
        except ValueError:
            raise Refused(400, "The Host field is not valid.") from None
    if port and (len(port) > 5 or int(port) > 65535):
        raise Refused(400, "The Host field is not valid.")
    if line.authority is not None and _host(line.authority) != _host(hosts[0]):
        raise Refused(400, "The request target names another host than the Host field.")


def _host(authority: bytes) -> bytes:
    return authority.lower().removesuffix(b":80").removesuffix(b":443")


def body_length(
    lengths: Sequence[bytes] | None, codings: Sequence[bytes] | None, minor: int
) -> int | None:
    """Bytes of a request's body, None if it is chunked (RFC 9112 section 6).

    A repeated Content-Length is refused even if it repeats the same number.

    :raises Refused: 400.
    """
    if codings:
        if lengths:
            raise Refused(400, "Content-Length and Transfer-Encoding exclude each other.")
        if minor == 0:
            raise Refused(400, "HTTP/1.0 has no Transfer-Encoding.")
        if len(codings) > 1 or codings[0].lower() != b"chunked":
            raise Refused(400, "The only Transfer-Encoding understood is chunked, once.")
        return None
    if not lengths:
        return 0
    if len(lengths) > 1 or not lengths[0].isdigit():
        raise Refused(400, "The Content-Length is repeated or not a number.")
    # Python refuses to convert thousands of digits; no limit has as many as twenty.
    return int(lengths[0].lstrip(b"0")[:20] or b"0")


def expects_continue(expectations: Sequence[bytes] | None) -> bool:
    """Whether the client waits to be told to send the body (RFC 9110 section 10.1.1).

    :raises Refused: 417 for any other expectation.
    """
    if not expectations:
        return False
    members = {each.strip(b" \t") for each in b",".join(expectations).lower().split(b",")} - {b""}
    if not members <= {b"100-continue"}:
        raise Refused(417, "The only expectation understood is 100-continue.")
    return bool(members)


def request_id(given: Sequence[bytes] | None) -> bytes:
    """The id that a client gave to its request, or a new one if it gave none that is fit."""
    if given and len(given) == 1 and _REQUEST_ID.fullmatch(given[0]):
        return given[0]
    return b"%032x" % random.getrandbits(128)


class CountedBody:
    """A body of known length (RFC 9112 section 6.2)."""

    def __init__(self, length: int) -> None:
        self._left = length
        self.rest: bytes | None = None

    def feed(self, received: bytes) -> bytes:
        """The part of *received* that is the body's.

        After the last of it ``rest`` is what follows.
        """
        if len(received) < self._left:
            self._left -= len(received)
            return received
        self.rest = received[self._left :]
        return received[: self._left]


class ChunkedBody:
    """A chunked body (RFC 9112 section 7.1), of at most *limit* bytes; its trailers are dropped."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._room = limit
        #: Bytes of the current chunk that have not come yet; None once the last chunk has begun.
        self._left: int | None = 0
        self._size, self._size_begun = _FIRST_SIZE, _FIRST_SIZE_BEGUN
        self._held = b""
        self._trailers = 0
        self.rest: bytes | None = None

    def feed(self, received: bytes) -> bytes:
        """The part of *received* that is the body's.

        After the last of it ``rest`` is what follows.

        :raises Refused: 400 if it is malformed, 431 for too many trailers.
        :raises BodyTooLarge: as soon as a chunk over the limit is announced.
        """
        buffer, self._held = self._held + received, b""
        parts: list[bytes] = []
        at = 0
        while self._left is not None:
            if self._left:
                part = buffer[at : at + self._left]
                parts.append(part)
                at += len(part)
                self._left -= len(part)
                if self._left:
                    return b"".join(parts)
            match = self._size.match(buffer, at)
            if match is None:
                self._held = self._begun(buffer[at:])
                return b"".join(parts)
            if match.end() - at > MAX_CHUNK_LINE:
                raise Refused(400, "A chunk of the request body has too many extensions.")
            at = match.end()
            self._begin(int(match[1], 16))
        self._end(buffer, at)
        return b"".join(parts)

    def _begin(self, size: int) -> None:
        self._room -= size
        if self._room < 0:
            raise BodyTooLarge(f"The request body is larger than {self._limit} bytes.")
        self._left = size or None
        self._size, self._size_begun = _NEXT_SIZE, _NEXT_SIZE_BEGUN

    def _begun(self, line: bytes) -> bytes:
        """*line* again, if it can still become the size of a chunk."""
        if len(line) > MAX_CHUNK_LINE or (line and not self._size_begun.fullmatch(line)):
            raise Refused(400, "The request body's chunks are not well-formed.")
        return line

    def _end(self, buffer: bytes, at: int) -> None:
        while (end := buffer.find(b"\r\n", at)) >= 0:
            if end == at:
                self.rest = buffer[end + 2 :]
                return
            if not _is_token(field(buffer[at:end])[0]):
                raise Refused(400, MALFORMED_FIELD)
            self._trailers += end + 2 - at
            at = end + 2
            self._bounded(0)
        self._held = buffer[at:]
        self._bounded(len(self._held))
        if b"\n" in self._held:
            raise Refused(400, MALFORMED_FIELD)

    def _bounded(self, more: int) -> None:
        if self._trailers + more > MAX_TRAILERS:
            raise Refused(431, f"The request's trailers are longer than {MAX_TRAILERS} bytes.")
