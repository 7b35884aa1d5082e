"""How a daemon ends that cannot serve."""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import suppress
from typing import Any

from twisted.internet.error import ReactorNotRunning

from llamaproxy.config import logformat


def end_with_failure(reactor: Any) -> None:
    """Have twistd's *reactor* stop, and the process end with status 1.

    Whatever is done in a reactor, twistd ends with 0, unless a signal has ended it.
    """

    def end() -> None:
        if logformat.current is not None:
            logformat.current.flush_anyhow()
        sys.stdout.flush()
        os._exit(1)

    def stop() -> None:
        with suppress(ReactorNotRunning):  # it is stopping
            reactor.stop()

    atexit.register(end)
    reactor.callWhenRunning(stop)
