"""LogFile: the file that the log goes to, which is never without one."""

from __future__ import annotations

import os
import stat
import time
from contextlib import suppress
from typing import ClassVar

from twisted.logger import Logger

#: Bytes after which a file is put aside, and a new one begun.
MAX_BYTES = 1_000_000

_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT


class LogFile:
    """A file that lines are added to; it is opened anew on demand, and put aside when it is full.

    Those that were put aside have the time in their names. None is ever looked at, renamed or
    removed: that takes as long as there are many.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(self, path: str) -> None:
        """:raises OSError: if it cannot be opened."""
        self._path = os.path.abspath(path)  # twistd leaves the directory that it was started in
        self._take(os.open(self._path, _FLAGS, 0o666))

    def _take(self, descriptor: int) -> None:
        """Write there from now on."""
        found = os.fstat(descriptor)
        self._descriptor = descriptor
        self._size = found.st_size
        #: The rights of the next one.
        self._mode = stat.S_IMODE(found.st_mode)
        #: The size at which it is put aside; None of what is no file, such as a pipe.
        self._limit = MAX_BYTES if stat.S_ISREG(found.st_mode) else None
        #: Whether it ends in the middle of a line.
        self._is_torn = False

    def write(self, text: str) -> None:
        """Write whole lines.

        :raises OSError: if there is no room for all of them.
        """
        if self._limit is not None and self._size >= self._limit:
            self._begin_another()
        rest = text.encode("utf-8", "backslashreplace")
        if self._is_torn:
            rest = b"\n" + rest
        while rest:
            written = os.write(self._descriptor, rest)
            self._size += written
            self._is_torn = rest[written - 1 : written] != b"\n"
            rest = rest[written:]

    def flush(self) -> None:
        """Nothing is held back."""

    def reopen(self) -> None:
        """Write to the file of that name from now on, for somebody has moved this one.

        If there can be none, this one is kept, and the log says so.
        """
        old = self._descriptor
        try:
            self._take(self._opened())
        except OSError as error:
            self._complain(error)
        else:
            os.close(old)

    def _opened(self) -> int:
        umask = os.umask(0)  # a file that is made has the rights of the one before
        try:
            return os.open(self._path, _FLAGS, self._mode)
        finally:
            os.umask(umask)

    def _begin_another(self) -> None:
        self._limit = self._size + MAX_BYTES  # of the next attempt, if nothing comes of this one
        aside = f"{self._path}.{time.strftime('%Y%m%dT%H%M%S')}"
        if os.path.exists(aside):
            return  # of this second
        try:
            with suppress(FileNotFoundError):  # others have moved it, and will say so
                os.rename(self._path, aside)
        except OSError as error:
            self._complain(error)
        else:
            self.reopen()

    def _complain(self, error: OSError) -> None:
        self._log.error("the log goes on in the old file: {reason}", reason=str(error))
