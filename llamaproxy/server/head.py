"""Reading the head of a request: as one that came before, as a whole, or line by line.

All come to the same. Pure.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from llamaproxy.errors import ProxyError
from llamaproxy.heads import LENGTH_FIELD, MAX_KIND, TOKEN, Kinds, RequestHead
from llamaproxy.server.checks import OWN_CHECKS
from llamaproxy.server.framing import (
    MALFORMED_FIELD,
    MAX_EMPTY_LINES,
    MAX_FIELDS,
    MAX_HEAD,
    MAX_LINE,
    REQUEST_LINE,
    RequestRefused,
    field,
    is_hopeless,
    is_token,
    request_line,
    request_line_of,
)

_BEGINNING = re.compile(rb"(?:\r\n){0,%d}%b\r\n" % (MAX_EMPTY_LINES, REQUEST_LINE))
# Nothing is given back (``*+``): blanks may stand before a value and in it, and to try each way to
# divide a thousand of them would take a million steps.
_FIELD = re.compile(rb"^(%b):[ \t]*+([^\0-\x08\n-\x1f\x7f]*+)\r\n" % TOKEN, re.MULTILINE)


def read_head_again(received: bytes) -> tuple[RequestHead, int] | None:
    """The head that *received* begins with, checked (``OWN_CHECKS``), and where it ends.

    Clients send the same head again and again, or another in nothing but the number of its
    ``Content-Length``: that is not parsed and checked again. None if it is to be.
    """
    end = received.find(b"\r\n\r\n", 0, MAX_KIND) + 4
    if end < 4:
        return None
    number = LENGTH_FIELD.search(received, 0, end)
    if number is None:
        checked = _kinds.of(received[:end], b"")
    else:
        checked = _kinds.of(received[: number.start(1)], received[number.end(1) : end])
    if checked is None or checked.head is None:
        return None
    return checked.head.again(checked.at, b"" if number is None else number[1]), end


class _Checked(NamedTuple):
    """A head that has passed its checks, None if it is for others to refuse, or to read by lines.

    *at* is the place of the ``Content-Length`` among its fields, if there may be another.
    """

    head: RequestHead | None
    at: int | None = None


def _checked(before: bytes, after: bytes) -> _Checked:
    """A head, of what there is *before* and *after* the number of its length; there may be none."""
    try:
        read = read_head(before + b"0" + after if after else before)
        if read is None:
            return _Checked(None)
        for check in OWN_CHECKS:
            check(read[0], None)
    except ProxyError:
        return _Checked(None)
    names = [name.lower() for name, _ in read[0].fields]
    return _Checked(read[0], names.index(b"content-length") if after else None)


_kinds = Kinds(_checked)


def read_head(received: bytes) -> tuple[RequestHead, int] | None:
    """The head that *received* begins with, and where it ends.

    None if it is for :class:`LineReader` to read: it is not there as a whole, not well-formed, or
    longer than a single line may be.

    :raises RequestRefused: for its request line.
    """
    beginning = _BEGINNING.match(received)
    if beginning is None:
        return None
    start = beginning.end()
    end = received.find(b"\r\n\r\n", start - 2, MAX_LINE) + 2
    if end < 2:
        return None
    fields = _FIELD.findall(received, start, end)
    # Each of them is the whole of a line; so if there are as many as lines, they are all of it.
    if len(fields) != received.count(b"\n", start, end) or len(fields) > MAX_FIELDS:
        return None
    # Blanks at the end of a value are seldom: one look finds them in all fields.
    if received.find(b" \r\n", start, end) >= 0 or received.find(b"\t\r\n", start, end) >= 0:
        fields = [(name, value.rstrip(b" \t")) for name, value in fields]
    line = request_line_of(*beginning.groups())
    return RequestHead(line, fields), end + 2


class LineReader:
    """Reads one head line by line as it comes, and says what is wrong with it as soon as it can."""

    def __init__(self) -> None:
        #: What there is of it, once the request line has come.
        self.head: RequestHead | None = None
        self._line = bytearray()
        self._empty_lines = 0
        self._bytes = 0

    def read(self, received: bytes) -> bytes | None:
        """Take *received*; what of it follows the head, None if more of that is to come.

        :raises RequestRefused: 400, 405, 414, 431 or 505.
        """
        buffer = self._line
        # The last byte of what was looked at before may be half of a line's end.
        at, unseen = 0, max(0, len(buffer) - 1)
        buffer += received
        while (end := buffer.find(b"\r\n", unseen)) >= 0:
            line = bytes(buffer[at:end])
            at = unseen = end + 2
            if len(line) > MAX_LINE:
                raise self._too_long()
            if self._is_last(line):
                return bytes(buffer[at:])
        if len(buffer) - at >= MAX_LINE + 2:
            raise self._too_long()
        # What would otherwise be waited for in vain, such as bare line feeds.
        if is_hopeless(buffer, unseen):
            raise RequestRefused(400, "The request is not HTTP/1.1.")
        del buffer[:at]
        return None

    def _is_last(self, line: bytes) -> bool:
        """Take one *line*, and tell whether it ends the head."""
        if self.head is not None:
            if line:
                self._add_field(self.head, line)
            return not line
        if not line and self._empty_lines < MAX_EMPTY_LINES:
            self._empty_lines += 1
        else:
            self.head = RequestHead(request_line(line))
        return False

    def _add_field(self, head: RequestHead, line: bytes) -> None:
        self._bytes += len(line)
        if len(head.fields) >= MAX_FIELDS:
            raise RequestRefused(431, f"The request has more than {MAX_FIELDS} fields.")
        if self._bytes > MAX_HEAD:
            raise RequestRefused(431, f"The request's fields are longer than {MAX_HEAD} bytes.")
        name, value = field(line)
        if not is_token(name):
            raise RequestRefused(400, MALFORMED_FIELD)
        head.add(name, value)

    def _too_long(self) -> RequestRefused:
        if self.head is None:
            return RequestRefused(414, f"The request line is longer than {MAX_LINE} bytes.")
        return RequestRefused(431, f"A field is longer than {MAX_LINE} bytes.")
