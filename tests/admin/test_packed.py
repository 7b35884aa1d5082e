"""A record that has ended, as one piece of memory, and made anew."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from llamaproxy.admin.packed import Packed
from llamaproxy.records import CallRecord, ChatRecord, RequestRecord, RoundRecord


def values(record: Any) -> dict[str, object]:
    """Its numbers, texts and shared collections, by name."""
    names = (field.name for field in attrs.fields(type(record)))
    parts = ("now", "chat", "rounds", "calls")
    return {name: getattr(record, name) for name in names if name[0] != "_" and name not in parts}


def filled(record: Any) -> None:
    """Give each field another value than any other has, of its own type."""
    for number, name in enumerate(values(record), start=1):
        if name not in ("offered", "withheld"):
            value = getattr(record, name)
            number_like = value is None or isinstance(value, float | int)
            setattr(record, name, number + 0.5 if number_like else f"{name}-\ud800-\u00fc")


def test_every_field_comes_back() -> None:
    request = RequestRecord("id", "-", "POST", "/", 0.0)
    chat = request.chat = ChatRecord(request, offered=("a", "b"), withheld={"c": "why"})
    rounds = chat.rounds = [RoundRecord(chat, number, 0.0) for number in (1, 2)]
    calls = chat.calls = [CallRecord(chat, 1, 1, 0.0)]
    for record in (request, chat, *rounds, *calls):
        filled(record)
    again = Packed(request).record
    assert again is not request and again.chat is not None
    assert again.chat.request is again and again.chat.rounds[1].chat is again.chat
    made = (again, again.chat, *again.chat.rounds, *again.chat.calls)
    assert [values(each) for each in made] == [
        values(each) for each in (request, chat, *rounds, *calls)
    ]
    assert again.chat.offered is chat.offered and again.chat.withheld is chat.withheld


def test_a_request_that_is_no_chat() -> None:
    request = RequestRecord("id", "-", "GET", "/v1/models", 1.0, kind="upstream_broke")
    again = Packed(request).record
    assert again.chat is None and values(again) == values(request)


def test_what_is_neither_number_nor_text_is_refused() -> None:
    request = RequestRecord("id", "-", "GET", "/", 1.0)
    request.error = object()  # type: ignore[assignment]
    with pytest.raises(ValueError):
        Packed(request)
