"""What a run spends: answers, seconds, and CPU time on both sides."""

import os
import time
from typing import Final

import attrs

from .processes import Server

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

    def __sub__(self, earlier: "Run") -> "Run":
        return Run(
            self.seconds - earlier.seconds,
            self.count - earlier.count,
            self.cpu - earlier.cpu,
            self.load_cpu - earlier.load_cpu,
        )

    @property
    def rate(self) -> float:
        """Answers or events a second."""
        return self.count / self.seconds

    @property
    def each(self) -> float:
        """CPU microseconds of the server for each answer or event."""
        return self.cpu / self.count * 1e6 if self.count else float("inf")

    def sample(self) -> dict[str, float]:
        """The run in the units of the report: shares of a CPU are in percent."""
        return {
            "cpu_us": self.each,
            "rate": self.rate,
            "server_percent": 100 * self.cpu / self.seconds,
            "load_percent": 100 * self.load_cpu / self.seconds,
        }


@attrs.frozen
class Meter:
    """Reads the clocks that a run is measured with."""

    server: Server
    upstream: Server

    def read(self, count: int) -> Run:
        """Everything spent so far, with the answers or events counted so far."""
        own = os.times()
        return Run(
            seconds=time.perf_counter(),
            count=count,
            cpu=self.server.cpu(),
            load_cpu=own.user + own.system + self.upstream.cpu(),
        )
