"""The tool loop, through the front door; every rule both whole and streamed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.chat.streams import (
    both,
    client_tool,
    finish_of,
    joined,
    message_of,
    names_of,
    nothing_left,
    own_ids,
    said,
    stack_with,
)
from tests.support import (
    CHAT,
    INVOKE,
    Exchange,
    FakeStack,
    Proxy,
    answer,
    begin_events,
    call,
    calling,
    chunk,
    completion,
    events,
    hang_up,
    nothing,
    read,
    saying,
    tool,
    tool_result,
    turn,
)

Json = dict[str, Any]


def asked(stack: FakeStack) -> list[Json]:
    """The bodies of the completions that the model was asked for."""
    return [each.json() for each in stack.asked_for(CHAT)]


def invoked(stack: FakeStack) -> list[tuple[str, Json]]:
    """The tools that were run, with their arguments."""
    bodies = [each.json() for each in stack.asked_for(INVOKE)]
    return [(body["tool_name"], body["kwargs"]) for body in bodies]


def text_of(exchange: Exchange) -> str | None:
    """The content of an answer."""
    return message_of(exchange).get("content")


# --- injection


@both
def test_the_clients_tools_come_first_then_the_servers_by_group_and_name(stream: bool) -> None:
    """DESIGN: L1."""
    stack = FakeStack()
    listed = [tool("zeta", "a"), tool("alpha", "b"), tool("mid", "a"), tool("beta", "b")]
    stack.on("GET /v1/tools", answer({"data": listed}))
    stack.on(CHAT, saying("Hi."))
    theirs = [client_tool("z_own"), client_tool("a_own")]
    Proxy(stack).chat(stream=stream, tools=theirs)
    (body,) = asked(stack)
    assert names_of(body) == ["z_own", "a_own", "mid", "zeta", "alpha", "beta"]
    assert body["tools"][:2] == theirs


def test_the_order_does_not_depend_on_that_of_the_list() -> None:
    listed = [tool(name, group) for group in "ab" for name in (f"{group}1", f"{group}2")]
    orders = []
    for data in (listed, listed[::-1]):
        stack = FakeStack()
        stack.on("GET /v1/tools", answer({"data": data}))
        stack.on(CHAT, saying("Hi."))
        Proxy(stack).chat()
        orders.append(names_of(asked(stack)[0]))
    assert orders[0] == orders[1]


@both
def test_of_two_tools_of_one_name_the_clients_wins(stream: bool) -> None:
    """DESIGN: L2."""
    stack = stack_with("clock", "dice")
    stack.on(CHAT, calling("clock"))
    exchange = Proxy(stack).chat(stream=stream, tools=[client_tool("clock")])
    assert names_of(asked(stack)[0]) == ["clock", "dice"]
    assert [c["function"]["name"] for c in message_of(exchange)["tool_calls"]] == ["clock"]
    assert finish_of(exchange) == "tool_calls"
    assert invoked(stack) == []


@both
@pytest.mark.parametrize("tools", [None, [], ...], ids=["null", "empty", "absent"])
def test_without_any_tools_nothing_is_said_of_tools(stream: bool, tools: Any) -> None:
    """DESIGN: L3."""
    stack = stack_with()
    stack.on(CHAT, saying("Hi."))
    body = {} if tools is ... else {"tools": tools}
    Proxy(stack).chat(body, stream=stream, tool_choice="auto", parallel_tool_calls=True)
    assert not {"tools", "tool_choice", "parallel_tool_calls"} & asked(stack)[0].keys()


@both
def test_tools_that_are_not_objects_travel_on(stream: bool) -> None:
    stack = stack_with("clock")
    stack.on(CHAT, saying("Hi."))
    exchange = Proxy(stack).chat(stream=stream, tools=[None, "x", {}], messages=[None, 1, {}])
    assert text_of(exchange) == "Hi."
    (body,) = asked(stack)
    assert body["tools"][:3] == [None, "x", {}]
    assert body["messages"] == [None, 1, {}]


_TASK = {"messages": [{"role": "user", "content": "### Task:\nGenerate a title"}]}


_UNWANTED: list[tuple[Json, dict[str, str]]] = [
    ({"tool_choice": "none"}, {}),
    ({"n": 2}, {}),
    ({}, {"X-Llamaproxy-Tools": "none"}),
    ({}, {"x-llamaproxy-tools": " NONE "}),
    ({}, {"X-OpenWebUI-Task": "title_generation"}),
]


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        *_UNWANTED,
        *((body | {"tools": [client_tool("own")]}, fields) for body, fields in _UNWANTED),
        (_TASK, {}),
        (_TASK | {"stream": False, "tools": []}, {}),
    ],
)
def test_nothing_is_injected_where_nothing_is_wanted(body: Json, fields: dict[str, str]) -> None:
    """DESIGN: L4."""
    stack = stack_with("clock")
    stack.on(CHAT, saying("Hi."))
    sent = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "x": 1} | body
    assert text_of(Proxy(stack).chat(sent, fields)) == "Hi."
    unchanged = {key: value for key, value in sent.items() if key not in _ABOUT_TOOLS}
    assert asked(stack) == [sent if body.get("tools") else unchanged]
    assert stack.asked_for("GET /v1/tools") == []


_ABOUT_TOOLS = ("tools", "tool_choice", "parallel_tool_calls")


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"tool_choice": "auto"}, {}),
        ({"tool_choice": None}, {}),
        ({"n": 1}, {}),
        ({"n": None}, {}),
        ({}, {"X-Llamaproxy-Tools": ""}),
        ({}, {"X-OpenWebUI-Task": ""}),
        ({}, {"X-OpenWebUI-Task": "  "}),
        (_TASK | {"stream": True}, {}),
        (_TASK | {"tools": [client_tool("own")]}, {}),
    ],
)
def test_everything_else_gets_the_tools(body: Json, fields: dict[str, str]) -> None:
    """DESIGN: L4."""
    stack = stack_with("clock")
    stack.on(CHAT, saying("Hi."))
    Proxy(stack).chat(body, fields)
    assert names_of(asked(stack)[0])[-1] == "clock"


@both
def test_calls_in_an_answer_without_injection_are_the_clients(stream: bool) -> None:
    stack = stack_with("clock")
    stack.on(CHAT, calling("anything"))
    exchange = Proxy(stack).chat(
        {"tools": [client_tool("own")]}, {"X-Llamaproxy-Tools": "none"}, stream=stream
    )
    assert [c["function"]["name"] for c in message_of(exchange)["tool_calls"]] == ["anything"]
    assert finish_of(exchange) == "tool_calls"
    assert invoked(stack) == [] and len(asked(stack)) == 1


@pytest.mark.parametrize(
    ("wanted", "names"),
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
def test_the_servers_tools_can_be_narrowed(wanted: str, names: list[str] | None) -> None:
    """DESIGN: L5."""
    stack = FakeStack()
    listed = [tool("alpha"), tool("beta"), tool("zeta", "mcp::web")]
    stack.on("GET /v1/tools", answer({"data": listed}))
    stack.on(CHAT, saying("Hi."))
    Proxy(stack).chat(fields={"X-Llamaproxy-Tools": wanted})
    (body,) = asked(stack)
    assert (names_of(body) if "tools" in body else None) == names


@both
def test_a_name_that_no_model_may_say_is_rewritten_both_ways(stream: bool) -> None:
    """DESIGN: L6."""
    stack = stack_with("web.search/now!")
    proxy = Proxy(stack)
    stack.on(CHAT, saying("Hi."))
    proxy.chat(stream=stream)
    (offered,) = names_of(asked(stack)[0])
    assert offered.replace("_", "").replace("-", "").isalnum() and len(offered) <= 64
    stack.on(CHAT, calling(offered), saying("Found."))
    stack.on(INVOKE, tool_result("it"))
    assert text_of(proxy.chat(stream=stream)) == "Found."
    assert invoked(stack) == [("web.search/now!", {})]


@both
def test_both_generations_of_schemas_are_offered(stream: bool) -> None:
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
    stack = FakeStack()
    stack.on("GET /v1/tools", answer({"data": [old, tool("new", "b", input_schema=schema)]}))
    stack.on(CHAT, saying("Hi."))
    Proxy(stack).chat(stream=stream)
    first, second = (entry["function"] for entry in asked(stack)[0]["tools"])
    assert first["parameters"]["required"] == ["city"]
    assert first["parameters"]["properties"]["city"] == {"type": "string"}
    assert first["parameters"]["properties"]["tags"]["items"] == {}
    assert second["parameters"] == schema


@both
def test_unknown_fields_travel_both_ways(stream: bool) -> None:
    """DESIGN: L8."""
    stack = stack_with("clock")
    more: Json = {"system_fingerprint": "fp", "metrics": [{"m": 1}], "service_tier": None}
    text = {"content": "Hi.", "annotations": [{"a": 1}], "x_message": {"y": [1]}}
    whole = completion(text, **more)
    whole["choices"][0]["stop_reason"] = 7
    streamed = chunk({"role": "assistant", **text}, "stop", **more)
    stack.on(CHAT, events(streamed) if stream else answer(whole))
    sent = {"chat_id": "c", "top_k": 3, "messages": [{"role": "user", "content": "", "z": None}]}
    exchange = Proxy(stack).chat(sent, stream=stream)
    (body,) = asked(stack)
    assert {key: body[key] for key in sent} == sent
    message = message_of(exchange)
    assert message == {"role": "assistant", **text}
    if stream:
        assert all(more.items() <= each.items() for each in exchange.events()[:-1])
    else:
        assert exchange.json() == whole


def test_unknown_fields_beside_a_finish_reason_travel_back() -> None:
    stack = stack_with("clock")
    last = chunk({}, "stop")
    last["choices"][0] |= {"stop_reason": 128009, "content_filter_results": {"hate": "safe"}}
    stack.on(CHAT, events(chunk({"role": "assistant", "content": "Hi."}), last))
    exchange = Proxy(stack).chat(stream=True)
    choice = exchange.events()[-2]["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["stop_reason"] == 128009
    assert choice["content_filter_results"] == {"hate": "safe"}


def test_text_that_is_no_unicode_travels_too() -> None:
    stack = stack_with()
    stack.on(CHAT, answer(completion({"content": "\ud800 \N{SNOWMAN}"})))
    exchange = Proxy(stack).chat(messages=[{"role": "user", "content": "\udc00"}], seed=10**30)
    assert text_of(exchange) == "\ud800 \N{SNOWMAN}"
    assert asked(stack)[0]["messages"][0]["content"] == "\udc00"
    assert asked(stack)[0]["seed"] == 10**30


# --- rounds


@both
def test_tools_are_run_until_the_model_answers(stream: bool) -> None:
    stack = stack_with("clock", "dice")
    stack.on(CHAT, calling("clock", {"zone": "UTC"}), calling("dice"), saying("Noon, and a six."))
    stack.on(INVOKE, tool_result("12:00"), tool_result("6"))
    proxy = Proxy(stack)
    exchange = proxy.chat(stream=stream)
    assert message_of(exchange) == {"role": "assistant", "content": "Noon, and a six."}
    assert finish_of(exchange) == "stop"
    assert invoked(stack) == [("clock", {"zone": "UTC"}), ("dice", {})]
    rounds = asked(stack)
    assert [m["role"] for m in rounds[2]["messages"]] == [
        "user", "assistant", "tool", "assistant", "tool",
    ]  # fmt: skip
    assert [m["content"] for m in rounds[2]["messages"] if m["role"] == "tool"] == ["12:00", "6"]
    assert rounds[0]["tools"] == rounds[1]["tools"] == rounds[2]["tools"]
    assert nothing_left(proxy, stack)


@both
def test_the_calls_of_a_round_run_at_the_same_time_and_come_back_in_order(stream: bool) -> None:
    """DESIGN: L9."""
    stack = stack_with("a", "b", "c")
    made = [call(name, {}, f"call_{name}") for name in "cab"]
    stack.on(CHAT, turn(None, made), saying("Done."))
    stack.on(INVOKE, nothing)
    proxy = Proxy(stack)
    exchange = proxy.chat(stream=stream)
    assert [name for name, _ in invoked(stack)] == ["c", "a", "b"]
    for waiting in stack.open[::-1]:
        tool_result(read(waiting).json()["tool_name"])(waiting)
    proxy.settle()
    results = [m for m in asked(stack)[1]["messages"] if m["role"] == "tool"]
    assert [(m["tool_call_id"], m["content"]) for m in results] == [
        ("call_c", "c"), ("call_a", "a"), ("call_b", "b"),
    ]  # fmt: skip
    assert text_of(exchange) == "Done."


@both
def test_what_the_model_said_is_sent_back_whole(stream: bool) -> None:
    """DESIGN: L10."""
    stack = stack_with("clock")
    message = {
        "content": "Let me see.",
        "reasoning_content": "The user wants the time.",
        "x_signature": {"s": 1},
        "tool_calls": [call("clock", {}, "c1"), call("clock", {"a": 1}, "c2")],
    }
    stack.on(CHAT, said(message, "tool_calls"), saying("Noon."))
    stack.on(INVOKE, tool_result("12:00"))
    Proxy(stack).chat(stream=stream)
    sent = {k: v for k, v in asked(stack)[1]["messages"][1].items() if v is not None}
    assert sent == {"role": "assistant", **message}


@both
def test_null_fields_in_a_message_do_no_harm(stream: bool) -> None:
    stack = stack_with("clock")
    nulls = {"refusal": None, "annotations": None, "audio": None, "function_call": None}
    message = {"role": None, "content": None, **nulls, "tool_calls": [call("clock")]}
    stack.on(
        CHAT,
        said(message, "tool_calls"),
        said({"role": None, "content": "Noon.", "tool_calls": None, **nulls}),
    )
    stack.on(INVOKE, tool_result("12:00"))
    exchange = Proxy(stack).chat(stream=stream)
    assert message_of(exchange) == {"role": "assistant", "content": "Noon."}
    assert asked(stack)[1]["messages"][1]["role"] == "assistant"


@both
@pytest.mark.parametrize(
    ("choice", "later"),
    [
        ("required", "required"),
        ("auto", "auto"),
        (None, None),
        ({"type": "function", "function": {"name": "clock"}}, "auto"),
        (
            {"type": "function", "function": {"name": "own"}},
            {"type": "function", "function": {"name": "own"}},
        ),
    ],
)
def test_a_forced_call_is_forced_once(stream: bool, choice: Any, later: Any) -> None:
    """DESIGN: L11."""
    stack = stack_with("clock")
    stack.on(CHAT, calling("clock"), calling("clock", {"a": 1}), saying("Noon."))
    stack.on(INVOKE, tool_result("12:00"))
    Proxy(stack).chat(stream=stream, tool_choice=choice, tools=[client_tool("own")])
    assert [body["tool_choice"] for body in asked(stack)] == [choice, later, later]


@both
def test_a_choice_may_name_a_tool_by_its_real_name_or_by_the_rewritten_one(stream: bool) -> None:
    """DESIGN: L11."""
    stack = stack_with("web.search")
    stack.on(CHAT, saying("Hi."))
    proxy = Proxy(stack)
    proxy.chat(stream=stream, tool_choice={"type": "function", "function": {"name": "web.search"}})
    (offered,) = names_of(asked(stack)[0])
    chosen = {"type": "function", "function": {"name": offered}}
    proxy.chat(stream=stream, tool_choice=chosen)
    assert [body["tool_choice"] for body in asked(stack)] == [chosen, chosen]


@both
@pytest.mark.parametrize(
    "choice",
    [
        {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": []}},
        {"type": "allowed_tools", "allowed_tools": ["clock"]},
        {"type": "function", "function": "clock"},
        ["required"],
        7,
    ],
)
def test_an_odd_choice_is_the_upstreams_to_judge(stream: bool, choice: Any) -> None:
    stack = stack_with("clock")
    stack.on(CHAT, calling("clock"), saying("Noon."))
    stack.on(INVOKE, tool_result("12:00"))
    exchange = Proxy(stack).chat(stream=stream, tool_choice=choice)
    assert asked(stack)[0]["tool_choice"] == choice
    assert text_of(exchange) == "Noon."


@both
@pytest.mark.parametrize(
    ("arguments", "understood"),
    [
        ("", {}),
        (None, {}),
        ("null", {}),
        ("  ", {}),
        ({"a": 1}, {"a": 1}),
        ('{"a": 1}', {"a": 1}),
        ("{'a': 1,}", {"a": 1}),
        ('{"a": 1', {"a": 1}),
        ('"{\\"a\\": 1}"', {"a": 1}),
    ],
)
def test_arguments_are_understood_with_some_patience(
    stream: bool, arguments: Any, understood: Json
) -> None:
    stack = stack_with("clock")
    made = {"id": "c", "type": "function", "function": {"name": "clock", "arguments": arguments}}
    stack.on(CHAT, said({"content": None, "tool_calls": [made]}, "tool_calls"), saying("Noon."))
    stack.on(INVOKE, tool_result("12:00"))
    assert text_of(Proxy(stack).chat(stream=stream)) == "Noon."
    assert invoked(stack) == [("clock", understood)]


@both
@pytest.mark.parametrize(
    ("name", "arguments", "word"),
    [
        ("clock", "not json", "valid JSON"),
        ("clock", "[1]", "object"),
        ("clock", "7", "object"),
        ("no_such_tool", "{}", "no_such_tool"),
        ("", "{}", "tool"),
    ],
)
def test_a_hopeless_call_is_explained_to_the_model(
    stream: bool, name: str, arguments: str, word: str
) -> None:
    """DESIGN: L12."""
    stack = stack_with("clock")
    made = [call(name, arguments, "bad"), call("clock", {}, "good")]
    stack.on(CHAT, turn(None, made), saying("Sorry."))
    stack.on(INVOKE, tool_result("12:00"))
    exchange = Proxy(stack).chat(stream=stream)
    assert exchange.status == 200
    assert message_of(exchange) == {"role": "assistant", "content": "Sorry."}
    results = {m["tool_call_id"]: m["content"] for m in asked(stack)[1]["messages"][2:]}
    assert results["good"] == "12:00"
    assert results["bad"].startswith("Error") and word in results["bad"]


@both
@pytest.mark.parametrize(
    ("failure", "word"),
    [
        (answer({"detail": "scripted"}, 500), "scripted"),
        (answer({"detail": "who are you"}, 401), "who are you"),
        (tool_result("it broke", error_code=1), "it broke"),
        (answer(b"<html>", 200, {"Content-Type": "text/html"}), ""),
        (hang_up, ""),
    ],
)
def test_a_failing_tool_fails_alone(stream: bool, failure: Any, word: str) -> None:
    """DESIGN: L13."""
    stack = stack_with("bad", "good")
    made = [call("bad", {}, "bad"), call("good", {}, "good")]
    stack.on(CHAT, turn(None, made), saying("Well."))
    stack.on(INVOKE, failure, tool_result("fine"))
    assert text_of(Proxy(stack).chat(stream=stream)) == "Well."
    results = {m["tool_call_id"]: m["content"] for m in asked(stack)[1]["messages"][2:]}
    assert results["good"] == "fine"
    assert results["bad"].startswith("Error") and word in results["bad"]


@both
def test_a_slow_tool_is_stopped_and_the_others_are_not(stream: bool) -> None:
    """DESIGN: L13."""
    stack = stack_with("slow", "quick")
    made = [call("slow", {}, "slow"), call("quick", {}, "quick")]
    stack.on(CHAT, turn(None, made), saying("Well."))
    stack.on(INVOKE, nothing, tool_result("fine"))
    proxy = Proxy(stack)
    exchange = proxy.chat(stream=stream)
    proxy.advance(59.9)
    assert len(asked(stack)) == 1 and len(stack.open) == 1
    proxy.advance(0.2)
    assert text_of(exchange) == "Well."
    results = {m["tool_call_id"]: m["content"] for m in asked(stack)[1]["messages"][2:]}
    assert results["quick"] == "fine"
    assert results["slow"].startswith("Error") and "60" in results["slow"]
    assert nothing_left(proxy, stack)


@both
def test_a_long_result_keeps_its_head_and_tail(stream: bool) -> None:
    """DESIGN: L14."""
    stack = stack_with("book")
    stack.on(CHAT, calling("book"), saying("Read."))
    stack.on(INVOKE, tool_result("A" * 500 + "B" * 5000 + "C" * 500))
    assert text_of(Proxy(stack, max_result=1000).chat(stream=stream)) == "Read."
    text = asked(stack)[1]["messages"][-1]["content"]
    assert text.startswith("A" * 500) and text.endswith("C" * 500)
    assert "5000" in text and "B" not in text.replace("bytes", "")


# --- the end of a loop


@both
def test_after_ten_rounds_the_model_must_answer_without_tools(stream: bool) -> None:
    """DESIGN: L15."""
    stack = stack_with("clock")
    stack.on(CHAT, *(calling("clock", {"n": n}) for n in range(10)), saying("Enough."))
    stack.on(INVOKE, tool_result("12:00"))
    exchange = Proxy(stack).chat(stream=stream)
    rounds = asked(stack)
    assert len(rounds) == 11 and len(invoked(stack)) == 10
    assert [body.get("tool_choice") for body in rounds] == [None] * 10 + ["none"]
    assert rounds[10]["tools"] == rounds[0]["tools"]
    assert message_of(exchange) == {"role": "assistant", "content": "Enough."}
    assert finish_of(exchange) == "stop"


@both
@pytest.mark.parametrize("reason", ["tool_calls", "stop", None])
def test_calls_made_even_then_are_dropped_and_one_sentence_stands_in(
    stream: bool, reason: str | None
) -> None:
    """DESIGN: L15."""
    stack = stack_with("clock")
    last = said({"content": None, "tool_calls": [call("clock", {"n": 3})]}, reason)
    stack.on(CHAT, calling("clock", {"n": 1}), calling("clock", {"n": 2}), last)
    stack.on(INVOKE, tool_result("12:00"))
    exchange = Proxy(stack, max_rounds=2).chat(stream=stream, tools=[client_tool("own")])
    message = message_of(exchange)
    assert "tool_calls" not in message
    assert message["content"].count(".") == 1, "one sentence"
    assert finish_of(exchange) == "stop"
    assert len(invoked(stack)) == 2


@both
def test_the_sentence_stands_behind_what_was_said_before(stream: bool) -> None:
    stack = stack_with("clock")
    stack.on(CHAT, turn("Let me see.", [call("clock")]))
    stack.on(INVOKE, tool_result("12:00"))
    exchange = Proxy(stack, max_rounds=1).chat(stream=stream)
    content = message_of(exchange)["content"]
    # The last round said the same once more, and its call is dropped.
    assert content == "Let me see.\n\nLet me see."


@both
def test_the_sentence_has_a_role_even_if_nothing_else_was_said(stream: bool) -> None:
    stack = stack_with("clock")
    made = {"index": 0, **call("clock")}
    roleless = [chunk({"tool_calls": [made]}), chunk({}, "tool_calls")]
    whole = answer(completion({"content": None, "tool_calls": [call("clock")]}, "tool_calls"))
    stack.on(CHAT, events(*roleless) if stream else whole)
    stack.on(INVOKE, tool_result("12:00"))
    exchange = Proxy(stack, max_rounds=1).chat(stream=stream)
    assert message_of(exchange)["role"] == "assistant"
    assert message_of(exchange)["content"]


@both
def test_the_same_call_with_the_same_result_ends_the_loop_after_three(stream: bool) -> None:
    """DESIGN: L15."""
    stack = stack_with("clock")
    same = ['{"a": 1, "b": 2}', '{"b":2,"a":1}', "{'a': 1, 'b': 2}"]
    stack.on(CHAT, *(calling("clock", text) for text in same), saying("It is noon."))
    stack.on(INVOKE, tool_result("12:00"))
    exchange = Proxy(stack).chat(stream=stream)
    assert text_of(exchange) == "It is noon."
    rounds = asked(stack)
    assert len(rounds) == 4
    assert rounds[3]["tool_choice"] == "none"


@both
@pytest.mark.parametrize("differing", ["result", "arguments"])
def test_the_same_call_is_no_repetition_if_something_differs(stream: bool, differing: str) -> None:
    stack = stack_with("clock")
    varied = differing == "arguments"
    stack.on(
        CHAT, *(calling("clock", {"n": n if varied else 0}) for n in range(5)), saying("Noon.")
    )
    stack.on(INVOKE, *(tool_result("same" if varied else f"{n}") for n in range(5)))
    assert text_of(Proxy(stack).chat(stream=stream)) == "Noon."
    assert [body.get("tool_choice") for body in asked(stack)] == [None] * 6


@both
def test_only_repetitions_in_a_row_count(stream: bool) -> None:
    stack = stack_with("clock", "dice")
    names = ["clock", "clock", "dice", "clock", "clock"]
    stack.on(CHAT, *(calling(name) for name in names), saying("Noon."))
    stack.on(INVOKE, tool_result("same"))
    assert text_of(Proxy(stack).chat(stream=stream)) == "Noon."
    assert len(invoked(stack)) == 5


@both
def test_a_model_that_calls_unknown_tools_for_ever_is_stopped_too(stream: bool) -> None:
    stack = stack_with()
    stack.on(CHAT, calling("nosuch"))
    exchange = Proxy(stack).chat(stream=stream)
    assert len(asked(stack)) == 4
    assert message_of(exchange)["content"]
    assert not {"tools", "tool_choice"} & asked(stack)[-1].keys()


@both
@pytest.mark.parametrize("reason", ["stop", "length", "", None, "TOOL_CALLS", "function_call"])
def test_a_call_counts_whatever_the_finish_reason_says(stream: bool, reason: str | None) -> None:
    """DESIGN: L15."""
    stack = stack_with("clock")
    stack.on(CHAT, said({"content": "", "tool_calls": [call("clock")]}, reason), saying("Noon."))
    stack.on(INVOKE, tool_result("12:00"))
    assert text_of(Proxy(stack).chat(stream=stream)) == "Noon."
    assert len(invoked(stack)) == 1


@both
def test_usage_is_the_sum_and_the_identity_the_first_rounds(stream: bool) -> None:
    """DESIGN: L16."""
    stack = stack_with("clock")
    usages: list[Json] = [
        {"prompt_tokens": 1, "total_tokens": 3, "prompt_tokens_details": {"cached_tokens": 1}},
        {"prompt_tokens": 10, "total_tokens": 30, "prompt_tokens_details": None},
        {"prompt_tokens": 100, "total_tokens": 300, "prompt_tokens_details": {"cached_tokens": 5}},
    ]
    heads = [{"id": f"id{n}", "created": n, "model": f"m{n}"} for n in (1, 2, 3)]
    first, second, third = (
        usage if stream else {**head, "usage": usage}
        for usage, head in zip(usages, heads, strict=True)
    )
    if stream:

        def streamed(delta: Json, head: Json, usage: Json) -> Any:
            said = chunk({"role": "assistant", **delta}, "stop", **head)
            return events(said, {**chunk({}, **head), "choices": [], "usage": usage})

        made: list[Json] = [{"tool_calls": [{"index": 0, **call("clock", {"n": n})}]} for n in "ab"]
        made.append({"content": "Noon."})
        stack.on(CHAT, *map(streamed, made, heads, usages))
    else:
        stack.on(
            CHAT,
            calling("clock", {"n": 1}, **first),
            calling("clock", {"n": 2}, **second),
            saying("Noon.", **third),
        )
    stack.on(INVOKE, tool_result("12:00"))
    exchange = Proxy(stack).chat(stream=stream, stream_options={"include_usage": True})
    total = {"prompt_tokens": 111, "total_tokens": 333, "prompt_tokens_details": {"cached_tokens": 6}}  # noqa: E501  # fmt: skip
    if stream:
        whole = joined(exchange.events())
        assert whole.usage == total
        assert whole.identity == {**heads[0], "object": "chat.completion.chunk"}
    else:
        body = exchange.json()
        assert body["usage"] == total
        assert {key: body[key] for key in heads[0]} == heads[0]


@both
def test_a_round_without_usage_does_no_harm(stream: bool) -> None:
    stack = stack_with("clock")
    stack.on(CHAT, calling("clock"), saying("Noon.", usage={"total_tokens": 3}))
    stack.on(INVOKE, tool_result("12:00"))
    exchange = Proxy(stack).chat(stream=stream, stream_options={"include_usage": True})
    usage = joined(exchange.events()).usage if stream else exchange.json()["usage"]
    assert usage == {"total_tokens": 3}


@both
def test_the_last_round_is_free_of_a_forced_call(stream: bool) -> None:
    stack = stack_with("clock")
    stack.on(CHAT, calling("clock"), saying("Noon."))
    stack.on(INVOKE, tool_result("12:00"))
    exchange = Proxy(stack, max_rounds=1).chat(stream=stream, tool_choice="required")
    assert text_of(exchange) == "Noon."
    assert [body["tool_choice"] for body in asked(stack)] == ["required", "none"]


@both
def test_calls_with_the_same_id_are_told_apart(stream: bool) -> None:
    stack = stack_with("clock", "dice")
    made = [call("clock", {}, "same"), call("dice", {}, "same")]
    stack.on(CHAT, turn(None, made), turn(None, made), saying("Done."))
    stack.on(INVOKE, tool_result("12:00"), tool_result("6"))
    assert text_of(Proxy(stack).chat(stream=stream)) == "Done."
    for sent in (asked(stack)[1]["messages"][1:4], asked(stack)[2]["messages"][4:7]):
        ids = [entry["id"] for entry in sent[0]["tool_calls"]]
        assert len(set(ids)) == 2
        assert [message["tool_call_id"] for message in sent[1:]] == ids


@both
def test_a_model_that_makes_too_many_calls_is_told_so(stream: bool) -> None:
    stack = stack_with("clock")
    made = [call("clock", {"n": n}, f"c{n}") for n in range(130)]
    stack.on(CHAT, turn(None, made), saying("Done."))
    stack.on(INVOKE, tool_result("12:00"))
    assert text_of(Proxy(stack).chat(stream=stream)) == "Done."
    results = [message["content"] for message in asked(stack)[1]["messages"][2:]]
    assert len(results) == 130
    assert len(invoked(stack)) == results.count("12:00") < 130
    assert results[-1].startswith("Error")


# --- client tools


@both
def test_calls_of_the_clients_own_tools_are_handed_over(stream: bool) -> None:
    """DESIGN: L18."""
    stack = stack_with("clock")
    made = [call("own", {"a": 1}, "c1"), call("other", {}, "c2")]
    stack.on(CHAT, turn("Please.", made))
    exchange = Proxy(stack).chat(stream=stream, tools=[client_tool("own"), client_tool("other")])
    assert own_ids(message_of(exchange)) == {
        "role": "assistant", "content": "Please.", "tool_calls": made,
    }  # fmt: skip
    assert finish_of(exchange) == "tool_calls"
    assert len(asked(stack)) == 1 and invoked(stack) == []


@both
def test_a_mixed_round_runs_ours_and_hands_over_only_theirs(stream: bool) -> None:
    stack = stack_with("clock")
    made = [call("clock", {}, "c0"), call("own", {"a": 1}, "c1"), call("clock", {"z": 1}, "c2")]
    stack.on(CHAT, turn("Wait.", made))
    stack.on(INVOKE, tool_result("12:00"))
    proxy = Proxy(stack)
    exchange = proxy.chat(stream=stream, tools=[client_tool("own")])
    assert own_ids(message_of(exchange)) == {
        "role": "assistant", "content": "Wait.", "tool_calls": [made[1]],
    }  # fmt: skip
    assert finish_of(exchange) == "tool_calls"
    assert sorted(invoked(stack), key=str) == [("clock", {"z": 1}), ("clock", {})]
    assert len(asked(stack)) == 1


@both
def test_client_calls_can_come_after_rounds_of_server_tools(stream: bool) -> None:
    stack = stack_with("clock")
    stack.on(CHAT, turn("First.", [call("clock")]), turn("Then.", [call("own", {}, "c1")]))
    stack.on(INVOKE, tool_result("12:00"))
    exchange = Proxy(stack).chat(stream=stream, tools=[client_tool("own")])
    message = message_of(exchange)
    assert message["content"] == "First.\n\nThen."
    assert [c["id"] for c in own_ids(message)["tool_calls"]] == ["c1"]
    assert finish_of(exchange) == "tool_calls"


# --- tools that cannot be listed


@both
@pytest.mark.parametrize(
    "failure",
    [
        answer({"detail": "scripted"}, 500),
        answer({"detail": "who are you"}, 401),
        answer({"data": None}),
        answer([]),
        answer(b"<html>"),
        hang_up,
    ],
)
def test_a_chat_goes_on_though_no_tools_can_be_listed(stream: bool, failure: Any) -> None:
    """DESIGN: L22."""
    stack = FakeStack()
    stack.on("GET /v1/tools", failure)
    stack.on("GET /v1/toolgroups", failure)
    stack.on(CHAT, saying("Hi."))
    proxy = Proxy(stack)
    assert text_of(proxy.chat(stream=stream, tool_choice="auto")) == "Hi."
    assert not {"tools", "tool_choice"} & asked(stack)[0].keys()
    counted = proxy.metrics.registry.get_sample_value("llamaproxy_tool_listing_failures_total")
    assert counted and counted >= 1


@both
def test_a_chat_waits_no_longer_than_ten_seconds_a_list(stream: bool) -> None:
    stack = FakeStack()
    stack.on("GET /v1/tools", nothing)
    stack.on("GET /v1/toolgroups", nothing)
    stack.on(CHAT, saying("Hi."))
    proxy = Proxy(stack)
    exchange = proxy.chat(stream=stream)
    proxy.advance(10)
    proxy.advance(10)
    assert text_of(exchange) == "Hi."
    # Once more, for chats to come, and with more patience.
    proxy.advance(15)
    proxy.advance(15)
    assert nothing_left(proxy, stack)


# --- one answer, two ways


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
        made = [call(n, {"round": place}, f"c{place}{i}") for i, n in enumerate(names)]
        message: Json = {"content": draw(_text), "tool_calls": made}
        if draw(st.booleans()):
            message["reasoning_content"] = draw(_text)
        rounds.append(message)
    last: Json = {"content": draw(_text)}
    if draw(st.booleans()):
        names = draw(st.lists(st.sampled_from(["own", "clock"]), min_size=1, max_size=2))
        last["tool_calls"] = [call(n, {"last": 1}, f"d{i}") for i, n in enumerate(names)]
        last["tool_calls"].append(call("own", {}, "d9"))
    return [*rounds, last]


def answers(script: list[Json], reason: str | None, max_rounds: int) -> list[Any]:
    """What comes of a model that speaks as *script* says: whole, and streamed."""
    found = []
    for stream in (False, True):
        stack = stack_with("clock")
        stack.on(CHAT, *(said(message, reason) for message in script))
        stack.on(INVOKE, tool_result("12:00"))
        proxy = Proxy(stack, max_rounds=max_rounds)
        exchange = proxy.chat(stream=stream, tools=[client_tool("own")])
        shown = own_ids(message_of(exchange))
        message = {key: value for key, value in shown.items() if value != ""}
        rounds = [
            [{k: v for k, v in m.items() if v not in (None, "")} for m in body["messages"]]
            for body in asked(stack)
        ]
        found.append((message, finish_of(exchange), rounds))
    return found


_reasons = st.sampled_from(["stop", "tool_calls", "length", "content_filter", "STOP"])


@settings(max_examples=40)
@given(_scripts(), _reasons, st.integers(1, 3))
def test_the_streamed_answer_is_the_whole_answer(
    script: list[Json], reason: str, max_rounds: int
) -> None:
    whole, streamed = answers(script, reason, max_rounds)
    assert whole == streamed


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
    whole, streamed = answers(script, reason, max_rounds)
    assert whole == streamed


def test_a_stream_may_be_answered_slowly_and_is_the_same() -> None:
    stack = stack_with("clock")
    stack.on(CHAT, begin_events)
    proxy = Proxy(stack)
    exchange = proxy.chat(stream=True)
    for piece in ("It ", "is ", "noon."):
        stack.open[-1].write(b"data: " + json.dumps(chunk({"content": piece})).encode() + b"\n\n")
        proxy.settle()
        assert exchange.text().endswith(piece), "a delta is relayed the moment it arrives"
    stack.open[-1].write(b"data: " + json.dumps(chunk({}, "stop")).encode() + b"\n\n")
    stack.open[-1].finish()
    proxy.settle()
    assert text_of(exchange) == "It is noon."
    assert nothing_left(proxy, stack)
