"""LogPipe: where a worker writes its log, for its parent to read."""

from __future__ import annotations

import fcntl
import os
import select
from contextlib import suppress
from typing import ClassVar

from twisted.logger import Logger

#: Bytes of log that wait for the parent: the most that Linux lets everybody have (pipe(7)). A
#: second of many requests: so long may the parent be busy before its workers wait for it.
_PIPE_BYTES = 1024 * 1024

#: Seconds that a worker waits for a parent that reads nothing at all. Its clients wait as well:
#: after that lines are lost.
_PATIENCE = 1.0


class LogPipe:
    """The write end of a pipe, into which whole lines go, or none if nobody reads them.

    Those that are written together are one, for that.

    A parent that reads slowly is waited for. How many lines were lost stands in the log as soon as
    it goes on.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        #: Of what has begun to be written.
        self._rest = b""
        self._lost = 0
        #: Whether the parent was waited for in vain.
        self._stalled = False
        with suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        os.set_blocking(descriptor, False)

    def write(self, text: str) -> None:
        self._rest = self._sent(self._rest)
        if self._rest:
            self._lost += text.count("\n")
            return
        if self._lost and self._writable(0):
            lost, self._lost = self._lost, 0
            self._log.warn("{count} lines are lost: the parent did not read them", count=lost)
        written = text.encode("utf-8", "backslashreplace")
        rest = self._sent(written)
        if len(rest) == len(written):
            self._lost += text.count("\n")
        else:
            self._rest = rest

    def flush(self) -> None:
        """Nothing is held back."""

    def _sent(self, data: bytes) -> bytes:
        """Send *data*; what is left of it when the parent reads no more."""
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
                self._stalled = False
            except BlockingIOError:
                if self._stalled or not self._writable(_PATIENCE):
                    self._stalled = True
                    break
            except OSError:
                return b""  # nobody will ever read it
        return data

    def _writable(self, seconds: float) -> bool:
        """Whether there is room within so many *seconds*."""
        waiting = select.poll()
        waiting.register(self._descriptor, select.POLLOUT)
        return bool(waiting.poll(seconds * 1000))
