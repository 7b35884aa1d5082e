"""The names under which tools are offered."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaproxy.tools.definitions import ToolDefinition
from llamaproxy.tools.names import NameIndex, Patterns, offered_names, plain_name


def tool(group: str, name: str) -> ToolDefinition:
    return ToolDefinition(group, name, "", {})


def grouped(tools: list[ToolDefinition]) -> dict[str, list[ToolDefinition]]:
    groups: dict[str, list[ToolDefinition]] = {}
    for each in tools:
        groups.setdefault(each.group, []).append(each)
    return groups


_words = st.text(max_size=80) | st.sampled_from(["a", "b", "a.b", "a b", "web/search", "x" * 64])
_tools = st.lists(
    st.builds(tool, _words, _words), unique_by=lambda each: (each.group, each.name), max_size=8
)


@given(_tools)
def test_every_tool_has_one_valid_name_of_its_own(tools: list[ToolDefinition]) -> None:
    """DESIGN: L6."""
    offered = offered_names(grouped(tools))
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name) for name in offered)
    # Reversible: each name leads back to one tool, and every tool has one.
    assert sorted(map(repr, offered.values())) == sorted(map(repr, tools))


@given(_tools, st.randoms(use_true_random=False))
def test_names_do_not_depend_on_the_order_of_listing(
    tools: list[ToolDefinition], order: random.Random
) -> None:
    """DESIGN: L6."""
    before = offered_names(grouped(tools))
    order.shuffle(tools)
    after = offered_names(grouped(tools))
    assert list(after.items()) == list(before.items())


@given(_tools)
def test_tools_are_sorted_by_group_and_name(tools: list[ToolDefinition]) -> None:
    keys = [(each.group, each.name) for each in offered_names(grouped(tools)).values()]
    assert keys == sorted(keys)


def test_a_valid_name_that_is_alone_stays() -> None:
    names = ["get_time", "x" * 64, "A-1"]
    assert sorted(offered_names({"g": [tool("g", name) for name in names]})) == sorted(names)


@pytest.mark.parametrize("name", ["", "web.search", "a/b", "Grüße", "x" * 65, "a b", "时间"])
def test_other_names_are_rewritten_whatever_else_there_is(name: str) -> None:
    [alone] = offered_names({"g": [tool("g", name)]})
    others = [tool("g", "other"), tool("h", "more"), tool("h", "a?b")]
    assert alone in offered_names(grouped([tool("g", name), *others]))


def test_a_rewritten_name_tells_where_the_tool_is_from() -> None:
    [name] = offered_names({"mcp::web": [tool("mcp::web", "do.search")]})
    assert name.startswith("mcp_web__do_search_")


def test_equal_names_of_two_groups_are_both_offered() -> None:
    offered = offered_names(grouped([tool("one", "ping"), tool("two", "ping"), tool("two", "x")]))
    assert [(t.group, t.name) for t in offered.values()] == [
        ("one", "ping"),
        ("two", "ping"),
        ("two", "x"),
    ]
    assert "ping" not in offered


def test_a_tool_listed_twice_is_one_tool() -> None:
    assert list(offered_names({"g": [tool("g", "ping"), tool("g", "ping")]})) == ["ping"]


def test_no_tool_can_take_the_rewritten_name_of_another() -> None:
    honest = tool("g", "web search")
    [name] = offered_names({"g": [honest]})
    thief = tool("a", name)
    offered = offered_names(grouped([honest, thief]))
    assert offered[name] == honest
    assert thief in offered.values()


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("search", True),
        ("sea*", True),
        ("*", True),
        ("mcp::web", True),
        ("mcp::*", True),
        ("mcp_web__search_12345678", True),
        ("Search", False),
        ("mcp", False),
        ("earch", False),
    ],
)
def test_patterns_narrow_by_name_or_group(pattern: str, matched: bool) -> None:
    """DESIGN: L5."""
    patterns = Patterns(["nothing", pattern])
    match = patterns.match("mcp_web__search_12345678", tool("mcp::web", "search"))
    assert match is matched


OFFERED = {
    "get_time": tool("mcp::clock", "get_time"),
    "search": tool("mcp::web", "search"),
    "mcp_one__ping_1234abcd": tool("mcp::one", "ping"),
    "mcp_two__ping_5678abcd": tool("mcp::two", "ping"),
}


@pytest.mark.parametrize(
    ("called", "name"),
    [
        ("GetTime", "get_time"),
        ("get-time", "get_time"),
        ("web.search", "search"),
        ("mcp::web/search", "search"),
        ("one_ping", "mcp_one__ping_1234abcd"),
        ("MCP_TWO__PING_5678ABCD", "mcp_two__ping_5678abcd"),
    ],
)
def test_a_name_that_is_misspelt_a_little_is_understood(called: str, name: str) -> None:
    assert NameIndex(OFFERED).fuzzy_match(called) == name


@pytest.mark.parametrize("called", ["", "::", "ping", "get_times", "research"])
def test_a_name_that_could_be_none_or_several_is_not_guessed(called: str) -> None:
    assert NameIndex(OFFERED).fuzzy_match(called) is None


def test_a_name_that_the_clients_own_tool_may_have_is_not_guessed() -> None:
    assert NameIndex(OFFERED, ["getTime"]).fuzzy_match("GetTime") is None


def test_names_that_look_alike_are_proposed() -> None:
    index = NameIndex({}, OFFERED)
    assert index.nearest("Get_Times") == ["get_time"]
    assert index.nearest("zzz") == []
    assert len(NameIndex({}, ["ping"]).nearest("ping" * 1000)) <= 1
    assert NameIndex({}, ["a", "ab", "abc"]).nearest("ab")[0] == "ab"
    assert NameIndex({}, ["", "a"]).nearest("a") == ["a"]
    assert NameIndex({}, ["clock", "sleep"]).nearest("clcok") == ["clock"]


def test_every_name_is_looked_at_once_and_not_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[int] = []

    def plain(name: str) -> str:
        looked_at.append(len(name))
        return plain_name(name)

    monkeypatch.setattr("llamaproxy.tools.names.plain_name", plain)
    index = NameIndex(OFFERED, [f"{n}" * 5000 for n in range(1000)])
    for _ in range(20):
        assert index.nearest("x" * 100_000) == []
    assert len(looked_at) == 256 + 20
    assert max(looked_at) <= 64
