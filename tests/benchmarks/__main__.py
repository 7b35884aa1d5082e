"""The command ``python -m tests.benchmarks``."""

import argparse
import json
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

from . import compare, instructions, report, scaling
from .processes import ROOT


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the command says; figures that miss their targets are printed, and fail nothing."""
    arguments = sys.argv[1:] if arguments is None else arguments
    commands = {
        "instructions": _instructions,
        "plots": _plots,
        "report": _report,
        "scaling": _scaling,
    }
    if arguments and arguments[0] in commands:
        commands[arguments[0]](arguments[1:])
    else:
        _compare(arguments)


def _compare(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="Measure what the daemon costs, beside others. "
        "Further commands: instructions, plots, report FILE, scaling.",
    )
    parser.add_argument(
        "kinds", nargs="*", metavar="KIND", help=f"any of {', '.join(compare.KINDS)}; default all"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a run (1)")
    parser.add_argument("--rounds", type=int, default=5, help="runs behind each median (5)")
    parser.add_argument(
        "--before", type=Path, metavar="DIR", help="an earlier checkout to compare with"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a report there as well")
    options = parser.parse_args(arguments)
    if unknown := [kind for kind in options.kinds if kind not in compare.KINDS]:
        parser.error(f"no such kind: {', '.join(unknown)}")
    _allow_descriptors()
    before = options.before and options.before.resolve()
    with compare.comparison(before) as compared:
        kinds = options.kinds or compare.KINDS
        compare.measure(compared, kinds, options.rounds, options.seconds)
        outcome = compare.report(compared, options.rounds, options.seconds)
    if options.json:
        options.json.write_text(json.dumps(outcome, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(report.tables(outcome))


def _report(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks report",
        description=f"Put the figures of a report into {report.PAGE.relative_to(ROOT)}.",
    )
    parser.add_argument("file", type=Path, help="what --json has written")
    report.write(json.loads(parser.parse_args(arguments).file.read_text("utf-8")))


def _instructions(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks instructions",
        description="Count the daemon's instructions for a piece of work, under valgrind.",
    )
    parser.add_argument(
        "--root", type=Path, default=ROOT, help="the checkout to load it from (this one)"
    )
    parser.add_argument("--amount", type=int, default=100, help="requests of each kind (100)")
    options = parser.parse_args(arguments)
    instructions.main(options.root.resolve(), options.amount)


def _scaling(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks scaling",
        description=f"Put what many streams need into {scaling.PAGE.relative_to(ROOT)}, by what "
        f"one costs in {scaling.FIGURES.relative_to(ROOT)}.",
    )
    parser.parse_args(arguments)
    scaling.main()


def _plots(arguments: Sequence[str]) -> None:
    from . import plots

    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks plots",
        description="Measure and draw the plots of the documentation.",
    )
    parser.add_argument("--into", type=Path, default=plots.PLACE, help="folder (docs/performance)")
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a run (0.5)")
    parser.add_argument(
        "--before", type=Path, metavar="DIR", help="an earlier checkout to compare with"
    )
    options = parser.parse_args(arguments)
    _allow_descriptors()
    plots.draw(options.into, options.seconds, options.before and options.before.resolve())


def _allow_descriptors() -> None:
    """Raise the limit of descriptors as far as this process, and those it starts, may."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    main()
