"""What an operator asks about tools: which are there, from where, and why others are not."""

from __future__ import annotations

from collections import OrderedDict
from typing import ClassVar

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from llamaproxy.errors import ProxyError
from llamaproxy.jsontext import Json
from llamaproxy.tools.definitions import ToolDefinition
from llamaproxy.tools.offers import Listed

#: Groups that are remembered, names of one that are shown, and characters of a reason.
_MAX_GROUPS, _MAX_NAMES, _MAX_REASON = 1000, 1000, 500

#: Seconds after which a failure that goes on is logged again.
_LOG_INTERVAL = 300.0


@attrs.define
class _Group:
    """What is known of one group, over all callers."""

    where: str = ""
    names: list[str] = attrs.Factory(list)
    listed_at: float | None = None
    error: str | None = None
    error_at: float = 0.0
    logged_at: float = 0.0
    calls: int = 0
    failed: int = 0


@attrs.define
class GroupStatus:
    """Keeps track of groups; a failure is logged when it begins, and now and then."""

    _clock: IReactorTime
    _groups: OrderedDict[str, _Group] = attrs.field(init=False, factory=OrderedDict)
    _left_out: list[str] = attrs.field(init=False, factory=list)
    _log: ClassVar[Logger] = Logger()

    def listed(self, listed: Listed, fresh: set[str]) -> None:
        """A listing has come to *listed*; the groups that are *fresh* have just been asked."""
        names: dict[str, list[str]] = {group: [] for group in listed.groups}
        for name, tool in listed.offer.tools.items():
            names.setdefault(tool.group, []).append(name)
        for group in fresh:
            status = self._group(group)
            if status.error is not None:
                self._log.info("the tools of {group} can be listed again", group=group)
            status.error = None
            status.listed_at = self._clock.seconds()
            status.names = names.get(group, [])[:_MAX_NAMES]
            status.where = next((t.endpoint for t in listed.groups[group] if t.endpoint), "")
        left_out = [f"{tool.group}/{tool.name}" for tool in listed.left_out[:_MAX_NAMES]]
        if left_out and left_out != self._left_out:
            self._log.warn(
                "{count} tools are not offered, there is no room for them (--max-tools, "
                "--max-tool-list): {names}",
                count=len(listed.left_out),
                names=", ".join(left_out[:20]),
            )
        self._left_out = left_out

    def failed(self, group: str, error: ProxyError) -> None:
        """The tools of *group*, empty for all of them, cannot be listed."""
        status = self._group(group)
        now = self._clock.seconds()
        reason = error.logged[:_MAX_REASON]
        if reason != status.error or now - status.logged_at >= _LOG_INTERVAL:
            status.logged_at = now
            self._log.warn(
                "the tools{of_group} cannot be listed: {reason}",
                of_group=f" of {group}" if group else "",
                reason=reason,
            )
        status.error, status.error_at = reason, now

    def recovered(self) -> None:
        """The tools could be listed, if not those of each group."""
        self._groups.pop("", None)

    def called(self, tool: ToolDefinition, failed: bool) -> None:
        """*tool* was called."""
        status = self._group(tool.group)
        status.calls += 1
        status.failed += failed

    def as_json(self) -> Json:
        """Everything, for the admin's status."""
        now = self._clock.seconds()
        groups = {
            group: {
                "tools": len(status.names),
                "names": status.names,
                "url": status.where or None,
                "listed_seconds_ago": None
                if status.listed_at is None
                else round(now - status.listed_at, 1),
                "error": status.error,
                "error_seconds_ago": None
                if status.error is None
                else round(now - status.error_at, 1),
                "calls": status.calls,
                "failed_calls": status.failed,
            }
            for group, status in self._groups.items()
            if group
        }
        whole = self._groups.get("")
        error = None if whole is None else whole.error
        return {"tool_groups": groups, "tools": {"error": error, "left_out": self._left_out}}

    def _group(self, name: str) -> _Group:
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = _Group()
            if len(self._groups) > _MAX_GROUPS:
                self._groups.popitem(last=False)
        return group
