"""BodyBudget: the bytes of the chats that run at the same time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import attrs

from llamaproxy.errors import Overloaded


@attrs.define
class BodyBudget:
    """Counts the bytes of the request bodies that are being answered, up to *limit*.

    A body takes several times its size while its chat runs, which may be for many minutes.
    """

    limit: int
    held: int = 0

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Count *size* bytes within.

        :raises Overloaded: if they are too many beside the others; alone they never are.
        """
        if self.held and self.held + size > self.limit:
            raise Overloaded()
        self.held += size
        try:
            yield
        finally:
            self.held -= size
