"""ToolMetrics: calls of tools, and the lists that they come from."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import get_args

import attrs

from llamaproxy.admin import names
from llamaproxy.admin.tallies import Histogram, Measured, Named, by_label, is_showable
from llamaproxy.admin.toolstatus import FORGOTTEN, GroupsNews
from llamaproxy.events import CallEnded, ListRefreshed
from llamaproxy.records import CallRecord, Outcome

#: Tools and groups that are named, the first ones; groups that are remembered.
_MOST_TOOLS, _MOST_GROUPS, _MAX_GROUPS = 100, 100, 1000

#: What becomes of calls.
_OUTCOMES = tuple(filter(None, get_args(Outcome)))


class _Tool:
    """The calls of one tool."""

    __slots__ = ("outcomes", "seconds")

    def __init__(self) -> None:
        self.outcomes = Counter(dict.fromkeys(_OUTCOMES, 0))
        self.seconds = Histogram(names.TOOL_SECONDS)


class CallMetrics:
    """Counts calls by tool; what is no tool of the server's has no name."""

    def __init__(self, limits: Counter[str], failed: Callable[[str], None]) -> None:
        """:param limits: counts the limits that were reached.

        :param failed: is told the kind of each call's error.
        """
        self._limits = limits
        self._failed = failed
        self._tools = Named(_Tool, _MOST_TOOLS, (names.OTHER, names.OTHER))
        self._cut = 0

    def ended(self, events: Sequence[CallEnded]) -> None:
        for event in events:
            self._ended(event.call)

    def _ended(self, call: CallRecord) -> None:
        tool = self._tools.of((call.group, call.tool) if call.tool else self._tools.other)
        tool.outcomes[call.outcome] += 1
        if call.began is not None:
            tool.seconds.add(call.seconds)
        if call.cut:
            self._cut += 1
        if call.kind:
            self._failed(call.kind)
        if call.outcome == "timeout":
            self._limits["tool_time"] += 1

    def measured(self) -> Iterator[Measured]:
        tools = self._tools.kept.items()
        yield (
            names.TOOL_CALLS,
            [
                ((*name, outcome), count)
                for name, tool in tools
                for outcome, count in tool.outcomes.items()
            ],
        )
        yield names.TOOL_SECONDS, [(name, tool.seconds) for name, tool in tools]
        yield names.RESULTS_CUT, [((), self._cut)]


@attrs.define(eq=False, repr=False)
class _Group:
    """What the last list said of one group, over all callers; times are clock seconds."""

    tools: int = 0
    missing: bool = False
    listed_at: float | None = None
    named_at: float = 0.0


class ListMetrics:
    """Counts listings, and keeps track of which groups are missing."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._lists = Counter({"complete": 0, "partial": 0, "failed": 0})
        self._failures = 0
        self._seconds = Histogram(names.LIST_SECONDS)
        self._groups: OrderedDict[str, _Group] = OrderedDict()
        #: The names that are labels, for good: else a server could make up ever more.
        self._named: set[str] = set()
        self._refreshed_at = 0.0
        self._listed_at: float | None = None
        self._unknown = False
        self._news = GroupsNews()
        self._left_out = 0

    def refreshed(self, event: ListRefreshed) -> None:
        if event.shared:  # it is counted where it was made
            return
        now = self._refreshed_at = self._now()
        failed = event.groups_error is not None
        news = self._news.of(event, now)
        if news in ("known", "unknown"):
            self._unknown = failed
        if event.left_out is not None:
            self._left_out = len(event.left_out)
        self._failures += len(event.failures) + failed - len(event.remembered)
        self._seconds.add(event.seconds)
        if event.groups or not failed:
            self._listed_at = now
            whole = not (event.failures or failed)
            self._lists["complete" if whole else "partial"] += 1
        else:
            self._lists["failed"] += 1
        for name in event.gone:
            self._groups.pop(name, None)
        for name, listed in event.groups.items():
            group = self._group(name)
            group.tools, group.missing = len(listed.names), False
            group.listed_at = group.named_at = now
        for name in event.failures:
            group = self._group(name)
            group.named_at = now
            if name not in event.remembered or group.listed_at is None:
                group.missing = True  # else: there is later news

    def measured(self) -> Iterator[Measured]:
        yield names.LISTS, by_label(self._lists)
        yield names.LISTING_FAILURES, [((), self._failures)]
        yield names.LIST_SECONDS, [((), self._seconds)]
        now = self._now()
        yield (
            names.LIST_AGE,
            [] if self._listed_at is None else [((), now - self._listed_at)],
        )
        groups = {
            name: group
            for name, group in self._groups.items()
            if self._refreshed_at - group.named_at <= FORGOTTEN
        }
        missing = sum(group.missing for group in groups.values())
        yield names.GROUPS_MISSING, [((), missing)]
        yield names.GROUPS_UNKNOWN, [((), self._unknown)]
        yield names.TOOLS_LEFT_OUT, [((), self._left_out)]
        shown = {name: group for name, group in groups.items() if name in self._named}
        yield names.GROUP_MISSING, [((name,), group.missing) for name, group in shown.items()]
        yield names.GROUP_TOOLS, [((name,), group.tools) for name, group in shown.items()]
        yield (
            names.GROUP_AGE,
            [
                ((name,), now - group.listed_at)
                for name, group in shown.items()
                if group.listed_at is not None
            ],
        )

    def _group(self, name: str) -> _Group:
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = _Group()
            if len(self._named) < _MOST_GROUPS and is_showable(name):
                self._named.add(name)
            if len(self._groups) > _MAX_GROUPS:
                self._groups.popitem(last=False)
        return group
