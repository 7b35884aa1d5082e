"""BodyBudget: a limit to the memory that the request bodies of running chats take."""

from __future__ import annotations

import attrs

from llamaproxy.errors import Overloaded


@attrs.define(eq=False, repr=False)
class BodyBudget:
    """Counts the memory of the request bodies that are being answered, up to *limit* bytes.

    A parsed body takes several times its size while its chat runs, which may be for minutes.
    """

    limit: int
    in_use: int = 0

    def figures(self) -> dict[str, int]:
        """What is counted, with the limit, for the status."""
        return {"bytes": self.in_use, "max_bytes": self.limit}

    def hold(self, body: bytes) -> int:
        """Count *body* and its parsed JSON; what they take, for :meth:`release`.

        :raises Overloaded: if others are counted and *limit* would be passed; one alone may.
        """
        size = _memory_of(body)
        if self.in_use and self.in_use + size > self.limit:
            raise Overloaded()
        self.in_use += size
        return size

    def release(self, size: int) -> None:
        """Count no longer what has that *size*."""
        self.in_use -= size


def _memory_of(body: bytes) -> int:
    """About the bytes that *body* and its parsed JSON take: many small values take the most."""
    marks = body.translate(None, _NO_MARKS)
    brackets = 300 * marks.count(b"{") + 70 * marks.count(b"[")
    values = 50 * (marks.count(b'"') // 2) + 50 * marks.count(b":") + 10 * marks.count(b",")
    # A text with one character beyond U+FFFF takes four bytes for each (PEP 393); few are in it.
    widest = 1 if marks.isascii() else 2
    return widest * len(body) + brackets + values


#: All bytes but those that are counted, and those that a character beyond U+FFFF begins with in
#: UTF-8.
_NO_MARKS = bytes(range(0xF0)).translate(None, b'{[":,')
