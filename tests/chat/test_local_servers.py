"""Every local server as the upstream, with an MCP server beside it, through the whole proxy.

What llama-server answers was recorded (xllamacpp 2026.10.11549, SmolLM2 with a template for tools).
What the others do was written down from their sources and their users' reports, which
docs/upstreams.md names.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.chat.streams import both, failure_in, finish_of, joined, message_of
from tests.support import (
    CHAT,
    FIXTURES,
    Answer,
    Exchange,
    FakeStack,
    MemoryAgent,
    Proxy,
    answer,
    recorded,
    recording,
    saying,
)
from tests.tools.mcp_servers import FakeMcp

Json = dict[str, Any]

SERVERS = ("ollama", "vllm", "sglang", "tabbyapi", "lm-studio", "openai", "llama-server")

every_server = pytest.mark.parametrize("server", SERVERS)

MCP = {"web": "http://mcp:9000/mcp"}


def stack_of(server: str) -> FakeStack:
    """A server of that kind, whose model has not been asked yet."""
    stack = FakeStack()
    stack.on("GET /v1/version", recorded(server, "version"))
    stack.on("GET /v1/tools", recorded(server, "version"))
    stack.on(
        "GET /tools", recorded(server, "tools_disabled" if server == "llama-server" else "tools")
    )
    stack.on("GET /v1/models", recorded(server, "models"))
    return stack


class World:
    """A proxy in front of such a server, and an MCP server with one tool."""

    def __init__(self, server: str, *rounds: Answer) -> None:
        self.stack, self.mcp = stack_of(server), FakeMcp("get_time")
        self.stack.on(CHAT, *rounds)
        self.proxy = Proxy(self.stack, mcp=MemoryAgent(self.mcp), mcp_servers=MCP)

    def chat(self, **more: Any) -> Exchange:
        return self.proxy.chat(stream_options={"include_usage": True}, **more)

    @property
    def requests(self) -> list[Json]:
        """What the model was asked."""
        return [asked.json() for asked in self.stack.asked_for(CHAT)]

    @property
    def ran(self) -> list[Json]:
        """The arguments with which the tool was run."""
        messages = [json.loads(asked.body) for asked in self.mcp.asked if asked.body]
        called = [each for each in messages if each.get("method") == "tools/call"]
        return [each["params"]["arguments"] for each in called]


def suffix(stream: bool) -> str:
    return "_stream" if stream else ""


@every_server
@both
def test_a_chat_with_tools(server: str, stream: bool) -> None:
    """The calls are run, once each; the client sees one answer and nothing of them."""
    # The real model's last words were recorded in a stream alone.
    last = recorded(
        server, "answer_stream" if server == "llama-server" else "answer" + suffix(stream)
    )
    world = World(server, recorded(server, "call" + suffix(stream)), last)
    exchange = world.chat(stream=stream)
    message = message_of(exchange)
    assert message["content"].strip().startswith("It is")
    assert not message.get("tool_calls") and finish_of(exchange) == "stop"
    cities = ["Rome"] if server == "llama-server" else ["Rome", "Oslo"]
    assert world.ran == [{"city": city} for city in cities]
    first, second = world.requests
    assert [each["function"]["name"] for each in first["tools"]] == ["get_time"]
    assert second["tools"] == first["tools"]
    said, *results = second["messages"][1:]
    assert [each["role"] for each in results] == ["tool"] * len(cities)
    assert [each["id"] for each in said["tool_calls"]] == [each["tool_call_id"] for each in results]
    arguments = [json.loads(each["function"]["arguments"]) for each in said["tool_calls"]]
    assert arguments == world.ran
    assert not world.stack.open


@pytest.mark.parametrize("server", ["ollama", "vllm", "sglang", "tabbyapi", "lm-studio"])
@both
def test_reasoning_comes_through_and_goes_back(server: str, stream: bool) -> None:
    key = "reasoning" if server in ("ollama", "vllm") else "reasoning_content"
    rounds = [recorded(server, name + suffix(stream)) for name in ("call", "answer")]
    world = World(server, *rounds)
    assert message_of(world.chat(stream=stream))[key] == "Two cities."
    assert world.requests[1]["messages"][1][key] == "Two cities."


@pytest.mark.parametrize("server", [each for each in SERVERS if each != "llama-server"])
def test_the_usage_of_both_rounds_is_added(server: str) -> None:
    world = World(server, *(recorded(server, name) for name in ("call_stream", "answer_stream")))
    streamed = joined(world.chat(stream=True).events())
    assert streamed.usage["total_tokens"] == 210 + 206


@every_server
def test_a_stream_that_breaks_is_told(server: str) -> None:
    """Ollama's sends an empty chunk and stops; llama.cpp's had a field of its own for errors."""
    world = World(server, recorded(server, "broken_stream"))
    exchange = world.chat(stream=True)
    assert exchange.status == 200 and exchange.text() == "It is"
    failure = failure_in(exchange.events())
    text = recording(server, "broken_stream")["response"]["text"]
    words = failure["message"]
    assert words in text.replace("\\", "") or (server == "ollama" and "in the middle" in words)
    assert not world.stack.open


@pytest.mark.parametrize("name", ["unknown_model", "context", "models_without_key", "bad_history"])
@every_server
@both
def test_a_refusal_reaches_the_client_in_openais_shape(
    server: str, name: str, stream: bool
) -> None:
    try:
        response = recording(server, name)["response"]
    except FileNotFoundError:
        return
    exchange = World(server, recorded(server, name)).chat(stream=stream)
    body = exchange.json()
    assert exchange.status == response["status"]
    assert set(body["error"]) >= {"message", "type", "param", "code"}
    assert body["error"]["message"] and body["error"]["message"] in json.dumps(
        response["body"], ensure_ascii=False
    ).replace('\\"', '"')


@pytest.mark.parametrize("server", ["ollama", "vllm", "openai", "llama-server"])
@both
def test_a_model_that_takes_no_tools_is_asked_without(server: str, stream: bool) -> None:
    """DESIGN: L22. And not asked with them again for a while."""
    world = World(server, recorded(server, "no_tools"), saying("Hello."))
    exchange = world.chat(stream=stream, tool_choice="auto")
    assert (exchange.status, message_of(exchange)["content"]) == (200, "Hello.")
    offered, without = world.requests
    assert offered["tools"] and not without.keys() & {"tools", "tool_choice"}
    assert message_of(world.chat(stream=stream))["content"] == "Hello."
    assert "tools" not in world.requests[2]
    assert message_of(world.chat(stream=stream, model="another"))["content"] == "Hello."
    assert "tools" in world.requests[3]
    world.proxy.advance(301)
    world.chat(stream=stream)
    assert "tools" in world.requests[4]


@both
def test_a_client_with_tools_of_its_own_is_told_that_the_model_takes_none(stream: bool) -> None:
    world = World("ollama", recorded("ollama", "no_tools"))
    own = {"type": "function", "function": {"name": "own", "parameters": {"type": "object"}}}
    exchange = world.chat(stream=stream, tools=[own])
    assert exchange.status == 400
    assert "does not support tools" in exchange.json()["error"]["message"]
    assert len(world.requests) == 1


@both
def test_a_refusal_for_other_reasons_is_no_reason_to_leave_tools_out(stream: bool) -> None:
    for text in (
        "Invalid tool_choice: any",
        "tool_choice=required is not supported",
        "Invalid schema for function 'get_time': 'allOf' is not permitted.",
        "temperature is not supported with this model",
    ):
        world = World("openai", answer({"error": {"message": text}}, 400))
        world.chat(stream=stream)
        assert len(world.requests) == 1, text


def test_a_call_by_name_that_ends_with_stop_is_a_call() -> None:
    """vLLM's finish reason for a call that ``tool_choice`` named."""
    world = World("vllm", recorded("vllm", "named_stream"), recorded("vllm", "answer_stream"))
    choice = {"type": "function", "function": {"name": "get_time"}}
    assert message_of(world.chat(stream=True, tool_choice=choice))["content"]
    assert world.ran == [{"city": "Rome"}]


def test_calls_that_all_have_the_index_0() -> None:
    """Ollama's streams until 2025."""
    world = World(
        "ollama", recorded("ollama", "call_stream_old"), recorded("ollama", "answer_stream")
    )
    assert message_of(world.chat(stream=True))["content"]
    assert world.ran == [{"city": "Rome"}, {"city": "Oslo"}]


@both
def test_a_call_that_llama_server_cut_off(stream: bool) -> None:
    """It would answer 500 to a history with the one bracket that had come of its arguments."""
    cut = recorded("llama-server", "call_cut" + suffix(stream))
    world = World("llama-server", cut, saying("So."))
    assert message_of(world.chat(stream=stream))["content"] == "So."
    assert world.ran == []
    (said,) = [m for m in world.requests[1]["messages"] if m["role"] == "assistant"]
    assert said["tool_calls"][0]["function"]["arguments"] == "{}"


@every_server
def test_it_is_a_plain_server_whatever_it_answers_to_what_it_does_not_know(server: str) -> None:
    world = World(server, saying("Hello."))
    assert message_of(world.chat())["content"] == "Hello."
    detected = world.proxy.detector.detected
    assert detected is not None and (detected.version, detected.openai_prefix) == ("", "/v1")
    assert [tool["function"]["name"] for tool in world.requests[0]["tools"]] == ["get_time"]
    asked = {asked.path for asked in world.stack.asked}
    assert asked == {"/v1/version", "/tools", "/v1/chat/completions"}


@every_server
def test_its_models_are_what_it_lists(server: str) -> None:
    exchange = World(server).proxy.request("GET", "/v1/models")
    assert exchange.json() == recording(server, "models")["response"]["body"]


def test_a_llama_server_that_loads_its_model_has_its_tools_as_soon_as_it_can() -> None:
    stack = FakeStack()
    loading, ready = recorded("llama-server", "loading"), recorded("llama-server", "version")
    tools = json.loads((FIXTURES / "llama-server" / "tools.json").read_text("utf-8"))
    stack.on("GET /v1/version", loading, loading, ready)
    stack.on("GET /tools", loading, answer(tools))
    stack.on(CHAT, loading, saying("Hello."))
    proxy = Proxy(stack)
    assert proxy.chat().status == 503
    proxy.advance(31)
    assert message_of(proxy.chat())["content"] == "Hello."
    proxy.advance(1)
    assert proxy.chat().status == 200
    assert "tools" in stack.asked_for(CHAT)[-1].json()
