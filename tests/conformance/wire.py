"""Both ends of a raw exchange: what is sent, step by step, and a strict reading of answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import attrs


@attrs.frozen
class Pause:
    """Wait for so many seconds before the next write: the wait is what is tested."""

    seconds: float


@attrs.frozen
class Until:
    """Wait until the other side has sent these bytes."""

    text: bytes


class Sign:
    """A step that has no value but its identity."""


HALF_CLOSE: Final = Sign()
"""Send no more, but go on reading."""
CLOSE: Final = Sign()
"""Close in an orderly way."""
RESET: Final = Sign()
"""Close with a TCP reset."""
READ_BODY: Final = Sign()
"""For an upstream that answers early: read the rest of the request now."""

Step = bytes | Pause | Until | Sign

Fields = tuple[tuple[bytes, bytes], ...]


class Malformed(Exception):
    """What was received is no HTTP message; the text says why."""


@attrs.frozen
class Reply:
    """One message from a server. *framing*: ``none``, ``length``, ``chunked`` or ``close``."""

    version: bytes
    status: int
    reason: bytes
    fields: Fields
    body: bytes
    framing: str
    complete: bool

    def values(self, name: str) -> list[bytes]:
        """The values of a field, in their order."""
        return values(self.fields, name)

    @property
    def persistent(self) -> bool:
        """Whether the server announces that the connection stays open (RFC 9112 section 9.3)."""
        tokens = {t.strip().lower() for v in self.values("connection") for t in v.split(b",")}
        if b"close" in tokens or self.framing == "close":
            return False
        return self.version == b"HTTP/1.1" or b"keep-alive" in tokens


def values(fields: Fields, name: str) -> list[bytes]:
    """The values of a field, in their order."""
    wanted = name.lower().encode()
    return [value for found, value in fields if found.lower() == wanted]


def fields_of(head: bytes) -> Fields:
    """The fields of a message's head without its first line.

    :raises Malformed: for anything that RFC 9112 section 5 does not allow.
    """
    found = []
    for line in head.split(b"\r\n") if head else ():
        match = re.fullmatch(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*?)[ \t]*", line)
        if match is None:
            raise Malformed(f"field line {line[:60]!r}")
        found.append((match[1], match[2]))
    return tuple(found)


def dechunked(raw: bytes) -> tuple[bytes, bytes, Fields] | None:
    """Body, what follows it, and trailers of a chunked body; None if there is more to come.

    :raises Malformed: for anything that RFC 9112 section 7.1 does not allow.
    """
    parts: list[bytes] = []
    at = 0
    while (end := raw.find(b"\r\n", at)) >= 0:
        match = re.fullmatch(rb"([0-9A-Fa-f]{1,16})[ \t]*(;[^\r\n]*)?", raw[at:end])
        if match is None:
            raise Malformed(f"chunk size {raw[at:end][:40]!r}")
        size, at = int(match[1], 16), end + 2
        if not size:
            if raw.startswith(b"\r\n", at):
                return b"".join(parts), raw[at + 2 :], ()
            end = raw.find(b"\r\n\r\n", at)
            if end < 0:
                return None
            return b"".join(parts), raw[end + 4 :], fields_of(raw[at:end])
        parts.append(raw[at : at + size])
        at += size
        if len(raw) >= at + 2 and not raw.startswith(b"\r\n", at):
            raise Malformed("no CRLF after a chunk")
        at += 2
    return None


def replies(raw: bytes, methods: Sequence[bytes], closed: bool) -> list[Reply]:
    """The messages in *raw*, answers to requests of *methods* (GET after those), 1xx among them.

    :raises Malformed: if there is anything else.
    """
    found: list[Reply] = []
    final = 0
    while raw:
        head, end, rest = raw.partition(b"\r\n\r\n")
        if not end:
            if closed:
                raise Malformed(f"{raw[:60]!r} and the end")
            break
        line, _, lines = head.partition(b"\r\n")
        match = re.fullmatch(rb"(HTTP/1\.[01]) ([1-9]\d\d)(?: ([^\0\r\n]*))?", line)
        if match is None:
            raise Malformed(f"status line {line[:60]!r}")
        status, fields = int(match[2]), fields_of(lines)
        method = methods[final] if final < len(methods) else b"GET"
        framing, body, rest, complete = _body(method, status, fields, rest, closed)
        found.append(Reply(match[1], status, match[3] or b"", fields, body, framing, complete))
        if not complete:
            break
        final += status >= 200
        raw = rest
    return found


def _body(
    method: bytes, status: int, fields: Fields, rest: bytes, closed: bool
) -> tuple[str, bytes, bytes, bool]:
    """Framing, body, what follows, and whether it is all there (RFC 9112 section 6.3)."""
    length, codings = values(fields, "content-length"), values(fields, "transfer-encoding")
    if length and codings:
        raise Malformed("both Content-Length and Transfer-Encoding")
    if status < 200 or status in (204, 304) or method == b"HEAD":
        if codings and (status < 200 or status == 204):
            raise Malformed(f"Transfer-Encoding in a {status}")
        return "none", b"", rest, True
    if codings:
        if [c.lower() for c in codings] != [b"chunked"]:
            raise Malformed(f"Transfer-Encoding {codings}")
        if (parsed := dechunked(rest)) is None:
            return "chunked", rest, b"", False
        return "chunked", parsed[0], parsed[1], True
    if length:
        if len(length) > 1 or not re.fullmatch(rb"\d+", length[0]):
            raise Malformed(f"Content-Length {length}")
        size = int(length[0])
        return "length", rest[:size], rest[size:], len(rest) >= size
    return "close", rest, b"", closed
