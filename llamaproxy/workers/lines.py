"""Lines: whole lines out of what comes in pieces."""

from __future__ import annotations

from collections.abc import Callable

#: Bytes of a line; what has no end by then is cut there.
_LONGEST = 1024 * 1024


class Lines:
    """Tells of each line, without its end, once it is there as a whole."""

    def __init__(self, tell: Callable[[bytes], object]) -> None:
        self._tell = tell
        self._begun: list[bytes] = []
        self._length = 0

    def feed(self, data: bytes) -> None:
        """More has come."""
        first, *others = data.split(b"\n")
        self._begun.append(first)
        self._length += len(first)
        for other in others:
            self.end()
            self._begun, self._length = [other], len(other)
        if self._length > _LONGEST:
            self.end()

    def end(self) -> None:
        """Nothing more comes: what has begun is a line."""
        line = b"".join(self._begun)
        self._begun, self._length = [], 0
        if line:
            self._tell(line)
