"""The work that is measured: each kind for those that can do it."""

from collections.abc import Callable, Mapping
from typing import Final

import attrs

from . import load, streams
from .canned import TOOL_COUNT, chat
from .contenders import BEFORE, OURS, TWO, UNSEEN
from .http1 import request
from .meter import Meter
from .processes import Server
from .watchers import watching

ASKED: Final = ("others", "completions", "tools", "invocations")
"""What the upstream counts: requests of three kinds, and the tools that completions offer."""
CONNECTIONS: Final = 32
STREAMS: Final = 300
INTERVAL: Final = 20
"""Milliseconds between the events of a stream."""
BURST: Final = 103
"""Events of a stream that are all there at once."""

Sample = Mapping[str, float]
"""What one run came to, by unit: of the server's CPU, a rate, a wait."""


@attrs.frozen
class Work:
    """A kind of work."""

    key: str
    title: str
    run: Callable[[Server, Server, float], Sample]
    """Given the server, its upstream and a length in seconds."""
    contenders: tuple[str, ...]
    """Who can do it, besides the daemon and an earlier one."""
    expected: Mapping[str, int] = attrs.Factory(dict)
    """What the daemon should ask of the upstream for each piece, of the kinds in `ASKED`."""
    anew: bool = False
    """Whether each run has a process of its own."""

    @property
    def names(self) -> tuple[str, ...]:
        """Who can do it, in the order of a round."""
        return OURS, *self.contenders, BEFORE


def completion(text: str, **fields: object) -> bytes:
    """A client's request for a chat completion."""
    return request("POST", "/v1/chat/completions", chat(text, **fields))


HEALTH: Final = request("GET", "/v1/health")
CHAT: Final = completion("Hello, who are you?")
LOOP: Final = completion("[call 1] What is the weather in Oslo?")
BURSTS: Final = completion("[burst]", stream=True)
PARALLEL: Final = completion("[parallel 3] What is the weather in Oslo, Rome and Riga?")


def crowd(asked: bytes) -> Callable[[Server, Server, float], Sample]:
    """Many clients."""

    def run(server: Server, upstream: Server, seconds: float) -> Sample:
        meter = Meter(server, upstream)
        before = upstream.get("/stub/counts")
        spent, tally = load.crowd(server.port, asked, CONNECTIONS, seconds, meter.read)
        after = upstream.get("/stub/counts")
        asked_for = {
            f"asked_{kind}": (after.get(kind, 0) - before.get(kind, 0)) / max(1, tally.answers)
            for kind in ASKED
        }
        return {**spent.sample(), **asked_for}

    return run


def divided(asked: bytes) -> Callable[[Server, Server, float], Sample]:
    """Many clients, and what the busiest process has to do with each: the others run beside it."""
    work = crowd(asked)

    def run(server: Server, upstream: Server, seconds: float) -> Sample:
        before = server.cpus()
        sample = work(server, upstream, seconds)
        spent = [cpu - before[pid] for pid, cpu in server.cpus().items()]
        return {**sample, "busiest_us": sample["cpu_us"] * max(spent) / sum(spent)}

    return run


def seen(asked: bytes) -> Callable[[Server, Server, float], Sample]:
    """Many clients, with a page open and Prometheus scraping, where there is an admin port."""
    work = crowd(asked)

    def run(server: Server, upstream: Server, seconds: float) -> Sample:
        with watching(server):
            return work(server, upstream, seconds)

    return run


def alone(asked: bytes) -> Callable[[Server, Server, float], Sample]:
    """One client."""

    def run(server: Server, _: Server, seconds: float) -> Sample:
        return {"p50_ms": load.milliseconds(load.alone(server.port, asked, seconds / 2))}

    return run


def listening(server: Server, upstream: Server, seconds: float) -> Sample:
    """Many streams at once."""
    steady, first = streams.heard(
        server.port, STREAMS, INTERVAL, seconds, Meter(server, upstream).read
    )
    pace = steady.rate / (STREAMS / (INTERVAL / 1000))
    return {**steady.sample(), "first_ms": first * 1000, "pace_percent": 100 * pace}


def download(server: Server, upstream: Server, _: float) -> Sample:
    """One large body."""
    meter = Meter(server, upstream)
    before = meter.read(0)
    received, seconds = load.download(server.port, "/big")
    spent = meter.read(received) - before
    return {
        "megabytes": received / seconds / 1e6,
        "cpu_us": spent.each * 1e6,
        "server_percent": 100 * spent.cpu / spent.seconds,
    }


def parallel(server: Server, upstream: Server, seconds: float) -> Sample:
    """One client, whose chat makes three slow calls at once: what it takes longer than the slowest.

    The slowest is what the upstream itself has seen, from a call's arrival to its result.
    """

    def slowest() -> float:
        seconds: float = upstream.get("/stub/counts")["slowest_us"] / 1e6
        return seconds

    waits = load.alone(server.port, PARALLEL, seconds / 2, less=slowest)
    return {"over_ms": load.milliseconds(waits)}


_LOOPERS: Final = ("Go", "Go cached")
WORKS: Final = (
    # They compare two daemons that differ by little: where a process happens to lie in memory makes
    # two percents, and one that has worked for a while needs some more than a new one.
    Work("seen", "chat that is watched, a chat", seen(CHAT), (UNSEEN,), anew=True),
    Work("seen-loop", "one-tool loop that is watched, a loop", seen(LOOP), (UNSEEN,), anew=True),
    Work(
        "pass",
        "pass-through, a request",
        crowd(HEALTH),
        ("bare protocol", "relay", "twisted.web", "nginx", "Go"),
        {"others": 1},
    ),
    Work(
        "chat",
        f"chat, {TOOL_COUNT} tools, a chat",
        crowd(CHAT),
        (*_LOOPERS, "LiteLLM"),
        {"completions": 1, "tools": TOOL_COUNT, "invocations": 0},
    ),
    Work(
        "loop",
        "one-tool loop, a loop",
        crowd(LOOP),
        _LOOPERS,
        {"completions": 2, "tools": 2 * TOOL_COUNT, "invocations": 1},
    ),
    Work("workers", "chat by one process or two, a chat", divided(CHAT), (TWO,)),
    Work(
        "burst",
        f"{BURST} events at once, a stream",
        crowd(BURSTS),
        ("nginx", "Go"),
        {"completions": 1, "tools": TOOL_COUNT},
    ),
    Work(
        "events",
        f"{STREAMS} streams, {INTERVAL} ms apart, an event",
        listening,
        ("relay", "nginx", "Go"),
    ),
    Work("download", "256 MiB download, a MB", download, ("relay", "nginx", "Go")),
    Work("one-pass", "one connection: pass-through", alone(HEALTH), ("relay", "nginx", "Go")),
    Work("one-chat", "one connection: chat", alone(CHAT), (*_LOOPERS, "LiteLLM")),
    Work("one-loop", "one connection: loop", alone(LOOP), _LOOPERS),
    Work("parallel", "three parallel tools of 50 ms, over the slowest", parallel, _LOOPERS),
)
