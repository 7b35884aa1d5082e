"""Heads of HTTP/1.1: what that of a request says, and how that of an answer is written."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import lru_cache
from time import time
from typing import Generic, NamedTuple, TypeAlias, TypeVar

from twisted.web.http import datetimeToString
from twisted.web.http_headers import Headers

#: Fields in the order and the spelling of their sender.
Fields: TypeAlias = list[tuple[bytes, bytes]]

#: The same, which are not changed.
SomeFields: TypeAlias = Sequence[tuple[bytes, bytes]]

#: The characters of a method, or of a field's name (RFC 9110 section 5.6.2); to be compiled.
TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"

#: The field by whose number alone most heads of a peer differ, as nearly all write it.
LENGTH_FIELD = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: (0|[1-9][0-9]{0,17})\r\n")

#: Kinds of heads that are remembered, and bytes of one: heads that are the same but for the number
#: of their length. And heads that are known to have come once, by their hashes.
KINDS, MAX_KIND, _ONCE = 256, 2048, 1024

T = TypeVar("T")


class Kinds(Generic[T]):
    """Keeps what *make* makes of heads that come again, of :data:`KINDS` kinds at most.

    A head is not kept when it comes for the first time: many never come again, such as those with
    the id of a trace.
    """

    def __init__(self, make: Callable[[bytes, bytes], T]) -> None:
        """:param make: is given what stands before the number of the head's length, and behind."""
        self._make = make
        self._kept: dict[tuple[bytes, bytes], T] = {}
        self._once: dict[int, None] = {}

    def of(self, before: bytes, after: bytes) -> T | None:
        """What was made of a head like this one; None if none has come before.

        What the making raises is raised.
        """
        key = before, after
        kept = self._kept.get(key)
        return self._not_kept(key) if kept is None else kept

    def _not_kept(self, key: tuple[bytes, bytes]) -> T | None:
        mark = hash(key)
        if mark not in self._once:
            if len(self._once) >= _ONCE:
                del self._once[next(iter(self._once))]
            self._once[mark] = None
            return None
        made = self._make(*key)
        # Where more kinds than are kept come in turn, keeping them is in vain half as often.
        del self._once[mark]
        if len(self._kept) >= KINDS:
            del self._kept[next(iter(self._kept))]
        self._kept[key] = made
        return made


class RequestLine(NamedTuple):
    """A request line; *authority* is that of a target in absolute form."""

    method: bytes
    target: bytes
    minor: int
    authority: bytes | None = None


class RequestHead:
    """A request's head: its *line*, and its *fields* as they are spelled, in their order.

    *path* is the target without its query; *by_name* has the values of all fields by their names in
    lower case.
    """

    __slots__ = (
        *("line", "path", "fields", "by_name"),
        *("body_length", "expects_continue", "id", "over_limit", "kind"),
    )

    def __init__(self, line: RequestLine, fields: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self.line = line
        self.path = line.target.partition(b"?")[0]
        self.fields: Fields = list(fields)
        self.by_name: dict[bytes, list[bytes]] = {}
        #: Bytes of the body, None if it is chunked.
        self.body_length: int | None = 0
        #: Whether the client waits for a 100 before it sends the body.
        self.expects_continue = False
        #: What it is :meth:`again`, but for its length and its id: shared with others, and never
        #: changed. None if there is no such head.
        self.kind: RequestHead | None = None
        #: Whether it came on one of more connections than are allowed.
        self.over_limit = False
        #: By which the client, the log and the upstream know the request.
        self.id = b""
        by_name = self.by_name
        for name, value in self.fields:
            lower = name.lower()
            if lower in by_name:
                by_name[lower].append(value)
            else:
                by_name[lower] = [value]

    def again(self, at: int | None, number: bytes) -> RequestHead:
        """The same head for another request, which has its own fields.

        :param at: the place of its ``Content-Length``, of which *number* is the value; None if it
            has none.
        """
        head = _new_head(RequestHead)
        head.line, head.path, head.kind = self.line, self.path, self
        head.expects_continue = self.expects_continue
        head.over_limit, head.id = False, b""
        head.fields = fields = self.fields.copy()
        head.by_name = by_name = self.by_name.copy()
        if at is None:
            head.body_length = self.body_length
        else:
            fields[at] = (fields[at][0], number)
            by_name[b"content-length"] = [number]
            head.body_length = int(number)
        return head

    def add(self, name: bytes, value: bytes) -> None:
        """Add a field."""
        self.kind = None
        self.fields.append((name, value))
        # The list may be another head's as well.
        self.by_name[name.lower()] = [*self.by_name.get(name.lower(), ()), value]

    def remove(self, *names: bytes) -> None:
        """Forget the fields of these *names*, which are in lower case."""
        removed = [name for name in names if self.by_name.pop(name, None)]
        if removed:
            self.kind = None
            self.fields = without(self.fields, removed)

    def identify(self, id: bytes) -> None:
        """Let *id* be that of the request, and the value of its only ``X-Request-Id``."""
        self.id = id
        values = self.by_name.get(b"x-request-id")
        if values is None:
            # Not as any other field: what is known of its kind holds for it all the same.
            self.fields.append((b"X-Request-Id", id))
            self.by_name[b"x-request-id"] = [id]
        elif values != [id]:
            self.remove(b"x-request-id")
            self.add(b"X-Request-Id", id)

    def let_go(self) -> None:
        """Forget all fields: the answer has begun, and may last."""
        self.fields, self.by_name, self.kind = [], {}, None

    @property
    def origin(self) -> bytes | None:
        """The value of ``Origin``, None if there is none, or several."""
        values = self.by_name.get(b"origin", ())
        return values[0] if len(values) == 1 else None


_new_head = RequestHead.__new__


def without(fields: Iterable[tuple[bytes, bytes]], names: Collection[bytes]) -> Fields:
    """*fields* but for those of these *names*, which are in lower case."""
    return [field for field in fields if field[0].lower() not in names]


def members(values: Iterable[bytes]) -> list[bytes]:
    """The members, in lower case, of a list in fields of these *values* (RFC 9110 section 5.6.1).

    Where one is empty, so is its text.
    """
    return [member.strip(b" \t") for member in b",".join(values).lower().split(b",")]


def headers_of(fields: Fields) -> Headers:
    """*fields* as Twisted has them."""
    headers = Headers()
    for name, value in fields:
        headers.addRawHeader(name, value)
    return headers


def fields_of(headers: Headers | None) -> Fields:
    """*headers* of Twisted's as they are sent."""
    pairs = () if headers is None else headers.getAllRawHeaders()
    return [(name, value) for name, values in pairs for value in values]


def answer_head(
    minor: int, status: int, phrase: bytes, fields: Iterable[tuple[bytes, bytes]]
) -> bytes:
    """The head of an answer to a request of HTTP/1.*minor*, as it is sent."""
    lines = b"\r\n".join(map(b": ".join, fields))
    return b"HTTP/1.%d %d %b\r\n%b\r\n\r\n" % (minor, status, phrase, lines)


def date() -> bytes:
    """The time of day for a ``Date`` field."""
    return _date_of(int(time()))


@lru_cache(maxsize=1)
def _date_of(second: int) -> bytes:
    written: bytes = datetimeToString(second)
    return written
