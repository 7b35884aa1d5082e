"""The arithmetic of docs/scaling.md, and that the page has what comes out of it."""

from __future__ import annotations

import math
import re

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.benchmarks import scaling
from tests.benchmarks.scaling import Costs, Load, Plan, lateness, measured, tables, written

COSTS = Costs(
    event_us=50, chat_us=200, loop_us=600, process_mb=60, stream_kb=40, balancer_event_us=10
)
#: Open for 10 s each; with a tool for 2 s more.
LOAD = Load(
    streams=1100,
    events_per_second=40,
    events=400,
    event_bytes=125,
    loops=0.5,
    tool_seconds=2,
    mixed=0.1,
    turn_bytes=1000,
    history=2,
    memory_age=100,
)


def test_a_plan_that_can_be_done_in_the_head() -> None:
    plan = Plan(COSTS, LOAD, busy=0.5)
    assert plan.answer_seconds == 11
    assert plan.chats == 100
    assert plan.events == 40_000
    assert plan.event_cores == pytest.approx(2)
    assert plan.chat_cores == pytest.approx(0.04)
    assert plan.processes == 5
    assert plan.streams_each == 220
    assert plan.memory_gb == pytest.approx(0.3 + 0.044)
    assert plan.gigabits == pytest.approx(0.04)
    assert plan.balancer_cores == pytest.approx(0.4)
    assert plan.turns == pytest.approx(10)
    assert plan.commands == pytest.approx(60)
    assert plan.store_gb == pytest.approx(0.001)
    assert plan.store_megabytes == pytest.approx(0.03)
    assert plan.without(0.2) == pytest.approx(2.04 / 4)


@given(st.integers(1, 10**7), st.floats(0.1, 0.9), st.floats(1, 1000))
def test_there_are_as_many_processes_as_are_needed_and_no_more(
    streams: int, busy: float, event_us: float
) -> None:
    costs = attrs.evolve(COSTS, event_us=event_us)
    plan = Plan(costs, attrs.evolve(LOAD, streams=streams), busy)
    work = plan.event_cores + plan.chat_cores
    assert work <= plan.processes * busy * (1 + 1e-9)
    assert work >= (plan.processes - 1) * busy * (1 - 1e-9)
    assert plan.chats * plan.answer_seconds == pytest.approx(streams)


@given(st.integers(1, 10**6), st.integers(1, 1000))
def test_lists_are_as_many_as_chats_or_callers_allow(callers: int, places: int) -> None:
    plan = Plan(COSTS, LOAD, 0.5)
    lists = plan.lists(callers, places)
    assert 0 < lists <= plan.chats * (1 + 1e-9)
    assert lists <= callers * places / LOAD.tools_ttl * (1 + 1e-9)
    assert lists <= plan.lists(callers + 1, places) * (1 + 1e-9)


def test_one_caller_is_listed_once_in_a_while_by_each() -> None:
    assert Plan(COSTS, LOAD, 0.5).lists(1, 6) == pytest.approx(0.1)
    # Nobody comes twice.
    assert Plan(COSTS, LOAD, 0.5).lists(10**9, 6) == pytest.approx(100, rel=1e-3)


def waited(busy: float, services: float) -> float:
    """The share of jobs that wait so many *services* at most: Erlang's, for jobs of one kind."""
    terms = (
        (busy * (k - services)) ** k / math.factorial(k) * math.exp(-busy * (k - services))
        for k in range(math.floor(services) + 1)
    )
    return (1 - busy) * sum(terms)


@pytest.mark.parametrize("busy", [0.5, 0.7, 0.8])
def test_the_simulation_agrees_with_the_formula_where_there_is_one(busy: float) -> None:
    costs = attrs.evolve(COSTS, event_us=1000, chat_us=1000, loop_us=1000)
    median, rare = lateness(costs, LOAD, busy)
    assert waited(busy, rare) == pytest.approx(0.99, abs=0.002)
    assert waited(busy, median) == pytest.approx(0.5, abs=0.02)


def test_the_page_has_what_comes_out_of_its_costs() -> None:
    page = scaling.PAGE.read_text("utf-8")
    event, chat, loop, process, stream, balancer = (
        float(figure)
        for line in page.split("| of one process, measured |")[1].splitlines()[2:6]
        for figure in re.findall(r"(\d+(?:\.\d+)?) (?:µs|MB|kB)", line)
    )
    costs = Costs(event, chat, loop, process, stream, balancer)
    assert written(page, tables(costs, Load(), scaling.BUSY)) == page


def test_the_costs_are_read_where_they_are_measured() -> None:
    costs = measured(scaling.FIGURES.read_text("utf-8"))
    assert 5 < costs.event_us < costs.chat_us < costs.loop_us < 2000
    assert costs.balancer_event_us < costs.event_us
    assert 1 < costs.stream_kb < 100 < costs.process_mb * 10


def test_a_page_without_the_marks_is_left_alone() -> None:
    with pytest.raises(ValueError):
        written("a page", "text")
