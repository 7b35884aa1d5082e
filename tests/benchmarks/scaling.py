"""Past the machine, on paper: what so many streams need, by what one costs.

``python -m tests.benchmarks scaling`` writes the tables of ``docs/scaling.md``, with the costs that
``docs/performance.md`` has.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable, Iterator
from heapq import merge
from itertools import islice
from typing import Final

import attrs

from .processes import ROOT

PAGE: Final = ROOT / "docs" / "scaling.md"
FIGURES: Final = ROOT / "docs" / "performance.md"

_BEGIN: Final = "<!-- scaling: begin -->"
_END: Final = "<!-- scaling: end -->"

MICRO: Final = 1e-6


@attrs.frozen
class Costs:
    """What is measured of one process."""

    event_us: float = attrs.field(metadata={"row": "300 streams, 20 ms apart, an event"})
    chat_us: float = attrs.field(metadata={"row": "chat, 10 tools, a chat"})
    loop_us: float = attrs.field(metadata={"row": "one-tool loop, a loop"})
    process_mb: float = attrs.field(metadata={"row": "idle process, memory"})
    stream_kb: float = attrs.field(metadata={"row": "an open stream of 500, memory"})
    #: An event's in nginx, as a measure for what is in front.
    balancer_event_us: float = attrs.field(
        metadata={"row": "300 streams, 20 ms apart, an event", "column": "nginx"}
    )


@attrs.frozen
class Load:
    """What is asked for: assumptions, all of them."""

    streams: int = 100_000
    #: Events a second in each, and of one answer; bytes of one.
    events_per_second: float = 30
    events: int = 400
    event_bytes: int = 250
    #: Of all chats, those with a round of the server's tools, and how long that takes, in seconds.
    loops: float = 0.3
    tool_seconds: float = 1.0
    #: Of all chats, those whose turn the client's tools share; and its bytes in the store, the
    #: earlier ones in its history, and how long it is kept, in seconds.
    mixed: float = 0.05
    turn_bytes: int = 2_000
    history: int = 3
    memory_age: float = 3600
    #: People with credentials of their own; how long a list of tools is fresh, in seconds.
    callers: int = 100_000
    tools_ttl: float = 60


@attrs.frozen
class Plan:
    """What a load needs, where no process is busier than a share of its time."""

    costs: Costs
    load: Load
    busy: float

    @property
    def answer_seconds(self) -> float:
        """How long a stream is open."""
        load = self.load
        return load.events / load.events_per_second + load.loops * load.tool_seconds

    @property
    def chats(self) -> float:
        """Chats a second: by Little's law, those that are open by how long each is."""
        return self.load.streams / self.answer_seconds

    @property
    def events(self) -> float:
        """Events a second."""
        return self.chats * self.load.events

    @property
    def event_cores(self) -> float:
        return self.events * self.costs.event_us * MICRO

    @property
    def chat_cores(self) -> float:
        load, costs = self.load, self.costs
        each = (1 - load.loops) * costs.chat_us + load.loops * costs.loop_us
        return self.chats * each * MICRO

    @property
    def processes(self) -> int:
        """Each with one core."""
        return math.ceil((self.event_cores + self.chat_cores) / self.busy)

    @property
    def streams_each(self) -> float:
        return self.load.streams / self.processes

    @property
    def memory_gb(self) -> float:
        costs = self.costs
        return (self.processes * costs.process_mb + self.load.streams * costs.stream_kb / 1e3) / 1e3

    @property
    def gigabits(self) -> float:
        """Of events alone, to clients; from the server come as many."""
        return self.events * self.load.event_bytes * 8 / 1e9

    @property
    def balancer_cores(self) -> float:
        return self.events * self.costs.balancer_event_us * MICRO

    # --- the store

    @property
    def turns(self) -> float:
        """Turns a second that are put into the store."""
        return self.chats * self.load.mixed

    @property
    def commands(self) -> float:
        """Commands a second: SET, and at the client's return STRLEN and EXPIRE for each, MGET."""
        return self.turns * (1 + 2 * self.load.history + 1)

    @property
    def store_gb(self) -> float:
        return self.turns * self.load.memory_age * self.load.turn_bytes / 1e9

    @property
    def store_megabytes(self) -> float:
        """A second, written and read."""
        return self.turns * (1 + self.load.history) * self.load.turn_bytes / 1e6

    # --- lists of tools

    def lists(self, callers: int, places: int) -> float:
        """Lists a second that the server is asked for by so many *places*, of *callers*.

        A place lists for a caller once in a while in which it comes there at all.
        """
        comes = self.chats / places * self.load.tools_ttl
        different = callers * -math.expm1(comes * math.log1p(-1 / callers)) if callers > 1 else 1
        return places * min(different, comes) / self.load.tools_ttl

    # --- what goes

    def without(self, share: float) -> float:
        """How busy each of the others is when a *share* of the processes has gone."""
        return (self.event_cores + self.chat_cores) / (self.processes * (1 - share))


def lateness(
    costs: Costs, load: Load, busy: float, jobs: int = 100_000, seed: int = 1
) -> tuple[float, float]:
    """Milliseconds that an event waits for others in one process: the median, and one in a hundred.

    Simulated: events and chats come at random, and are served in their order, each at its cost.
    """
    chance = random.Random(seed)
    events = load.events
    chat_us = (1 - load.loops) * costs.chat_us + load.loops * costs.loop_us
    per_chat = (events * costs.event_us + chat_us) * MICRO
    chats = busy / per_chat

    def arrivals(rate: float, cost: float) -> Iterator[tuple[float, float]]:
        at = 0.0
        while True:
            at += chance.expovariate(rate)
            yield at, cost

    both = merge(arrivals(chats * events, costs.event_us * MICRO), arrivals(chats, chat_us * MICRO))
    free, waits = 0.0, []
    for at, cost in islice(both, jobs):
        waits.append(max(0.0, free - at))
        free = max(free, at) + cost
    waits.sort()
    return waits[jobs // 2] * 1e3, waits[jobs * 99 // 100] * 1e3


# --- the page


def measured(page: str) -> Costs:
    """The costs in the table of ``docs/performance.md``."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()]
    [head] = [row for row in rows if row[:2] == ["measured", "in"]]

    def figure(row: str, column: str = "llamaproxy") -> float:
        [text] = [
            each[head.index(column)]
            for each in rows
            if each[:1] == [row] and each[1] not in ("a second", "time to first event, ms")
        ]
        match = re.match(r"[\d.,]+", text)
        assert match is not None, row
        return float(match[0].replace(",", ""))

    return Costs(**{field.name: figure(**field.metadata) for field in attrs.fields(Costs)})


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _rounded(value: float) -> str:
    """With two digits that count, or whole."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def tables(costs: Costs, load: Load, busy: float) -> str:
    """All that the page shows, as Markdown."""
    sizes = [1_000, 10_000, load.streams]
    plans = [Plan(costs, attrs.evolve(load, streams=size), busy) for size in sizes]
    plan = plans[-1]
    assumed = _table(
        ("of one process, measured", ""),
        [
            ("an event of a stream", f"{costs.event_us} µs"),
            ("a chat without a call, with one", f"{costs.chat_us:.0f} µs, {costs.loop_us:.0f} µs"),
            ("memory, and of each stream", f"{costs.process_mb} MB, {costs.stream_kb} kB"),
            ("an event in nginx, for what is in front", f"{costs.balancer_event_us} µs"),
        ],
    )
    needs = _table(
        ("streams at once", *(f"{size:,}" for size in sizes)),
        [
            ("chats a second", *(_rounded(each.chats) for each in plans)),
            ("events a second", *(f"{each.events:,.0f}" for each in plans)),
            ("cores for events", *(_rounded(each.event_cores) for each in plans)),
            ("cores for the rest of chats", *(_rounded(each.chat_cores) for each in plans)),
            (
                f"**processes**, each {busy:.0%} busy",
                *(f"**{each.processes}**" for each in plans),
            ),
            ("streams in each", *(_rounded(each.streams_each) for each in plans)),
            ("memory of all, GB", *(_rounded(each.memory_gb) for each in plans)),
            ("to clients, Gbit/s", *(_rounded(each.gigabits) for each in plans)),
            ("cores of what is in front", *(_rounded(each.balancer_cores) for each in plans)),
            ("the store: turns a second", *(_rounded(each.turns) for each in plans)),
            ("commands a second", *(_rounded(each.commands) for each in plans)),
            ("MB a second", *(_rounded(each.store_megabytes) for each in plans)),
            ("GB that it keeps", *(_rounded(each.store_gb) for each in plans)),
        ],
    )
    lists = _table(
        ("lists of tools a second", "each process lists", "one lists for the 16 of a machine"),
        [
            (
                f"{callers:,} callers" if callers > 1 else "one key for all",
                *(
                    _rounded(plan.lists(callers, places))
                    for places in (plan.processes, math.ceil(plan.processes / 16))
                ),
            )
            for callers in (1, 1_000, load.callers)
        ],
    )
    waits = []
    for share in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95):
        median, rare = lateness(costs, load, share)
        waits.append((f"{share:.0%}", f"{median:.2f}", f"{rare:.2f}"))
    late = _table(("busy", "half of all events wait less than, ms", "99 of 100"), waits)
    lost = _table(
        ("what goes", "streams that are cut", "the others are busy"),
        [
            (name, f"{load.streams * share:,.0f}", f"{plan.without(share):.0%}")
            for name, share in (
                ("a process", 1 / plan.processes),
                ("a machine of 16", 16 / plan.processes),
                ("a zone of three", 1 / 3),
            )
        ],
    )
    return "\n\n".join([assumed, needs, lists, late, lost])


def written(page: str, text: str) -> str:
    """The *page* with *text* between its marks."""
    head, begin, rest = page.partition(_BEGIN)
    _, end, tail = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"the page has no {_BEGIN} or no {_END}")
    return f"{head}{begin}\n\n{text}\n\n{end}{tail}"


#: How busy processes may be, so that those of two zones can do the work of three.
BUSY: Final = 0.6


def main() -> None:
    costs = measured(FIGURES.read_text("utf-8"))
    text = tables(costs, Load(), BUSY)
    PAGE.write_text(written(PAGE.read_text("utf-8"), text), "utf-8")
    print(text)
