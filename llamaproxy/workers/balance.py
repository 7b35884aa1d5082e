"""Balance: which of several workers takes the next client. All see how many each of them has."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable

#: What stands for a worker that is not there: more than anybody has.
_NOBODY = 2**32 - 1

#: How often a client is left to a worker that does not take it, before it counts as stuck.
_PATIENCE = 10

#: Bytes of one number.
_WIDTH = 4


class Board:
    """How many clients each worker has, in memory that all of them and their parent share."""

    def __init__(self, count: int, descriptor: int | None = None) -> None:
        """:param descriptor: of the memory; without it, it is made, and nobody is there."""
        if descriptor is None:
            descriptor = _memory(count * _WIDTH)
        #: That of the memory.
        self.descriptor = descriptor
        self._counts = memoryview(mmap.mmap(descriptor, count * _WIDTH)).cast("I")

    def has(self, number: int, clients: int) -> None:
        """The worker of that *number*, from 1 on, has so many."""
        self._counts[number - 1] = clients

    def gone(self, number: int) -> None:
        """That worker takes nobody."""
        self.has(number, _NOBODY)

    def fewest(self, but: int) -> int | None:
        """The fewest that a worker has, *but* for one; None if there is no other."""
        counts = self._counts.tolist()
        del counts[but - 1]
        fewest = min(counts, default=_NOBODY)
        return None if fewest == _NOBODY else fewest


def _memory(size: int) -> int:
    """The descriptor of so many bytes of memory, in which nobody is there."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("llamaproxy-workers")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.write(descriptor, b"\xff" * size)
    return descriptor


class Balance:
    """One worker's view: it leaves a client to those who have fewer, as long as they take some.

    Without it the first that wakes up takes most of those who connect at the same time, and what
    they ask for as long as they stay.
    """

    def __init__(self, board: Board, number: int, clients: Callable[[], int], most: int) -> None:
        """:param clients: tells how many this worker has now; it refuses more than *most*."""
        self._board = board
        self._number = number
        self._clients = clients
        self._most = most
        #: The fewest that another had when a client was left to it.
        self._fewest: int | None = None
        #: How often it has not taken one since it last did, and whether this one may take one now.
        self._not_taken = 0
        self._may_take = False

    def leaves(self) -> bool:
        """Whether others should have the first go at the next client."""
        own = self.note()
        fewest = self._board.fewest(self._number)
        if fewest != self._fewest:
            self._fewest, self._not_taken, self._may_take = fewest, 0, False
        if fewest is None or self._may_take or self._not_taken >= _PATIENCE:
            self._may_take = False
            return False
        return own >= self._most or own > fewest + 1 + fewest // 8

    def went(self) -> None:
        """They had it."""
        if self._board.fewest(self._number) == self._fewest:
            self._not_taken += 1
            self._may_take = True

    def note(self) -> int:
        """Let others see how many this worker has, and return that."""
        own = self._clients()
        self._board.has(self._number, own)
        return own
