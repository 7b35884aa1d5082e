"""Quota: what each caller may put into a store that all share."""

from __future__ import annotations

from collections import Counter

import attrs
from twisted.internet.interfaces import IReactorTime

#: Bytes that an entry takes beside its value, about.
_OVERHEAD = 256

#: Owners that are told apart; those who come later count as one.
_MAX_OWNERS = 10_000


@attrs.define(eq=False, repr=False)
class Quota:
    """Counts the bytes of each owner, up to *most* of them within *seconds*.

    All are counted anew when that time is over, so an owner may have twice as much at once.
    """

    _clock: IReactorTime
    _most: int
    _seconds: float
    _taken: Counter[bytes] = attrs.field(init=False, factory=Counter)
    _began: float = attrs.field(init=False)

    @_began.default
    def _now(self) -> float:
        return self._clock.seconds()

    def take(self, owner: bytes, size: int) -> bool:
        """Count an entry of *owner* with so many bytes; False if it would be too much."""
        if self._clock.seconds() - self._began >= self._seconds:
            self._taken.clear()
            self._began = self._clock.seconds()
        if owner not in self._taken and len(self._taken) >= _MAX_OWNERS:
            owner = b""
        size += _OVERHEAD
        if self._taken[owner] + size > self._most:
            return False
        self._taken[owner] += size
        return True
