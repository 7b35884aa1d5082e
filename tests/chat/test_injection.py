"""What a request to the model has of tools, and what travels through it untouched."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chat.script import OWN, Ask, Chat, call_chunk, streamed
from tests.chat.streams import client_tool, names_of, replying
from tests.support import answer, call, calling, chunk, completion, events, saying, tool

Json = dict[str, Any]


def test_the_clients_tools_come_first_then_the_servers_by_group_and_name(ask: Ask) -> None:
    """DESIGN: L1."""
    server = [tool("zeta", "a"), tool("alpha", "b"), tool("mid", "a"), tool("beta", "b")]
    client = [client_tool("z_own"), client_tool("a_own")]
    (body,) = ask(server=server, tools=client).requests
    assert names_of(body) == ["z_own", "a_own", "mid", "zeta", "alpha", "beta"]
    assert body["tools"][:2] == client


def test_the_order_does_not_depend_on_that_of_the_list() -> None:
    listed = [tool(name, group) for group in "ab" for name in (f"{group}1", f"{group}2")]
    first, second = (Chat(server=tools).offered for tools in (listed, listed[::-1]))
    assert first and first == second


def test_of_two_tools_of_one_name_the_clients_wins(ask: Ask) -> None:
    """DESIGN: L2."""
    chat = ask(calling("clock"), server=["clock", "dice"], tools=[client_tool("clock")])
    assert names_of(chat.requests[0]) == ["clock", "dice"]
    assert chat.called == ["clock"]
    assert chat.finish_reason == "tool_calls"
    assert chat.invoked == []


@pytest.mark.parametrize("body", [{"tools": None}, {"tools": []}, {}])
def test_without_any_tools_nothing_is_said_of_tools(ask: Ask, body: Json) -> None:
    """DESIGN: L3."""
    chat = ask(server=[], body=body, tool_choice="auto", parallel_tool_calls=True)
    assert not _ABOUT_TOOLS & chat.requests[0].keys()


_ABOUT_TOOLS = {"tools", "tool_choice", "parallel_tool_calls"}


def test_tools_that_are_not_objects_travel_on(ask: Ask) -> None:
    chat = ask(tools=[None, "x", {}], messages=[None, 1, {}])
    assert chat.text == "Hi."
    (body,) = chat.requests
    assert body["tools"][:3] == [None, "x", {}]
    assert body["messages"] == [None, 1, {}]


_TASK = {"messages": [{"role": "user", "content": "### Task:\nGenerate a title"}]}

_UNWANTED: list[tuple[Json, dict[str, str]]] = [
    ({"tool_choice": "none"}, {}),
    ({"tool_choice": {"type": "none"}}, {}),
    ({"n": 2}, {}),
    ({"n": 2.0}, {}),
    ({}, {"X-Llamaproxy-Tools": "none"}),
    ({}, {"x-llamaproxy-tools": " NONE "}),
    ({}, {"X-OpenWebUI-Task": "title_generation"}),
]


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        *_UNWANTED,
        *((body | {"tools": [OWN]}, fields) for body, fields in _UNWANTED),
        (_TASK, {}),
        (_TASK | {"stream": False, "tools": []}, {}),
    ],
)
def test_nothing_is_injected_where_nothing_is_wanted(body: Json, fields: dict[str, str]) -> None:
    """DESIGN: L4."""
    sent = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "x": 1} | body
    chat = Chat(body=sent, fields=fields)
    assert chat.text == "Hi."
    unchanged = {key: value for key, value in sent.items() if key not in _ABOUT_TOOLS}
    assert chat.requests == [sent if body.get("tools") else unchanged]
    assert chat.stack.asked_for("GET /v1/tools") == []


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"tool_choice": "auto"}, {}),
        ({"tool_choice": None}, {}),
        ({"n": 1}, {}),
        ({"n": None}, {}),
        ({"n": 1.0}, {}),
        ({"tool_choice": {"type": "auto"}}, {}),
        ({}, {"X-Llamaproxy-Tools": ""}),
        ({}, {"X-OpenWebUI-Task": ""}),
        ({}, {"X-OpenWebUI-Task": "  "}),
        (_TASK | {"stream": True}, {}),
        (_TASK | {"tools": [OWN]}, {}),
    ],
)
def test_everything_else_gets_the_tools(body: Json, fields: dict[str, str]) -> None:
    """DESIGN: L4."""
    assert names_of(Chat(body=body, fields=fields).requests[0])[-1] == "clock"


def test_calls_in_an_answer_without_injection_are_the_clients(ask: Ask) -> None:
    chat = ask(calling("anything"), tools=[OWN], fields={"X-Llamaproxy-Tools": "none"})
    assert chat.called == ["anything"]
    assert chat.finish_reason == "tool_calls"
    assert chat.invoked == [] and len(chat.requests) == 1


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        ("alpha", ["alpha"]),
        ("alpha, beta", ["alpha", "beta"]),
        ("*a,,", ["alpha", "beta", "zeta"]),
        ("mcp::web", ["zeta"]),
        ("mcp::*", ["alpha", "beta", "zeta"]),
        ("[ab]*", ["alpha", "beta"]),
        ("nothing", None),
        ("ALPHA", None),
    ],
)
def test_the_servers_tools_can_be_narrowed(patterns: str, names: list[str] | None) -> None:
    """DESIGN: L5."""
    server = [tool("alpha"), tool("beta"), tool("zeta", "mcp::web")]
    chat = Chat(server=server, fields={"X-Llamaproxy-Tools": patterns})
    assert len(chat.requests) == 1 and chat.offered == names


def test_a_name_that_no_model_may_say_is_rewritten_both_ways(ask: Ask) -> None:
    """DESIGN: L6."""
    chat = ask(server=["web.search/now!"], results=["it"])
    (offered,) = names_of(chat.requests[0])
    assert offered.replace("_", "").replace("-", "").isalnum() and len(offered) <= 64
    chat.again(calling(offered), saying("Found."))
    assert chat.text == "Found."
    assert chat.invoked == [("web.search/now!", {})]


def test_both_generations_of_schemas_are_offered(ask: Ask) -> None:
    """DESIGN: L7."""
    old = {
        "identifier": "old",
        "toolgroup_id": "a",
        "description": "d",
        "parameters": [
            {"name": "city", "parameter_type": "string", "required": True, "default": None},
            {"name": "tags", "parameter_type": "array", "required": False, "default": []},
        ],
    }
    schema = {"type": "object", "$defs": {"x": {}}, "properties": {"n": {"$ref": "#/$defs/x"}}}
    chat = ask(server=[old, tool("new", "b", input_schema=schema)])
    first, second = (entry["function"]["parameters"] for entry in chat.requests[0]["tools"])
    assert first["required"] == ["city"]
    assert first["properties"]["city"] == {"type": "string"}
    assert first["properties"]["tags"]["items"] == {}
    assert second == schema


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_unknown_fields_travel_both_ways(stream: bool) -> None:
    """DESIGN: L8."""
    more: Json = {"system_fingerprint": "fp", "metrics": [{"m": 1}], "service_tier": None}
    message = {"content": "Hi.", "annotations": [{"a": 1}], "x_message": {"y": [1]}}
    whole = completion(message, **more)
    whole["choices"][0]["stop_reason"] = 7
    only_chunk = chunk({"role": "assistant", **message}, "stop", **more)
    sent = {"chat_id": "c", "top_k": 3, "messages": [{"role": "user", "content": "", "z": None}]}
    chat = Chat(events(only_chunk) if stream else answer(whole), body=sent, stream=stream)
    (body,) = chat.requests
    assert {key: body[key] for key in sent} == sent
    assert chat.message == {"role": "assistant", **message}
    if stream:
        assert all(more.items() <= each.items() for each in chat.events[:-1])
    else:
        assert chat.exchange.json() == whole


def test_unknown_fields_beside_a_finish_reason_travel_back() -> None:
    fields = {"stop_reason": 128009, "content_filter_results": {"hate": "safe"}}
    last = chunk({}, "stop")
    last["choices"][0] |= fields
    chat = streamed(events(chunk({"role": "assistant", "content": "Hi."}), last))
    choice = chat.events[-2]["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert fields.items() <= choice.items()


def test_what_stands_beside_no_delta_travels_back() -> None:
    """Azure's asynchronous filter sends choices without a delta. DESIGN: L8."""
    filtered = {"content_filter_results": {"hate": {"filtered": False}}}
    offsets = {**filtered, "content_filter_offsets": {"check_offset": 44}}
    annotated = chunk({})
    annotated["choices"] = [{"index": 0, "finish_reason": None, **offsets}]
    nothing_new = chunk({"content": ""})
    nothing_new["choices"][0]["content_filter_results"] = {}
    cited = {**chunk({}), "citations": ["c"], "fingerprint": None}
    said = chunk({"role": "assistant", "content": "Hi."}, fingerprint="f")
    chunks = [said, annotated, nothing_new, cited, chunk({}, "stop"), annotated]
    chat = streamed(events(*chunks))
    assert chat.text == "Hi."
    choices = [each["choices"][0] for each in chat.events[:-1]]
    assert [offsets.items() <= each.items() for each in choices] == [False, True, True, False]
    assert all(each["delta"] is not None for each in choices)
    assert chat.events[-2]["citations"] == ["c"]


def test_what_stands_beside_a_call_of_a_server_tool_is_not_shown() -> None:
    calling_it = call_chunk(**call("clock"))
    calling_it["choices"][0]["content_filter_results"] = {"hate": {"filtered": False}}
    chat = streamed(events(calling_it, chunk({}, "tool_calls"), b"[DONE]"), saying("Noon."))
    assert chat.text == "Noon."
    assert "content_filter_results" not in chat.exchange.body.decode()


def test_text_that_is_no_unicode_travels_too() -> None:
    message = {"role": "user", "content": "\udc00"}
    chat = Chat(replying({"content": "\ud800 \N{SNOWMAN}"}), messages=[message], seed=10**30)
    assert chat.text == "\ud800 \N{SNOWMAN}"
    assert chat.requests[0]["messages"][0]["content"] == "\udc00"
    assert chat.requests[0]["seed"] == 10**30
