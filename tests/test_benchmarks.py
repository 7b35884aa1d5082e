"""What the benchmark makes of its samples, and how it reads messages; nothing is timed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.benchmarks import report
from tests.benchmarks.compare import KINDS
from tests.benchmarks.figures import TARGETS, Spread, Target, number, ratios
from tests.benchmarks.http1 import request, response, wanted, whole

SAMPLES = {
    "pass": {
        "llamaproxy": {"cpu_us": [100.0, 80.0, 90.0], "server_percent": [99.0, 98.0, 97.0]},
        "Go": {"cpu_us": [50.0, 60.0, 45.0], "server_percent": [70.0, 60.0, 65.0]},
    },
    "download": {"llamaproxy": {"megabytes": [500.0]}, "Go": {"megabytes": [1000.0]}},
    "one-chat": {"llamaproxy": {"p50_ms": [1.0]}, "before": {"p50_ms": [4.0]}},
    "memory": {"llamaproxy": {"idle_mb": [70.0]}},
}


@given(st.lists(st.floats(0, 1e9), min_size=1))
def test_quartiles_are_on_both_sides_of_the_median(values: list[float]) -> None:
    spread = Spread.of(values)
    tolerance = 1e-9 * max(values)
    assert min(values) - tolerance <= spread.low <= spread.middle + tolerance
    assert spread.middle - tolerance <= spread.high <= max(values) + tolerance


def test_there_is_no_median_of_nothing() -> None:
    with pytest.raises(ValueError):
        Spread.of([])


@pytest.mark.parametrize(
    ("value", "text"), [(0.4567, "0.46"), (12.34, "12.3"), (1234.5, "1,234"), (-3.21, "-3.21")]
)
def test_figures_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_a_ratio_is_made_of_neighbours() -> None:
    """And above 1 is better, whichever way the figures go."""
    assert ratios(SAMPLES, "pass", "cpu_us", "llamaproxy", "Go", False) == [0.5, 0.75, 0.5]
    assert ratios(SAMPLES, "download", "megabytes", "llamaproxy", "Go", True) == [0.5]
    assert ratios(SAMPLES, "chat", "cpu_us", "llamaproxy", "Go", False) == []


@pytest.mark.parametrize(
    ("least", "want", "bound", "verdict"),
    [
        (0.4, 0.5, "at least", "as we want it"),
        (0.5, 0.6, "at least", "enough"),
        (0.6, 0.8, "at least", "MISSED"),
        (0.5, 0.4, "at most", "enough"),
        (0.4, 0.3, "at most", "MISSED"),
    ],
)
def test_the_median_is_what_a_target_is_compared_with(
    least: float, want: float, bound: str, verdict: str
) -> None:
    target = Target(
        "pass-through",
        "pass",
        "cpu_us",
        least,
        want,
        "at least" if bound == "at least" else "at most",
        other="Go",
    )
    assert target.verdict(target.measured(SAMPLES)) == verdict


def test_a_figure_of_before_is_a_share_of_it() -> None:
    (target,) = (target for target in TARGETS if target.work == "one-chat")
    measured = target.measured(SAMPLES)
    assert measured is not None
    assert measured.middle == 0.25
    assert target.verdict(None) == "not measured"


def test_targets_are_of_work_that_is_measured() -> None:
    assert {target.work for target in TARGETS} <= set(KINDS)


def test_the_report_has_figures_targets_and_what_makes_them_doubtful() -> None:
    written = report.tables(
        {"conditions": {"CPUs": 2}, "missing": ["there is no nginx"], "samples": SAMPLES}
    )
    assert "| pass-through / Go, CPU | ≥ 0.6 | ≥ 0.8 | 0.50 (0.50 to 0.62) | MISSED |" in written
    assert "| pass-through, a request | CPU, µs | 90.0 (85.0 to 95.0) |" in written
    assert "| idle process, memory | MB | 70.0 |" in written
    assert "- there is no nginx" in written
    assert "not busy: Go 65 %" in written


def test_figures_are_written_between_their_marks() -> None:
    page = "# A\n<!-- figures: begin -->\nold\n<!-- figures: end -->\nb\n"
    once = report.into(page, "new")
    assert "old" not in once
    assert once.startswith("# A\n") and once.endswith("\nb\n")
    assert report.into(once, "new") == once
    with pytest.raises(ValueError):
        report.into("# A\n", "new")


def test_the_page_has_a_place_for_figures() -> None:
    assert report.into(report.PAGE.read_text("utf-8"), "new")


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"


@pytest.mark.parametrize("message", [request("GET", "/a"), response(b"{}"), CHUNKED])
def test_a_message_is_whole_at_its_end_and_no_sooner(message: bytes) -> None:
    assert whole(message + b"next") == len(message)
    assert not any(whole(message[:length]) for length in range(len(message)))


def test_the_length_of_a_message_is_wanted_once_its_head_is_there() -> None:
    message = request("POST", "/a", b"body")
    assert wanted(message[:-4]) == len(message)
    assert wanted(message[:-5]) == 0
    assert wanted(CHUNKED) == 0
