"""What is kept of what chats have said, and how much."""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from llamaproxy.admin import redaction
from llamaproxy.admin.answers import Answers
from llamaproxy.admin.contents import (
    MAX_BYTES,
    MAX_CHAT_BYTES,
    MAX_PART_BYTES,
    ContentsKept,
    size_of,
)
from llamaproxy.events import CallEnded, Contents, RequestEnded
from llamaproxy.jsontext import Json, JsonList
from llamaproxy.records import CallRecord, ChatRecord, RequestRecord, RoundRecord
from tests.admin.inspected import Inspected
from tests.support import CHAT, FakeStack, outcome, saying


class Kept:
    """The contents of chats."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.requests: list[RequestRecord] = []
        self.answers = Answers(self.clock, lambda: self.requests)
        self.contents = ContentsKept(self.answers, self.clock)
        self.answers.on_drop = self.contents.drop

    def begin(self) -> ChatRecord:
        request = RequestRecord("-", "-", "POST", "/v1/chat/completions", 0.0)
        request.chat = ChatRecord(request)
        self.requests.append(request)
        return request.chat

    def ask(self, chat: ChatRecord, content: object, number: int = 1) -> None:
        self.contents(Contents(RoundRecord(chat, number, 0.0), "request", content))

    def shown(self, key: int) -> Json:
        answer = self.answers.get(key)
        assert answer is not None
        waited = Deferred.fromCoroutine(self.contents.of(answer))
        for _ in range(500):
            self.clock.advance(0)
        return outcome(waited)


def test_what_is_kept_is_what_was_told_until_somebody_looks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = Kept()
    chat = kept.begin()
    dumped: list[Any] = []
    monkeypatch.setattr(redaction.jsontext, "dumps", dumped.append)  # type: ignore[attr-defined]
    kept.ask(chat, {"messages": JsonList(b'{"content":"Hello"}'), "model": "m"})
    kept.contents(Contents(CallRecord(chat, 7, 1, 0.0), "arguments", "{}"))
    kept.contents(Contents(CallRecord(chat, 7, 1, 0.0), "result", "x"))
    assert dumped == []
    assert kept.shown(1) == {
        "rounds": {"1": {"request": {"messages": [{"content": "Hello"}], "model": "m"}}},
        "calls": {"7": {"arguments": "{}", "result": "x"}},
        "cut": False,
    }


def test_a_part_that_is_too_large_is_not_kept() -> None:
    kept = Kept()
    chat = kept.begin()
    kept.ask(chat, {"messages": JsonList(b'"%b"' % (b"- " * MAX_PART_BYTES))})
    assert kept.shown(1) == {"rounds": {}, "calls": {}, "cut": True}
    assert kept.contents.size == 0


def test_a_chat_with_pictures_is_kept_without_them() -> None:
    kept = Kept()
    chat = kept.begin()
    content = {"messages": JsonList(b'{"url":"data:image/png;base64,%b"}' % (b"iVBO" * 10**6))}
    kept.ask(chat, content)
    assert kept.contents.size < 10_000
    [message] = kept.shown(1)["rounds"]["1"]["request"]["messages"]
    assert message["url"].endswith("characters cut]")
    assert len(content["messages"].elements) > 4 * 10**6  # shared, and as it was


def test_a_part_that_is_told_again_takes_the_place_of_the_first() -> None:
    kept = Kept()
    chat = kept.begin()
    for text in ("x" * (MAX_PART_BYTES // 2), "y" * (MAX_PART_BYTES // 2), "z"):
        for _ in range(20):
            kept.ask(chat, text)
    assert kept.shown(1) == {"rounds": {"1": {"request": "z"}}, "calls": {}, "cut": False}
    assert kept.contents.size < 1000


def test_the_oldest_is_dropped_when_there_is_too_much() -> None:
    kept = Kept()
    content = {"messages": JsonList(b'"%b"' % (b"- " * (MAX_PART_BYTES // 2 - 1000)))}
    chats = [kept.begin() for _ in range(10)]
    for chat in chats:
        for number in range(1, 13):
            kept.ask(chat, content, number)
        assert kept.contents.size <= MAX_BYTES
    assert kept.shown(1) == {"rounds": {}, "calls": {}, "cut": True}
    rounds = kept.shown(10)["rounds"]
    assert len(rounds) == MAX_CHAT_BYTES // MAX_PART_BYTES and "12" in rounds


def test_what_is_kept_goes_with_its_answer() -> None:
    kept = Kept()
    chat = kept.begin()
    kept.ask(chat, {"model": "m"})
    assert chat.request is not None and kept.contents.size > 0
    chat.request.ended = 0.0
    kept.answers.ended([RequestEnded(chat.request)])
    for _ in range(500):
        kept.begin()
    kept.answers.hear()
    assert kept.contents.size == 0
    kept.ask(chat, {"model": "m"})  # of an answer that is not kept
    kept.contents(CallEnded(CallRecord(chat, 1, 1, 0.0)))
    assert kept.contents.size == 0


def test_the_size_of_what_is_large_is_found_without_looking_at_all_of_it() -> None:
    looked: list[int] = []

    class Many(list[Any]):
        def __iter__(self) -> Any:
            looked.append(1)
            return super().__iter__()

    assert size_of([Many([None]) for _ in range(100_000)]) > MAX_PART_BYTES
    assert size_of({"a": ["b", 1]}) == 4 * 64 + 2 + 64
    assert len(looked) <= 100_000


def test_without_the_option_nobody_hears_what_is_written() -> None:
    stack = FakeStack()
    stack.on(CHAT, saying("So."))
    for contents in (False, True):
        app = Inspected(stack, contents=contents)
        listeners = app.app.tell._listeners[Contents]
        kept = [each for each in listeners if isinstance(each, ContentsKept)]
        assert len(kept) == contents
        assert len(listeners) == 1 + contents  # the other is the test's
        app.chat()
        assert (json.loads(app.get("/answers/1").body)["contents"] is None) is not contents
