"""What a hostile upstream, or a careless model, once got through."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chat.streams import client_tool, failure_in, message_of, replying, stack_with
from tests.support import (
    CHAT,
    INVOKE,
    Proxy,
    answer,
    begin_events,
    call,
    calling,
    chunk,
    completion,
    event,
    events,
    saying,
    tool_result,
)

Json = dict[str, Any]

CONTROL_KEYS: Json = {
    "event": {"type": "execute"},
    "selected_model_id": "x",
    "sources": [{}],
    "output": [{"type": "function_call", "name": "x"}],
}


def test_a_whole_answer_loses_what_clients_act_on_too() -> None:
    stack = stack_with()
    stack.on(CHAT, answer(completion({"content": "Hi."}, **CONTROL_KEYS, mine=1)))
    body = Proxy(stack).chat().json()
    assert not CONTROL_KEYS.keys() & body.keys()
    assert body["mine"] == 1


ERRORS = [
    b'event: error\ndata: {"message": "boom", "code": 500}\n\n',
    b'event: error\ndata: {"detail": "boom"}\n\n',
    event({"type": "error", "message": "boom"}),
    event({"object": "error", "message": "boom", "code": 400}),
    event({"detail": "boom"}),
]


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_event_of_any_kind_is_no_clean_end(error: bytes) -> None:
    stack = stack_with()

    def write(request: Any) -> None:
        begin_events(request)
        request.write(event(chunk({"content": "Half"})) + error + b"data: [DONE]\n\n")
        request.finish()

    stack.on(CHAT, write)
    assert "boom" in failure_in(Proxy(stack).chat(stream=True).events())["message"]


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_event_that_comes_first_is_an_http_error(error: bytes) -> None:
    stack = stack_with()

    def write(request: Any) -> None:
        begin_events(request)
        request.write(error)
        request.finish()

    stack.on(CHAT, write)
    exchange = Proxy(stack).chat(stream=True)
    assert exchange.status >= 400
    assert "boom" in exchange.json()["error"]["message"]


def test_an_empty_event_is_no_event() -> None:
    stack = stack_with()
    stack.on(CHAT, events(chunk({"content": "Hi."}), b"", chunk({}, "stop")))
    assert message_of(Proxy(stack).chat(stream=True))["content"] == "Hi."


def test_two_calls_of_one_name_are_two_though_both_are_numbered_0() -> None:
    stack = stack_with("clock")
    entries = [
        {"index": 0, "function": {"name": "clock", "arguments": arguments}}
        for arguments in ('{"a":1}', '{"a":2}')
    ]
    stack.on(CHAT, events(chunk({"tool_calls": entries}), chunk({}, "tool_calls")), saying("Noon."))
    stack.on(INVOKE, tool_result("12:00"))
    Proxy(stack).chat(stream=True)
    assert [each.json()["kwargs"] for each in stack.asked_for(INVOKE)] == [{"a": 1}, {"a": 2}]


def test_a_misspelt_name_that_could_be_the_clients_is_nobodys() -> None:
    stack = stack_with("time")
    stack.on(CHAT, calling("TIME_"), saying("Sorry."))
    Proxy(stack).chat(tools=[client_tool("t_i_m_e")])
    assert stack.asked_for(INVOKE) == []
    result = stack.asked_for(CHAT)[1].json()["messages"][-1]["content"]
    assert "Did you mean" in result and "t_i_m_e" in result and "time" in result


def test_one_call_under_three_spellings_is_a_repetition() -> None:
    stack = stack_with("clock")
    stack.on(CHAT, *(calling(name) for name in ("clock", "Clock", "CLOCK")), saying("Noon."))
    stack.on(INVOKE, tool_result("12:00"))
    assert message_of(Proxy(stack).chat())["content"] == "Noon."
    assert stack.asked_for(CHAT)[3].json()["tool_choice"] == "none"


def test_the_output_of_a_whole_answer_is_in_the_order_of_the_calls() -> None:
    stack = stack_with("slow", "quick")
    both = {"content": None, "tool_calls": [call("slow", {}, "a"), call("quick", {}, "b")]}
    held: list[Any] = []
    stack.on(CHAT, replying(both, "tool_calls"), saying("Done."))
    stack.on(INVOKE, held.append, tool_result("quick"))
    proxy = Proxy(stack)
    exchange = proxy.chat(fields={"X-OpenWebUI-Message-Id": "m"})
    tool_result("slow")(held[0])
    proxy.settle()
    output = exchange.json()["output"]
    assert [item.get("name") for item in output if item["type"] == "function_call"] == [
        *("slow", "quick")
    ]
