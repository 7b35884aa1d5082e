"""The tools of llama-server, as a real one (xllamacpp 2026.10.11549) was recorded to list them."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from llamaproxy.errors import ProxyError, ToolFailed, ToolUnknown, UpstreamTimeout
from llamaproxy.jsontext import Json
from llamaproxy.tools.llamaserver import GROUP, LLAMA_SERVER, LlamaServerTools
from llamaproxy.tools.results import ToolResult
from llamaproxy.tools.source import DetectedSource, Listing, ListLimits, NoTools
from llamaproxy.tools.toolruntime import ToolRuntime
from llamaproxy.upstream.client_context import ClientContext
from tests.support import Answer, FakeStack, Upstream, answer, hang_up, head_with, nothing

RECORDED = Path(__file__).parent.parent / "fixtures" / "llama-server" / "tools.json"
ENTRIES: list[Json] = json.loads(RECORDED.read_text("utf-8"))

NOT_FOUND = answer(
    {"error": {"message": "File Not Found", "type": "not_found_error", "code": 404}}, 404
)
SOMEBODY = ClientContext.of(head_with({"Authorization": ["Bearer a"]}))


class World:
    """A plain OpenAI server, and the source that ``tap`` would make for it."""

    def __init__(
        self, *lists: Answer, builtins: Collection[str] = (), pinned: str = "auto"
    ) -> None:
        self.stack = FakeStack()
        self.stack.on("GET /v1/version", NOT_FOUND)
        self.stack.on("GET /tools", *(lists or [answer(ENTRIES)]))
        self.upstream = Upstream(self.stack)
        client, detector = self.upstream.client, self.upstream.detector
        plain = LlamaServerTools(client, builtins)
        self.source = DetectedSource(detector, ToolRuntime(client), NoTools(), pinned, plain)

    def list(self) -> Listing:
        listing: Listing = self.upstream.result(self.source.list_tools(SOMEBODY))
        return listing

    def call(self, *answers: Answer, **arguments: Any) -> ToolResult:
        [tool] = self.list().groups[GROUP]
        self.stack.on("POST /tools", *answers)
        result: ToolResult = self.upstream.result(self.source.invoke(tool, arguments, SOMEBODY))
        return result


def test_tools_of_its_mcp_servers_are_offered_and_nothing_of_its_own() -> None:
    [tool] = World().list().groups[GROUP]
    assert (tool.name, tool.group, tool.origin) == ("echo_echo", GROUP, LLAMA_SERVER)
    assert tool.description == "A tool." and tool.annotations == {"readOnlyHint": True}
    assert any(entry["tool"] == "exec_shell_command" for entry in ENTRIES)


def test_its_own_tools_are_offered_that_the_operator_names() -> None:
    world = World(builtins={"read_file", "write_file", "no_such"})
    tools = {tool.name: tool for tool in world.list().groups[GROUP]}
    assert tools.keys() == {"echo_echo", "read_file", "write_file"}
    assert tools["read_file"].parameters["required"] == ["path"]
    assert tools["write_file"].annotations == {"readOnlyHint": False}


def test_a_tool_is_called_with_the_callers_credentials() -> None:
    world = World()
    result = world.call(answer({"plain_text_response": "hi"}), say="hi", n=1)
    assert result == ToolResult("hi")
    [request] = world.stack.asked_for("POST /tools")
    assert json.loads(request.body) == {"tool": "echo_echo", "params": {"say": "hi", "n": 1}}
    assert request.headers.getRawHeaders("authorization") == ["Bearer a"]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"error": "no"}, "Error: no"),
        ({"error": {"message": "no", "code": 500}}, "Error: no"),
        ({"error": {"code": 500}}, 'Error: {"code":500}'),
        ({"plain_text_response": 5, "x": 1}, '{"plain_text_response":5,"x":1}'),
        ({"plain_text_response": ""}, ""),
        ({"stdout": "a"}, '{"stdout":"a"}'),
    ],
)
def test_what_it_answers_is_the_result(body: Json, text: str) -> None:
    result = World().call(answer(body))
    assert (result.text, result.is_error) == (text, "error" in body)


@pytest.mark.parametrize("status", [400, 401, 500])
def test_a_refused_call_is_a_failure(status: int) -> None:
    refused = answer({"code": status, "message": "key 'path' not found"}, status)
    with pytest.raises(ToolFailed, match="key 'path' not found"):
        World().call(refused)


def test_an_answer_that_is_no_json_is_a_failure() -> None:
    with pytest.raises(ToolFailed, match="cannot be read"):
        World().call(answer(b"<html>", 200, {"Content-Type": "text/html"}))


def test_a_tool_that_is_gone_is_unknown_and_so_listed_again() -> None:
    with pytest.raises(ToolUnknown):
        World().call(NOT_FOUND)


@pytest.mark.parametrize(
    "other",
    [
        NOT_FOUND,
        answer({"detail": "no"}, 401),
        answer({"error": "Unexpected endpoint or method. (GET /tools)"}),
        answer(b"<html>", 200, {"Content-Type": "text/html"}),
        answer({"detail": "broken"}, 500),
        answer([5, {}, {"tool": "x"}, {"type": "mcp", "definition": {"function": []}}]),
        hang_up,
    ],
)
def test_another_plain_server_has_no_tools_and_that_is_no_error(other: Answer) -> None:
    listing = World(other).list()
    assert not any(listing.groups.values()) and not listing.failures


def test_one_that_is_known_and_does_not_answer_is_an_error() -> None:
    world = World(answer(ENTRIES), hang_up)
    world.list()
    with pytest.raises(ProxyError):
        world.list()
    world = World(answer(ENTRIES), NOT_FOUND)
    world.list()
    assert world.list() == Listing({})


def test_that_one_is_slow_does_not_say_that_it_has_no_tools() -> None:
    """A first chat has no time to find out; with more, it is taken for another plain server."""
    world = World(nothing)
    first = world.source.list_tools(SOMEBODY, ListLimits(5, until=5))
    with pytest.raises(UpstreamTimeout, match=r"within 4\.5 s"):
        world.upstream.result(first, after=4.5)
    listing = world.upstream.result(world.source.list_tools(SOMEBODY), after=27)
    assert listing == Listing({})


def test_it_is_not_asked_while_it_is_down() -> None:
    world = World()
    down: dict[str, ProxyError] = {GROUP: UpstreamTimeout("slow")}
    listing = world.upstream.result(world.source.list_tools(SOMEBODY, ListLimits(down=down)))
    assert listing == Listing({}, down)
    assert world.stack.asked_for("GET /tools") == []


def test_a_pinned_source_is_not_asked_for_them() -> None:
    world = World(pinned="mcp")
    assert world.list() == Listing({})
    assert world.stack.asked_for("GET /tools") == []
