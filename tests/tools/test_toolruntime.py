"""The tool-runtime API, as real servers of several generations were recorded to speak it."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred

from llamaproxy.errors import (
    ProxyError,
    ToolFailed,
    ToolUnknown,
    UpstreamBroke,
    UpstreamRefused,
    UpstreamTimeout,
)
from llamaproxy.jsontext import Json
from llamaproxy.tools.definitions import ToolDefinition
from llamaproxy.tools.results import ToolResult
from llamaproxy.tools.source import BACKGROUND, DetectedSource, Listing, ListLimits
from llamaproxy.tools.toolruntime import ToolRuntime, definition_of
from llamaproxy.upstream.client_context import ClientContext
from tests.support import (
    INVOKE,
    Answer,
    FakeStack,
    Upstream,
    answer,
    hang_up,
    head_with,
    nothing,
    recorded,
    recording,
    tool,
    tool_result,
)

NAMES = "get_text get_structured get_image get_mixed fail slow ping nested big headers".split()
SOMEBODY = ClientContext.of(head_with({"Authorization": ["Bearer a"], "traceparent": ["00-1"]}))


class Source:
    """A ToolRuntime over a fake stack."""

    def __init__(self) -> None:
        self.stack = FakeStack()
        self.upstream = Upstream(self.stack)
        self.runtime = ToolRuntime(self.upstream.client)

    def list(self, after: float = 0, limits: ListLimits = BACKGROUND) -> Listing:
        listing: Listing = self.upstream.result(self.runtime.list_tools(SOMEBODY, limits), after)
        return listing

    def invoke(self, *answers: Answer, name: str = "ping", **arguments: Any) -> ToolResult:
        self.stack.on(INVOKE, *answers)
        called = ToolDefinition("mcp::main", name, "", {})
        work = self.runtime.invoke(called, arguments, SOMEBODY)
        result: ToolResult = self.upstream.result(work)
        return result


# --- definitions


def test_a_json_schema_is_passed_on_as_it_is() -> None:
    for entry in recording("0.6.1", "tools")["response"]["body"]["data"]:
        definition = definition_of(entry)
        assert definition is not None
        assert definition.parameters == entry["input_schema"]
        assert definition.description == entry["description"]
        assert (definition.group, definition.name) == (entry["toolgroup_id"], entry["name"])


def test_a_parameter_list_becomes_a_json_schema() -> None:
    entries = recording("0.2.24", "tools")["response"]["body"]["data"]
    [get_text] = [entry for entry in entries if entry["identifier"] == "get_text"]
    definition = definition_of(get_text)
    assert definition is not None
    assert definition.name == "get_text"
    assert definition.parameters == {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city", "days"],
    }


@pytest.mark.parametrize(
    ("parameter", "schema", "required"),
    [
        ({"parameter_type": "int"}, {"type": "integer"}, True),
        ({"parameter_type": "float"}, {"type": "number"}, True),
        ({"parameter_type": "str"}, {"type": "string"}, True),
        ({"parameter_type": "bool"}, {"type": "boolean"}, True),
        ({"parameter_type": "dict"}, {"type": "object"}, True),
        ({"parameter_type": "list"}, {"type": "array", "items": {}}, True),
        ({"parameter_type": "array"}, {"type": "array", "items": {}}, True),
        (
            {"parameter_type": "array", "items": {"type": "string"}},
            {"type": "array", "items": {"type": "string"}},
            True,
        ),
        ({"parameter_type": "any"}, {}, True),
        ({}, {}, True),
        (
            {"parameter_type": "string", "required": False, "default": "x", "description": "d"},
            {"type": "string", "default": "x", "description": "d"},
            False,
        ),
        ({"parameter_type": "integer", "default": 0}, {"type": "integer", "default": 0}, True),
        (
            {"parameter_type": "boolean", "default": False},
            {"type": "boolean", "default": False},
            True,
        ),
    ],
)
def test_every_parameter_type_has_a_schema(parameter: Json, schema: Json, required: bool) -> None:
    """DESIGN: L7."""
    definition = definition_of({"identifier": "t", "parameters": [{"name": "p", **parameter}]})
    assert definition is not None
    expected: Json = {"type": "object", "properties": {"p": schema}}
    assert definition.parameters == ({**expected, "required": ["p"]} if required else expected)


@pytest.mark.parametrize(
    "entry",
    [
        {"name": "t"},
        {"name": "t", "input_schema": None},
        {"identifier": "t", "parameters": []},
        {"identifier": "t", "parameters": None, "toolgroup_id": None, "description": None},
        {"name": "t", "input_schema": "odd", "parameters": ["odd", {"name": 7}, {}]},
    ],
)
def test_a_tool_without_parameters_has_an_empty_schema(entry: Json) -> None:
    """DESIGN: L7."""
    definition = definition_of(entry)
    assert definition is not None
    assert definition.parameters == {"type": "object", "properties": {}}
    assert (definition.group, definition.description) == ("", "")


@pytest.mark.parametrize("entry", [{}, {"name": None}, {"name": 7}, {"name": ""}])
def test_an_entry_without_a_name_is_no_tool(entry: Json) -> None:
    assert definition_of(entry) is None


# --- listing


@pytest.mark.parametrize("version", ["0.2.24", "0.3.5", "0.6.1"])
def test_every_generations_list_is_read(version: str) -> None:
    source = Source()
    source.stack.on("GET /v1/tools", recorded(version, "tools"))
    listing = source.list()
    assert [tool.name for tool in listing.groups["mcp::main"]] == NAMES
    assert listing.failures == {}
    [asked] = source.stack.asked_for("GET /v1/tools")
    assert asked.headers.getRawHeaders("Authorization") == ["Bearer a"]
    assert asked.headers.getRawHeaders("traceparent") == ["00-1"]


def test_of_equal_names_only_the_last_is_listed_because_it_is_the_one_that_runs() -> None:
    """DESIGN: L6."""
    source = Source()
    source.stack.on("GET /v1/tools", recorded("0.6.1", "tools_two_groups_same_names"))
    assert list(source.list().groups) == ["mcp::second"]


LOCKED = recorded("0.6.1", "tools_with_locked_group_noauth")


@pytest.mark.parametrize(
    "spoilt", [LOCKED, recorded("0.2.12", "tools_with_dead_group"), hang_up, answer(b"<html>")]
)
def test_a_group_that_spoils_the_list_does_not_cost_the_others(spoilt: Answer) -> None:
    """DESIGN: T3."""
    source = Source()
    source.stack.on("GET /v1/tools", spoilt)
    source.stack.on("GET /v1/toolgroups", recorded("0.6.1", "toolgroups_after_register"))
    by_group = "GET /v1/tools?toolgroup_id=mcp::"
    source.stack.on(f"{by_group}main", recorded("0.6.1", "tools_by_group"))
    source.stack.on(f"{by_group}second", answer({"data": [tool("other", "mcp::second")]}))
    source.stack.on(f"{by_group}dead", LOCKED)
    listing = source.list()
    assert [tool.name for tool in listing.groups["mcp::main"]] == NAMES
    assert [tool.name for tool in listing.groups["mcp::second"]] == ["other"]
    assert list(listing.failures) == ["mcp::dead"]
    assert "401" in str(listing.failures["mcp::dead"])
    assert all(each.headers.hasHeader("Authorization") for each in source.stack.asked)


@pytest.mark.parametrize("by_group", [False, True])
def test_a_group_of_which_the_server_lists_nothing_is_missing(by_group: bool) -> None:
    """DESIGN: L22. That of a dead MCP server is not in the list of 0.6.1 (recorded)."""
    source = Source()
    listed = answer({"data": [tool("a", "mcp::main")]})
    source.stack.on("GET /v1/tools", LOCKED if by_group else listed)
    source.stack.on("GET /v1/tools?toolgroup_id=mcp::main", listed)
    for name in ("mcp::dead", "builtin::rag", "odd"):
        source.stack.on(f"GET /v1/tools?toolgroup_id={name}", answer({"data": []}))
    dead = {"uri": "http://u:secret@dead:9000/mcp?token=secret"}
    groups = [
        {"identifier": "mcp::main", "mcp_endpoint": {"uri": "http://main:9000/mcp"}},
        {"identifier": "mcp::dead", "mcp_endpoint": dead},
        {"identifier": "builtin::rag", "mcp_endpoint": None},
        {"identifier": "odd", "mcp_endpoint": {"uri": 7}},
        {"mcp_endpoint": dead},
    ]
    source.stack.on("GET /v1/toolgroups", answer({"data": groups}))
    listing = source.list()
    assert list(listing.groups) == ["mcp::main"]
    [(name, error)] = listing.failures.items()
    assert (name, error.where) == ("mcp::dead", "http://dead:9000/mcp")
    assert "secret" not in error.logged


@pytest.mark.parametrize("groups", [answer({"detail": "no"}, 500), nothing, answer([]), hang_up])
def test_tools_are_listed_though_the_groups_cannot_be(groups: Answer) -> None:
    source = Source()
    source.stack.on("GET /v1/tools", answer({"data": [tool("a", "mcp::main")]}))
    source.stack.on("GET /v1/toolgroups", groups)
    listing = source.list(after=10)
    assert list(listing.groups) == ["mcp::main"] and listing.failures == {}
    assert not listing.names_all


@pytest.mark.parametrize("failing", [answer({}), answer({"data": None}), answer([]), hang_up])
def test_a_group_whose_own_list_is_odd_does_not_cost_the_others(failing: Answer) -> None:
    source = Source()
    source.stack.on("GET /v1/tools", LOCKED)
    groups = [{"identifier": "a"}, {"identifier": "b"}, {"no": "identifier"}]
    source.stack.on("GET /v1/toolgroups", answer({"data": groups}))
    source.stack.on("GET /v1/tools?toolgroup_id=a", failing)
    source.stack.on("GET /v1/tools?toolgroup_id=b", answer({"data": [tool("ping", "b")]}))
    listing = source.list()
    assert list(listing.groups) == ["b"]
    assert list(listing.failures) == ["a"]


def test_groups_are_listed_at_the_same_time_each_within_its_time() -> None:
    source = Source()
    source.stack.on("GET /v1/tools", LOCKED)
    groups = [{"identifier": name} for name in "abc"]
    source.stack.on("GET /v1/toolgroups", answer({"data": groups}))
    for name in "ab":
        source.stack.on(f"GET /v1/tools?toolgroup_id={name}", nothing)
    source.stack.on("GET /v1/tools?toolgroup_id=c", answer({"data": [tool("ping", "c")]}))
    listing = source.list(after=10)
    assert list(listing.groups) == ["c"]
    assert sorted(listing.failures) == ["a", "b"]


def test_the_whole_list_heals_what_is_down() -> None:
    """A server that has stalled while one listed its groups has answered for none of them."""
    source = Source()
    source.stack.on("GET /v1/tools", answer({"data": [tool("ping", "a"), tool("pong", "b")]}))
    groups = [{"identifier": name} for name in "ab"]
    source.stack.on("GET /v1/toolgroups", answer({"data": groups}))
    down = dict.fromkeys("ab", UpstreamTimeout("slow"))
    listing = source.list(limits=ListLimits(5, down))
    assert list(listing.groups) == ["a", "b"] and listing.failures == {}


@pytest.mark.parametrize("groups", [answer({"detail": "no"}, 500), answer({"data": []}), hang_up])
def test_if_nothing_can_be_listed_the_first_reason_is_told(groups: Answer) -> None:
    source = Source()
    source.stack.on("GET /v1/tools", LOCKED)
    source.stack.on("GET /v1/toolgroups", groups)
    with pytest.raises(UpstreamRefused, match="401"):
        source.list()


def test_a_list_that_is_no_list_is_broken() -> None:
    source = Source()
    source.stack.on("GET /v1/tools", answer({"tools": []}))
    with pytest.raises(UpstreamBroke):
        source.list()


def test_odd_entries_are_skipped() -> None:
    source = Source()
    source.stack.on("GET /v1/tools", answer({"data": [None, 7, {}, tool("ping")]}))
    assert [tool.name for tool in source.list().groups["mcp::main"]] == ["ping"]


# --- calls


def test_a_call_sends_name_and_arguments_with_the_callers_credentials() -> None:
    source = Source()
    assert source.invoke(recorded("0.6.1", "invoke_text"), name="get_text", city="Oslo").text
    [asked] = source.stack.asked_for(INVOKE)
    assert asked.json() == {"tool_name": "get_text", "kwargs": {"city": "Oslo"}}
    assert asked.headers.getRawHeaders("Content-Type") == ["application/json"]
    assert asked.headers.getRawHeaders("Authorization") == ["Bearer a"]


@pytest.mark.parametrize(
    ("name", "text", "is_error"),
    [
        ("invoke_structured", '"temperature_c": 21.5', False),
        ("invoke_mixed", "before\n\n[image: image/png", False),
        ("invoke_image", "[image: image/png, 75 bytes]", False),
        ("invoke_tool_raises", "Error executing tool fail: deliberate failure: test", True),
        ("invoke_missing_arg", "Field required", True),
    ],
)
def test_recorded_results_are_understood(name: str, text: str, is_error: bool) -> None:
    result = Source().invoke(recorded("0.6.1", name))
    assert text in result.text
    assert result.is_error is is_error
    assert len(result.images) == text.count("[image")


@pytest.mark.parametrize(
    ("body", "result"),
    [
        ({"content": "plain"}, ToolResult("plain")),
        ({"content": None}, ToolResult("")),
        ({}, ToolResult("")),
        ({"content": "x", "error_code": 0, "error_message": None}, ToolResult("x")),
        ({"content": "x", "error_code": 1}, ToolResult("Error: x", True)),
        ({"content": [], "error_code": 1, "error_message": "m"}, ToolResult("Error: m", True)),
        ({"content": "", "error_message": "m"}, ToolResult("Error: m", True)),
    ],
)
def test_a_result_is_a_failure_if_it_says_so(body: Json, result: ToolResult) -> None:
    assert Source().invoke(answer(body)) == result


@pytest.mark.parametrize("version", ["0.2.24", "0.6.1"])
def test_a_tool_that_the_server_does_not_know_any_more_is_unknown(version: str) -> None:
    """DESIGN: T5."""
    with pytest.raises(ToolUnknown, match="not served by provider"):
        Source().invoke(recorded(version, "invoke_unknown_tool"))


def test_a_server_without_the_route_does_not_know_the_tool_any_more() -> None:
    """As after an upgrade to 0.7, which runs no tools over HTTP."""
    with pytest.raises(ToolUnknown):
        Source().invoke(recorded("0.6.1", "not_found"))


@pytest.mark.parametrize(
    ("version", "name", "message"),
    [
        ("0.2.12", "invoke_image", "Error: Internal server error"),
        ("0.2.12", "invoke_kwargs_missing", "Error: body.kwargs: Field required"),
        ("0.2.24", "invoke_kwargs_string", "Error: body.kwargs: Input should be a valid dict"),
        ("0.6.1", "invoke_kwargs_missing", "Error: .*Field required"),
        ("0.6.1", "tools_with_locked_group_noauth", "Error: Client error '401 Unauthorized'"),
    ],
)
def test_a_refused_call_fails_in_words_for_the_model(version: str, name: str, message: str) -> None:
    with pytest.raises(ToolFailed, match=message) as failed:
        Source().invoke(recorded(version, name))
    assert not isinstance(failed.value, ToolUnknown)


def test_a_lost_connection_is_the_sources_failure() -> None:
    with pytest.raises(ProxyError):
        Source().invoke(hang_up)


def test_a_call_may_take_its_time() -> None:
    source = Source()
    source.stack.on(INVOKE, nothing)
    work = source.runtime.invoke(ToolDefinition("g", "slow", "", {}), {}, ClientContext())
    calling: Deferred[ToolResult] = Deferred.fromCoroutine(work)
    source.upstream.settle()
    source.upstream.clock.advance(3600)
    tool_result("done")(source.stack.open[0])
    assert source.upstream.result(calling) == ToolResult("done")


# --- the source that fits the upstream


def detected(version: str) -> tuple[Source, DetectedSource]:
    source = Source()
    source.stack.on("GET /v1/version", answer({"version": version}))
    source.stack.on("GET /v1/tools", answer({"data": [tool("ping")]}))
    return source, DetectedSource(source.upstream.detector, source.runtime)


@pytest.mark.parametrize(("version", "listed"), [("0.6.1", ["mcp::main"]), ("0.7.3", [])])
def test_only_servers_that_run_tools_are_asked_for_them(version: str, listed: list[str]) -> None:
    """DESIGN: T1."""
    source, detecting = detected(version)
    listing = source.upstream.result(detecting.list_tools(ClientContext()))
    assert list(listing.groups) == listed
    assert bool(source.stack.asked_for("GET /v1/tools")) is bool(listed)


def test_after_a_failure_the_upstream_is_asked_again_what_it_is() -> None:
    source, detecting = detected("0.6.1")
    source.stack.on("GET /v1/tools", hang_up)
    source.stack.on(INVOKE, recorded("0.6.1", "invoke_unknown_tool"))
    called = ToolDefinition("g", "ping", "", {})
    failing: list[Any] = [
        lambda: detecting.list_tools(ClientContext()),
        lambda: detecting.invoke(called, {}, ClientContext()),
    ]
    for work in failing:
        source.upstream.result(source.upstream.detector.generation())
        with pytest.raises((ProxyError, ToolUnknown)):
            source.upstream.result(work())
        assert source.upstream.detector.detected is None
