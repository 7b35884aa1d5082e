"""ToolCalls: how often each tool was called, how long that took, and what went wrong last."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import ClassVar, TypeVar

import attrs

from llamaproxy.events import CallEnded, Event
from llamaproxy.jsontext import Json

T = TypeVar("T")

#: Tools, and groups, that have figures, those that were called last; characters of an error.
MAX_TOOLS, _MAX_GROUPS, _MAX_ERROR = 5000, 1000, 500


@attrs.define(eq=False, repr=False)
class ToolFigures:
    """The calls of one tool that have ended, but for those that were cancelled.

    *last_error_at* is when the last error was, in Unix seconds.
    """

    calls: int = 0
    failed: int = 0
    seconds: float = 0.0
    last_error: str | None = None
    last_error_at: float = 0.0

    def note(self, seconds: float, error: str | None, at: float) -> None:
        """A call has ended, at that Unix second, with an *error* or none."""
        self.calls += 1
        self.seconds += seconds
        if error is not None:
            self.failed += 1
            self.last_error, self.last_error_at = error, at

    def add(self, other: ToolFigures) -> None:
        """Have those of *other* in these as well."""
        self.calls += other.calls
        self.failed += other.failed
        self.seconds += other.seconds
        if other.last_error is not None and other.last_error_at >= self.last_error_at:
            self.last_error, self.last_error_at = other.last_error, other.last_error_at


_NO_CALLS = ToolFigures()


@attrs.define(eq=False, repr=False)
class ToolCalls:
    """A listener that keeps figures of each tool and each group, up to a number of them."""

    hears: ClassVar = (CallEnded,)

    #: The time of day, in Unix seconds.
    _unix: Callable[[], float] = time.time
    #: By group and real name, and by group, those that were called last at the end.
    _tools: OrderedDict[tuple[str, str], ToolFigures] = attrs.field(init=False, factory=OrderedDict)
    _groups: OrderedDict[str, ToolFigures] = attrs.field(init=False, factory=OrderedDict)
    #: How many calls have been heard of.
    heard: int = attrs.field(init=False, default=0)

    def __call__(self, event: Event) -> None:
        if not isinstance(event, CallEnded):
            return
        call = event.call
        if call.began is None or call.outcome == "cancelled":  # which is no fault of the tool's
            return
        self.heard += 1
        error, at = None, 0.0
        if call.outcome != "answered":
            error, at = (call.reason.lstrip(":, ") or call.outcome)[:_MAX_ERROR], self._unix()
        _of(self._tools, (call.group, call.tool), MAX_TOOLS).note(call.seconds, error, at)
        _of(self._groups, call.group, _MAX_GROUPS).note(call.seconds, error, at)

    @property
    def groups(self) -> list[str]:
        """Those of which tools were called."""
        return list(self._groups)

    def of_tool(self, group: str, tool: str) -> ToolFigures:
        """Those of *tool*, by its real name."""
        return self._tools.get((group, tool), _NO_CALLS)

    def of_group(self, group: str) -> ToolFigures:
        """Those of all tools of *group*."""
        return self._groups.get(group, _NO_CALLS)

    def as_json(self) -> Json:
        """All of them, for :meth:`add`."""
        return {
            "tools": [[*name, *attrs.astuple(each)] for name, each in self._tools.items()],
            "groups": [[name, *attrs.astuple(each)] for name, each in self._groups.items()],
        }

    def add(self, calls: Json) -> None:
        """Have those of another process, as its :meth:`as_json` shows them, in these as well."""
        for group, tool, *figures in calls["tools"]:
            _of(self._tools, (group, tool), MAX_TOOLS).add(ToolFigures(*figures))
        for group, *figures in calls["groups"]:
            _of(self._groups, group, _MAX_GROUPS).add(ToolFigures(*figures))


def _of(every: OrderedDict[T, ToolFigures], name: T, most: int) -> ToolFigures:
    """Those of *name*, which becomes the last of them."""
    figures = every.get(name)
    if figures is None:
        figures = every[name] = ToolFigures()
        if len(every) > most:
            every.popitem(last=False)
    else:
        every.move_to_end(name)
    return figures
