"""What the server relies on that Twisted does, but does not promise.

Every use of such a thing stands here, or in :class:`llamaproxy.request.ProxyRequest` if it is a
method of Request that is overridden; ``tests/server`` has a test of each, which fails on a Twisted
that does it differently.
"""

from __future__ import annotations

import select
import time
from typing import Any

from twisted.internet.interfaces import IReactorTime

#: Connections that are accepted of a port that is being closed: no system lets more of them wait.
_MAX_WAITING_CONNECTIONS = 65536


def use_monotonic_time(reactor: Any) -> None:
    """Have *reactor* count seconds that go by, and not the time of day.

    Twisted takes the time of day (``IReactorTime.seconds``): when that is set forward, every limit
    is over, and when it is set back, none comes to its end. Call it before anything is scheduled;
    a date that is shown is :func:`time.time`'s.

    Not promised: that a reactor asks its own ``seconds`` whenever it wants to know the time.
    """
    if not reactor.getDelayedCalls():
        reactor.seconds = time.monotonic


def accept_before_closing(clock: IReactorTime, port: Any) -> None:
    """Have *port*, which is to be told to stop listening next, accept who is connected already.

    The kernel resets connections that nobody has accepted when their port is closed.

    Not promised: that a port is closed in the turn of the reactor after the one in which it was
    told, so that this is done just before; and that it reads until then.
    """
    clock.callLater(0, accept_waiting, port)


def accept_waiting(port: Any) -> None:
    """Accept every connection that waits at *port*, an ``IReadDescriptor``."""
    waiting = select.poll()
    waiting.register(port.fileno(), select.POLLIN)
    for _ in range(_MAX_WAITING_CONNECTIONS):
        if not waiting.poll(0):
            return
        port.doRead()
