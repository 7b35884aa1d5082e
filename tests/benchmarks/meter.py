"""What a run spends: answers, seconds, and CPU time on both sides."""

import os
import time
from typing import Final

import attrs

from .processes import Server, idle

BUSY: Final = 0.90
"""The share of its CPU below which a server was not the bottleneck of a run."""


@attrs.frozen
class Run:
    """What was spent up to a moment, or, as a difference, between two."""

    seconds: float
    count: int
    """Answers, or events."""
    cpu: float
    """CPU seconds of the server under test."""
    load_cpu: float
    """CPU seconds of the load and the upstream stub, which share a CPU."""
    idle: float
    """Seconds that the CPU of the server under test had nothing to do."""

    def __sub__(self, earlier: "Run") -> "Run":
        return Run(
            self.seconds - earlier.seconds,
            self.count - earlier.count,
            self.cpu - earlier.cpu,
            self.load_cpu - earlier.load_cpu,
            self.idle - earlier.idle,
        )

    @property
    def rate(self) -> float:
        """Answers or events a second."""
        return self.count / self.seconds

    @property
    def each(self) -> float:
        """CPU microseconds of the server for each answer or event."""
        return self.cpu / self.count * 1e6 if self.count else float("inf")

    @property
    def share(self) -> float:
        """The share of its CPU that the server used, 0 to 1."""
        return self.cpu / self.seconds

    def summary(self) -> dict[str, float]:
        """The run in readable numbers: rates, and shares of a CPU in percent."""
        return {
            "per_second": round(self.rate, 1),
            "cpu_us_each": round(self.each, 1),
            "server_percent": round(100 * self.share, 1),
            "server_core_idle_percent": round(100 * self.idle / self.seconds, 1),
            "load_percent": round(100 * self.load_cpu / self.seconds, 1),
        }


@attrs.frozen
class Meter:
    """Reads the clocks that a run is measured with."""

    server: Server
    upstream: Server
    server_cpu: int

    def read(self, count: int) -> Run:
        """Everything spent so far, with the answers or events counted so far."""
        own = os.times()
        return Run(
            seconds=time.perf_counter(),
            count=count,
            cpu=self.server.cpu(),
            load_cpu=own.user + own.system + self.upstream.cpu(),
            idle=idle(self.server_cpu),
        )
