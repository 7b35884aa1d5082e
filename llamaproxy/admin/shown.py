"""Shown: the answers that the page shows, wherever they are kept; and those of this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from llamaproxy import jsontext
from llamaproxy.admin.answers import MAX_ANSWERS, Answer, Answers
from llamaproxy.admin.rows import (
    MAX_CALLS,
    MAX_CALLS_IN_DETAIL,
    MAX_ROUNDS,
    MAX_ROUNDS_IN_DETAIL,
    row,
)
from llamaproxy.admin.toolstatus import ToolStatus
from llamaproxy.events import CallEnded, Event, ListRefreshed, Observers
from llamaproxy.jsontext import Json
from llamaproxy.records import ChatRecord, RequestRecord

if TYPE_CHECKING:
    from llamaproxy.admin.contents import ContentsKept

#: Rounds, and calls, that are told at the same time of all rows, and of each at least.
_MAX_PARTS, _LEAST_PARTS = 10_000, 5


class Shown(Protocol):
    """Answers by their keys, and what has changed of them.

    Changes are numbered, and a reader remembers up to which he has been told; of one that has been
    told nothing it is -1.
    """

    @property
    def change(self) -> int:
        """The number of the last change; -1 while nothing is known yet."""

    @property
    def keys(self) -> frozenset[int]:
        """Those that are kept."""

    def open(self, rows: Callable[[], None], tools: Callable[[], None]) -> None:
        """Somebody looks: call *rows* when answers have changed, *tools* when tools have."""

    def close(self) -> None:
        """Nobody looks any more."""

    def look(self, is_told_soon: bool) -> None:
        """See how far the answers that run have come.

        :param is_told_soon: whether readers are told of it before the next look.
        """

    def settle(self) -> None:
        """Give what has changed since the last time a number."""

    def rows_since(self, change: int) -> tuple[Any, int]:
        """The rows that have changed after *change*, as a list for JSON; how many there are."""

    async def detail(self, key: int) -> tuple[str, bytes] | None:
        """The id of an answer's request and all that is known of it, as JSON; None if nothing."""

    async def stop(self, key: int) -> bool | None:
        """End the answer; whether it still ran, None if it is not kept."""


class OwnAnswers:
    """Those of this process, as their records are."""

    def __init__(
        self,
        answers: Answers,
        tools: ToolStatus,
        contents: ContentsKept | None,
        stop: Callable[[RequestRecord], bool],
        url: Callable[[], str],
        tell: Observers,
    ) -> None:
        """:param contents: None if they are not kept.

        :param stop: ends the request of a record; whether it still ran.

        :param url: returns where clients reach the proxy.

        :param tell: is listened to, while somebody looks for what tools do as well.
        """
        self.answers = answers
        self._tools = tools
        self._contents = contents
        self._stop = stop
        self._url = url
        self._tell = tell
        self.change = 0
        self._changed: set[Answer] = set()
        #: The change before which nobody has looked.
        self._opened = 0
        self._on_rows: Callable[[], None] = _nothing
        self._on_tools: Callable[[], None] = _nothing
        answers.listen(tell)
        if contents is not None:
            answers.on_drop = contents.drop
            tell.listen(contents, *contents.hears)

    @property
    def keys(self) -> frozenset[int]:
        return self.answers.keys

    @property
    def states(self) -> dict[int, int]:
        """What has become of the answers, by their keys."""
        return {answer.key: answer.state for answer in self.answers.kept}

    def open(self, rows: Callable[[], None], tools: Callable[[], None]) -> None:
        self.answers.hear()
        self._on_rows, self._on_tools = rows, tools
        self.change += 1
        self._opened = self.change
        self.answers.on_change = self._note
        self._tell.listen(self._note_tools, CallEnded, ListRefreshed)

    def close(self) -> None:
        self.answers.on_change = None
        self._tell.leave(self._note_tools)
        self._changed.clear()

    def look(self, is_told_soon: bool) -> None:
        if is_told_soon:  # else it would be in vain: by then it has changed
            self.answers.note_running()

    def settle(self) -> None:
        self.answers.hear()
        if self._changed:
            self.change += 1
            for answer in self._changed:
                answer.change = self.change
            self._changed.clear()

    def rows_since(self, change: int) -> tuple[Any, int]:
        if change < self._opened:
            change = -1
        now = self.answers.now()
        changed = [each for each in self.answers.kept if each.change > change]
        parts = max(_LEAST_PARTS, _MAX_PARTS // (len(changed) or 1))
        most = min(parts, MAX_ROUNDS), min(parts, MAX_CALLS)
        rows = [row(each.key, each.at, each.record, now, *most) for each in changed]
        return rows, len(rows)

    async def detail(self, key: int) -> tuple[str, bytes] | None:
        answer = self.answers.get(key)
        if answer is None:
            return None
        return answer.record.id, jsontext.dumps_strictly(await self._detail(answer))

    async def stop(self, key: int) -> bool | None:
        answer = self.answers.get(key)
        return None if answer is None else self._stop(answer.record)

    def _note(self, answer: Answer) -> None:
        self._changed.add(answer)
        if len(self._changed) > 2 * MAX_ANSWERS:  # the others are kept no longer
            self._changed = set(filter(self.answers.keeps, self._changed))
        self._on_rows()

    def _note_tools(self, event: Event) -> None:
        self._on_tools()

    async def _detail(self, answer: Answer) -> Json:
        """All that is known of *answer*."""
        # Loaded when somebody looks.
        from llamaproxy.admin.curl import NOT_ASKED, NOT_KEPT, TOO_LARGE, curl

        contents = body = None
        lacking = NOT_KEPT
        if self._contents is not None:
            contents = await self._contents.of(answer)
            body = contents["rounds"].get("1", {}).get("request")
            lacking = TOO_LARGE if contents["cut"] else NOT_ASKED
        record, now = answer.record, self.answers.now()
        chat = record.chat or ChatRecord()
        shown = row(answer.key, answer.at, record, now, MAX_ROUNDS_IN_DETAIL, MAX_CALLS_IN_DETAIL)
        return {
            **shown,
            "offered_tools": list(chat.offered),
            "called": list(dict.fromkeys(call.offered for call in chat.calls if call.offered)),
            "withheld": self._withheld(chat, now if record.ended is None else record.ended),
            **curl(record, self._url(), None if body is None else _asked(body, chat), lacking),
            "contents": contents,
        }

    def _withheld(self, chat: ChatRecord, until: float) -> dict[str, str]:
        """Why each tool was not offered; of groups that could not be listed, as far as is known."""
        if not chat.rounds or chat.not_injected:
            return {}  # it has not been settled what is offered, or that nothing is
        reasons = dict(chat.withheld)
        offered = frozenset(chat.offered)
        for group, (reason, names) in self._tools.failing(until).items():
            if not group and not offered:
                reasons["(all groups)"] = f"the groups could not be listed: {reason}"
            why = f"its group {group} could not be listed: {reason}"
            if group and not names:
                reasons[f"{group} (group)"] = why
            for name in names:
                if name not in offered:
                    reasons.setdefault(name, why)
        return reasons


def _asked(body: Json, chat: ChatRecord) -> Json:
    """The request that a client sent, of the *body* that the server was sent in the first round."""
    offered = frozenset(chat.offered)
    tools = [tool for tool in body.get("tools") or [] if _name_of(tool) not in offered]
    absent = () if tools else ("tools", "tool_choice", "parallel_tool_calls")
    asked = {name: value for name, value in body.items() if name not in absent}
    return {**asked, "tools": tools} if tools else asked


def _name_of(tool: object) -> object:
    function = tool.get("function") if isinstance(tool, dict) else None
    return function.get("name") if isinstance(function, dict) else None


def _nothing() -> None:
    """Nobody looks."""
