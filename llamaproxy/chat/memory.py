"""TurnStore: keeps mixed turns, which their clients are not shown; TurnMemory: in this process.

A turn is found by its owner and by the mark in the ids of its client calls, and by nothing else, as
clients may rewrite the rest (DESIGN: L19, L20; :mod:`llamaproxy.chat.mixed_turns` restores it).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any, Generic, Protocol, TypeVar

import attrs
from twisted.internet.interfaces import IReactorTime

from llamaproxy import jsontext
from llamaproxy.chat.mixed_turns import marks_of, restore_turns, turns_in
from llamaproxy.jsontext import Json
from llamaproxy.upstream.client_context import ClientContext

T = TypeVar("T")


#: Turns of one history that are asked for, the latest of them.
MAX_TURNS = 1000


class TurnStore(Protocol):
    """Keeps the texts of turns. What it cannot do is as if it had forgotten: it never fails.

    An *owner* is the digest of a client's credentials (:attr:`ClientContext.owner`), a text the
    messages after the client's request as a JSON list. The last assistant message in it has all
    calls; those of server tools have their results. A turn never changes.
    """

    async def recall(self, owner: bytes, marks: Sequence[str]) -> dict[str, bytes]:
        """The texts, by mark, of those turns of *owner* that are remembered.

        :param marks: no more than :data:`MAX_TURNS`, the oldest first, each once.
        """

    async def remember(self, owner: bytes, mark: str, text: bytes) -> None:
        """Keep the *text* of the turn whose client calls have that *mark*."""


async def remember_turn(
    store: TurnStore, client: ClientContext, mark: str, turn: list[Json]
) -> None:
    """Have *store* keep *turn*, the messages after the request of *client*."""
    await store.remember(client.owner, mark, jsontext.dumps(turn))


async def recall_turns(store: TurnStore, client: ClientContext, messages: list[Any]) -> list[Any]:
    """*messages* with the turns that *store* remembers restored, and without any marks.

    Where there are no marks, nobody is asked.
    """
    marks = marks_of(messages)
    if not any(marks):
        return messages
    turns: dict[str, bytes] = {}
    if begun := turns_in(messages, marks)[-MAX_TURNS:]:
        turns = await store.recall(client.owner, begun)
    return restore_turns(messages, marks, lambda mark: _messages(turns.get(mark)))


def _messages(text: bytes | None) -> list[Json]:
    messages: list[Json] = [] if text is None else jsontext.loads(text)
    return messages


@attrs.frozen(eq=False, repr=False)
class _Turn:
    """The messages between a client's request and the answer with its calls, as JSON.

    *owner*: the digest of the client's credentials; *used_at*: seconds on the clock.
    """

    owner: bytes
    text: bytes
    used_at: float


@attrs.define(eq=False, repr=False)
class _Share:
    """What one owner has in the memory: its marks, least recently used first, and its bytes."""

    marks: OrderedDict[str, None] = attrs.Factory(OrderedDict)
    size: int = 0


class Largest(Generic[T]):
    """Finds the largest of many things, whose sizes change, without a look at all of them."""

    def __init__(self, size: Callable[[T], int]) -> None:
        self._size = size
        #: Things by a size that they had, the largest first; one of each is not too small.
        self._heap: list[tuple[int, int, T]] = []
        self._numbers = count()
        self._room = 16

    def grown(self, thing: T) -> None:
        """To be called when *thing* has become larger."""
        self._push(thing)
        if len(self._heap) > self._room:
            self._heap = [(-self._size(thing), number, thing) for _, number, thing in self._heap]
            latest = {thing: (size, number, thing) for size, number, thing in self._heap if size}
            self._heap = list(latest.values())
            heapify(self._heap)
            self._room = 2 * len(self._heap) + 16

    def find(self) -> T:
        """The largest; there must be one that is larger than nothing."""
        while True:
            size, _, thing = self._heap[0]
            if -size == self._size(thing):
                return thing
            heappop(self._heap)
            self._push(thing)

    def _push(self, thing: T) -> None:
        size = self._size(thing)
        if size:
            heappush(self._heap, (-size, next(self._numbers), thing))


@attrs.define(eq=False, repr=False)
class TurnMemory:
    """Keeps turns in memory, bounded in entries, bytes of JSON, and seconds since their last use.

    Implements :class:`TurnStore`. An owner gets only its own turns. Where there is not enough room,
    the owner of the most entries or bytes loses those that it has not used for longest.
    """

    _clock: IReactorTime
    _max_entries: int
    _max_bytes: int
    _max_age: float
    _turns: OrderedDict[str, _Turn] = attrs.field(init=False, factory=OrderedDict)
    _shares: dict[bytes, _Share] = attrs.field(init=False, factory=dict)
    _size: int = attrs.field(init=False, default=0)
    _by_entries: Largest[_Share] = attrs.field(
        init=False, factory=lambda: Largest(lambda share: len(share.marks))
    )
    _by_bytes: Largest[_Share] = attrs.field(
        init=False, factory=lambda: Largest(lambda share: share.size)
    )

    def __len__(self) -> int:
        return len(self._turns)

    def kept(self) -> list[tuple[bytes, str, bytes, float]]:
        """Owner, mark and text of all turns, and seconds since the last use; the latest first."""
        self._forget_expired()
        now = self._clock.seconds()
        turns = reversed(self._turns.items())
        return [(turn.owner, mark, turn.text, now - turn.used_at) for mark, turn in turns]

    def figures(self) -> dict[str, float]:
        """What is kept, with the limits, for the status."""
        self._forget_expired()
        return {
            "turns": len(self._turns),
            "max_turns": self._max_entries,
            "bytes": self._size,
            "max_bytes": self._max_bytes,
            "max_age_seconds": self._max_age,
        }

    async def remember(self, owner: bytes, mark: str, text: bytes) -> None:
        self._forget_expired()
        self._forget(mark)
        if len(text) > self._max_bytes:
            return
        share = self._shares.setdefault(owner, _Share())
        self._keep(mark, _Turn(owner, text, self._clock.seconds()), share)
        while len(self._turns) > self._max_entries:
            self._forget(next(iter(self._by_entries.find().marks)))
        while self._size > self._max_bytes:
            self._forget(next(iter(self._by_bytes.find().marks)))

    async def recall(self, owner: bytes, marks: Sequence[str]) -> dict[str, bytes]:
        self._forget_expired()
        texts = ((mark, self._text(owner, mark)) for mark in marks)
        return {mark: text for mark, text in texts if text is not None}

    def _text(self, owner: bytes, mark: str) -> bytes | None:
        """The text of a turn, used now; None if it is forgotten, or another owner's."""
        turn = self._turns.get(mark)
        if turn is None or turn.owner != owner:
            return None
        self._forget(mark)
        share = self._shares.setdefault(turn.owner, _Share())
        self._keep(mark, attrs.evolve(turn, used_at=self._clock.seconds()), share)
        return turn.text

    def _keep(self, mark: str, turn: _Turn, share: _Share) -> None:
        self._turns[mark] = turn
        share.marks[mark] = None
        share.size += len(turn.text)
        self._size += len(turn.text)
        self._by_entries.grown(share)
        self._by_bytes.grown(share)

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

    def _forget_expired(self) -> None:
        oldest = self._clock.seconds() - self._max_age
        while self._turns:
            mark, turn = next(iter(self._turns.items()))
            if turn.used_at >= oldest:
                break
            self._forget(mark)
