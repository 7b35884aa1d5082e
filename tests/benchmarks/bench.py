"""The measurements: each loads the servers for a while and returns its figures."""

import asyncio
from statistics import median
from typing import Any, Final

import attrs

from .canned import TOOL_COUNT, chat
from .figures import Figure
from .http1 import request
from .load import Tally, calling, listening
from .meter import BUSY, Meter, Run
from .processes import Server
from .stub import INTERVAL

CONNECTIONS: Final = 32
STREAMS: Final = 300
WARM_UP: Final = 0.4
"""Seconds of load before a measurement starts."""
RAMP: Final = 5.0
"""Seconds in which all streams must begin, so that all still run when a measurement ends."""

_ANSWER: Final = request("GET", "/answer")
_CHAT_PATH: Final = "/v1/chat/completions"
_HEALTH: Final = request("GET", "/v1/health")
_CHAT: Final = request("POST", _CHAT_PATH, chat("Hello, who are you?"))
_LOOP: Final = request("POST", _CHAT_PATH, chat("[call] What is the weather in Oslo?"))


@attrs.frozen
class Bench:
    """The servers, and how long and how often to load them."""

    proxy: Server
    upstream: Server
    bare: Server
    relay: Server
    server_cpu: int
    seconds: float
    repeat: int
    idle_memory: float
    """Resident memory of the proxy before any load, in MB (millions of bytes)."""

    def pass_through(self) -> list[Figure]:
        """Requests/s of a small GET that the proxy passes through."""
        return [self._ratio("pass-through GET", _HEALTH, _HEALTH, 0.25, {"others": 1})]

    def chat(self) -> list[Figure]:
        """Requests/s of a unary chat that is offered ten tools and calls none."""
        expected = {"completions": 1, "tools": TOOL_COUNT, "invocations": 0}
        return [self._ratio("chat with ten tools", _CHAT, _ANSWER, 0.12, expected)]

    def loop(self) -> list[Figure]:
        """Requests/s of a unary chat that calls one tool: three upstream requests for one."""
        expected = {"completions": 2, "tools": 2 * TOOL_COUNT, "invocations": 1}
        return [self._ratio("one-tool loop", _LOOP, _ANSWER, 0.06, expected)]

    def latency(self) -> list[Figure]:
        """Milliseconds that the proxy adds to a unary chat on one connection.

        The details show how long the bare server needs, which asks nobody.
        """
        name = "latency added to a chat"
        direct: list[float] = []
        bare: list[float] = []
        proxied: list[float] = []
        warnings: list[str] = []
        servers = ((self.upstream, direct), (self.bare, bare), (self.proxy, proxied))
        for _ in range(self.repeat):
            for server, medians in servers:
                _, tally = asyncio.run(self._call(server, _CHAT, connections=1))
                medians.append(median(tally.waits) * 1000)
                warnings += _failures(name, tally)
        return [
            Figure(
                name=name,
                value=median(p - d for p, d in zip(proxied, direct, strict=True)),
                unit=" ms",
                limit="at most",
                target=1.0,
                details={"direct_ms": direct, "bare_ms": bare, "proxied_ms": proxied},
                warnings=warnings,
            )
        ]

    def stream(self) -> list[Figure]:
        """CPU microseconds that relaying one SSE event costs, with many streams at once.

        The details show what it costs to copy its bytes from one connection to another.
        """
        name = f"CPU for an SSE event, {STREAMS} streams"
        steady, overall, copied = [], [], []
        warnings: list[str] = []
        for _ in range(self.repeat):
            copied.append(asyncio.run(self._listen(self.relay))[0])
            window, total, found = asyncio.run(self._listen(self.proxy))
            steady.append(window)
            overall.append(total)
            warnings += (f"{name}: {warning}" for warning in found)
        return [
            Figure(
                name=name,
                value=median(run.each for run in steady),
                unit=" µs",
                limit="at most",
                target=35.0,
                details={
                    "bytes copied": [run.summary() for run in copied],
                    "ratio to that": [
                        run.each / copy.each for run, copy in zip(steady, copied, strict=True)
                    ],
                    "steady": [run.summary() for run in steady],
                    "with_opening_and_end": [run.summary() for run in overall],
                },
                warnings=warnings,
            )
        ]

    def memory(self) -> list[Figure]:
        """Resident memory of the proxy before any load, and at its highest so far."""
        peak = self.proxy.peak_memory()
        return [
            Figure("resident memory, idle", self.idle_memory, " MB", "at most", 80.0),
            Figure("resident memory, peak", peak, " MB", "at most", 80.0),
        ]

    def _ratio(
        self, name: str, asked: bytes, yardstick: bytes, target: float, expected: dict[str, int]
    ) -> Figure:
        """Bare and proxied runs in turn, like for like: both servers are sent `asked`.

        The bare server also gets `yardstick`, a GET with the same answer: Twisted needs twice as
        long to read a POST, and the details show what that makes of the ratio.
        `expected` is what the proxy should ask of the upstream for each request.
        """
        bare, bare_get, proxied = [], [], []
        warnings: list[str] = []
        for _ in range(self.repeat):
            bare.append(self._run(f"{name}, bare", self.bare, asked, warnings)[0])
            before = self.upstream.get("/stub/counts")
            run, tally = self._run(name, self.proxy, asked, warnings)
            proxied.append(run)
            after = self.upstream.get("/stub/counts")
            warnings += _surprises(name, before, after, expected, tally)
            if asked != yardstick:
                bare_get.append(self._run(f"{name}, bare", self.bare, yardstick, warnings)[0])
        warnings += _not_busy(name, proxied) + _not_busy(f"{name}, bare", bare)
        details: dict[str, Any] = {
            "bare": [run.summary() for run in bare],
            "proxied": [run.summary() for run in proxied],
        }
        if bare_get:
            details["bare, GET"] = [run.summary() for run in bare_get]
            details["ratio to bare GET"] = _ratios(proxied, bare_get)
        return Figure(
            name=f"{name}, ratio to bare requests/s",
            value=median(_ratios(proxied, bare)),
            unit="",
            limit="at least",
            target=target,
            by_cpu=median(b.each / p.each for p, b in zip(proxied, bare, strict=True)),
            details=details,
            warnings=warnings,
        )

    def _run(
        self, name: str, server: Server, asked: bytes, warnings: list[str]
    ) -> tuple[Run, Tally]:
        """One run; `warnings` gets what was wrong with it."""
        run, tally = asyncio.run(self._call(server, asked))
        warnings += _failures(name, tally)
        return run, tally

    async def _call(
        self, server: Server, asked: bytes, connections: int = CONNECTIONS
    ) -> tuple[Run, Tally]:
        meter = Meter(server, self.upstream, self.server_cpu)
        async with calling(server.port, asked, connections) as tally:
            await asyncio.sleep(WARM_UP)
            before = meter.read(tally.answers)
            await asyncio.sleep(self.seconds)
            run = meter.read(tally.answers) - before
        return run, tally

    async def _listen(self, server: Server) -> tuple[Run, Run, list[str]]:
        """The run while all streams flow, the run from first to last byte, and what was wrong."""
        words = int((RAMP + self.seconds) / INTERVAL)
        asked = request("POST", _CHAT_PATH, chat("Tell me.", stream=True, max_tokens=words))
        meter = Meter(server, self.upstream, self.server_cpu)
        warnings = []
        first = meter.read(0)
        async with listening(server.port, asked, STREAMS) as heard:
            while heard.started < STREAMS and meter.read(0).seconds < first.seconds + RAMP:
                await asyncio.sleep(0.05)
            if heard.started < STREAMS:
                warnings.append(f"only {heard.started} streams had begun after {RAMP:g} s")
            before = meter.read(heard.words)
            await asyncio.sleep(self.seconds)
            steady = meter.read(heard.words) - before
        overall = meter.read(heard.words) - first
        if heard.ended < STREAMS or heard.words != STREAMS * words:
            warnings.append(
                f"{heard.ended} of {STREAMS} streams ended well, "
                f"with {heard.words} of {STREAMS * words} events"
            )
        pace = steady.rate / (STREAMS / INTERVAL)
        if pace < BUSY:
            warnings.append(f"events came at {pace:.0%} of their pace")
        return steady, overall, warnings


def _ratios(proxied: list[Run], bare: list[Run]) -> list[float]:
    return [ours.rate / theirs.rate for ours, theirs in zip(proxied, bare, strict=True)]


def _failures(name: str, tally: Tally) -> list[str]:
    return [f"{name}: {tally.failures} requests failed"] if tally.failures else []


def _not_busy(name: str, runs: list[Run]) -> list[str]:
    waiting = sum(run.share < BUSY for run in runs)
    if not waiting:
        return []
    return [
        f"{name}: in {waiting} of {len(runs)} runs the server used less than {BUSY:.0%} of its CPU "
        "(the load was too slow, or other programs ran): trust the ratio by CPU time"
    ]


def _surprises(
    name: str, before: dict[str, Any], after: dict[str, Any], expected: dict[str, int], tally: Tally
) -> list[str]:
    """Warn when a request did not cost the upstream requests that the figure is about."""
    warnings = []
    for kind, each in expected.items():
        seen = (after.get(kind, 0) - before.get(kind, 0)) / max(tally.answers, 1)
        # Lists that are refreshed meanwhile are counted too.
        if abs(seen - each) > 0.02 * max(each, 1):
            warnings.append(f"{name}: {seen:.2f} {kind} upstream for each request, not {each}")
    return warnings
