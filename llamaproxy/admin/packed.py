"""Packed: the record of a request that has ended, as one piece of memory.

A record is some thirty objects. With hundreds of them kept, the memory that each new request is
given would be what an old one has left, all over the place, and seldom in the processor's cache.
"""

from __future__ import annotations

import marshal
from collections.abc import Callable, Collection, Mapping
from operator import attrgetter
from typing import Any

import attrs

from llamaproxy.records import CallRecord, ChatRecord, RequestRecord, RoundRecord

#: Of marshal's format: the last one that does not look for what is in a value twice.
_VERSION = 2


def _plain(kind: type[attrs.AttrsInstance], *without: str) -> tuple[str, ...]:
    """The names of fields that hold numbers and texts."""
    names = [field.name for field in attrs.fields(kind)]
    return tuple(name for name in names if name[0] != "_" and name not in without)


_CHAT = _plain(ChatRecord, "now", "offered", "withheld", "rounds", "calls")
#: In the order in which the classes take them: of a request the chat is the last one.
_of_request: Callable[[RequestRecord], tuple[Any, ...]] = attrgetter(*_plain(RequestRecord, "chat"))
_of_chat: Callable[[ChatRecord], tuple[Any, ...]] = attrgetter(*_CHAT)
_of_round: Callable[[RoundRecord], tuple[Any, ...]] = attrgetter(*_plain(RoundRecord))
_of_call: Callable[[CallRecord], tuple[Any, ...]] = attrgetter(*_plain(CallRecord))


class Packed:
    """A record that does not change any more; *record* makes it anew."""

    __slots__ = ("_data", "_offered", "_withheld")

    def __init__(self, record: RequestRecord) -> None:
        """:raises ValueError: if it holds what is neither a number nor a text."""
        self._offered: Collection[str] = ()  # many chats have the same
        self._withheld: Mapping[str, str] | None = None
        chat = None
        if record.chat is not None:
            self._offered, self._withheld = record.chat.offered, record.chat.withheld
            rounds = [_of_round(each) for each in record.chat.rounds]
            calls = [_of_call(each) for each in record.chat.calls]
            chat = (_of_chat(record.chat), rounds, calls)
        self._data = marshal.dumps((_of_request(record), chat), _VERSION)

    @property
    def record(self) -> RequestRecord:
        request, chat = marshal.loads(self._data)
        record = RequestRecord(*request)
        if chat is not None:
            values, rounds, calls = chat
            named = dict(zip(_CHAT, values, strict=True))
            made = record.chat = ChatRecord(record, offered=self._offered, **named)
            if self._withheld is not None:
                made.withheld = self._withheld
            made.rounds += [RoundRecord(made, *each) for each in rounds]
            made.calls += [CallRecord(made, *each) for each in calls]
        return record
