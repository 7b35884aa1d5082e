"""The one place that says by which clock everything is timed."""

from __future__ import annotations

import time
from typing import Any


def use_monotonic_time(reactor: Any) -> None:
    """Have *reactor* count seconds that go by, and not the time of day.

    Twisted takes the time of day (``IReactorTime.seconds``): when that is set forward, every limit
    is over, and when it is set back, none comes to its end. Call it before anything is scheduled;
    a date that is shown is :func:`time.time`'s.
    """
    if not reactor.getDelayedCalls():
        reactor.seconds = time.monotonic
