"""What a command needs that is no daemon: lines on the terminal, a reactor until it has ended."""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TextIO

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ReactorNotRunning
from twisted.python.failure import Failure

from llamaproxy.report import INDENT, UNDECIDED


class Lines:
    """Writes lines to *out*: wrapped at words if that is a terminal, else as they are, for scripts.

    Whoever reads them may stop at any time; then the rest is for nobody.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def __call__(self, line: str) -> None:
        text = line.encode("ascii", "backslashreplace").decode("ascii")
        if self._out.isatty():
            text = _wrapped(text, shutil.get_terminal_size().columns)
        try:
            print(text, file=self._out, flush=True)
        except OSError:
            # Python would write what is left once more at its exit, and fail.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._out.fileno())
            os.close(nowhere)


def _wrapped(text: str, columns: int) -> str:
    lines = textwrap.wrap(
        text,
        max(columns, 4 * INDENT),
        subsequent_indent=" " * INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(lines)


def run_to_exit(
    reactor: Any, work: Coroutine[Any, Any, int], write: Callable[[str], object]
) -> int:
    """Run *reactor* until *work* has ended; its result, the exit status.

    A signal ends it before, with :data:`UNDECIDED`.
    """
    statuses: list[int] = []

    def fail(failure: Failure) -> None:
        if not failure.check(CancelledError):
            write(failure.getTraceback())

    def start() -> None:
        done = Deferred.fromCoroutine(work)
        reactor.addSystemEventTrigger("before", "shutdown", done.cancel)
        done.addCallbacks(statuses.append, fail)
        done.addBoth(lambda _: reactor.callLater(0, stop))

    def stop() -> None:
        with suppress(ReactorNotRunning):  # a signal has come before
            reactor.stop()

    reactor.callWhenRunning(start)
    reactor.run()
    return statuses[0] if statuses else UNDECIDED
