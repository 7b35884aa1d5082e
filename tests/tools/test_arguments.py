"""A model's arguments."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaproxy.errors import ToolFailed
from llamaproxy.tools.arguments import parse_arguments

_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
objects = st.dictionaries(st.text(), _json, max_size=4)


@given(objects, st.booleans(), st.sampled_from([None, 2]))
def test_valid_json_is_never_changed(
    arguments: dict[str, Any], ascii_only: bool, indent: int | None
) -> None:
    text = json.dumps(arguments, ensure_ascii=ascii_only, indent=indent)
    assert parse_arguments(text) == arguments
    assert parse_arguments(f" \n{text}\r\n ") == arguments


@given(objects)
def test_an_object_that_was_encoded_twice_is_itself(arguments: dict[str, Any]) -> None:
    assert parse_arguments(json.dumps(json.dumps(arguments))) == arguments


def test_large_integers_and_lone_surrogates_survive() -> None:
    arguments = {"id": 2**70, "text": "\ud83d"}
    assert parse_arguments(json.dumps(arguments)) == arguments
    assert parse_arguments(json.dumps(arguments, ensure_ascii=False)) == arguments


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "9" * 5000])
@pytest.mark.parametrize("text", ['{"days": %s}', '{"a": [{"b": %s}], "c": 1}', '{"days": %s,}'])
def test_a_number_that_json_does_not_have_is_refused(text: str, number: str) -> None:
    """DESIGN: L12. Sent on, it would be ``null``."""
    with pytest.raises(ToolFailed, match="valid JSON"):
        parse_arguments(text % number)
    with pytest.raises(ToolFailed, match="valid JSON"):
        parse_arguments(json.dumps(text % number))


def test_words_for_such_numbers_are_words() -> None:
    arguments = {"NaN": "NaN", "text": "Infinity, 1e400"}
    assert parse_arguments(json.dumps(arguments)) == arguments


@pytest.mark.parametrize("text", ["", "  \n", "null", "{}", '""', '"null"', '"{}"', " {} "])
def test_nothing_means_no_arguments(text: str) -> None:
    """DESIGN: L12."""
    assert parse_arguments(text) == {}


@pytest.mark.parametrize(
    "text",
    [
        '{"city": "Oslo",}',
        "{'city': 'Oslo'}",
        '{city: "Oslo"}',
        '{"city": "Oslo"',
        '{"city":\n"Oslo"}}',
    ],
)
def test_a_repairable_flaw_is_repaired(text: str) -> None:
    assert parse_arguments(text) == {"city": "Oslo"}


@pytest.mark.parametrize("text", ["{", "{,}", "{ "])
def test_an_object_that_says_nothing_is_repaired_too(text: str) -> None:
    assert parse_arguments(text) == {}


@pytest.mark.parametrize("text", ["[1]", "7", "true", '"Oslo"', '"[]"', "Oslo, please", "{Oslo}"])
def test_what_is_no_object_is_refused_in_words_for_the_model(text: str) -> None:
    with pytest.raises(ToolFailed, match=r"^Error: the arguments"):
        parse_arguments(text)


@pytest.mark.parametrize(
    "text",
    ["{" * 100_000, "{11" * 3000, '{"a":' * 5000, "{" * 32 + "x" * 16_000, "{" + "x" * 300_000],
    ids=["braces", "numbers", "nested", "words", "a word"],
)
def test_hopeless_text_is_refused_soon(text: str) -> None:
    # The tolerant parser takes seconds, up to minutes, for each of these.
    with pytest.raises(ToolFailed):
        parse_arguments(text)


def test_a_long_text_with_a_small_flaw_is_repaired() -> None:
    assert parse_arguments('{"text": "' + "word," * 2000 + '"') == {"text": "word," * 2000}


@pytest.mark.parametrize(
    "text",
    [
        '{"path": "/", "recursive": true, "only_match',
        '{"city": "Oslo',
        '{"city": "Oslo\\"',
        '{"dry_run": fal',
        '{"dry_run": fals}',
        '{"a": "x", "b": und',
        '{"a": 1} {"a": 2}',
        '{"a": 1}{}',
        '{}{"a": 1}',
        '{"a": 1} [2]',
        '{"text": "say "yes" now"}',
        '{"text": "it", said he, "is"}',
        "{'text': 'it's'}",
        '{"text": delete}',
        "{text}",
        '{"a": 1 b}',
        '{"a": 007}',
        '{"a": 1_000}',
        '{"a": 1.}',
        '{"a": 1e999,}',
        '{"a": .5}',
        '{"a": 0x10}',
        '{"a": tRuE}',
        '{"a": 1, "a": 2}',
        '{"a": {"b": 1, "b": 2}}',
        '{"a": 1, "a": 2',
        '```json\n{"city": "Oslo"}\n```',
        '{"city": "Oslo"} // there',
        'Sure: {"city": "Oslo"}',
        '{"city": "Oslo"} done',
        '{"a": "b": "c"}',
        '{"a": }',
        '{"a"',
        '{"a":',
    ],
)
def test_what_a_repair_would_lose_or_invent_is_refused(text: str) -> None:
    """DESIGN: L12."""
    with pytest.raises(ToolFailed, match=r"^Error: the arguments are not valid JSON"):
        parse_arguments(text)


def test_unescaped_text_of_some_length_is_refused() -> None:
    code = 'print("a")\nif x["b"]: y = {"c": 1}\n' * 400
    with pytest.raises(ToolFailed):
        parse_arguments(f'{{"file": "x", "text": "{code}"}}')


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": True, "b": False, "c": None,}', {"a": True, "b": False, "c": None}),
        ('{"a": [1, 2.5, {"b": -3e2', {"a": [1, 2.5, {"b": -300.0}]}),
        ('{"a": "x" "b": "y"}', {"a": "x", "b": "y"}),
        ('{"a": "one\ntwo\tthree"}', {"a": "one\ntwo\tthree"}),
        ("{'a': \"it's\", 'b': '\\u00e9'}", {"a": "it's", "b": "é"}),
        ('{ref: "x", b2: 1}', {"ref": "x", "b2": 1}),
        ('{"id": 123456789012345678901,}', {"id": 123456789012345678901}),
        ('{"a": "b: c, {d}",}', {"a": "b: c, {d}"}),
        ('{"a": -0,}', {"a": 0}),
        ('{"a": {"b": 5e-3', {"a": {"b": 0.005}}),
    ],
)
def test_a_repair_keeps_what_was_written(text: str, value: dict[str, Any]) -> None:
    """DESIGN: L12."""
    assert parse_arguments(text) == value


@given(objects, st.data())
def test_a_cut_object_is_refused_or_has_lost_nothing_but_brackets(
    arguments: dict[str, Any], data: st.DataObject
) -> None:
    text = json.dumps(arguments)
    cut = text[: data.draw(st.integers(1, len(text)))]
    try:
        value = parse_arguments(cut)
    except ToolFailed:
        return
    assert json.loads(_closed(cut.rstrip(", "))) == value


def _closed(text: str) -> str:
    """JSON that was cut between two tokens, with its brackets closed."""
    closing = ""
    for bracket in re.sub(r'"(?:[^"\\]|\\.)*"|[^]{}[]', "", text):
        closing = {"{": "}", "[": "]"}[bracket] + closing if bracket in "{[" else closing[1:]
    return text + closing


@given(objects)
def test_a_comma_too_many_changes_nothing(arguments: dict[str, Any]) -> None:
    text = json.dumps(arguments)
    try:
        assert parse_arguments(text[:-1] + ",}") == arguments
    except ToolFailed:
        pass  # what the tolerant parser itself would change


@given(st.text(alphabet='{}[]":,\\ae1 \n', max_size=30))
def test_whatever_a_model_writes_is_an_object_or_words_for_it(text: str) -> None:
    try:
        assert isinstance(parse_arguments(text), dict)
    except ToolFailed as error:
        assert error.message.startswith("Error: ")


def test_an_ordinary_call_of_some_size_is_repaired() -> None:
    items = ", ".join(f'{{"name": "{"x" * 80}", "i": {n}}}' for n in range(20))
    assert len(parse_arguments(f'{{"items": [{items},]}}')["items"]) == 20
    code = "if (a) { b[0] }" * 2000
    assert parse_arguments(f'{{"code": "{code}"')["code"] == code


def test_what_is_too_long_to_be_repaired_is_not_taken_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def taken_apart(text: str) -> None:
        raise AssertionError(len(text))

    monkeypatch.setattr("llamaproxy.tools.arguments._tokens", taken_apart)
    with pytest.raises(ToolFailed):
        parse_arguments('{"a": ' * 20_000)
