"""When a worker is replaced: how long it may be silent, how long its place stays empty. Pure."""

from __future__ import annotations

#: Seconds for which a place stays empty at most, and of life after which a death is the first one.
_LONGEST, _LONG_LIFE = 30.0, 60.0

#: Seconds between two looks at a worker.
LOOK_SECONDS = 2.0

#: Seconds that a worker is given to end, beyond those for the requests that it serves.
STOP_SECONDS = 5.0

#: Looks without a sign of life after which a worker is stuck; those that it has to get ready.
_SILENT_LOOKS, _STARTING_LOOKS = 5, 30


class Backoff:
    """Seconds from the end of a worker to the start of the next one in its place."""

    def __init__(self) -> None:
        self._deaths = 0

    def after(self, lived: float) -> float:
        """The seconds after the death of one that has *lived* so many seconds."""
        if lived >= _LONG_LIFE:
            self._deaths = 0
        self._deaths += 1
        if self._deaths == 1:
            return 0.0
        return min(_LONGEST, 2.0 ** min(self._deaths - 2, 10))


class Liveness:
    """Whether a worker is stuck.

    What counts is how often it was looked at, and not the time: a daemon that was stopped and goes
    on, as a container that was paused, must not take all its workers for stuck.
    """

    def __init__(self) -> None:
        self._looks_left = _STARTING_LOOKS

    def sign(self) -> None:
        """It has given a sign of life."""
        self._looks_left = _SILENT_LOOKS

    def look(self) -> bool:
        """Whether it has been silent for too long, at one more look."""
        self._looks_left -= 1
        return self._looks_left < 0
