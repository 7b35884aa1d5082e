"""The arguments of one call, however often and in whatever spelling they are sent."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaproxy.chat import arguments_buffer
from llamaproxy.chat.arguments_buffer import ArgumentsBuffer

_values = st.dictionaries(
    st.sampled_from(["k", "naïve", '"', "}"]),
    st.text(max_size=5) | st.integers(0, 9) | st.just({"a": [1, {}]}),
    max_size=3,
)


def compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def in_pieces(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


def read(parts: list[str]) -> tuple[str, str]:
    """The text that *parts* come to, and what a client is told of it."""
    text = ArgumentsBuffer()
    added = "".join(text.append_json(part) for part in parts)
    whole = str(text)
    return whole, added + text.append(text.release())


@given(_values, st.integers(1, 20), st.integers(1, 20), st.booleans(), st.booleans())
def test_arguments_sent_once_more_are_sent_once(
    value: dict[str, Any], first: int, second: int, shorter: bool, begun: bool
) -> None:
    complete = json.dumps(value, ensure_ascii=False, indent=None if shorter else 1)
    again = compact(value) if shorter else json.dumps(value, indent=2)
    begin = ["{}"] if begun else []
    parts = [*begin, *in_pieces(complete, first), *in_pieces(again, second), again]
    assert read(parts) == (complete, complete) or (not value and read(parts) == ("{}", "{}"))


@given(_values)
def test_arguments_sent_anew_from_the_beginning_are_sent_once(value: dict[str, Any]) -> None:
    complete = compact(value)
    parts = [complete[:end] for end in range(1, len(complete) + 1)]
    assert read([*parts, complete]) == (complete, complete)


@pytest.mark.parametrize(
    "parts",
    [
        ['{"k":1}', '{"k":2}'],
        ['{"k":1}', '{"k":true}'],
        ['{"k":1}', '{"k":'],
        ['{"k":1}', "}"],
        ["{}", "x"],
        ['{"k":1}{"k":1}', '{"k":2}'],
    ],
)
def test_nothing_else_is_lost(parts: list[str]) -> None:
    assert read(parts) == ("".join(parts), "".join(parts))


def test_an_empty_object_is_held_until_it_is_known_to_be_all() -> None:
    text = ArgumentsBuffer()
    assert text.append_json("{}") == ""
    assert text.append_json('{"k"') == '{"k"'
    assert str(text) == '{"k"'


def test_the_object_is_read_once_however_often_it_is_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked_at: list[int] = []
    plain = arguments_buffer._canonical_json

    def counted(part: str) -> bytes | None:
        looked_at.append(len(part))
        return plain(part)

    monkeypatch.setattr(arguments_buffer, "_canonical_json", counted)
    text = ArgumentsBuffer()
    text.append_json(json.dumps({"k": "x" * 10_000, "n": {}}))
    for number in range(500):
        text.append_json(compact({"n": number % 2}))
    assert sum(looked_at) < 20_000
