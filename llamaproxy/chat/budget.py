"""BodyBudget: the bytes of the chats that run at the same time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import attrs

from llamaproxy.errors import Overloaded


@attrs.define
class BodyBudget:
    """Counts what the request bodies take that are being answered, up to *limit* bytes.

    A body takes several times its size while its chat runs, which may be for many minutes.
    """

    limit: int
    held: int = 0

    @contextmanager
    def holding(self, body: bytes) -> Iterator[None]:
        """Count *body*, and the objects that its JSON becomes, within.

        :raises Overloaded: if they are too many beside the others; alone they never are.
        """
        size = _weight(body)
        if self.held and self.held + size > self.limit:
            raise Overloaded()
        self.held += size
        try:
            yield
        finally:
            self.held -= size


def _weight(body: bytes) -> int:
    """About the bytes that *body* and its values take; much more than itself if they are small."""
    names = body.count(b'":')
    return len(body) + 300 * body.count(b"{") + 100 * names + 10 * body.count(b",")
