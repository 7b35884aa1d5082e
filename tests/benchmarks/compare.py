"""The comparison: rounds in which each program has its turn at the same work."""

import contextlib
import os
import platform
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import attrs

from . import processes, resting
from .contenders import BEFORE, OURS, Contender, contenders, stub
from .load import Failed
from .works import WORKS, Sample

RESTING: Final = {
    "start": (resting.starting, (OURS, "Go", BEFORE), 1.0),
    "memory": (resting.resident, (OURS, "Go", BEFORE), 0.2),
}
"""By name: what is measured of a process of its own, whose, and how many rounds of those asked."""

KINDS: Final = (*RESTING, *(work.key for work in WORKS))

_Recorded = dict[str, dict[str, dict[str, list[float]]]]


@attrs.define
class Comparison:
    """Programs that run, and what has been measured of them."""

    directory: Path
    server_cpu: int
    load_cpu: int
    upstream: processes.Server
    programs: dict[str, Contender]
    samples: _Recorded = attrs.Factory(
        lambda: defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    )
    missing: list[str] = attrs.Factory(list)
    _started: int = 0

    @contextlib.contextmanager
    def start(self, name: str) -> Iterator[processes.Server]:
        """Run a program for a block, on the CPU of those that are measured; workers on all."""
        program = self.programs[name]
        self._started += 1
        port = processes.free_port()
        command = program.command(port, self.upstream.port)
        log = self.directory / f"{self._started}.log"
        cpus = {self.server_cpu, self.load_cpu} if program.workers else {self.server_cpu}
        with processes.serving(
            command, port, cpus, log, program.root, seconds=60, ready=program.ready
        ) as server:
            yield server

    @contextlib.contextmanager
    def noted(self, what: str) -> Iterator[None]:
        """Go on after a server that died, or never answered: others can still be measured."""
        try:
            yield
        except (Failed, processes.NotServing, OSError, LookupError, ValueError) as reason:
            note = f"{what}: could not be measured: {reason!r}"
            print(f"NOTE {note}", file=sys.stderr)
            if note not in self.missing:
                self.missing.append(note)

    def record(self, kind: str, name: str, sample: Sample) -> None:
        """Keep what a run came to."""
        for unit, value in sample.items():
            self.samples[kind][name][unit].append(value)


@contextlib.contextmanager
def comparison(before: Path | None) -> Iterator[Comparison]:
    """The upstream, and all programs that there are, none of which runs yet."""
    cpus = sorted(os.sched_getaffinity(0))
    load_cpu, server_cpu = cpus[0], cpus[-1]
    with contextlib.ExitStack() as running:
        directory = Path(running.enter_context(tempfile.TemporaryDirectory()))
        programs, missing = contenders(directory, before)
        if load_cpu == server_cpu:
            missing.append("there is one CPU only: the load competes with the servers")
        for note in missing:
            print(f"NOTE {note}", file=sys.stderr)
        port = processes.free_port()
        upstream = running.enter_context(
            processes.serving(stub(port), port, {load_cpu}, directory / "upstream.log")
        )
        running.enter_context(processes.on({load_cpu}))
        named = {program.name: program for program in programs}
        yield Comparison(directory, server_cpu, load_cpu, upstream, named, missing=missing)


def measure(compared: Comparison, kinds: Sequence[str], rounds: int, seconds: float) -> None:
    """Let each program do each of the kinds of work in each round."""
    for kind in kinds:
        if kind in RESTING:
            _rest(compared, kind, rounds)
    works = [work for work in WORKS if work.key in kinds]
    with contextlib.ExitStack() as running:
        servers: dict[str, processes.Server] = {}
        for name in compared.programs:
            if any(name in work.names and not work.anew for work in works):
                with compared.noted(f"{name}, all of it"):
                    servers[name] = running.enter_context(compared.start(name))
        for work in works:
            there = compared.programs if work.anew else servers
            names = [name for name in work.names if name in there]
            print(f"{work.key}: {', '.join(names)} ...", file=sys.stderr)
            for number in range(rounds):
                # Every other round the other way about, so that no one always follows the same.
                for name in names if number % 2 else reversed(names):
                    with compared.noted(f"{work.key}, {name}"), contextlib.ExitStack() as own:
                        new = work.anew
                        server = own.enter_context(compared.start(name)) if new else servers[name]
                        sample = work.run(server, compared.upstream, seconds)
                        compared.record(work.key, name, sample)


def report(compared: Comparison, rounds: int, seconds: float) -> dict[str, Any]:
    """Everything, as it is written to a file."""
    return {
        "conditions": {
            "Python": platform.python_version(),
            "Twisted": version("twisted"),
            "Linux": platform.release().split("-")[0],
            "CPUs": os.cpu_count(),
            "rounds": rounds,
            "seconds each": seconds,
        },
        "missing": compared.missing,
        "samples": compared.samples,
    }


def _rest(compared: Comparison, kind: str, rounds: int) -> None:
    look, names, share = RESTING[kind]
    there = [name for name in names if name in compared.programs]
    print(f"{kind}: {', '.join(there)} ...", file=sys.stderr)
    for _ in range(max(1, round(share * rounds))):
        for name in there:
            with compared.noted(f"{kind}, {name}"):
                compared.record(kind, name, look(name, compared.start))
