"""Chats whose tools are MCP servers': the whole application in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import CHAT, INVOKE, FakeStack, Proxy, answer, calling, saying, tool
from tests.tools.mcp_servers import FakeMcp, begin, described, never, result, text
from tests.tools.test_mcp_session import CHANGED, CHANGING
from tests.tools.test_mcp_source import ONE, TWO, Hosts


class World:
    """A server that names one MCP server, and another MCP server beside."""

    def __init__(self, version: str = "0.7.3", **options: Any) -> None:
        self.stack = FakeStack()
        self.stack.on("GET /v1/version", answer({"version": version}))
        connector = {"connector_id": "one", "url": ONE}
        self.stack.on("GET /v1beta/connectors", answer({"data": [connector]}))
        self.one, self.two = FakeMcp("ping"), FakeMcp("ping", "pong")
        self.proxy = Proxy(self.stack, mcp=Hosts(one=self.one, two=self.two), **options)

    def offered(self) -> list[str]:
        """What the model was offered last."""
        body = self.stack.asked_for(CHAT)[-1].json()
        return [each["function"]["name"] for each in body.get("tools", [])]

    def say(self, *turns: Any) -> str:
        self.stack.on(CHAT, *turns)
        exchange = self.proxy.chat()
        self.proxy.settle()
        content: str = exchange.json()["choices"][0]["message"]["content"]
        return content

    def last_result(self) -> str:
        """The result that the model was told last."""
        messages = self.stack.asked_for(CHAT)[-1].json()["messages"]
        content: str = messages[-1]["content"]
        return content


@pytest.fixture
def worlds() -> Iterator[list[World]]:
    """All that a test makes, ended when it does."""
    worlds_made: list[World] = []
    yield worlds_made
    for world in worlds_made:
        world.proxy.catalogue.stop()
        world.proxy.result(world.proxy.sessions.close())
        world.proxy.advance(60)


def make(worlds: list[World], *args: Any, **options: Any) -> World:
    worlds.append(World(*args, **options))
    return worlds[-1]


def test_a_chat_runs_a_connectors_tool(worlds: list[World]) -> None:
    world = make(worlds)
    assert world.say(calling("ping"), saying("It said pong.")) == "It said pong."
    assert world.offered() == ["ping"]
    assert world.last_result() == "pong"


def test_servers_named_by_hand_work_with_any_upstream(worlds: list[World]) -> None:
    """DESIGN: T1."""
    world = make(worlds, mcp_servers={"two": TWO})
    world.stack.on("GET /v1/version", answer({"detail": "Not Found"}, 404))
    assert world.say(calling("pong"), saying("Done.")) == "Done."
    assert world.offered() == ["ping", "pong"]


def test_equal_names_of_two_servers_are_both_offered(worlds: list[World]) -> None:
    """DESIGN: L6."""
    world = make(worlds, mcp_servers={"two": TWO})
    world.say(saying("Hello."))
    one, two, pong = sorted(world.offered())
    assert one.startswith("one__ping_")
    assert two == "pong"
    assert pong.startswith("two__ping_")
    world.two.handlers["tools/call"] = result(text("from two"))
    world.say(calling(pong), saying("Done."))
    assert world.last_result() == "from two"


def test_a_choice_of_a_name_that_two_servers_have_is_refused(worlds: list[World]) -> None:
    """Neither may stand in for the other: the error has the names of both (DESIGN: L11)."""
    world = make(worlds, mcp_servers={"two": TWO})
    world.say(saying("Hello."))
    names = [name for name in world.offered() if "ping" in name]
    exchange = world.proxy.chat(tool_choice={"type": "function", "function": {"name": "ping"}})
    assert exchange.status == 400
    message = exchange.json()["error"]["message"]
    assert len(names) == 2 and all(name in message for name in names)
    assert len(world.stack.asked_for(CHAT)) == 1


def test_a_slow_tool_is_cancelled_at_its_server(worlds: list[World]) -> None:
    world = make(worlds)
    world.one.handlers["tools/call"] = never
    world.stack.on(CHAT, calling("ping"), saying("It took too long."))
    exchange = world.proxy.chat()
    world.proxy.advance(60)
    assert "60 s" in world.last_result()
    assert exchange.json()["choices"][0]["message"]["content"] == "It took too long."
    [notification] = world.one.received("notifications/cancelled")
    assert notification["params"]["requestId"] == world.one.received("tools/call")[0]["id"]


def test_a_client_that_leaves_cancels_its_calls(worlds: list[World]) -> None:
    world = make(worlds)
    world.one.handlers["tools/call"] = never
    world.stack.on(CHAT, calling("ping"))
    exchange = world.proxy.chat(stream=True)
    exchange.leave()
    world.proxy.settle()
    assert len(world.one.received("notifications/cancelled")) == 1


def test_a_change_is_seen_by_the_next_chat(worlds: list[World]) -> None:
    world = make(worlds)
    world.one.capabilities = CHANGING

    def listen(request: Any) -> None:
        begin(request)
        world.one.stream = request

    world.one.get = listen
    world.say(saying("Hello."))
    world.one.handlers["tools/list"] = result({"tools": [described("ping"), described("new")]})
    world.one.say(CHANGED)
    world.proxy.settle()
    world.say(saying("Hello."))
    assert world.offered() == ["new", "ping"]
    # One that says so all the time is listed no more often than chats want it.
    before = len(world.one.received("tools/list"))
    for _ in range(50):
        world.one.say(CHANGED)
        world.proxy.settle()
    assert len(world.one.received("tools/list")) <= before + 1


def test_a_tool_of_a_server_that_was_replaced_runs_in_the_new_way(worlds: list[World]) -> None:
    """In the middle of a chat: the old route is gone, the new server has a tool of that name."""
    world = make(worlds, "0.6.1")
    entry = tool("ping", metadata={"endpoint": ONE})
    world.stack.on("GET /v1/tools", answer({"data": [entry]}))

    def replaced(request: Any) -> None:
        world.stack.on("GET /v1/version", answer({"version": "0.7.3"}))
        answer({"detail": "Not Found"}, 404)(request)

    world.stack.on(INVOKE, replaced)
    assert world.say(calling("ping"), saying("Done.")) == "Done."
    assert world.last_result() == "pong"


def test_a_users_token_reaches_his_mcp_server_alone(worlds: list[World]) -> None:
    """DESIGN: T4."""
    world = make(worlds, mcp_servers={"two": TWO})
    world.stack.on(CHAT, calling("pong"), saying("Done."))
    data = {"mcp_headers": {TWO: {"Authorization": "Bearer mine"}}}
    fields = {"X-OGX-Provider-Data": json.dumps(data), "Authorization": "Bearer key"}
    assert world.proxy.chat(fields=fields).status == 200
    assert set(world.two.fields("Authorization")) == {"Bearer mine"}
    assert set(world.one.fields("Authorization")) == {None}
    for asked in world.stack.asked:
        if asked.path != "/v1/version":
            assert asked.headers.getRawHeaders("Authorization") == ["Bearer key"]
        assert "mine" not in str(asked.headers)
