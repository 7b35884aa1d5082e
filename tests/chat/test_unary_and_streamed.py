"""One script of a model gives one answer, unary or streamed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.chat.script import OWN, Chat, live
from tests.chat.streams import replying
from tests.support import call, chunk

Json = dict[str, Any]


_text = st.text(alphabet="ab \n", max_size=5) | st.sampled_from(
    ["", "\n", "\n\n", "Let me see.", "a\n", "  ", "a" + " " * 70, None]
)


def _round(content: str) -> Json:
    return {"content": content, "tool_calls": [call("clock", {"after": content})]}


@st.composite
def _scripts(draw: st.DrawFn) -> list[Json]:
    rounds = []
    for place in range(draw(st.integers(0, 3))):
        names = draw(st.lists(st.sampled_from(["clock", "nosuch"]), min_size=1, max_size=2))
        entries = [call(n, {"round": place}, f"c{place}{i}") for i, n in enumerate(names)]
        message: Json = {"content": draw(_text), "tool_calls": entries}
        if draw(st.booleans()):
            message["reasoning_content"] = draw(_text)
        rounds.append(message)
    last: Json = {"content": draw(_text)}
    if draw(st.booleans()):
        names = draw(st.lists(st.sampled_from(["own", "clock"]), min_size=1, max_size=2))
        last["tool_calls"] = [call(n, {"last": 1}, f"d{i}") for i, n in enumerate(names)]
        last["tool_calls"].append(call("own", {}, "d9"))
    return [*rounds, last]


def outcome(script: list[Json], reason: str | None, max_rounds: int, stream: bool) -> Any:
    """What comes of a model that sends the messages of *script*."""
    rounds = [replying(message, reason) for message in script]
    chat = Chat(*rounds, stream=stream, tools=[OWN], proxy={"max_rounds": max_rounds})
    message = {key: value for key, value in chat.own_message.items() if value != ""}
    requests = [
        [{k: v for k, v in m.items() if v not in (None, "")} for m in body["messages"]]
        for body in chat.requests
    ]
    return message, chat.finish_reason, requests


def check_the_same(script: list[Json], reason: str, max_rounds: int) -> None:
    unary, streaming = (outcome(script, reason, max_rounds, stream) for stream in (False, True))
    assert unary == streaming


_reasons = st.sampled_from(["stop", "tool_calls", "length", "content_filter", "STOP"])


@settings(max_examples=40)
@given(_scripts(), _reasons, st.integers(1, 3))
def test_the_streamed_answer_is_the_whole_answer(
    script: list[Json], reason: str, max_rounds: int
) -> None:
    check_the_same(script, reason, max_rounds)


@pytest.mark.parametrize(
    ("script", "reason", "max_rounds"),
    [
        ([_round("a"), _round("\n"), {"content": "b"}], "stop", 3),
        ([_round("a" + " " * 70), {"content": "b"}], "stop", 3),
        ([_round("a\n"), _round(""), {"content": "\n"}], "stop", 2),
        ([_round("a"), {"content": "  "}], "stop", 1),
        ([_round("a"), {"content": None}], "stop", 1),
        ([_round("a"), {"content": None, "tool_calls": [call("own")]}], "length", 3),
        ([{"content": None, "tool_calls": [call("own", '{"a')]}], "length", 3),
        ([{"content": None, "tool_calls": [call("own", '{"a')]}], "stop", 3),
        ([{"content": "a", "tool_calls": [call("own", "")]}], "content_filter", 3),
    ],
)
def test_the_streamed_answer_is_the_whole_answer_where_it_once_was_not(
    script: list[Json], reason: str, max_rounds: int
) -> None:
    check_the_same(script, reason, max_rounds)


def test_a_stream_may_be_answered_slowly_and_is_the_same() -> None:
    chat = live()
    for piece in ("It ", "is ", "noon."):
        chat.sends(chunk({"content": piece}))
        assert chat.exchange.text().endswith(piece), "a delta is relayed the moment it arrives"
    chat.sends(chunk({}, "stop"))
    chat.ends()
    assert chat.text == "It is noon."
    assert chat.nothing_left
