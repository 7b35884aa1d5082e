"""Listings as bytes: the same comes out as goes in, within limits."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaproxy.advice import group_problem
from llamaproxy.errors import (
    McpBroke,
    McpTimeout,
    McpUnavailable,
    ParentSilent,
    ProxyError,
    ShuttingDown,
    UpstreamBroke,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamTls,
    UpstreamUnavailable,
)
from llamaproxy.tools.definitions import ToolDefinition
from llamaproxy.tools.failure_memory import is_timeout
from llamaproxy.tools.instructions import ToolGroup, instructions_of
from llamaproxy.tools.mcp.http import HttpRefused, StreamInterrupted
from llamaproxy.tools.mcp.messages import RpcError
from llamaproxy.tools.source import Listing
from llamaproxy.tools.wire import listing_bytes, listing_of

LIMIT = 10**6

TEXTS = st.text(max_size=8)

#: What JSON has, integers of any size among it.
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(2**62, 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(TEXTS, VALUES, max_size=4)
TOOLS = st.builds(ToolDefinition, TEXTS, TEXTS, TEXTS, OBJECTS, TEXTS, TEXTS, OBJECTS, TEXTS)
GROUPS = st.dictionaries(
    TEXTS, st.builds(ToolGroup, st.lists(TOOLS, max_size=3), TEXTS), max_size=3
)


def located(error: ProxyError, where: str) -> ProxyError:
    error.where = where
    return error


WORDS = st.none() | TEXTS
ERRORS = st.builds(
    located,
    st.builds(ProxyError, WORDS)
    | st.builds(UpstreamUnavailable, WORDS)
    | st.builds(UpstreamTls, WORDS)
    | st.builds(UpstreamBroke, WORDS)
    | st.builds(UpstreamTimeout, WORDS)
    | st.builds(ParentSilent, WORDS)
    | st.builds(McpBroke, WORDS)
    | st.builds(McpUnavailable, WORDS)
    | st.builds(McpTimeout, WORDS)
    | st.builds(ShuttingDown, WORDS)
    | st.builds(StreamInterrupted, WORDS)
    | st.builds(HttpRefused, st.integers(100, 599))
    | st.builds(RpcError, st.fixed_dictionaries({"code": st.integers(), "message": TEXTS}))
    | st.builds(UpstreamRefused, st.integers(400, 599), VALUES | st.just({"detail": "Not Found"})),
    TEXTS,
)


def facts_of(error: ProxyError | None) -> Any:
    """All that anybody asks an error of a listing."""
    if error is None:
        return None
    refused = error if isinstance(error, UpstreamRefused) else None
    return (
        *(error.kind, error.status, str(error), error.where, error.logged),
        *(is_timeout(error), isinstance(error, McpUnavailable | UpstreamUnavailable)),
        refused and refused.missing_route,
        *(group_problem(name, error) for name in ("", "g")),
    )


def carried(listing: Listing, limit: int = LIMIT) -> Listing:
    return listing_of(listing_bytes(listing, limit))


@given(
    GROUPS,
    st.dictionaries(TEXTS, ERRORS, max_size=3),
    st.none() | ERRORS,
    GROUPS,
    st.none() | st.floats(0, 1e6),
)
def test_a_listing_arrives_as_it_was(
    groups: dict[str, list[ToolDefinition]],
    failures: dict[str, ProxyError],
    groups_error: ProxyError | None,
    kept: dict[str, list[ToolDefinition]],
    fresh_for: float | None,
) -> None:
    listing = Listing(
        groups, failures, groups_error, kept, fresh_for, {"mine": "http://mine/mcp"}, False
    )
    arrived = carried(listing)
    assert (arrived.groups, arrived.kept) == (groups, kept)
    assert arrived.names_all is False
    assert arrived.configured == {"mine": "http://mine/mcp"}
    assert [*arrived.groups, *arrived.kept] == [*groups, *kept], "in their order"
    assert repr(arrived.groups) == repr(groups), "1 is not 1.0, nor True"
    assert arrived.fresh_for == fresh_for
    assert {name: facts_of(error) for name, error in arrived.failures.items()} == {
        name: facts_of(error) for name, error in failures.items()
    }
    assert facts_of(arrived.groups_error) == facts_of(groups_error)


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value", [deep(195), "\ud800", 2**64, -(2**80), 1.0, -0.0, "\n", "\u2028", "x\x00", "1" * 30]
)
def test_what_is_odd_in_one_tool_arrives_and_costs_no_other(value: Any) -> None:
    odd = ToolDefinition("g", "odd", "Odd.", {"default": value}, annotations={"x": value})
    plain = ToolDefinition("g", "plain", "Plain.", {})
    arrived = carried(Listing({"g": [odd, plain]})).groups["g"]
    assert repr(arrived) == repr([odd, plain])


def test_no_number_is_null_as_in_every_request() -> None:
    tool = ToolDefinition("g", "t", "", {"default": math.nan})
    [arrived] = carried(Listing({"g": [tool]})).groups["g"]
    assert arrived.parameters == {"default": None}


@pytest.mark.parametrize("part", ["groups", "kept"])
def test_what_is_too_large_costs_its_own_group_alone(part: str) -> None:
    large = [ToolDefinition("large", str(number), "x" * 1000, {}) for number in range(100)]
    small = [ToolDefinition("small", "s", "", {})]
    groups = {"a": small, "large": large, "z": small}
    listing = Listing(groups) if part == "groups" else Listing({}, kept=groups)
    text = listing_bytes(listing, 50_000)
    assert len(text) < 50_000
    arrived = listing_of(text)
    assert getattr(arrived, part) == {"a": small, "z": small}
    assert ["too large" in str(error) for error in arrived.failures.values()] == (
        [True] if part == "groups" else []
    )
    assert carried(listing) == listing


def test_an_errors_words_are_bounded() -> None:
    arrived = carried(Listing({}, {"g": McpBroke("x" * 10**5)}))
    assert len(str(arrived.failures["g"])) == 4000


@given(st.binary(max_size=40) | VALUES.map(repr).map(str.encode))
def test_what_is_no_listing_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):
        listing_of(text)


def test_a_listing_that_is_cut_off_is_refused() -> None:
    text = listing_bytes(Listing({"g": [ToolDefinition("g", "t", "", {})]}), LIMIT)
    for end in range(len(text)):
        with pytest.raises(ValueError):
            listing_of(text[:end])


@given(GROUPS, GROUPS)
def test_instructions_of_servers_are_kept(groups: Any, kept: Any) -> None:
    read = listing_of(listing_bytes(Listing(groups, kept=kept), LIMIT))
    for before, after in ((groups, read.groups), (kept, read.kept)):
        assert {name: instructions_of(each) for name, each in after.items()} == {
            name: instructions_of(each) for name, each in before.items()
        }
