"""WholeLines: what comes in pieces, passed on as whole lines."""

from __future__ import annotations

from collections.abc import Callable

#: Bytes of a line; what has no end by then is cut there.
_LONGEST = 1024 * 1024


class WholeLines:
    """Passes on what comes, as many whole lines at a time as are there, each with its end."""

    def __init__(self, take: Callable[[bytes], object]) -> None:
        self._take = take
        self._begun: list[bytes] = []
        self._length = 0

    def feed(self, data: bytes) -> None:
        """More has come."""
        lines, newline, rest = data.rpartition(b"\n")
        if newline:
            self._take(b"".join([*self._begun, lines, newline]))
            self._begun, self._length = [], 0
        if rest:
            self._begun.append(rest)
            self._length += len(rest)
        if self._length > _LONGEST:
            self.end()

    def end(self) -> None:
        """What has begun is a line, whatever comes."""
        if self._begun:
            self._take(b"".join([*self._begun, b"\n"]))
            self._begun, self._length = [], 0
