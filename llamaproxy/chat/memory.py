"""TurnMemory: what a client cannot bring back: the server's calls of a turn that it shared.

A turn is known by the mark in the ids of the calls that were handed over, and by nothing that a
client might write anew (DESIGN: L19, L20; :mod:`llamaproxy.chat.mixed_turns` puts it together).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import attrs
from twisted.internet.interfaces import IReactorTime

from llamaproxy import jsontext
from llamaproxy.chat.mixed_turns import restore_turns
from llamaproxy.jsontext import Json
from llamaproxy.upstream.client_context import ClientContext


@attrs.frozen
class _Turn:
    """What was said between a client's request and the calls that it was handed, as JSON."""

    owner: object
    text: bytes
    used_at: float


@attrs.define
class _Share:
    """What one caller has in the memory: its marks, the least used first, and their bytes."""

    marks: OrderedDict[str, None] = attrs.Factory(OrderedDict)
    size: int = 0


@attrs.define
class TurnMemory:
    """Remembers shared turns, bounded in entries, bytes and age.

    *max_age*: seconds since a turn was last asked for. One caller's turns are never another's, and
    where there is not enough room, whoever has the most gives way.
    """

    _clock: IReactorTime
    _max_entries: int
    _max_bytes: int
    _max_age: float
    _turns: OrderedDict[str, _Turn] = attrs.field(init=False, factory=OrderedDict)
    _shares: dict[object, _Share] = attrs.field(init=False, factory=dict)
    _size: int = attrs.field(init=False, default=0)

    def __len__(self) -> int:
        return len(self._turns)

    def remember(self, caller: ClientContext, mark: str, turn: list[Json]) -> None:
        """Keep *turn*, the messages since the client asked, of which it was handed *mark*'s calls.

        Of these the last assistant message has all calls, and the server's have their results.
        """
        self._forget(mark)
        text = jsontext.dumps(turn)
        owner = caller.credentials
        share = self._shares.setdefault(owner, _Share())
        self._keep(mark, _Turn(owner, text, self._clock.seconds()), share)
        while len(self._turns) > self._max_entries:
            largest = max(self._shares.values(), key=lambda each: len(each.marks))
            self._forget(next(iter(largest.marks)))
        while self._size > self._max_bytes:
            largest = max(self._shares.values(), key=lambda each: each.size)
            self._forget(next(iter(largest.marks)))

    def recall(self, caller: ClientContext, messages: list[Any]) -> list[Any]:
        """*messages* with what is remembered of them back in its places, and without any marks."""
        self._forget_old()
        return restore_turns(messages, lambda mark: self._turn(caller, mark))

    def _turn(self, caller: ClientContext, mark: str) -> list[Json]:
        """The messages of a turn; none if it is forgotten, or another caller's."""
        turn = self._turns.get(mark)
        if turn is None or turn.owner != caller.credentials:
            return []
        self._forget(mark)
        share = self._shares.setdefault(turn.owner, _Share())
        self._keep(mark, attrs.evolve(turn, used_at=self._clock.seconds()), share)
        messages: list[Json] = jsontext.loads(turn.text)
        return messages

    def _keep(self, mark: str, turn: _Turn, share: _Share) -> None:
        self._turns[mark] = turn
        share.marks[mark] = None
        share.size += len(turn.text)
        self._size += len(turn.text)

    def _forget(self, mark: str) -> None:
        turn = self._turns.pop(mark, None)
        if turn is None:
            return
        share = self._shares[turn.owner]
        del share.marks[mark]
        share.size -= len(turn.text)
        self._size -= len(turn.text)
        if not share.marks:
            del self._shares[turn.owner]

    def _forget_old(self) -> None:
        oldest = self._clock.seconds() - self._max_age
        while self._turns:
            mark, turn = next(iter(self._turns.items()))
            if turn.used_at >= oldest:
                break
            self._forget(mark)
