"""Requests and messages."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaproxy.chat.finish_reasons import finish_reason
from llamaproxy.chat.injection import tool_names, with_tools
from llamaproxy.chat.messages import (
    follow_up,
    number_of,
    objects,
    parse_request,
    read_calls,
    text_of,
)
from llamaproxy.chat.tool_choice import chosen_name, with_choice, with_free_choice
from llamaproxy.chat.usage import added_usage
from llamaproxy.errors import BadRequest
from llamaproxy.jsontext import JsonList
from tests.chat.streams import client_tool

Json = dict[str, Any]

_json = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b'{"messages": []} x', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'"messages"', "must be a JSON object"),
        (b"{}", "no 'messages'"),
        (b'{"messages": null}', "no 'messages'"),
        (b'{"messages": {}}', "no 'messages'"),
        (b'{"messages": "Hello"}', "no 'messages'"),
        (b'{"messages": [], "tools": {}}', "'tools' must be a list"),
        (b'{"messages": [], "tools": "all"}', "'tools' must be a list"),
        (b'{"messages": [], "stream": "yes"}', "'stream' must be"),
        (b'{"messages": [], "stream": 1}', "'stream' must be"),
    ],
)
def test_what_is_no_chat_request_is_refused_in_words(text: bytes, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        parse_request(text)


@pytest.mark.parametrize(
    "body",
    [
        {"messages": []},
        {"messages": [None, 1, "x", {}], "tools": None, "stream": None},
        {"messages": [{"role": "user", "content": None}], "tools": [None, 1, {}], "stream": True},
        {"messages": [], "unknown": {"deep": [1]}, "n": "two", "model": None},
    ],
)
def test_what_the_upstream_may_judge_is_not_refused(body: Json) -> None:
    assert parse_request(json.dumps(body).encode()) == body


@given(_json)
def test_only_objects_are_taken_out_of_what_a_peer_sent(value: Any) -> None:
    listed = objects(value)
    assert listed == ([v for v in value if isinstance(v, dict)] if isinstance(value, list) else [])


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("words", "words"),
        (None, ""),
        (7, ""),
        ([], ""),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab"),
        ([{"type": "image_url"}, None, "x", {"type": "text", "text": None}], ""),
    ],
)
def test_the_text_of_a_message_is_found_in_strings_and_parts(content: object, text: str) -> None:
    assert text_of(content) == text


def test_the_names_of_tools_are_read_where_there_are_any() -> None:
    odd: list[Any] = [None, "f", {}, {"function": None}, {"function": {"name": None}}]
    assert tool_names({"tools": [*odd, client_tool("f"), client_tool("g")]}) == {"f", "g"}
    assert tool_names({"tools": None}) == tool_names({}) == frozenset()


@given(st.lists(_json, max_size=3), st.lists(st.just({"type": "function"}), max_size=2))
def test_server_tools_stand_behind_the_clients_own(
    client_tools: list[Any], server_tools: list[Json]
) -> None:
    body = {
        "messages": [],
        "tools": client_tools,
        "tool_choice": "auto",
        "parallel_tool_calls": False,
    }
    result = with_tools(body, JsonList.of(server_tools))
    if client_tools or server_tools:
        assert result == {**body, "tools": JsonList.of(client_tools + server_tools)}
    else:
        assert result == {"messages": []}
    assert body["tools"] is client_tools


@pytest.mark.parametrize(
    "choice",
    [None, "auto", "none", "required", [], {}, {"function": None}, {"function": {"name": 7}}, 3],
)
def test_most_tool_choices_name_no_function(choice: object) -> None:
    assert chosen_name({"tool_choice": choice}) is None


def test_a_named_choice_can_be_renamed_and_keeps_its_other_fields() -> None:
    body = {"tool_choice": {"type": "function", "x": 1, "function": {"name": "a", "y": 2}}}
    assert chosen_name(body) == "a"
    renamed = with_choice(body, {"a": "b"}.__getitem__)
    assert renamed == {
        "tool_choice": {"type": "function", "x": 1, "function": {"name": "b", "y": 2}}
    }
    assert chosen_name(body) == "a", "the client's own body is left alone"


def test_a_forced_choice_becomes_free_and_keeps_the_allowed_tools() -> None:
    assert with_free_choice({"tool_choice": "required"})["tool_choice"] == "auto"
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "a"}}]}
    body = {"tool_choice": {"type": "allowed_tools", "allowed_tools": allowed}}
    assert with_free_choice(body)["tool_choice"] == {
        "type": "allowed_tools",
        "allowed_tools": {**allowed, "mode": "auto"},
    }
    flat = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "x", "name": "a"}]}
    assert with_free_choice({"tool_choice": flat})["tool_choice"] == {**flat, "mode": "auto"}


def test_the_next_round_sees_what_was_said_and_what_came_of_it() -> None:
    entry = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    (call,) = read_calls([entry])
    message = {"role": "assistant", "content": "wait", "tool_calls": [entry]}
    assert follow_up(message, [(call, "done")]) == [
        message,
        {"role": "tool", "tool_call_id": "c1", "content": "done"},
    ]


@given(_json | st.lists(st.fixed_dictionaries({"id": _json, "function": _json}), max_size=4))
def test_whatever_a_model_says_its_calls_are_whole_and_have_ids_of_their_own(value: Any) -> None:
    calls = read_calls(value)
    assert len({call.id for call in calls}) == len(calls)
    for call in calls:
        assert call.id and call.entry["id"] == call.id
        assert call.entry["type"]
        assert call.entry["function"]["name"] == call.name
        assert isinstance(call.name, str) and isinstance(call.arguments, str)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (None, ""),
        ("", ""),
        ('{"a":1}', '{"a":1}'),
        ({"a": 1}, '{"a":1}'),
        ([1], "[1]"),
        ({"é": float("nan")}, '{"é":NaN}'),
    ],
)
def test_arguments_are_text_though_some_send_objects(arguments: object, text: str) -> None:
    (call,) = read_calls([{"function": {"name": "f", "arguments": arguments}}])
    assert call.arguments == call.entry["function"]["arguments"] == text


def test_what_else_a_call_carries_stays_on_it() -> None:
    entry = {
        "id": "a",
        "extra_content": {"signature": "s"},
        "function": {"name": "f", "arguments": "", "strict": True},
    }
    (call,) = read_calls([entry])
    assert call.entry == {**entry, "type": "function"}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, None),
        ("", None),
        (" ", None),
        (1, None),
        ({}, None),
        ("stop", "stop"),
        ("STOP", "stop"),
        ("Tool_Calls", "tool_calls"),
        (" length\n", "length"),
        ("model_context_window_exceeded", "length"),
        ("Whatever-Comes", "whatever_comes"),
    ],
)
def test_finish_reasons_are_spelled_as_openai_does(value: object, reason: str | None) -> None:
    assert finish_reason(value) == reason


_usage = st.recursive(
    st.integers(0, 99), lambda inner: st.dictionaries(st.sampled_from("abc"), inner), max_leaves=5
)


@pytest.mark.parametrize(
    ("total", "more", "both"),
    [
        (None, None, None),
        (None, {"a": 1}, {"a": 1}),
        ({"a": 1}, None, {"a": 1}),
        ({"a": 1}, {"a": 2}, {"a": 3}),
        ({"a": 1}, {"b": 2}, {"a": 1, "b": 2}),
        ({"a": None, "b": 1}, {"a": 1, "b": None}, {"a": 1, "b": 1}),
        ({"d": {"x": 1}}, {"d": {"x": 1, "y": 2}}, {"d": {"x": 2, "y": 2}}),
        ({"d": None}, {"d": {"x": 1}}, {"d": {"x": 1}}),
        ({"t": 0.5}, {"t": 1}, {"t": 1.5}),
        ({"is_byok": True}, {"is_byok": True}, {"is_byok": True}),
        ({"is_byok": True}, {"is_byok": False}, {"is_byok": False}),
        ({"is_byok": True}, {"is_byok": None}, {"is_byok": True}),
    ],
)
def test_usage_is_added_up_whatever_it_counts(total: Any, more: Any, both: Any) -> None:
    assert added_usage(total, more) == both


@given(_json, _json)
def test_odd_usage_is_added_up_or_replaced(total: Any, more: Any) -> None:
    added = added_usage(total, more)
    if isinstance(total, dict) and isinstance(more, dict):
        assert added == {key: added_usage(total.get(key), more.get(key)) for key in total | more}
    elif type(total) is type(more) is int:
        assert added == total + more
    else:
        assert added is (total if more is None else more)


@pytest.mark.parametrize(
    ("index", "number"),
    [
        (0, 0),
        ("3", 3),
        (0.0, 0),
        (1.0, 1),
        (1.5, None),
        (float("inf"), None),
        (float("nan"), None),
        (True, None),
        ("x", None),
    ],
)
def test_an_index_is_a_number_in_whatever_form(index: object, number: int | None) -> None:
    assert number_of(index) == number
    assert isinstance(number_of(index), int) == (number is not None)
