"""BodyBudget: a limit to the memory that the request bodies of running chats take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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

    @contextmanager
    def holding(self, body: bytes) -> Iterator[None]:
        """Count *body* and its parsed JSON until the block ends.

        :raises Overloaded: if others are counted and *limit* would be passed; one alone may.
        """
        size = _memory_of(body)
        del body  # would be held as long as this waits
        if self.in_use and self.in_use + size > self.limit:
            raise Overloaded()
        self.in_use += size
        try:
            yield
        finally:
            self.in_use -= size


def _memory_of(body: bytes) -> int:
    """About the bytes that *body* and its parsed JSON take: many small values take the most."""
    brackets = 300 * body.count(b"{") + 70 * body.count(b"[")
    values = 50 * (body.count(b'"') // 2) + 50 * body.count(b":") + 10 * body.count(b",")
    # A text with one character beyond U+FFFF takes four bytes for each (PEP 393); few are in it.
    widest = 2 if body.translate(None, _NOT_BEYOND_BMP) else 1
    return widest * len(body) + brackets + values


#: All bytes but those that a character beyond U+FFFF begins with in UTF-8.
_NOT_BEYOND_BMP = bytes(range(0xF0))
