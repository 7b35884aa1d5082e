"""A report as tables, for a terminal and for the page of the documentation."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from .contenders import BEFORE, OURS, TWO, UNSEEN
from .figures import TARGETS, Samples, Spread, samples_of
from .meter import BUSY
from .processes import ROOT
from .resting import CONNECTIONS, STREAMS
from .works import WORKS

PAGE: Final = ROOT / "docs" / "performance.md"
_BEGIN: Final = "<!-- figures: begin -->"
_END: Final = "<!-- figures: end -->"

_UNITS: Final = {
    "cpu_us": "CPU, µs",
    "busiest_us": "CPU of the busiest process, µs",
    "rate": "a second",
    "first_ms": "time to first event, ms",
    "megabytes": "MB/s",
    "p50_ms": "p50, ms",
    "over_ms": "ms",
    "start_ms": "ms",
    "idle_mb": "MB",
    "connection_kb": "kB",
    "stream_kb": "kB",
}
_RESTING: Final = (
    ("memory", "idle process, memory", "idle_mb"),
    ("memory", f"an idle connection of {CONNECTIONS:,}, memory", "connection_kb"),
    ("memory", f"an open stream of {STREAMS}, memory", "stream_kb"),
    ("start", "start to first answer", "start_ms"),
)
_COLUMNS: Final = (
    *(OURS, TWO, UNSEEN, BEFORE, "Go", "Go cached", "nginx", "LiteLLM"),
    *("twisted.web", "relay", "bare protocol"),
)


def tables(report: Mapping[str, Any]) -> str:
    """The whole report in Markdown."""
    samples = samples_of(report)
    conditions = ", ".join(f"{name} {value}" for name, value in report["conditions"].items())
    parts = [conditions + ".", "", *_targets(samples), "", *_measured(samples)]
    notes = [*report["missing"], *warnings(samples)]
    if notes:
        parts += ["", *(f"- {note}" for note in notes)]
    return "\n".join(parts)


def into(page: str, written: str) -> str:
    """The page with new figures; :exc:`ValueError` if it has no place for them."""
    head, begin, rest = page.partition(_BEGIN)
    _, end, tail = rest.partition(_END)
    if not begin or not end:
        raise ValueError("the page has no place for figures")
    return f"{head}{begin}\n\n{written}\n\n{end}{tail}"


def write(report: Mapping[str, Any], page: Path = PAGE) -> None:
    """Put the figures into the page."""
    page.write_text(into(page.read_text("utf-8"), tables(report)), "utf-8")


def warnings(samples: Samples) -> list[str]:
    """What makes figures doubtful."""
    notes = []
    for work in WORKS:
        programs = samples.get(work.key, {})
        slow = {name: _middle(units, "pace_percent") for name, units in programs.items()}
        waiting = {name: _middle(units, "server_percent") for name, units in programs.items()}
        if text := _below(slow):
            notes.append(f"{work.title}: events that came late came together, and cheaper: {text}")
        elif text := _below(waiting):
            notes.append(f"{work.title}: trust CPU, not rates, of those not busy: {text}")
        for kind, each in work.expected.items():
            asked = _middle(programs.get(OURS, {}), f"asked_{kind}")
            # Lists that are refreshed meanwhile are counted too.
            if asked is not None and abs(asked - each) > 0.05 * max(each, 1):
                notes.append(f"{work.title}: asked for {asked:.2f} {kind} each, not {each}")
    return notes


def _middle(units: Mapping[str, Sequence[float]], unit: str) -> float | None:
    return Spread.of(units[unit]).middle if units.get(unit) else None


def _below(percents: Mapping[str, float | None]) -> str:
    """Who is below what counts as busy, or as in time."""
    return ", ".join(
        f"{name} {percent:.0f} %"
        for name, percent in percents.items()
        if percent is not None and percent < 100 * BUSY
    )


def _targets(samples: Samples) -> list[str]:
    lines = ["| against the targets | at least | we want | measured | |", "|---|---|---|---|---|"]
    for target in TARGETS:
        measured = target.measured(samples)
        sign = "≥" if target.bound == "at least" else "≤"
        cells = (
            *(target.title, f"{sign} {target.least:g}", f"{sign} {target.want:g}"),
            *("" if measured is None else measured.text(), target.verdict(measured)),
        )
        lines.append(_line(cells))
    return lines


def _measured(samples: Samples) -> list[str]:
    units = [
        (work.key, work.title, unit)
        for work in WORKS
        for unit in _UNITS
        if unit in samples.get(work.key, {}).get(OURS, {})
    ]
    columns = [name for name in _COLUMNS if any(name in programs for programs in samples.values())]
    lines = [_line(["measured", "in", *columns]), "|---" * (len(columns) + 2) + "|"]
    for work, title, unit in (*units, *_RESTING):
        values = [samples.get(work, {}).get(name, {}).get(unit, ()) for name in columns]
        if any(values):
            cells = [Spread.of(each).text() if each else "" for each in values]
            lines.append(_line([title, _UNITS[unit], *cells]))
    return lines


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
