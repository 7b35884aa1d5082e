"""Report: what a check finds, line by line, and the exit status that it comes to."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import attrs

from llamaproxy.advice import Problem
from llamaproxy.config.logformat import safe

#: Exit statuses: all is well, something is wrong, it cannot be told.
WELL, WRONG, UNDECIDED = 0, 1, 2

#: Names in one line.
_MAX_NAMES = 20

#: Characters in front of each line: what kind it is of.
INDENT = 6


@attrs.define(eq=False, repr=False)
class Report:
    """Written by *write*, by lines; a problem that has been written is not written again."""

    _write: Callable[[str], object]
    _problems: list[Problem] = attrs.field(init=False, factory=list)
    _wrong: bool = attrs.field(init=False, default=False)
    _undecided: bool = attrs.field(init=False, default=False)

    def well(self, text: str) -> None:
        """Something is as it should be."""
        self._line("ok", text)

    def note(self, noted: Problem) -> None:
        """Something may be meant so."""
        self._problem("note", noted)

    def fault(self, fault: Problem) -> None:
        """Something is wrong."""
        self._wrong = True
        self._problem("WRONG", fault)

    def doubt(self, doubt: Problem) -> None:
        """Something could not be found out."""
        self._undecided = True
        self._problem("?", doubt)

    def end(self) -> int:
        """Write what it comes to; the exit status."""
        if self._wrong:
            self._write("Something is wrong.")
            return WRONG
        if self._undecided:
            self._write("It cannot be told whether all is well.")
            return UNDECIDED
        self._write("All is well.")
        return WELL

    def _problem(self, mark: str, problem: Problem) -> None:
        if problem in self._problems:
            return
        self._problems.append(problem)
        self._line(mark, problem.what)
        self._line("", f"what to do: {problem.do}")

    def _line(self, mark: str, text: str) -> None:
        self._write(f"{mark:{INDENT}}{safe(text)}")


def in_a_line(names: Iterable[str]) -> str:
    """The first of *names*, and how many there are besides."""
    every = list(names)
    more = len(every) - _MAX_NAMES
    return ", ".join(every[:_MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
