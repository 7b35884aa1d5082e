"""ContentsKept: what chats have said, for an operator who has asked to see it; in memory alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, cast

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from llamaproxy.admin.answers import Answer, Answers
from llamaproxy.admin.redaction import redacted, without_pictures
from llamaproxy.events import Contents, Event
from llamaproxy.jsontext import Json, JsonList
from llamaproxy.records import RoundRecord

#: Bytes that are kept of all chats, of one chat, and of one message, call or result.
MAX_BYTES, MAX_CHAT_BYTES, MAX_PART_BYTES = 64 * 1024 * 1024, 8 * 1024 * 1024, 1024 * 1024

#: Bytes from which pictures are taken out at once.
_LARGE = 64 * 1024

#: Bytes that a value takes besides its text, and values of one part that are looked at.
_VALUE_BYTES, _MAX_VALUES = 64, 20_000


@attrs.define(eq=False, repr=False)
class _Chat:
    """What is kept of one chat: parts by their kind, number and name, and the size of each."""

    parts: dict[tuple[str, int, str], tuple[object, int]] = attrs.Factory(dict)
    size: int = 0
    #: Whether there was more than is kept.
    cut: bool = False


@attrs.define(eq=False, repr=False)
class ContentsKept:
    """A listener that keeps what is written in the answers that are kept.

    The oldest goes when there is too much. It is redacted, and made into text, when somebody looks.
    """

    hears: ClassVar = (Contents,)

    _answers: Answers
    _clock: IReactorTime
    #: By the keys of their answers.
    _chats: dict[int, _Chat] = attrs.field(init=False, factory=dict)
    size: int = attrs.field(init=False, default=0)

    def __call__(self, event: Event) -> None:
        if not isinstance(event, Contents):
            return
        answer = self._answers.answer_to(event.part.chat)
        if answer is None:
            return
        chat = self._chats.setdefault(answer.key, _Chat())
        content = _without_pictures(event.content)
        size = size_of(content)
        kind = "rounds" if isinstance(event.part, RoundRecord) else "calls"
        if size > MAX_PART_BYTES:
            chat.cut = True
            return
        part = kind, event.part.number, event.name
        size_before = chat.parts.pop(part, (None, 0))[1]
        chat.parts[part] = content, size
        chat.size += size - size_before
        self.size += size - size_before
        while chat.size > MAX_CHAT_BYTES:
            self._drop_first(chat)
        while self.size > MAX_BYTES:
            self._drop_first(self._oldest())

    def drop(self, answer: Answer) -> None:
        """*answer* is not kept any longer."""
        chat = self._chats.pop(answer.key, None)
        if chat is not None:
            self.size -= chat.size

    async def of(self, answer: Answer) -> Json:
        """All that is kept of *answer*, redacted; other work goes on meanwhile."""
        chat = self._chats.get(answer.key, _NOTHING)
        shown: dict[str, dict[str, Json]] = {"rounds": {}, "calls": {}}
        for (kind, number, name), (content, _) in list(chat.parts.items()):
            shown[kind].setdefault(str(number), {})[name] = redacted(content)
            await deferLater(cast(Any, self._clock), 0)
        return {**shown, "cut": chat.cut}

    def _oldest(self) -> _Chat:
        """The oldest chat of which anything is kept."""
        return next(chat for chat in self._chats.values() if chat.parts)

    def _drop_first(self, chat: _Chat) -> None:
        _, size = chat.parts.pop(next(iter(chat.parts)))
        chat.size -= size
        self.size -= size
        chat.cut = True


_NOTHING = _Chat()


def _without_pictures(content: object) -> object:
    """*content*; the pictures are cut in messages that are large for them."""
    if not isinstance(content, dict):
        return content
    large = [
        name
        for name, value in content.items()
        if isinstance(value, JsonList) and len(value.elements) > _LARGE
    ]
    if not large:
        return content
    return {**content, **{n: JsonList(without_pictures(content[n].elements)) for n in large}}


def size_of(content: object) -> int:
    """About the bytes that *content* takes: more than :data:`MAX_PART_BYTES` if it is too large."""
    size = 0
    for count, value in enumerate(_values(content)):
        if isinstance(value, str):
            size += len(value)
        elif isinstance(value, JsonList):
            size += len(value.elements)
        size += _VALUE_BYTES
        if size > MAX_PART_BYTES or count > _MAX_VALUES:
            return MAX_PART_BYTES + 1
    return size


def _values(content: object) -> Iterator[object]:
    """*content*, and all that is in it."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        yield value
        if isinstance(value, dict):
            waiting += value.keys()
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
