"""JSON as it travels."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaproxy.jsontext import JsonList, canonical, dumps, loads_anyhow
from llamaproxy.jsontext import loads as loads_fast
from llamaproxy.jsontext import loads_exactly as loads

_surrogates = st.text(st.characters(categories=["Cs", "L", "N"]))
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=2**63, max_value=2**80)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | _surrogates,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(values)
def test_what_is_written_is_read_again(value: Any) -> None:
    assert loads(dumps(value)) == value


@given(values)
def test_what_others_write_is_read(value: Any) -> None:
    assert loads(json.dumps(value)) == value
    assert loads(json.dumps(value).encode()) == value
    assert loads(json.dumps(value, ensure_ascii=False)) == value


def test_text_may_hold_a_surrogate() -> None:
    assert loads('"\ud800"') == loads(b'"\\ud800"') == "\ud800"


@given(values)
def test_what_is_written_is_utf_8_and_one_line(value: Any) -> None:
    assert not {"\n", "\r"} & set(dumps(value).decode())


@given(st.dictionaries(st.text(), values))
def test_the_canonical_text_does_not_depend_on_the_order_of_keys(value: dict[str, Any]) -> None:
    assert canonical(value) == canonical(dict(reversed(value.items())))
    assert loads(canonical(value)) == value


@pytest.mark.parametrize("digits", [18, 19, 20, 40])
@pytest.mark.parametrize("sign", [1, -1])
def test_integers_stay_integers_however_large(digits: int, sign: int) -> None:
    number = sign * int("9" * digits)
    read = loads(b'{"seed": %d}' % number)
    assert read == {"seed": number}
    assert type(read["seed"]) is int
    assert dumps(read) == b'{"seed":%d}' % number


def test_nan_is_read_as_models_write_it() -> None:
    assert math.isnan(loads_fast("[NaN]")[0])
    assert math.isnan(loads("[NaN]")[0])


@pytest.mark.parametrize("text", ['{"a":[1,"\u00fc",null,1.5]}', '["\ud800"]', '"\\ud800"'])
def test_all_readers_read_the_same(text: str) -> None:
    assert loads_fast(text) == loads(text) == json.loads(text)


def test_bytes_that_are_no_utf_8_are_read_anyhow() -> None:
    assert loads_anyhow(b'{"a":"x\xffy"}') == {"a": "x\ufffdy"}
    assert loads_anyhow(b'{"a":1}') == {"a": 1}
    with pytest.raises(ValueError):
        loads_anyhow(b"\xff")


def test_what_is_not_ascii_is_not_escaped() -> None:
    assert dumps({"word": "Grüße 👋"}) == '{"word":"Grüße 👋"}'.encode()


@pytest.mark.parametrize("text", [b"", b"{", b"{'a': 1}", b"[1,]", b"\xff", b'"\xed\xa0\x80"', "{"])
def test_what_is_not_json_is_refused(text: bytes | str) -> None:
    for read in (loads, loads_fast):
        with pytest.raises(ValueError):
            read(text)


@pytest.mark.parametrize("depth", [400, 1000, 5000, 100_000])
@pytest.mark.parametrize("innermost", [b"", b'"\\ud800"', b"12345678901234567890123"])
def test_absurd_nesting_is_refused(depth: int, innermost: bytes) -> None:
    for read in (loads, loads_fast):
        with pytest.raises(ValueError):
            read(b"[" * depth + innermost + b"]" * depth)
        with pytest.raises(ValueError):
            read(b'{"a":' * depth + (innermost or b"1") + b"}" * depth)


def test_nesting_that_somebody_could_need_is_not() -> None:
    for depth in (100, 200):
        text = b"[" * depth + b"]" * depth
        assert dumps(loads(text)) == text


@given(st.lists(values), st.lists(values), st.sampled_from([1, 2**70, "\ud800"]))
def test_a_list_may_be_serialised_before_and_added_to(
    values: list[Any], more: list[Any], beside: Any
) -> None:
    whole = JsonList.of(values) + JsonList.of(more)
    assert bool(whole) == bool(values + more)
    assert loads(dumps({"list": whole, "beside": beside})) == {
        "list": values + more,
        "beside": beside,
    }


def test_nothing_else_is_serialised() -> None:
    with pytest.raises(TypeError):
        dumps({"a": object()})
