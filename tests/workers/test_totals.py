"""What several processes have counted together, and that it never becomes less."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from llamaproxy import jsontext
from llamaproxy.admin import names
from llamaproxy.admin.tallies import Histogram
from llamaproxy.jsontext import Json
from llamaproxy.workers.totals import (
    _MOST_NAMES,
    Samples,
    Totals,
    as_json,
    figures_together,
    samples_of,
)

NOTHING: Samples = {}


def histogram(series: names.Series, *values: float) -> Histogram:
    made = Histogram(series)
    for value in values:
        made.add(value)
    return made


def counted(requests: int = 0, seconds: tuple[float, ...] = (), running: int = 0) -> Samples:
    return {
        (names.REQUESTS, ("chat", "200")): requests,
        (names.REQUEST_SECONDS, ("chat",)): histogram(names.REQUEST_SECONDS, *seconds),
        (names.RUNNING, ()): running,
        (names.CONNECTIONS, ()): running,
        (names.BUILD, ("1",)): 1,
        (names.LISTS, ("complete",)): requests,
    }


def total(totals: Totals, parent: Samples, *workers: Samples) -> dict[str, Any]:
    """All samples by name and labels; of histograms the counts and the total."""
    found: dict[str, Any] = {}
    for series, samples in totals.of(parent, workers):
        for labels, value in samples:
            name = " ".join((series.name.removeprefix("llamaproxy_"), *labels))
            found[name] = (
                (sum(value.counts), value.total) if isinstance(value, Histogram) else value
            )
    return found


def test_what_adds_up_is_added_and_what_does_not_is_not() -> None:
    totals = Totals()
    found = total(totals, counted(1, (1.0,), 1), counted(2, (2.0,), 2), counted(4, (4.0,), 4))
    assert found["requests_total chat 200"] == 7
    assert found["request_duration_seconds chat"] == (3, 7.0)
    assert found["requests_running"] == 7
    assert found["connections"] == 6, "those that the parent may have are no client's"
    assert found["build_info 1"] == 1
    assert found["tool_lists_total complete"] == 1, "the parent lists for all"


def test_every_series_is_there_though_nobody_has_any_of_it() -> None:
    assert [series for series, _ in Totals().of(NOTHING, [])] == list(names.EVERY)


def test_what_is_told_arrives_as_it_was() -> None:
    samples = counted(3, (0.25, 100.0), 2)
    told = [(series, [(labels, value)]) for (series, labels), value in samples.items()]
    arrived = samples_of(jsontext.loads(jsontext.dumps(as_json(told))))
    assert total(Totals(), arrived) == total(Totals(), samples)


def test_what_a_worker_had_counted_that_is_gone_stays_and_what_it_had_does_not() -> None:
    totals = Totals()
    gone = counted(2, (2.0,), 2)
    total(totals, NOTHING, gone, counted(4))
    totals.bury(gone)
    found = total(totals, NOTHING, counted(4))
    assert found["requests_total chat 200"] == 6
    assert found["request_duration_seconds chat"] == (1, 2.0)
    assert found["requests_running"] == 0
    assert "tool_lists_total complete" not in found


Lives = st.lists(
    st.lists(st.floats(0, 1e6, allow_subnormal=False), max_size=4), min_size=1, max_size=6
)


@given(Lives, st.data())
def test_no_counter_goes_back_whoever_ends_when(lives: list[list[float]], data: Any) -> None:
    """Not even by what sums of fractions differ by."""
    totals, workers = Totals(), {n: list(life) for n, life in enumerate(lives)}
    before: dict[str, Any] = {}
    while workers:
        samples = {n: counted(len(life), tuple(life)) for n, life in workers.items()}
        found = total(totals, NOTHING, *samples.values())
        for name in ("requests_total chat 200", "request_duration_seconds chat"):
            assert found[name] >= before.get(name, found[name])
        assert found["request_duration_seconds chat"][0] == sum(map(len, lives))
        before = found
        ends = data.draw(st.sampled_from(sorted(workers)))
        del workers[ends]
        totals.bury(samples[ends])


def test_names_of_peers_are_never_too_many_and_keep_their_series() -> None:
    def calls(worker: int) -> Samples:
        return {(names.TOOL_CALLS, ("g", f"t{worker}-{n}", "answered")): 1 for n in range(100)}

    totals = Totals()
    workers = [calls(worker) for worker in range(5)]
    first, again = (total(totals, NOTHING, *workers) for _ in range(2))
    assert first == again
    assert len(first) == _MOST_NAMES + 1
    assert first["tool_calls_total other other answered"] == 300
    totals.bury(workers.pop(0))
    assert total(totals, NOTHING, *workers) == first
    seconds: Samples = {(names.TOOL_SECONDS, ("g", "t0-0")): histogram(names.TOOL_SECONDS, 1.0)}
    assert total(totals, NOTHING, seconds)["tool_call_duration_seconds g t0-0"] == (1, 1.0)


def test_every_label_that_peers_choose_is_one_of_its_series() -> None:
    for series in names.EVERY:
        assert set(series.peers) <= set(series.labels)
        assert series.together in ("sum", "parent", "workers") or series.kind == "gauge"


def test_figures_of_a_status_are_added_but_for_what_is_no_amount() -> None:
    one: Json = {
        "requests": {"running": 1, "drain_timeout_seconds": 30.0},
        "memory": {"bytes": None},
        "store": {"url": "redis://x", "up": True},
    }
    two: Json = {
        "requests": {"running": 2, "drain_timeout_seconds": 30.0},
        "memory": {"bytes": 5},
        "store": {"url": "redis://x", "up": False},
    }
    assert figures_together([one, two, {}]) == {
        "requests": {"running": 3, "drain_timeout_seconds": 30.0},
        "memory": {"bytes": 5},
        "store": {"url": "redis://x", "up": False},
    }
    assert one["requests"]["running"] == 1
