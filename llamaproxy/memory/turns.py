"""RedisTurns: the turns that machines share, in Redis or Valkey. Implements FarTurns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from llamaproxy.admin import names
from llamaproxy.admin.metrics import Metrics
from llamaproxy.chat.memory import TurnMemory
from llamaproxy.deferreds import all_of
from llamaproxy.memory.connection import Connector
from llamaproxy.memory.keeper import KINDS, Connection, StoreKeeper
from llamaproxy.memory.quota import Quota
from llamaproxy.memory.sealing import MAX_SEALED, MAX_TEXT, PREFIX, Seal, SealedTurn, Undecipherable

#: Turns of one history that are looked for, the latest of them.
_MAX_TURNS = 256

#: Bytes of them that are read, and that they are then unpacked to, the latest first.
_MAX_READ = 2 * 1024 * 1024
_MAX_UNPACKED = 4 * MAX_TEXT


class RedisTurns:
    """Keeps turns in a store for *age* seconds after their last use, sealed.

    What the store does not do in time is as if it had forgotten. It needs STRLEN, MGET, SET and
    EXPIRE, of Redis 2.6.12 and later.
    """

    def __init__(self, keeper: StoreKeeper, seal: Seal, quota: Quota, age: float) -> None:
        self.keeper = keeper
        self._seal = seal
        self._quota = quota
        self._age = ceil(age)
        #: Turns that were looked for: those that were there, and those that were not.
        self.found = 0
        self.missing = 0

    def refill_from(self, local: TurnMemory) -> None:
        """Put what *local* has into the store whenever that is back: it may have lost it.

        Turns that were remembered meanwhile get there so.
        """
        self.keeper.here = lambda: Deferred.fromCoroutine(self._refill(local))

    async def _refill(self, local: TurnMemory) -> None:
        for owner, mark, text, idle in local.kept():
            turn = self._seal.turn(owner, mark)
            left = self._age - int(idle)
            if left > 0 and not await self._present(turn, text, left):
                return  # it is away again

    async def _present(self, turn: SealedTurn, text: bytes, seconds: int) -> bool:
        """Whether the store is there, and now has *turn*, for so many *seconds* if it had not."""

        async def put(store: Connection) -> bool:
            if not await store.ask("STRLEN", turn.name) and (value := turn.seal(text)):
                await store.ask("SET", turn.name, value, "EX", seconds)
            return True

        return bool(await self.keeper.ask(put))

    def figures(self) -> dict[str, Any]:
        """What there is to know of the store, for the status."""
        return {
            "url": self.keeper.url,
            "up": self.keeper.up,
            "found": self.found,
            "missing": self.missing,
            "errors": dict(self.keeper.errors),
        }

    def watch(self, metrics: Metrics) -> None:
        """Have *metrics* show whether the store is there, and what has become of asking it."""
        metrics.watch(names.MEMORY_STORE_UP, lambda: self.keeper.up)
        for kind in KINDS:
            metrics.watch_figure(names.MEMORY_STORE_ERRORS, lambda: self.keeper.errors, kind, kind)
        metrics.watch(names.MEMORY_STORE_LOOKUPS, lambda: self.found, "found")
        metrics.watch(names.MEMORY_STORE_LOOKUPS, lambda: self.missing, "missing")

    async def recall(self, owner: bytes, marks: Sequence[str]) -> dict[str, bytes]:
        if not self.keeper.up:
            return {}
        places = {self._seal.turn(owner, mark): mark for mark in reversed(marks[-_MAX_TURNS:])}
        values = await self.keeper.ask(lambda store: self._values(store, [*places]))
        if values is None:
            return {}
        texts = {places[turn]: text for turn, text in self._opened(values)}
        self.found += len(texts)
        self.missing += len(marks) - len(texts)
        return texts

    async def remember(self, owner: bytes, mark: str, text: bytes) -> None:
        if not self.keeper.up:
            return
        turn = self._seal.turn(owner, mark)
        value = turn.seal(text)
        if value is not None and self._quota.take(owner, len(value)):
            await self.keeper.ask(lambda store: store.ask("SET", turn.name, value, "EX", self._age))

    def refresh(self, owner: bytes, marks: Sequence[str]) -> None:
        if self.keeper.up:
            for mark in marks[-_MAX_TURNS:]:
                self.keeper.tell("EXPIRE", self._seal.turn(owner, mark).name, self._age)

    async def _values(
        self, store: Connection, turns: Sequence[SealedTurn]
    ) -> dict[SealedTurn, bytes]:
        """What *store* has of *turns*, as many from the first on as may be read at once."""
        sizes = await all_of([store.ask("STRLEN", turn.name) for turn in turns])
        wanted: list[SealedTurn] = []
        left = _MAX_READ
        for turn, size in zip(turns, sizes, strict=True):
            if isinstance(size, int) and 0 < size <= min(MAX_SEALED, left):
                wanted.append(turn)
                left -= size
        if not wanted:
            return {}
        values = await store.ask("MGET", *(turn.name for turn in wanted))
        if not isinstance(values, list) or len(values) != len(wanted):
            return {}
        for turn in wanted:
            store.tell("EXPIRE", turn.name, self._age)
        return {t: v for t, v in zip(wanted, values, strict=True) if isinstance(v, bytes)}

    def _opened(self, values: Mapping[SealedTurn, bytes]) -> list[tuple[SealedTurn, bytes]]:
        """The texts of the turns, as many as may be unpacked at once."""
        opened: list[tuple[SealedTurn, bytes]] = []
        left = _MAX_UNPACKED
        for turn, value in values.items():
            if left < MAX_TEXT:  # the next might be too much
                break
            try:
                text = turn.open(value)
            except Undecipherable:
                self.keeper.errors["undecipherable"] += 1
                continue
            left -= len(text)
            opened.append((turn, text))
        return opened


async def probe(store: Connection) -> None:
    """Ask *store* all that will be asked of it.

    A replica, a full store, and a user without a right to one of these would refuse it.
    """
    name = PREFIX + b"trial"
    commands: tuple[tuple[bytes | str | int, ...], ...] = (
        ("SET", name, b"", "EX", 60),
        ("STRLEN", name),
        ("MGET", name),
        ("EXPIRE", name, 60),
    )
    await all_of([store.ask(*command) for command in commands])


def redis_turns(options: Mapping[str, Any], reactor: IReactorTime) -> RedisTurns:
    """The turns in the store that ``--memory`` names; its keeper is a service."""
    address = options["memory"]
    connector = Connector(reactor, address, options["memory-ca"])
    keeper = StoreKeeper(reactor, address.shown, connector.connect, probe)
    seal = Seal(options["memory-secret"].encode("utf-8", "surrogateescape"))
    age: float = options["memory-age"]
    quota = Quota(reactor, options["memory-bytes"], age)
    return RedisTurns(keeper, seal, quota, age)
