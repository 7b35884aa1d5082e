"""The memory of turns of several workers: their parent's, which each of them asks."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any, ClassVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.protocols import amp

from llamaproxy.chat.memory import TurnStore
from llamaproxy.jsontext import Json
from llamaproxy.workers.link import Link, Long, LongJson

#: Seconds that a chat waits for the parent.
_SECONDS = 1.0


class Recall(amp.Command):
    """The texts of an owner's turns: the bytes of each that is remembered, and all of them."""

    arguments: ClassVar[Any] = ((b"owner", amp.String()), (b"marks", LongJson()))
    response: ClassVar[Any] = ((b"lengths", LongJson()), (b"texts", Long()))


class Remember(amp.Command):
    """Keep the text of a turn."""

    arguments: ClassVar[Any] = (
        (b"owner", amp.String()),
        (b"mark", amp.Unicode()),
        (b"text", Long()),
    )


class Refresh(amp.Command):
    """These turns have been used; there is no answer."""

    arguments: ClassVar[Any] = Recall.arguments
    requiresAnswer = False


class TurnsOfWorkers(amp.CommandLocator):
    """Answers for the parent, out of what *store* keeps."""

    def __init__(self, store: TurnStore) -> None:
        self._store = store

    @Recall.responder
    def recall(self, owner: bytes, marks: list[str]) -> Deferred[Json]:
        return Deferred.fromCoroutine(self._recall(owner, marks))

    @Remember.responder
    def remember(self, owner: bytes, mark: str, text: bytes) -> Deferred[Json]:
        return _answering(self._store.remember(owner, mark, text))

    @Refresh.responder
    def refresh(self, owner: bytes, marks: list[str]) -> Deferred[Json]:
        return _answering(self._store.recall(owner, marks))

    async def _recall(self, owner: bytes, marks: list[str]) -> Json:
        turns = await self._store.recall(owner, marks)
        lengths = {mark: len(text) for mark, text in turns.items()}
        return {"lengths": lengths, "texts": b"".join(turns.values())}


def _answering(work: Coroutine[Any, Any, object]) -> Deferred[Json]:
    async def answer() -> Json:
        await work
        return {}

    return Deferred.fromCoroutine(answer())


class ParentTurns:
    """Asks the parent, for a worker. Implements FarTurns: what it cannot have is forgotten."""

    _log: ClassVar[Logger] = Logger()

    def __init__(self, link: Link, clock: IReactorTime) -> None:
        self._link = link
        self._clock = clock
        self._answered = True

    async def recall(self, owner: bytes, marks: Sequence[str]) -> dict[str, bytes]:
        answer = await self._ask(Recall, owner=owner, marks=[*marks])
        turns: dict[str, bytes] = {}
        at = 0
        for mark, length in answer.get("lengths", {}).items():
            turns[mark] = answer["texts"][at : at + length]
            at += length
        return turns

    async def remember(self, owner: bytes, mark: str, text: bytes) -> None:
        await self._ask(Remember, owner=owner, mark=mark, text=text)

    def refresh(self, owner: bytes, marks: Sequence[str]) -> None:
        tell: Any = self._link.callRemote
        tell(Refresh, owner=owner, marks=[*marks])

    async def _ask(self, command: type[amp.Command], **values: Any) -> Json:
        """The parent's answer, empty if it has none in time."""
        try:
            answer = await self._link.ask(self._clock, _SECONDS, command, **values)
        except CancelledError:
            raise
        except Exception as error:
            if self._answered:
                self._answered = False
                self._log.warn(
                    "the parent does not say what it remembers of turns: {reason}",
                    reason=type(error).__name__,
                )
            return {}
        self._answered = True
        return answer
