"""The command ``python -m tests.benchmarks``."""

import argparse
import contextlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from . import instructions, processes
from .bench import Bench
from .figures import Figure, table

_SETTLE: Final = 1.0
"""Seconds from the first answer to the reading of idle memory."""

MEASUREMENTS: Final = {
    "pass-through": Bench.pass_through,
    "chat": Bench.chat,
    "loop": Bench.loop,
    "latency": Bench.latency,
    "stream": Bench.stream,
    "memory": Bench.memory,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Start the servers, run the measurements that were asked for, print what came out."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["instructions"]:
        counted = _instructions_options(arguments[1:])
        instructions.main(counted.root, counted.amount)
        return
    options = _options(arguments)
    cpus = sorted(os.sched_getaffinity(0))
    load_cpu, server_cpu = cpus[0], cpus[-1]
    if load_cpu == server_cpu:
        print("WARNING one CPU only: the load competes with the servers", file=sys.stderr)
    os.sched_setaffinity(0, {load_cpu})
    try:
        figures = _measure(options, load_cpu, server_cpu)
    except processes.NotServing as reason:
        print(f"A server did not start: {reason}", file=sys.stderr)
        return
    conditions = {
        "against": options.against,
        "python": platform.python_version(),
        "twisted": version("twisted"),
        "seconds": options.seconds,
        "repeat": options.repeat,
        "cpus": {"server": server_cpu, "load_and_upstream": load_cpu},
    }
    print(", ".join(f"{name} {value}" for name, value in conditions.items()), end="\n\n")
    print(table(figures))
    if options.json:
        report = conditions | {"figures": [figure.json() for figure in figures]}
        options.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


def _measure(options: argparse.Namespace, load_cpu: int, server_cpu: int) -> list[Figure]:
    with contextlib.ExitStack() as running:
        logs = Path(running.enter_context(tempfile.TemporaryDirectory()))

        def start(name: str, command: Sequence[str], port: int, cpu: int) -> processes.Server:
            log = logs / f"{name}.log"
            return running.enter_context(processes.serving(command, port, cpu, log))

        port = processes.free_port()
        upstream = start("upstream", processes.stub(port), port, load_cpu)
        port = processes.free_port()
        bare = start("bare", processes.bare(port), port, server_cpu)
        port = processes.free_port()
        relay = start("relay", processes.relay(port, upstream.port), port, server_cpu)
        port = processes.free_port()
        command = (
            processes.stub(port)
            if options.against == "stub"
            else processes.llamaproxy(port, upstream.port)
        )
        proxy = start("proxy", command, port, server_cpu)
        time.sleep(_SETTLE)
        bench = Bench(
            proxy=proxy,
            upstream=upstream,
            bare=bare,
            relay=relay,
            server_cpu=server_cpu,
            seconds=options.seconds,
            repeat=options.repeat,
            idle_memory=proxy.memory(),
        )
        figures: list[Figure] = []
        for name in options.which or MEASUREMENTS:
            print(f"{name} ...", file=sys.stderr)
            try:
                figures += MEASUREMENTS[name](bench)
            except (OSError, LookupError, ArithmeticError, ValueError) as reason:
                # A server that died, or never answered: the others can still be measured.
                print(f"{name} could not be measured: {reason!r}", file=sys.stderr)
        return figures


def _instructions_options(arguments: Sequence[str]) -> Any:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks instructions",
        description="Count the daemon's instructions for a piece of work, under valgrind.",
    )
    parser.add_argument(
        "--root", type=Path, default=processes.ROOT, help="the checkout to load it from (this one)"
    )
    parser.add_argument("--amount", type=int, default=100, help="requests of each kind (100)")
    return parser.parse_args(arguments)


def _options(arguments: Sequence[str] | None) -> Any:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="Measure what the daemon costs. Misses are printed; the exit code is 0.",
    )
    parser.add_argument(
        "which", nargs="*", metavar="WHICH", help=f"any of {', '.join(MEASUREMENTS)}; default all"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a run (1)")
    parser.add_argument("--repeat", type=int, default=5, help="runs behind each median (5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a report there as well")
    parser.add_argument(
        "--against",
        choices=("llamaproxy", "stub"),
        default="llamaproxy",
        help="the server under test; `stub` shows what the load itself can reach",
    )
    options = parser.parse_args(arguments)
    unknown = [name for name in options.which if name not in MEASUREMENTS]
    if unknown:
        parser.error(f"no such measurement: {', '.join(unknown)}")
    return options


if __name__ == "__main__":
    main()
