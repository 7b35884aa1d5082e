"""The instructions of MCP servers in a conversation, where the operator wants them (DESIGN: T6)."""

from __future__ import annotations

from typing import Any

import pytest

from llamaproxy.chat.system_message import with_system_text
from tests.chat.streams import both, message_of
from tests.support import (
    CHAT,
    FakeStack,
    MemoryAgent,
    Proxy,
    answer,
    calling,
    recorded,
    saying,
)
from tests.tools.mcp_servers import FakeMcp

Json = dict[str, Any]

USER = {"role": "user", "content": "Hello"}
PART = {"type": "text", "text": "T"}
NOTES = "The servers of your tools say how to use them.\n\n## web\n\nLook before you leap."


def world(instructions: object, wanted: bool = True, **more: Any) -> tuple[Proxy, FakeStack]:
    stack, mcp = FakeStack(), FakeMcp("look", **more)
    mcp.instructions = instructions
    stack.on("GET /v1/version", recorded("ollama", "version"))
    stack.on(CHAT, saying("Hi."))
    servers = {"web": "http://mcp:9000/mcp"}
    proxy = Proxy(stack, mcp=MemoryAgent(mcp), mcp_servers=servers, mcp_instructions=wanted)
    return proxy, stack


def asked(stack: FakeStack) -> list[list[Json]]:
    return [each.json()["messages"] for each in stack.asked_for(CHAT)]


@both
@pytest.mark.parametrize("old", [False, True])
def test_they_come_with_the_system_message_in_every_round(stream: bool, old: bool) -> None:
    """DESIGN: T6."""
    proxy, stack = world("Look before you leap.", old=old)
    stack.on(CHAT, calling("look"), saying("Hi."))
    assert message_of(proxy.chat(stream=stream))["content"] == "Hi."
    first, second = asked(stack)
    assert first == [{"role": "system", "content": NOTES}, USER]
    assert second[:2] == first and [m["role"] for m in second[2:]] == ["assistant", "tool"]


@both
def test_without_the_option_the_conversation_is_the_clients(stream: bool) -> None:
    """DESIGN: T6."""
    proxy, stack = world("Look before you leap.", wanted=False)
    proxy.chat(stream=stream)
    assert asked(stack) == [[USER]]


@both
@pytest.mark.parametrize(
    "fields", [{"X-Llamaproxy-Tools": "other"}, {"X-Llamaproxy-Tools": "none"}]
)
def test_a_chat_without_the_servers_tools_has_no_words_about_them(
    stream: bool, fields: dict[str, str]
) -> None:
    proxy, stack = world("Look before you leap.")
    proxy.chat(stream=stream, fields=fields)
    assert asked(stack) == [[USER]]


@both
def test_a_model_that_takes_no_tools_has_no_words_about_them(stream: bool) -> None:
    proxy, stack = world("Look before you leap.")
    stack.on(CHAT, recorded("ollama", "no_tools"), saying("Hi."))
    assert message_of(proxy.chat(stream=stream))["content"] == "Hi."
    assert asked(stack) == [[{"role": "system", "content": NOTES}, USER], [USER]]


@pytest.mark.parametrize("odd", [None, 5, [], {"a": 1}, "", " "])
def test_a_server_that_says_nothing_adds_nothing(odd: object) -> None:
    proxy, stack = world(odd)
    proxy.chat()
    assert asked(stack) == [[USER]]
    assert "tools" in stack.asked_for(CHAT)[0].json()


def test_they_are_in_the_status_and_on_the_page() -> None:
    proxy, _ = world("Look before you leap.", wanted=False)
    proxy.chat()
    assert proxy.tool_status.as_json()["tool_groups"]["web"]["instructions"] == (
        "Look before you leap."
    )
    [group] = proxy.tool_status.tools_as_json()["groups"]
    assert group["instructions"] == "Look before you leap."


def test_a_title_is_on_the_page() -> None:
    stack, mcp = FakeStack(), FakeMcp()
    titled = {"name": "look", "title": "Look it up", "inputSchema": {"type": "object"}}
    stack.on("GET /v1/version", answer({}, 404))
    stack.on(CHAT, saying("Hi."))

    def listed(request: Any, message: Json) -> None:
        result = {"tools": [titled]}
        answer({"jsonrpc": "2.0", "id": message["id"], "result": result})(request)

    mcp.handlers["tools/list"] = listed
    proxy = Proxy(stack, mcp=MemoryAgent(mcp), mcp_servers={"web": "http://mcp:9000/mcp"})
    proxy.chat()
    [group] = proxy.tool_status.tools_as_json()["groups"]
    assert [tool["title"] for tool in group["tools"]] == ["Look it up"]
    assert "title" not in stack.asked_for(CHAT)[0].json()["tools"][0]["function"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], [{"role": "system", "content": "T"}]),
        ([USER], [{"role": "system", "content": "T"}, USER]),
        (
            [{"role": "system", "content": "S", "name": "n"}, USER],
            [{"role": "system", "content": "S\n\nT", "name": "n"}, USER],
        ),
        ([{"role": "developer", "content": "S"}], [{"role": "developer", "content": "S\n\nT"}]),
        ([{"role": "system", "content": None}], [{"role": "system", "content": "T"}]),
        ([{"role": "system", "content": ""}], [{"role": "system", "content": "T"}]),
        (
            [{"role": "system", "content": [{"type": "text", "text": "S"}]}],
            [{"role": "system", "content": [{"type": "text", "text": "S"}, PART]}],
        ),
        (["odd"], [{"role": "system", "content": "T"}, "odd"]),
        (
            [USER, {"role": "system", "content": "S"}],
            [{"role": "system", "content": "T"}, USER, {"role": "system", "content": "S"}],
        ),
    ],
)  # fmt: skip
def test_text_is_added_to_the_first_message_or_in_front(before: Any, after: Any) -> None:
    copy = [dict(each) if isinstance(each, dict) else each for each in before]
    assert with_system_text(before, "T") == after
    assert before == copy, "what the client sent is not changed"
