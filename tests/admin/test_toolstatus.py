"""What is known of each tool, for the page: by reference, and bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from llamaproxy.admin import names, toolcalls, toolstatus
from llamaproxy.admin.metrics import Metrics
from llamaproxy.admin.toolstatus import ToolStatus
from llamaproxy.errors import McpTimeout, UpstreamTimeout
from llamaproxy.events import CallEnded, GroupListed, ListRefreshed, Observers
from llamaproxy.jsontext import Json
from llamaproxy.records import CallRecord, ChatRecord, Outcome
from llamaproxy.tools.definitions import ToolDefinition

SCHEMA: Json = {"type": "object", "properties": {"n": {"type": "integer"}}}


def definition(name: str, group: str = "g") -> ToolDefinition:
    return ToolDefinition(group, name, f"The {name}.", SCHEMA, "mcp", "", {"readOnlyHint": True})


def listed(*names: str, group: str = "g", size: int = 100) -> ListRefreshed:
    tools = tuple(definition(name, group) for name in names)
    return ListRefreshed(1, {group: GroupListed(names, "http://g/mcp", tools, size)}, {})


def called(outcome: Outcome, seconds: float = 1.0, reason: str = "", tool: str = "a") -> CallEnded:
    call = CallRecord(ChatRecord(), 1, 1, 0.0, tool, "g", began=0.0, ended=seconds)
    call.outcome, call.reason = outcome, reason
    return CallEnded(call)


def status() -> tuple[Clock, ToolStatus]:
    clock = Clock()
    return clock, ToolStatus(clock, lambda: 1_000_000.0 + clock.seconds())


def test_a_tool_is_shown_as_its_source_describes_it() -> None:
    clock, tools = status()
    clock.advance(3)
    tools(listed("a"))
    [group] = tools.tools_as_json()["groups"]
    [tool] = group.pop("tools")
    assert group == {
        **{"name": "g", "url": "http://g/mcp", "origin": "mcp", "listed_at": 1_000_003.0},
        **{"error": None, "error_at": None, "instructions": None},
    }
    assert tool["parameters"] is SCHEMA
    assert tool == {
        **{
            "name": "a",
            "offered_as": "a",
            "title": None,
            "description": "The a.",
            "parameters": SCHEMA,
        },
        **{"annotations": {"readOnlyHint": True}, "calls": 0, "failed": 0},
        **{"mean_seconds": None, "last_error": None},
    }


def test_its_figures_are_those_of_its_calls_that_were_not_cancelled() -> None:
    _, tools = status()
    tools(listed("a", "b"))
    tools(called("answered", 1.0))
    tools(called("timeout", 5.0, ": no answer within 5 s"))
    tools(called("failed", 0.0, ", as it says itself"))
    tools(called("cancelled", 60.0))
    [group] = tools.tools_as_json()["groups"]
    tool, other = group["tools"]
    assert (tool["calls"], tool["failed"], tool["mean_seconds"]) == (3, 2, 2.0)
    assert (tool["last_error"], other["calls"]) == ("as it says itself", 0)
    assert tools.as_json()["tool_groups"]["g"]["failed_calls"] == 2


def test_definitions_are_held_up_to_a_number_of_bytes_of_those_listed_last() -> None:
    _, tools = status()
    half = toolstatus._MAX_DEFINITIONS // 2
    for group in ("one", "two", "three"):
        tools(listed("a", group=group, size=half))
    shown = {group["name"]: group["tools"][0] for group in tools.tools_as_json()["groups"]}
    assert shown["one"]["parameters"] is None and shown["one"]["name"] == "a"
    assert shown["two"]["parameters"] == shown["three"]["parameters"] == SCHEMA
    tools(listed("a", group="three", size=0))
    tools(listed("a", group="one", size=half))
    assert all(g["tools"][0]["parameters"] for g in tools.tools_as_json()["groups"])


def test_figures_are_kept_of_those_called_last() -> None:
    _, tools = status()
    for number in range(toolcalls.MAX_TOOLS + 10):
        tools(called("answered", tool=f"t{number}"))
        tools(called("answered", tool="often"))
    assert len(tools.calls._tools) == toolcalls.MAX_TOOLS
    assert tools.calls._tools["g", "often"].calls == toolcalls.MAX_TOOLS + 10


def test_groups_that_come_and_go_leave_no_definitions() -> None:
    _, tools = status()
    for number in range(toolstatus._MAX_GROUPS + 50):
        tools(listed("a", group=f"g{number}", size=10))
    assert tools._held == sum(group.size for group in tools._groups.values())
    assert len(tools._groups) == toolstatus._MAX_GROUPS


@pytest.mark.parametrize("until", [0.0, 10.0])
def test_a_group_fails_from_its_first_failure_on(until: float) -> None:
    clock, tools = status()
    tools(listed("a"))
    clock.advance(5)
    for _ in range(3):
        tools(ListRefreshed(1, {}, {"g": McpTimeout("slow")}))
        clock.advance(10)
    failing = tools.failing(until)
    assert failing == ({"g": ("mcp_timeout (slow)", ("a",))} if until else {})
    tools(listed("a"))
    assert tools.failing(until + 100) == {}


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 60.0, 300.0, 600.0, 601.0]),
            st.sets(st.sampled_from("abc")),
            st.sets(st.sampled_from("abc")),
            st.booleans(),
        ),
        max_size=12,
    )
)
def test_status_page_and_metrics_forget_the_same_groups(
    lists: list[tuple[float, set[str], set[str], bool]],
) -> None:
    clock = Clock()
    status, metrics, tell = ToolStatus(clock), Metrics(clock.seconds), Observers()
    tell.listen(status, *status.hears)
    metrics.listen(tell)
    for seconds, listed, failed, unknown in lists:
        clock.advance(seconds)
        groups = {name: GroupListed(("x",), "") for name in sorted(listed - failed)}
        failures = dict.fromkeys(sorted(failed), McpTimeout())
        tell(ListRefreshed(1, groups, failures, UpstreamTimeout() if unknown else None))
        shown = status.as_json()["tool_groups"]
        [family] = [each for each in metrics.collect() if each.name == names.GROUP_MISSING.name]
        counted = {each.labels["group"]: bool(each.value) for each in family.samples}
        assert counted == {name: each["error"] is not None for name, each in shown.items()}
        assert set(shown) == {each["name"] for each in status.tools_as_json()["groups"]}
        assert status.summary()["groups"] == len(shown)
        assert set(status.failing(clock.seconds())) - {""} == {n for n in counted if counted[n]}
        assert len(status.problems()) == sum(counted.values()) + unknown
