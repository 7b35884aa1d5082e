"""The plots of the documentation."""

from pathlib import Path
from typing import Any, Final

import matplotlib

from .contenders import BEFORE, OURS
from .processes import ROOT
from .sweeps import Series, Sweep, sweep

PLACE: Final = ROOT / "docs" / "performance"

_WAIT: Final = "latency, ms (dashed: 99th percentile)"
_COLOURS: Final = {
    OURS: "#c0392b",
    BEFORE: "#e6b0aa",
    "Go": "#2471a3",
    "Go cached": "#76b0d6",
    "nginx": "#229954",
}


def draw(folder: Path, seconds: float, before: Path | None) -> None:
    """Measure, and write a file for each plot."""
    show(sweep(seconds, before), folder)


def show(measured: Sweep, folder: Path) -> None:
    """Write a file for each plot."""
    folder.mkdir(parents=True, exist_ok=True)
    cpu = "CPU for a loop, ms"
    for name, series, across, upwards, title, divisor in (
        ("pass-through", measured.pass_through, "requests a second", _WAIT, "Pass-through", 1),
        ("chat", measured.chats, "chats a second", _WAIT, "Chat with ten tools", 1),
        ("tools", measured.tools, "tools", cpu, "One-tool loop, by tools offered", 1000),
        ("rounds", measured.rounds, "rounds", cpu, "Loop, by rounds of one call", 1000),
        ("size", measured.sizes, "bytes of the message", cpu, "One-tool loop, by size", 1000),
        ("events", measured.events, "streams", "CPU for an event, µs", "Streamed events", 1),
        ("first", measured.first, "streams at once", "ms", "What a first event takes", 1),
    ):
        _plot(folder / f"{name}.svg", series, across, upwards, title, divisor)


def _few(value: float, _: int) -> str:
    """The label of a mark between two powers of ten, so few of them that they have room."""
    return f"{value:,g}" if f"{value:e}"[0] in "25" else ""


def _plot(
    file: Path, series: Series, across: str, upwards: str, title: str, divisor: float = 1
) -> None:
    """One plot with logarithmic axes; a pale line is the 99th percentile."""
    # No window is ever opened; the same figures give the same file.
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "llamaproxy", "svg.fonttype": "none"})
    from matplotlib import pyplot
    from matplotlib.ticker import EngFormatter

    by_rate = any(point.high is not None for points in series.values() for point in points)
    figure: Any
    axes: Any
    figure, axes = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
    for name, points in series.items():
        colour = _COLOURS.get(name, "#7f8c8d")
        x = [point.x for point in points]
        axes.plot(x, [point.y / divisor for point in points], "o-", color=colour, label=name)
        if all(point.high is not None for point in points):
            high = [(point.high or 0) / divisor for point in points]
            axes.plot(x, high, "--", color=colour, alpha=0.4, linewidth=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_minor_formatter(_few)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(_few if by_rate else "")
    if not by_rate:
        axes.set_xticks(sorted({point.x for points in series.values() for point in points}))
    axes.set_xlabel(across)
    axes.set_ylabel(upwards)
    axes.set_title(title)
    axes.grid(True, which="both", alpha=0.2)
    axes.legend()
    figure.savefig(file, format="svg", metadata={"Date": None})
    pyplot.close(figure)
