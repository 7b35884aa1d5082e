"""Every recorded stream of every generation, through the front door."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.chat.streams import (
    both,
    client_tool,
    failure_in,
    finish_of,
    joined,
    message_of,
    nothing_left,
)
from tests.chat.test_endpoint import PATHS, of_version
from tests.support import Answer, Proxy, answer, begin_events, recorded, recording

Json = dict[str, Any]

versions = pytest.mark.parametrize("version", PATHS)


def named(version: str, name: str) -> str:
    """The recording *name*: the oldest versions call some of them after their own paths."""
    old = version.startswith("0.2.")
    return f"chat_v1_openai_v1_{name}" if old else f"chat_v1_{name}"


def in_pieces(version: str, name: str, size: int) -> Answer:
    """The recorded stream, *size* bytes at a time."""
    text = recording(version, name)["response"]["text"].encode()

    def write(request: Any) -> None:
        begin_events(request)
        for start in range(0, len(text), size):
            request.write(text[start : start + size])
        request.finish()

    return write


@versions
@pytest.mark.parametrize("size", [1, 7, 4096])
def test_a_plain_stream(version: str, size: int) -> None:
    stack, route = of_version(version)
    stack.on(route, in_pieces(version, named(version, "plain_stream"), size))
    proxy = Proxy(stack)
    exchange = proxy.chat(stream=True)
    streamed = joined(exchange.events())
    assert streamed.message["content"] == "Hello from the scripted model."
    assert streamed.finish_reason == "stop"
    assert streamed.usage is None
    assert nothing_left(proxy, stack)


@versions
def test_a_stream_with_a_call(version: str) -> None:
    stack, route = of_version(version)
    stack.on(route, recorded(version, named(version, "tools_stream")))
    exchange = Proxy(stack).chat(stream=True, tools=[client_tool("get_text")])
    (entry,) = message_of(exchange)["tool_calls"]
    assert entry["function"]["name"] == "get_text"
    assert json.loads(entry["function"]["arguments"])["city"]
    assert finish_of(exchange) == "tool_calls"


@versions
@both
def test_calls_side_by_side(version: str, stream: bool) -> None:
    stack, route = of_version(version)
    name = "chat_parallel_calls_stream" if stream else "chat_parallel_calls"
    stack.on(route, recorded(version, name))
    exchange = Proxy(stack).chat(stream=stream, tools=[client_tool("get_text")])
    entries = message_of(exchange)["tool_calls"]
    assert [each["id"] for each in entries] == ["call_1_0", "call_1_1"]
    assert all(json.loads(c["function"]["arguments"]) == {"city": "x", "days": 1} for c in entries)
    assert finish_of(exchange) == "tool_calls"


@pytest.mark.parametrize("version", ["0.2.12", "0.2.24", "0.3.5", "0.6.1"])
@both
def test_calls_of_a_server_tool_are_run_and_sent_back(version: str, stream: bool) -> None:
    stack, route = of_version(version)
    stack.on("GET /v1/tools", answer({"data": [{"toolgroup_id": "g", "name": "get_text"}]}))
    name = "chat_parallel_calls_stream" if stream else "chat_parallel_calls"
    last = "chat_reasoning_stream" if stream else "chat_reasoning"
    stack.on(route, recorded(version, name), recorded(version, last))
    stack.on("POST /v1/tool-runtime/invoke", answer({"content": "Sunny", "error_code": 0}))
    exchange = Proxy(stack).chat(stream=stream)
    assert message_of(exchange)["content"] == "Hello from the scripted model."
    assert finish_of(exchange) == "stop"
    sent = stack.asked_for(route)[1].json()["messages"][1:]
    assert [message.get("tool_call_id") for message in sent] == [None, "call_1_0", "call_1_1"]
    assert [entry["id"] for entry in sent[0]["tool_calls"]] == ["call_1_0", "call_1_1"]


@versions
@both
def test_reasoning(version: str, stream: bool) -> None:
    stack, route = of_version(version)
    stack.on(route, recorded(version, "chat_reasoning_stream" if stream else "chat_reasoning"))
    message = message_of(Proxy(stack).chat(stream=stream))
    assert message["content"] == "Hello from the scripted model."
    # Up to 0.2.24 the server drops it in an answer that is not streamed.
    text = json.dumps(recording(version, "chat_reasoning")["response"])
    if stream or "reasoning_content" in text:
        assert message["reasoning_content"] == "thinking..."


@versions
@pytest.mark.parametrize("include", [True, False, None])
def test_usage_comes_last_and_only_if_it_is_wanted(version: str, include: bool | None) -> None:
    stack, route = of_version(version)
    stack.on(route, recorded(version, "chat_stream_usage"))
    options = {} if include is None else {"stream_options": {"include_usage": include}}
    streamed = joined(Proxy(stack).chat(options, stream=True).events())
    if include:
        assert streamed.usage["total_tokens"] == 15
    else:
        assert streamed.usage is None


@versions
@pytest.mark.parametrize(
    "name", ["chat_backend_dies_midstream", "chat_backend_error_event_midstream"]
)
def test_a_failure_in_the_middle_is_told(version: str, name: str) -> None:
    stack, route = of_version(version)
    stack.on(route, recorded(version, name))
    proxy = Proxy(stack)
    exchange = proxy.chat(stream=True)
    assert exchange.status == 200
    failure = failure_in(exchange.events())
    assert failure["type"] in ("invalid_request_error", "server_error")
    assert re.search("finish_reason|unexpected error occurred", failure["message"])
    assert exchange.text(), "what had been said is not taken back"
    assert nothing_left(proxy, stack)


@versions
def test_the_answer_after_a_tools_result(version: str) -> None:
    stack, route = of_version(version)
    stack.on(route, recorded(version, "chat_second_turn_stream"))
    exchange = Proxy(stack).chat(stream=True)
    assert message_of(exchange)["content"]
    assert finish_of(exchange) == "stop"
