"""What samples come to: medians with quartiles, ratios of pairs, and the targets."""

from collections.abc import Mapping, Sequence
from statistics import median, quantiles
from typing import Any, Final, Literal

import attrs

from .contenders import BEFORE, OURS, TWO, UNSEEN

Samples = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]
"""By kind of work, program and unit: a value of each round, in their order."""


@attrs.frozen
class Spread:
    """A median, and the quartiles on both sides of it."""

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of some values; of one, that three times. :exc:`ValueError` if there is none."""
        if not values:
            raise ValueError("no values")
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, _, high = quantiles(values, method="inclusive")
        return cls(median(values), low, high)

    def text(self) -> str:
        """As in ``0.52 (0.50 to 0.55)``."""
        if self.low == self.high:
            return number(self.middle)
        return f"{number(self.middle)} ({number(self.low)} to {number(self.high)})"


def number(value: float) -> str:
    """Three digits, as many as the figures are good for."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def ratios(
    samples: Samples, work: str, unit: str, name: str, other: str, more_is_better: bool
) -> list[float]:
    """How `name` compares with `other`, round by round: above 1 is better than `other`.

    Pairs, as what disturbs a machine disturbs neighbours alike. Empty if one was not measured.
    """
    programs = samples.get(work, {})
    own = programs.get(name, {}).get(unit, ())
    others = programs.get(other, {}).get(unit, ())
    if more_is_better:
        return [a / b for a, b in zip(own, others, strict=False) if b]
    return [b / a for a, b in zip(own, others, strict=False) if a]


@attrs.frozen
class Target:
    """What a figure must reach, and what we want of it."""

    title: str
    work: str
    unit: str
    least: float
    want: float
    bound: Literal["at least", "at most"] = "at least"
    other: str | None = None
    """With whom the daemon is compared; `None` for a figure of its own."""
    of: str = OURS
    """Whose figure it is that is compared."""
    share: bool = False
    """A part of the other's figure, instead of how many times better than that."""
    more_is_better: bool = False

    def measured(self, samples: Samples) -> Spread | None:
        """What has been measured; `None` if that is nothing."""
        if self.other is None:
            values = list(samples.get(self.work, {}).get(OURS, {}).get(self.unit, ()))
        elif self.share:
            values = ratios(samples, self.work, self.unit, self.other, OURS, False)
        else:
            values = ratios(samples, self.work, self.unit, self.of, self.other, self.more_is_better)
        return Spread.of(values) if values else None

    def verdict(self, measured: Spread | None) -> str:
        """What the median says."""
        if measured is None:
            return "not measured"
        sign = 1 if self.bound == "at least" else -1
        if sign * measured.middle >= sign * self.want:
            return "as we want it"
        return "enough" if sign * measured.middle >= sign * self.least else "MISSED"


TARGETS: Final = (
    Target("pass-through / Go, CPU", "pass", "cpu_us", 0.6, 0.8, other="Go"),
    Target("chat, ten tools / Go, CPU", "chat", "cpu_us", 1.0, 1.4, other="Go"),
    Target("chat, ten tools / Go cached, CPU", "chat", "cpu_us", 0.45, 0.65, other="Go cached"),
    Target("one-tool loop / Go, CPU", "loop", "cpu_us", 0.75, 1.0, other="Go"),
    Target("one-tool loop / Go cached, CPU", "loop", "cpu_us", 0.45, 0.65, other="Go cached"),
    Target(
        "chat that is watched, CPU, of one that is not",
        *("seen", "cpu_us", 1.05, 1.02, "at most"),
        other=UNSEEN,
        share=True,
    ),
    Target(
        "two workers / one, chats a second",
        *("workers", "rate", 1.7, 1.9),
        other=OURS,
        of=TWO,
        more_is_better=True,
    ),
    Target(
        "two workers / one, CPU of the busiest process",
        *("workers", "busiest_us", 1.7, 1.9),
        other=OURS,
        of=TWO,
    ),
    Target("event, 300 streams / Go, CPU", "events", "cpu_us", 0.6, 0.9, other="Go"),
    Target("103 events at once / Go, CPU", "burst", "cpu_us", 1.0, 1.2, other="Go"),
    Target(
        "256 MiB download / Go, MB/s",
        *("download", "megabytes", 0.85, 1.0),
        other="Go",
        more_is_better=True,
    ),
    Target(
        "chat on one connection, p50, of the one before",
        *("one-chat", "p50_ms", 0.6, 0.5, "at most"),
        other=BEFORE,
        share=True,
    ),
    Target(
        "three parallel tools, over the slowest, ms", "parallel", "over_ms", 3.0, 1.5, "at most"
    ),
    Target("idle process, MB", "memory", "idle_mb", 60, 45, "at most"),
    Target("idle connection, kB", "memory", "connection_kb", 2.0, 1.5, "at most"),
    Target("open stream, kB", "memory", "stream_kb", 30, 20, "at most"),
    Target(
        "start to first answer, of the one before",
        *("start", "start_ms", 0.7, 0.5, "at most"),
        other=BEFORE,
        share=True,
    ),
)


def samples_of(report: Mapping[str, Any]) -> Samples:
    """The samples of a report that has been read."""
    samples: Samples = report["samples"]
    return samples
