"""Heads of responses, and bodies in chunks: parsed strictly, by llhttp (RFC 9112). Pure.

llhttp refuses what could be read in two ways: bare line feeds, folded lines, space before a colon,
lengths that are repeated or beside a coding. It has no limits, lets through a few things that are
no HTTP/1.1, and knows neither HEAD nor what ``Connection`` nominates: that is here.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import attrs
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from llamaproxy.heads import LENGTH_FIELD, MAX_KIND, Fields, Kinds, members, without
from llamaproxy.upstream.headers import HOP_BY_HOP

#: The most bytes, and the most fields, of one head; and of bytes in a body that are not its own.
MAX_HEAD, MAX_FIELDS = 64 * 1024, 256

#: Where a head ends. llhttp lets no line end otherwise.
END_OF_HEAD = b"\r\n\r\n"

#: What a chunked body ends with that has no trailers.
_LAST_CHUNK = b"\r\n0\r\n\r\n"

_VERSIONS = (b"HTTP/1.1 ", b"HTTP/1.0 ")
_PHRASE = re.compile(rb"[^\0-\x08\n-\x1f\x7f]*")
_LENGTH = re.compile(rb"[0-9]{1,18}")

#: Fields of the framing, which are looked at here; each with the others that are not handed on.
_LENGTHS = frozenset({b"content-length"})
_LOOKED_AT = HOP_BY_HOP | _LENGTHS


class BadHead(ValueError):
    """What is wrong with an answer: a predicate that follows "The answer"."""


@attrs.define(eq=False, repr=False)
class ResponseHead:
    """One head: its end-to-end *fields*, and how its body is framed.

    *length* is that of the body, None if it is chunked or ends with the connection; a
    ``Content-Length`` stands in the fields too. *bodiless* tells that there can be no body, and
    *close* that the connection cannot be used again. *tunnel* is what the bytes of another
    protocol are sent by, after 101. *names* are those of the fields, in lower case.
    *body_follows* tells that the taker is given the beginning of the body as soon as it has taken
    the head.
    """

    status: int
    phrase: bytes
    fields: Fields
    length: int | None = None
    bodiless: bool = False
    close: bool = False
    chunks: Chunks | None = None
    tunnel: Any = None
    body_follows: bool = False
    names: frozenset[bytes] = attrs.Factory(
        lambda head: frozenset([name.lower() for name, _ in head.fields]), takes_self=True
    )

    def values(self, name: bytes) -> list[bytes]:
        """The values of all end-to-end fields of that *name*, which is in lower case."""
        if name not in self.names:
            return []
        return [value for each, value in self.fields if each.lower() == name]

    @property
    def interim(self) -> bool:
        """Whether another response follows (RFC 9110 section 15.2)."""
        return self.status < 200 and not self.switches

    @property
    def switches(self) -> bool:
        """Whether another protocol follows (RFC 9110 section 7.8)."""
        return self.status == 101

    @property
    def until_close(self) -> bool:
        """Whether the body ends with the connection."""
        return self.length is None and self.chunks is None


class _Body:
    """What llhttp reports of the body of a message."""

    def __init__(self) -> None:
        self.complete = False
        self.begun = 0
        self.parts: list[bytes] = []
        #: How many of the parts are this message's when it is complete: nobody asked for another.
        self.own = 0
        #: A call of a function in Python for each chunk would take longer than to parse it.
        self.on_body = self.parts.append

    def on_message_begin(self) -> None:
        self.begun += 1

    def on_message_complete(self) -> None:
        if not self.complete:
            self.complete, self.own = True, len(self.parts)


class _Message(_Body):
    """The same of a whole message."""

    def __init__(self) -> None:
        _Body.__init__(self)
        self.phrase = b""
        self.fields: Fields = []

    def on_status(self, phrase: bytes) -> None:
        self.phrase = phrase

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value.rstrip(b" \t")))


class Chunks:
    """The chunked body that follows a head. Extensions and trailers are dropped."""

    def __init__(self, parser: HttpResponseParser, message: _Body) -> None:
        self._parser = parser
        self._message = message
        self._bodiless_bytes = 0
        self._tail = b"\r\n"

    @classmethod
    def after(cls, head: bytes) -> Chunks:
        """Those that follow a *head* that has been read before: only what follows is told."""
        message = _Body()
        parser = HttpResponseParser(message)
        parser.feed_data(head)
        return cls(parser, message)

    @property
    def complete(self) -> bool:
        """Whether the body has ended."""
        return self._message.complete

    @property
    def ends_exactly(self) -> bool:
        """Whether nothing came after the end, trailers included.

        Those are not dangerous, but the head of another answer ends as they do.
        """
        return self._tail == _LAST_CHUNK and self._message.begun == 1

    def feed(self, data: bytes) -> tuple[bytes, str]:
        """The bytes of the body in *data*; and what is wrong behind them, empty if nothing is."""
        message = self._message
        wrong = ""
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            # Behind the end, it is what shall not be there.
            wrong = "" if message.complete else "is not chunked as it says"
        parts = message.parts[:]
        message.parts.clear()
        if message.complete:
            del parts[message.own :]
            message.own = 0
        self._tail = (self._tail + data[-len(_LAST_CHUNK) :])[-len(_LAST_CHUNK) :]
        self._bodiless_bytes = 0 if parts else self._bodiless_bytes + len(data)
        if self._bodiless_bytes > MAX_HEAD:
            wrong = f"has more than {MAX_HEAD} bytes that are not of its body"
        return parts[0] if len(parts) == 1 else b"".join(parts), wrong


def read_response_head(raw: bytes, method: bytes, upgrade: bool = False) -> ResponseHead:
    """The head *raw* of an answer to a request of *method*, which may have asked for an *upgrade*.

    It is one head, and nothing follows it. What it says is known if another came that differs in
    nothing but the number of its ``Content-Length``.

    :raises BadHead: if it is not valid, or leaves open where the body ends.
    """
    if len(raw) <= MAX_KIND and method != b"HEAD" and not upgrade:
        number = LENGTH_FIELD.search(raw)
        if number is None:
            kind = _kinds.of(raw, b"")
            if kind is not None and kind.status:
                return kind.with_chunks(raw)
        else:
            kind = _kinds.of(raw[: number.start(1)], raw[number.end(1) :])
            if kind is not None and kind.status:
                return kind.with_length(number[1])
    return _read(raw, method, upgrade)


class _Kind(NamedTuple):
    """Heads with a body that differ in nothing but its length, if they say that.

    *at* is the place of the ``Content-Length`` in *fields*, -1 if the body is chunked. The *status*
    is 0 for heads of another sort, of which nothing is known.
    """

    status: int
    phrase: bytes = b""
    fields: tuple[tuple[bytes, bytes], ...] = ()
    at: int = -1
    close: bool = False
    names: frozenset[bytes] = frozenset()

    def with_length(self, number: bytes) -> ResponseHead:
        """The head with that *number*."""
        status, phrase, fields, at, close, names = self
        those = list(fields)
        those[at] = (those[at][0], number)
        return ResponseHead(status, phrase, those, int(number), close=close, names=names)

    def with_chunks(self, raw: bytes) -> ResponseHead:
        """The head, which is *raw* as it came."""
        status, phrase, fields, _, close, names = self
        chunks = Chunks.after(raw)
        return ResponseHead(status, phrase, list(fields), close=close, chunks=chunks, names=names)


def _kind_of(before: bytes, after: bytes) -> _Kind:
    """The kind of a head, of what there is *before* and *after* the number of its length.

    *after* is empty if there is no such number.

    :raises BadHead: as :func:`read_response_head`, whatever the number.
    """
    head = _read(before + b"0" + after if after else before, b"GET", upgrade=False)
    if head.bodiless or (head.length is None if after else head.chunks is None):
        return _Kind(0)
    at = [name.lower() for name, _ in head.fields].index(b"content-length") if after else -1
    return _Kind(head.status, head.phrase, tuple(head.fields), at, head.close, head.names)


_kinds = Kinds(_kind_of)


def _read(raw: bytes, method: bytes, upgrade: bool) -> ResponseHead:
    """The same, by parsing it."""
    if not raw.startswith(_VERSIONS) or not raw.endswith(END_OF_HEAD):
        raise BadHead("has a malformed head")
    switches = raw[9:12] == b"101"
    if switches and not upgrade:
        raise BadHead("switches protocols, for which nobody asked")
    message = _Message()
    parser = HttpResponseParser(message)
    try:
        parser.feed_data(raw)
    except HttpParserUpgrade:
        pass
    except HttpParserError:
        raise BadHead("has a malformed head") from None
    status = parser.get_status_code()
    if status < 100 or not _PHRASE.fullmatch(message.phrase):
        raise BadHead("has a malformed head")
    if len(message.fields) > MAX_FIELDS:
        raise BadHead(f"has more than {MAX_FIELDS} header fields")
    if status < 200 and not switches:
        return ResponseHead(status, message.phrase, [])
    names = [name.lower() for name, _ in message.fields]
    fields, looked_at, options = _sorted_out(names, message.fields)
    if switches:
        fields = without(fields, _LENGTHS)
        return ResponseHead(status, message.phrase, fields, close=True)
    length = _length(looked_at)
    bodiless = method == b"HEAD" or status in (204, 304)
    if status == 204 and length is not None:
        # RFC 9110 section 8.6. Where it stays, it is what the length of another answer would be.
        fields = without(fields, _LENGTHS)
    chunked = b"transfer-encoding" in looked_at and not bodiless
    message.fields = []
    chunks = Chunks(parser, message) if chunked else None
    # After an error of its model provider, a Llama Stack closes the connection some seconds later,
    # though it says that it will not, and a request that is sent until then is lost (seen in 0.6.1
    # and OGX 1.5.0).
    close = (status >= 400 and status < 600) or raw[7:8] == b"0" or b"close" in options
    length = 0 if bodiless else length
    head = ResponseHead(status, message.phrase, fields, length, bodiless, close, chunks)
    head.close = close or head.until_close
    return head


def _sorted_out(
    names: list[bytes], fields: Fields
) -> tuple[Fields, dict[bytes, list[bytes]], set[bytes]]:
    """Of *fields*: those to hand on; those of the framing, by name; the options of Connection.

    *names* are theirs in lower case.
    """
    looked_at: dict[bytes, list[bytes]] = {}
    for name, (_, value) in zip(names, fields, strict=True):
        if name in _LOOKED_AT:
            looked_at.setdefault(name, []).append(value)
    if HOP_BY_HOP.isdisjoint(looked_at):
        return fields, looked_at, set()
    options = set(members(looked_at.get(b"connection", ())))
    dropped = HOP_BY_HOP | options - _LENGTHS
    kept = [field for name, field in zip(names, fields, strict=True) if name not in dropped]
    return kept, looked_at, options


def _length(fields: dict[bytes, list[bytes]]) -> int | None:
    """The length that a head announces (RFC 9112 section 6.3)."""
    lengths = fields.get(b"content-length")
    codings = fields.get(b"transfer-encoding")
    if codings is not None:
        if lengths is not None:
            raise BadHead("has both a Content-Length and a Transfer-Encoding")
        if len(codings) > 1 or codings[0].lower() != b"chunked":
            raise BadHead("has an unknown transfer coding")
        return None
    if lengths is None:
        return None
    if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
        raise BadHead("has an invalid Content-Length")
    return int(lengths[0])
