"""The arguments of one call, however often and in whatever spelling they are sent."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
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


@given(_values, st.integers(1, 20), st.integers(1, 20))
def test_arguments_encoded_twice_are_sent_once_too(
    value: dict[str, Any], first: int, second: int
) -> None:
    complete = json.dumps(compact(value))
    again = json.dumps(compact(value), ensure_ascii=False)
    parts = [*in_pieces(complete, first), *in_pieces(again, second), complete]
    assert read(parts) == (complete, complete)


@given(_values)
def test_arguments_sent_anew_from_the_beginning_are_sent_once(value: dict[str, Any]) -> None:
    complete = compact(value)
    parts = [complete[:end] for end in range(1, len(complete) + 1)]
    assert read([*parts, complete]) == (complete, complete)


#: Objects that have within them what they begin with, and keys that look like what stands beside.
_nested: st.SearchStrategy[Any] = st.recursive(
    st.text(alphabet='k"\\{}[]:, ', max_size=3) | st.integers(0, 9) | st.just({}),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["k", "not"]), inner, min_size=1, max_size=2)
    ),
    max_leaves=6,
)
_objects = st.dictionaries(st.sampled_from(["k", "not"]), _nested, min_size=1, max_size=2)
_odd_objects = st.dictionaries(st.text(alphabet='k"{}[]:, ', max_size=2), _nested, max_size=3)
_spelt = st.sampled_from([None, 1, "compact"])


def spelt(value: object, how: Any) -> str:
    return compact(value) if how == "compact" else json.dumps(value, indent=how)


@st.composite
def _cut(draw: st.DrawFn, text: str, cumulative: bool) -> list[str]:
    """*text* in pieces that like to begin as the text does, or all of it up to some places."""
    likely = [at for at in range(1, len(text)) if text.startswith(text[:at], at)]
    likely += [at + 1 for at, char in enumerate(text[:-1]) if char in ':[,"']
    places = st.integers(1, len(text)) | (st.sampled_from(likely) if likely else st.nothing())
    at = sorted(draw(st.sets(places, max_size=5)) | {len(text)})
    if cumulative:
        return [text[:end] for end in at for _ in range(draw(st.sampled_from([1, 1, 2])))]
    return [text[a:b] for a, b in itertools.pairwise([0, *at])]


@settings(max_examples=500)
@given(st.data(), _objects | _odd_objects, _spelt)
def test_the_pieces_of_an_object_are_the_object_whatever_they_begin_with(
    data: st.DataObject, value: dict[str, Any], how: Any
) -> None:
    text = spelt(value, how)
    assert read(data.draw(_cut(text, cumulative=False))) == (text, text)


@settings(max_examples=500)
@given(st.data(), _objects, _spelt, st.booleans())
def test_an_object_that_is_sent_anew_up_to_any_place_is_sent_once(
    data: st.DataObject, value: dict[str, Any], how: Any, again: bool
) -> None:
    text = spelt(value, how)
    parts = data.draw(_cut(text, cumulative=True))
    assert read([*parts, compact(value)] if again else parts) == (text, text)


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (['{"not":', '{"not":{"tag":"spam"}}}'], '{"not":{"not":{"tag":"spam"}}}'),
        (['{"not":', '{"not":{"tag":', '"spam"}}}'], '{"not":{"not":{"tag":"spam"}}}'),
        (['{"not":', '{"not":{"tag":1}}', "}"], '{"not":{"not":{"tag":1}}}'),
        (['{"not":', '{"not":', '{"not":', "1}}}"], '{"not":{"not":{"not":1}}}'),
        (['{"filter":', '{"filter":"a","limit":5}}'], '{"filter":{"filter":"a","limit":5}}'),
        (['{"not":', '{"not":{"tag":1,}}}'], '{"not":{"not":{"tag":1,}}}'),
        (['{"a":[', '{"a":[1]},', "2]}"], '{"a":[{"a":[1]},2]}'),
        (['{"', '{":1}'], '{"{":1}'),
        (['{"', '{"', ":1}"], '{"{":1}'),
        (['{"not":', '{"not":{"tag":"spam"}}'], '{"not":{"tag":"spam"}}'),
        (['{"not":', '{"not":{', '{"not":{"tag":"spam"}}'], '{"not":{"tag":"spam"}}'),
        (['{"not":', '{"not":1}', "\n"], '{"not":1}'),
        (['{"not":', '{"not":1}', '{ "not": 1 }'], '{"not":1}'),
        (['{"k":1,', '{"k":1,"l":', '{"k":1,"l":2}'], '{"k":1,"l":2}'),
        (['{"', '{"k', '{"k":', '{"k":1', '{"k":12', '{"k":12}'], '{"k":12}'),
    ],
)
def test_a_piece_that_begins_as_the_text_does_goes_on_with_it_where_it_can(
    parts: list[str], text: str
) -> None:
    assert read(parts) == (text, text)


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
