"""ToolStatus: the tool groups, where they come from, and why any could not be listed."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import ClassVar, Literal

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from llamaproxy.admin.toolcalls import ToolCalls
from llamaproxy.advice import Problem, group_problem, problem
from llamaproxy.errors import ProxyError, is_of_one_caller
from llamaproxy.events import CallEnded, Event, GroupListed, ListRefreshed, Tool
from llamaproxy.jsontext import Json

#: Groups that are remembered, names of one that are shown, and characters of a reason.
_MAX_GROUPS, _MAX_NAMES, _MAX_REASON = 1000, 1000, 500

#: Bytes of definitions that are held, as they are sent, of the groups that were listed last.
_MAX_DEFINITIONS = 4 * 1024 * 1024
#: Of the tools that are left out, the names in a line.
_MAX_LEFT_OUT_SHOWN = 20

#: Seconds after which a group that is in no list any more is none, and so is not missing.
FORGOTTEN = 600.0

#: Seconds for which a list of some caller's says that credentials which are refused are another's
#: trouble: callers list again after less, if they chat.
KNOWN_SECONDS = 300.0

#: Different lines about a group that are remembered.
_MAX_LINES = 16

#: Seconds after which a line is logged again, such as that of a failure that goes on.
_LOG_INTERVAL = 300.0

#: The key of the failure to list the groups themselves.
_ALL_GROUPS = ""


@attrs.define(eq=False, repr=False)
class GroupsNews:
    """What lists say of whether the groups are known, over all callers; times are clock seconds."""

    #: When they were listed last, for any caller.
    _known_at: float = attrs.field(init=False, default=-math.inf)

    def of(self, event: ListRefreshed, now: float) -> Literal["known", "unknown", "refused", "old"]:
        """What *event* says; ``refused`` is one caller's trouble, ``old`` was told before."""
        if event.groups_error is None:
            self._known_at = now
            return "known"
        if is_of_one_caller(event.groups_error) and now - self._known_at <= KNOWN_SECONDS:
            return "refused"
        was_known = self._known_at > -math.inf
        return "old" if was_known and _ALL_GROUPS in event.remembered else "unknown"


@attrs.define(eq=False, repr=False)
class _Group:
    """One group, over all callers; times are clock seconds."""

    endpoint: str = ""
    names: tuple[str, ...] = ()
    #: What its tools are, of *size* bytes; empty if there was no room for it.
    tools: tuple[Tool, ...] = ()
    size: int = 0
    instructions: str = ""
    listed_at: float | None = None
    error: str | None = None
    #: When it failed last, and for the first time since it could be listed.
    error_at: float = 0.0
    failing_since: float = 0.0
    #: The error in words.
    problem: Problem | None = None
    #: Whether this process has logged that, so that it also says when it is over.
    own_error: bool = False
    #: When each line of the log about it was last written.
    logged_at: dict[str, float] = attrs.Factory(dict)


@attrs.define(eq=False, repr=False)
class ToolStatus:
    """A listener that keeps track of groups; a failure is logged when it begins, and now and then.

    What cannot be listed is never silent (DESIGN: L22); of a listing that is shared, the process
    that has made it writes the line.
    """

    hears: ClassVar = (CallEnded, ListRefreshed)

    _clock: IReactorTime
    #: The time of day, in Unix seconds.
    _unix: Callable[[], float] = time.time
    #: The calls that this process has made.
    calls: ToolCalls = attrs.field(init=False)
    _groups: OrderedDict[str, _Group] = attrs.field(init=False, factory=OrderedDict)
    _held: int = attrs.field(init=False, default=0)
    _left_out: tuple[str, ...] = attrs.field(init=False, default=())
    _left_out_count: int = attrs.field(init=False, default=0)
    _callers: int = attrs.field(init=False, default=0)
    _news: GroupsNews = attrs.field(init=False, factory=GroupsNews)
    #: The last refusal of one caller, and the times of the first and the last of several.
    _refused: tuple[str, float, float] | None = attrs.field(init=False, default=None)
    #: Whether tools have been listed, or it is known why not.
    is_known: bool = attrs.field(init=False, default=False)
    _log: ClassVar[Logger] = Logger()

    @calls.default
    def _own_calls(self) -> ToolCalls:
        return ToolCalls(self._unix)

    def __call__(self, event: Event) -> None:
        match event:
            case CallEnded():
                self.calls(event)
            case ListRefreshed():
                self._callers, self.is_known = event.callers, True
                for name in event.gone:
                    if (group := self._groups.pop(name, None)) is not None:
                        self._release(group)
                for name, listed in event.groups.items():
                    self._note_listed(name, listed, event.shared)
                for name, error in event.failures.items():
                    self._note_failed(name, error, event)
                self._note_groups(event)
                if event.left_out is not None:
                    self._note_left_out(event.left_out, event.shared)
                self._forget_some()

    @property
    def any_group(self) -> bool:
        """Whether there is a group, or it is not known whether there is."""
        everything = self._groups.get(_ALL_GROUPS)
        failed = everything is not None and everything.error is not None
        return failed or len(self._groups) > (everything is not None)

    def problems(self) -> list[Problem]:
        """What is wrong, in words."""
        problems = [group.problem for group in self._groups.values() if group.problem is not None]
        if self._left_out:
            names = ", ".join(self._left_out[:_MAX_LEFT_OUT_SHOWN])
            problems.append(problem("left_out", count=self._left_out_count, names=names))
        return problems

    def summary(self) -> Json:
        """Whether tools are known, and how many there are."""
        groups = [group for name, group in self._groups.items() if name != _ALL_GROUPS]
        return {
            "known": self.is_known,
            "groups": len(groups),
            "count": sum(len(group.names) for group in groups),
        }

    def as_json(self, calls: ToolCalls | None = None) -> Json:
        """Everything, for the admin's status.

        :param calls: those of all processes, if this is not the only one.
        """
        calls = calls or self.calls
        now = self._clock.seconds()
        every = dict.fromkeys(calls.groups, _Group()) | self._groups
        groups = {
            name: {
                "tools": len(group.names),
                "names": list(group.names),
                "url": group.endpoint or None,
                "instructions": group.instructions or None,
                "listed_seconds_ago": None
                if group.listed_at is None
                else round(now - group.listed_at, 1),
                "error": group.error,
                "error_seconds_ago": None
                if group.error is None
                else round(now - group.error_at, 1),
                "calls": calls.of_group(name).calls,
                "failed_calls": calls.of_group(name).failed,
            }
            for name, group in every.items()
            if name != _ALL_GROUPS
        }
        all_groups = self._groups.get(_ALL_GROUPS)
        tools = {
            "error": None if all_groups is None else all_groups.error,
            "left_out": list(self._left_out),
            "callers": self._callers,
        }
        return {"tool_groups": groups, "tools": tools}

    def tools_as_json(self, calls: ToolCalls | None = None) -> Json:
        """The groups and all that is known of each tool, for the page; *calls* as above."""
        calls = calls or self.calls
        all_groups = self._groups.get(_ALL_GROUPS)
        return {
            "error": None if all_groups is None else all_groups.error,
            "left_out": list(self._left_out),
            "groups": [
                self._group_as_json(name, group, calls)
                for name, group in sorted(self._groups.items())
                if name != _ALL_GROUPS
            ],
        }

    def failing(self, until: float) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Each group that cannot be listed now, nor could at the clock's *until*.

        By name: the reason, and the tools that it is known to have; ``""`` stands for all groups.
        """
        failing: dict[str, tuple[str, tuple[str, ...]]] = {
            name: (group.error, group.names)
            for name, group in self._groups.items()
            if group.error is not None and group.failing_since <= until
        }
        if self._refused is not None:
            reason, since, last = self._refused
            if since <= until <= last + KNOWN_SECONDS:
                failing.setdefault(_ALL_GROUPS, (reason, ()))
        return failing

    def _group_as_json(self, name: str, group: _Group, calls: ToolCalls) -> Json:
        tools = []
        for index, offered in enumerate(group.names):
            tool = group.tools[index] if index < len(group.tools) else None
            real_name = offered if tool is None else tool.name
            figures = calls.of_tool(name, real_name)
            entry = {
                "name": real_name,
                "offered_as": offered,
                "title": tool.title or None if tool is not None else None,
                "description": None if tool is None else tool.description,
                "parameters": None if tool is None else tool.parameters,
                "annotations": None if tool is None else tool.annotations,
                "calls": figures.calls,
                "failed": figures.failed,
                "mean_seconds": figures.seconds / figures.calls if figures.calls else None,
                "last_error": figures.last_error,
            }
            tools.append(entry)
        return {
            "name": name,
            "url": group.endpoint or None,
            "instructions": group.instructions or None,
            "origin": next((tool.origin for tool in group.tools if tool.origin), ""),
            "listed_at": None if group.listed_at is None else self._unix_of(group.listed_at),
            "error": group.error,
            "error_at": None if group.error is None else self._unix_of(group.error_at),
            "tools": tools,
        }

    def _unix_of(self, seconds: float) -> float:
        return round(self._unix() - (self._clock.seconds() - seconds), 3)

    def _forget_some(self) -> None:
        """Forget the groups that no list has named for long: the first ones, by :meth:`_group`."""
        now = self._clock.seconds()
        while self._groups:
            name, group = next(iter(self._groups.items()))
            named_at = max(group.error_at, group.listed_at or 0.0)
            if name == _ALL_GROUPS or now - named_at <= FORGOTTEN:
                return
            self._release(self._groups.pop(name))

    def _note_listed(self, name: str, listed: GroupListed, shared: bool) -> None:
        group = self._note_answered(name, shared)
        group.listed_at = self._clock.seconds()
        group.names = listed.names[:_MAX_NAMES]
        group.endpoint, group.instructions = listed.endpoint, listed.instructions
        self._hold(group, listed)

    def _note_answered(self, name: str, shared: bool) -> _Group:
        group = self._group(name)
        own = group.own_error or not shared
        if group.error is not None and own and self._is_due(group, ""):
            of_group = f" of {name}" if name else ""
            self._log.info("the tools{of_group} can be listed again", of_group=of_group, group=name)
        group.error = group.problem = None
        return group

    def _hold(self, group: _Group, listed: GroupListed) -> None:
        """Keep the definitions *listed*, and let those go that were listed first."""
        self._held += listed.size - group.size
        group.tools, group.size = listed.tools[:_MAX_NAMES], listed.size
        for other in self._groups.values():
            if self._held <= _MAX_DEFINITIONS:
                return
            self._release(other)

    def _release(self, group: _Group) -> None:
        self._held -= group.size
        group.tools, group.size = (), 0

    def _note_groups(self, event: ListRefreshed) -> None:
        """The list of the groups has come, or not."""
        now = self._clock.seconds()
        news = self._news.of(event, now)
        error = event.groups_error
        if error is None:
            self._note_answered(_ALL_GROUPS, event.shared)
        elif news == "refused":
            reason = error.logged[:_MAX_REASON]
            self._log_failure(_ALL_GROUPS, reason, event.shared)
            since = now
            if self._refused is not None and now - self._refused[2] <= KNOWN_SECONDS:
                since = self._refused[1]
            self._refused = reason, since, now
        elif news == "unknown":
            self._note_failed(_ALL_GROUPS, error, event)

    def _note_failed(self, name: str, error: ProxyError, event: ListRefreshed) -> None:
        group, shared = self._group(name), event.shared
        if name in event.remembered and (group.error or group.listed_at is not None):
            return  # there is later news
        now = self._clock.seconds()
        reason = error.logged[:_MAX_REASON]
        self._log_failure(name, reason, shared)
        if group.error is None:
            group.failing_since = now
            group.own_error = False
        group.own_error |= not shared
        group.error, group.error_at, group.problem = reason, now, group_problem(name, error)

    def _log_failure(self, name: str, reason: str, shared: bool) -> None:
        if not shared and self._is_due(self._group(name), reason):
            self._log.warn(
                "the tools{of_group} cannot be listed: {reason}",
                of_group=f" of {name}" if name else "",
                group=name,
                reason=reason,
            )

    def _note_left_out(self, left_out: tuple[str, ...], shared: bool) -> None:
        shown = left_out[:_MAX_NAMES]
        if shown and not shared and self._is_due(self._group(_ALL_GROUPS), "\n".join(shown)):
            self._log.warn(
                "{count} tools are not offered, there is no room for them (--max-tools, "
                "--max-tool-list): {names}",
                count=len(left_out),
                names=", ".join(shown[:_MAX_LEFT_OUT_SHOWN]),
            )
        self._left_out, self._left_out_count = shown, len(left_out)

    def _is_due(self, group: _Group, line: str) -> bool:
        """Whether *line* is to be logged: callers who see different things would take turns."""
        now = self._clock.seconds()
        if now - group.logged_at.get(line, -_LOG_INTERVAL) < _LOG_INTERVAL:
            return False
        if len(group.logged_at) >= _MAX_LINES:
            group.logged_at.clear()
        group.logged_at[line] = now
        return True

    def _group(self, name: str) -> _Group:
        """What is known of that group, which is the last one then."""
        group = self._groups.setdefault(name, _Group())
        self._groups.move_to_end(name)
        if len(self._groups) > _MAX_GROUPS:
            self._release(self._groups.popitem(last=False)[1])
        return group
