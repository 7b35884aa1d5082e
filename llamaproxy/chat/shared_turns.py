"""SharedTurns: the memory of turns that several processes have in common, and each of its own."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

import attrs
from twisted.internet.interfaces import IReactorTime

from llamaproxy.chat.memory import TurnStore

#: A turn in use is refreshed where it is shared this often while it could be kept there.
_REFRESHES = 4

#: Turns of which it is known when that was.
_MAX_REFRESHED = 10_000


class FarTurns(TurnStore, Protocol):
    """Turns that are kept elsewhere, for several processes."""

    def refresh(self, owner: bytes, marks: Sequence[str]) -> None:
        """Have the turns with these *marks* count as used now; nobody waits for that."""


@attrs.define(eq=False, repr=False)
class SharedTurns:
    """Turns of this process, and those *far* away that others remember. Implements TurnStore.

    Whatever is remembered here is kept in *local* too: there it is found first, and still there
    when the other is away. *age*: seconds for which both keep what is not used.
    """

    _clock: IReactorTime
    _local: TurnStore
    _far: FarTurns
    _age: float
    #: When each turn was used last as far as *far* knows, the longest ago first.
    _refreshed: OrderedDict[str, float] = attrs.field(init=False, factory=OrderedDict)

    async def recall(self, owner: bytes, marks: Sequence[str]) -> dict[str, bytes]:
        turns = await self._local.recall(owner, marks)
        used = list(turns)
        if missing := [mark for mark in marks if mark not in turns]:
            found = await self._far.recall(owner, missing)
            for mark in missing:
                if mark in found:
                    turns[mark] = found[mark]
                    await self._local.remember(owner, mark, found[mark])
                    self._note(mark)
        latest = self._clock.seconds() - self._age / _REFRESHES
        if due := [mark for mark in used if self._refreshed.get(mark, latest) <= latest]:
            self._far.refresh(owner, due)
            for mark in due:
                self._note(mark)
        return turns

    async def remember(self, owner: bytes, mark: str, text: bytes) -> None:
        await self._local.remember(owner, mark, text)
        self._note(mark)
        await self._far.remember(owner, mark, text)

    def _note(self, mark: str) -> None:
        """The turn with that *mark* is used now."""
        self._refreshed[mark] = self._clock.seconds()
        self._refreshed.move_to_end(mark)
        while len(self._refreshed) > _MAX_REFRESHED:
            self._refreshed.popitem(last=False)


class NestedTurns:
    """Turns that processes share *near*, and others with them *far* away. Implements FarTurns."""

    def __init__(self, clock: IReactorTime, near: FarTurns, far: FarTurns, age: float) -> None:
        """:param age: seconds for which both keep what is not used."""
        self._near = near
        self._far = far
        self._turns = SharedTurns(clock, near, far, age)

    async def recall(self, owner: bytes, marks: Sequence[str]) -> dict[str, bytes]:
        return await self._turns.recall(owner, marks)

    async def remember(self, owner: bytes, mark: str, text: bytes) -> None:
        await self._turns.remember(owner, mark, text)

    def refresh(self, owner: bytes, marks: Sequence[str]) -> None:
        self._near.refresh(owner, marks)
        self._far.refresh(owner, marks)
