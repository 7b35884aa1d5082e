"""What is measured for the plots: the same work, more and more of one thing."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import quantiles
from typing import Final

import attrs

from . import compare, contenders, load, processes, streams
from .compare import Comparison
from .contenders import BEFORE, OURS
from .meter import Meter
from .works import CHAT, HEALTH, LOOP, completion

LOOPERS: Final[tuple[str, ...]] = (OURS, "Go", "Go cached")
PASSERS: Final[tuple[str, ...]] = (OURS, "Go", "nginx")
CROWDS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
TOOLS: Final = (10, 30, 100, 300, 1000)
ROUNDS: Final = (1, 2, 4, 8)
SIZES: Final = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
STREAMS: Final = (1, 10, 100, 300, 1000, 2000)
_APART: Final = 200
"""Milliseconds between the events of a stream: so far, that even 2,000 can keep pace."""
_CLIENTS: Final = 8


@attrs.frozen
class Point:
    """One measurement of a plot."""

    x: float
    y: float
    high: float | None = None
    """The 99th percentile, for latencies."""


Series = dict[str, list[Point]]
"""By program."""


@attrs.frozen
class Sweep:
    """Everything that the plots show."""

    pass_through: Series
    """Milliseconds by requests each second."""
    chats: Series
    """The same for chats."""
    tools: Series
    """CPU microseconds of a loop by the number of tools."""
    rounds: Series
    """The same by the number of rounds."""
    sizes: Series
    """The same by the bytes of the client's message."""
    events: Series
    """CPU microseconds of an event by the number of streams."""
    first: Series
    """Milliseconds to the first event by the number of streams."""


def sweep(seconds: float, before: Path | None) -> Sweep:
    """Measure all of it; a run is so many seconds long."""
    with compare.comparison(before) as compared:
        tools: Series = {}
        for count in TOOLS:
            with _upstream(compared, count) as with_tools, _running(with_tools, LOOPERS) as servers:
                _each(tools, with_tools, servers, _offering, [count], seconds)
        with _running(compared, {*LOOPERS, *PASSERS, BEFORE}) as servers:
            passing: Series = {}
            chatting: Series = {}
            for series, asked, names in (
                (passing, HEALTH, (*PASSERS, BEFORE)),
                (chatting, CHAT, (*LOOPERS, BEFORE)),
            ):
                some = {name: servers[name] for name in names if name in servers}
                _each(series, compared, some, _latency(asked), CROWDS, seconds)
            loopers = {name: servers[name] for name in (*LOOPERS, BEFORE) if name in servers}
            rounds: Series = {}
            _each(rounds, compared, loopers, _looping, ROUNDS, seconds)
            sizes: Series = {}
            _each(sizes, compared, loopers, _sized, SIZES, seconds)
            passers = {name: servers[name] for name in (*PASSERS, BEFORE) if name in servers}
            events, first = _streams(compared, passers, seconds)
        return Sweep(passing, chatting, tools, rounds, sizes, events, first)


_Measure = Callable[[processes.Server, processes.Server, float], Point]


def _each(
    series: Series,
    compared: Comparison,
    servers: dict[str, processes.Server],
    measure: Callable[[int], _Measure],
    values: Sequence[int],
    seconds: float,
) -> None:
    for value in values:
        for name, server in servers.items():
            with compared.noted(f"plots, {name}, {value:,}"):
                point = measure(value)(server, compared.upstream, seconds)
                series.setdefault(name, []).append(point)


def _latency(asked: bytes) -> Callable[[int], _Measure]:
    def of(clients: int) -> _Measure:
        def measure(server: processes.Server, upstream: processes.Server, seconds: float) -> Point:
            read = Meter(server, upstream).read
            spent, tally = load.crowd(server.port, asked, clients, seconds, read)
            late = quantiles(tally.waits, n=100)[-1] if len(tally.waits) > 1 else tally.waits[0]
            return Point(spent.rate, load.milliseconds(tally.waits), late * 1000)

        return measure

    return of


def _offering(tools: int) -> _Measure:
    return _costing(tools, LOOP, _CLIENTS)


def _looping(rounds: int) -> _Measure:
    asked = completion(f"[call {rounds}] What is the weather in Oslo?")
    return _costing(rounds, asked, _CLIENTS)


def _sized(size: int) -> _Measure:
    asked = completion("[call 1] " + "What is the weather? " * (size // 21))
    # One at a time: what a large one costs is bytes, and what is under way is bounded.
    return _costing(size, asked, 1)


def _costing(x: int, asked: bytes, clients: int) -> _Measure:
    def measure(server: processes.Server, upstream: processes.Server, seconds: float) -> Point:
        meter = Meter(server, upstream)
        before = meter.read(0)
        _, tally = load.crowd(server.port, asked, clients, seconds, meter.read)
        return Point(x, (meter.read(tally.answers) - before).each)

    return measure


def _streams(
    compared: Comparison, servers: dict[str, processes.Server], seconds: float
) -> tuple[Series, Series]:
    events: Series = {}
    first: Series = {}
    for count in STREAMS:
        for name, server in servers.items():
            with compared.noted(f"plots, {name}, {count:,} streams"):
                meter = Meter(server, compared.upstream)
                # One stream has few events: longer, to count more than a handful.
                enough = max(seconds, 2.0 if count <= 10 else 0.0)
                spent, wait = streams.heard(server.port, count, _APART, enough, meter.read)
                events.setdefault(name, []).append(Point(count, spent.each))
                first.setdefault(name, []).append(Point(count, wait * 1000))
    return events, first


@contextlib.contextmanager
def _upstream(compared: Comparison, tools: int) -> Iterator[Comparison]:
    """The same with another upstream, which has so many tools."""
    port = processes.free_port()
    log = compared.directory / f"tools-{tools}.log"
    command = contenders.stub(port, tools)
    with processes.serving(command, port, {compared.load_cpu}, log) as upstream:
        yield attrs.evolve(compared, upstream=upstream)


@contextlib.contextmanager
def _running(
    compared: Comparison, names: Sequence[str] | set[str]
) -> Iterator[dict[str, processes.Server]]:
    with contextlib.ExitStack() as running:
        yield {
            name: running.enter_context(compared.start(name))
            for name in compared.programs
            if name in names
        }
