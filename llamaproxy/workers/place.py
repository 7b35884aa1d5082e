"""Place: one of the numbers that workers have, whoever has it."""

from __future__ import annotations

from twisted.internet.interfaces import IDelayedCall

from llamaproxy.workers.life import Backoff
from llamaproxy.workers.process import Worker


class Place:
    """Who is there, and when the next one comes."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.worker: Worker | None = None
        self.backoff = Backoff()
        self.restarts = 0
        #: When the latest worker was started, by the reactor's clock.
        self.started = 0.0
        #: What it wrote last to its standard error.
        self.last_words = ""
        self.starting: IDelayedCall | None = None

    def cancel(self) -> None:
        """Let nobody come any more."""
        if self.starting is not None:
            self.starting.cancel()
            self.starting = None
