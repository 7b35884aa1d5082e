"""What one figure is, and how it compares with its target."""

from typing import Any, Literal

import attrs


@attrs.frozen
class Figure:
    """One measured number."""

    name: str
    value: float
    unit: str
    limit: Literal["at least", "at most"]
    target: float
    by_cpu: float | None = None
    """For a ratio of requests/s, the same ratio in CPU time for each request."""
    details: dict[str, Any] = attrs.Factory(dict)
    """The single runs behind the median."""
    warnings: list[str] = attrs.Factory(list)

    @property
    def verdict(self) -> str:
        """Whether the value, and the ratio by CPU time too, is on the right side of its target."""
        values = [self.value] if self.by_cpu is None else [self.value, self.by_cpu]
        if self.limit == "at least":
            within = min(values) >= self.target
        else:
            within = max(values) <= self.target
        return "PASS" if within else "MISS"

    def json(self) -> dict[str, Any]:
        """The figure as it stands in the JSON report."""
        return attrs.asdict(self) | {"unit": self.unit.strip(), "verdict": self.verdict}


def table(figures: list[Figure]) -> str:
    """The figures as text, one line each, then the runs behind them, then the warnings."""
    sign = {"at least": ">=", "at most": "<="}
    lines = [f"{'figure':<46}{'measured':>11}{'by CPU':>9}{'target':>13}  verdict"]
    for figure in figures:
        measured = f"{figure.value:.3f}" if figure.value < 2 else f"{figure.value:.1f}"
        by_cpu = "" if figure.by_cpu is None else f"{figure.by_cpu:.3f}"
        target = f"{sign[figure.limit]} {figure.target:g}{figure.unit}"
        lines.append(
            f"{figure.name:<46}{measured + figure.unit:>11}{by_cpu:>9}{target:>13}"
            f"  {figure.verdict}"
        )
    for figure in figures:
        if figure.details:
            lines += ["", figure.name]
            lines += [line for runs in figure.details.items() for line in _runs(*runs)]
    warnings = [f"WARNING {warning}" for figure in figures for warning in figure.warnings]
    return "\n".join([*lines, "", *warnings])


def _runs(kind: str, runs: list[Any]) -> list[str]:
    if all(isinstance(run, float) for run in runs):
        return [f"  {kind:<21}" + " ".join(f"{run:.3f}" for run in runs)]
    return [
        f"  {kind:<21}" + ", ".join(f"{name} {value:g}" for name, value in run.items())
        for run in runs
    ]
