"""RequestHead: the line and the fields of one request, as they come."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from twisted.web.http_headers import Headers, InvalidHeaderName

from llamaproxy.server.framing import (
    MALFORMED_FIELD,
    MAX_FIELDS,
    MAX_HEAD,
    RequestLine,
    RequestRefused,
    body_length,
    expects_continue,
    field,
)


class RequestHead:
    """A request's head.

    *line*: its first line; *headers*: where its fields are collected; *over_limit*: whether there
    are more connections than are allowed, and it came on one of those.
    """

    def __init__(self, line: RequestLine, headers: Headers, over_limit: bool = False) -> None:
        self.line = line
        self.headers = headers
        self.over_limit = over_limit
        self._bytes = 0
        self._fields = 0

    def add_field(self, line: bytes) -> None:
        """Take one more field.

        :raises RequestRefused: 400 if it is malformed, 431 if there are too many, or too long ones.
        """
        self._bytes += len(line)
        self._fields += 1
        if self._fields > MAX_FIELDS:
            raise RequestRefused(431, f"The request has more than {MAX_FIELDS} fields.")
        if self._bytes > MAX_HEAD:
            raise RequestRefused(431, f"The request's fields are longer than {MAX_HEAD} bytes.")
        name, value = field(line)
        try:
            self.headers.addRawHeader(name, value)
        except InvalidHeaderName:
            raise RequestRefused(400, MALFORMED_FIELD) from None

    # --- what the fields say, once all of them are there

    @cached_property
    def _values(self) -> dict[bytes, Sequence[bytes]]:
        return dict(self.headers.getAllRawHeaders())

    def values(self, name: bytes) -> Sequence[bytes]:
        """The values of all fields of that *name*, which is in HTTP's usual spelling."""
        return self._values.get(name, ())

    @property
    def path(self) -> bytes:
        """The target without its query."""
        return self.line.target.partition(b"?")[0]

    @cached_property
    def body_length(self) -> int | None:
        """Bytes of the body, None if it is chunked.

        :raises RequestRefused: 400.
        """
        lengths, codings = self.values(b"Content-Length"), self.values(b"Transfer-Encoding")
        return body_length(lengths, codings, self.line.minor)

    @cached_property
    def expects_continue(self) -> bool:
        """Whether the client waits for a 100 before it sends the body.

        :raises RequestRefused: 417.
        """
        # Of HTTP/1.0 it means nothing (RFC 9110 section 10.1.1).
        return self.line.minor == 1 and expects_continue(self.values(b"Expect"))
