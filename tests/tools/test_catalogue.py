"""The catalogue: lists kept fresh, calls kept within limits."""

from __future__ import annotations

import gc
import json
import tracemalloc
from typing import Any, cast

import attrs
import pytest
from prometheus_client import generate_latest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, formatEvent, globalLogPublisher

from llamaproxy.admin.eventlog import log_event
from llamaproxy.admin.metrics import Metrics
from llamaproxy.admin.toolstatus import ToolStatus
from llamaproxy.errors import (
    McpBroke,
    McpTimeout,
    McpUnavailable,
    ProxyError,
    ToolFailed,
    ToolUnknown,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from llamaproxy.events import Observers
from llamaproxy.jsontext import JsonList
from llamaproxy.records import CallRecord, ChatRecord
from llamaproxy.tools import caller_lists
from llamaproxy.tools.catalogue import Catalogue
from llamaproxy.tools.definitions import ToolDefinition
from llamaproxy.tools.offers import Offer, Offers
from llamaproxy.tools.results import ToolResult
from llamaproxy.tools.source import BACKGROUND, CONFIGURED, FIRST_WAIT_SECONDS, Listing, ListLimits
from llamaproxy.upstream.client_context import ClientContext
from tests.support import head_with, outcome, pending_calls


def caller(token: str = "", request_id: str = "1") -> ClientContext:
    credentials = {"Authorization": [token]} if token else {}
    return ClientContext.of(head_with({**credentials, "X-Request-Id": [request_id]}))


def tool(name: str, group: str = "g", **more: Any) -> ToolDefinition:
    return ToolDefinition(group, name, f"The {name} tool.", {"type": "object"}, **more)


def listing(*names: str, **failures: str) -> Listing:
    failure_by_group: dict[str, ProxyError] = {
        g: McpBroke(reason) for g, reason in failures.items()
    }
    return Listing({"g": [tool(name) for name in names]}, failure_by_group)


_BACKGROUND = ListLimits()


class FakeSource:
    """A tool source whose listings and calls are ended by the test."""

    def __init__(self) -> None:
        self.listed_for: list[ClientContext] = []
        self.listings: list[Deferred[Listing]] = []
        self.limits: list[ListLimits] = []
        self.invoked: list[tuple[str, dict[str, Any], ClientContext]] = []
        self.calls: list[Deferred[ToolResult]] = []
        self.tools: list[ToolDefinition] = []

    async def list_tools(self, caller: ClientContext, limits: ListLimits = _BACKGROUND) -> Listing:
        self.listed_for.append(caller)
        self.limits.append(limits)
        if "" in limits.down:
            raise limits.down[""]
        self.listings.append(Deferred())
        return await self.listings[-1]

    async def invoke(
        self, tool: ToolDefinition, arguments: dict[str, Any], caller: ClientContext
    ) -> ToolResult:
        self.invoked.append((tool.name, arguments, caller))
        self.tools.append(tool)
        self.calls.append(Deferred())
        return await self.calls[-1]


class Catalogued:
    """A catalogue over a FakeSource, at a time that the test decides."""

    def __init__(
        self,
        ttl: float = 60,
        timeout: float = 30,
        max_result: int = 1000,
        max_callers: int = 10_000,
        offers: Offers | None = None,
    ) -> None:
        self.source = FakeSource()
        self.clock = Clock()
        self.metrics = Metrics()
        self.chat = ChatRecord()
        tell = Observers(log_event)
        self.metrics.listen(tell)
        self.status = ToolStatus(self.clock)
        tell.listen(self.status)
        self.catalogue = Catalogue(
            self.source,
            self.clock,
            ttl,
            timeout,
            max_result,
            offers or Offers(1000, 10**9),
            max_callers,
            tell,
        )

    def ask(self, who: ClientContext | None = None) -> Deferred[Offer]:
        return Deferred.fromCoroutine(self.catalogue.offer(who or caller()))

    def names(self, who: ClientContext | None = None) -> list[str]:
        return list(outcome(self.ask(who)).tools)

    def groups_shown(self, listing: Listing, who: ClientContext | None = None) -> list[str]:
        """The groups in the status, when *listing* has come for *who*."""
        self.ask(who)
        self.source.listings[-1].callback(listing)
        return sorted(self.status.as_json()["tool_groups"])

    def listed(self, *names: str, who: ClientContext | None = None) -> None:
        """*who* is offered *names*, which have just been listed."""
        pending = self.ask(who)
        self.source.listings[-1].callback(listing(*names))
        assert list(outcome(pending).tools) == sorted(names)

    def call(self, name: str = "ping", **arguments: Any) -> Deferred[ToolResult]:
        return self.invoke(tool(name), arguments, caller())

    def invoke(
        self, tool: ToolDefinition, arguments: dict[str, Any], who: ClientContext
    ) -> Deferred[ToolResult]:
        work = self.catalogue.invoke(tool, arguments, who, CallRecord(self.chat, 1, 1, 0.0))
        return Deferred.fromCoroutine(work)

    def counted(self, name: str) -> float:
        text = generate_latest(self.metrics.registry).decode()
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if line.startswith(name)]
        return sum(float(value) for _, value in lines)


LISTING_FAILURES = "llamaproxy_tool_listing_failures_total"


# --- lists


def test_a_list_is_asked_for_once_while_it_is_fresh() -> None:
    catalogued = Catalogued(ttl=60)
    catalogued.listed("ping")
    catalogued.clock.advance(59)
    assert catalogued.names() == ["ping"]
    assert len(catalogued.source.listings) == 1


def test_a_list_is_asked_for_once_however_many_wait() -> None:
    """DESIGN: T2."""
    catalogued = Catalogued()
    waiting = [catalogued.ask(caller(request_id=str(number))) for number in range(5)]
    assert len(catalogued.source.listings) == 1
    catalogued.source.listings[0].callback(listing("ping"))
    assert [list(outcome(each).tools) for each in waiting] == [["ping"]] * 5


def test_a_stale_list_serves_while_a_fresh_one_is_fetched() -> None:
    """DESIGN: T2."""
    catalogued = Catalogued(ttl=60)
    catalogued.listed("old")
    catalogued.clock.advance(60)
    assert catalogued.names() == catalogued.names() == ["old"]
    assert len(catalogued.source.listings) == 2
    catalogued.source.listings[1].callback(listing("new"))
    assert catalogued.names() == ["new"]
    catalogued.clock.advance(59)
    assert catalogued.names() == ["new"]
    assert len(catalogued.source.listings) == 2


def test_no_list_is_fresh_if_the_ttl_is_nothing() -> None:
    catalogued = Catalogued(ttl=0)
    catalogued.listed("ping")
    catalogued.names()
    assert len(catalogued.source.listings) == 2


def test_one_who_leaves_does_not_stop_the_listing() -> None:
    catalogued = Catalogued()
    leaving, staying = catalogued.ask(), catalogued.ask()
    leaving.cancel()
    with pytest.raises(CancelledError):
        outcome(leaving)
    catalogued.source.listings[0].callback(listing("ping"))
    assert list(outcome(staying).tools) == ["ping"]


@pytest.mark.parametrize("error", [UpstreamUnavailable("refused"), RuntimeError("a bug")])
def test_a_chat_goes_on_without_tools_that_cannot_be_listed(error: Exception) -> None:
    """DESIGN: L22."""
    catalogued = Catalogued()
    pending = catalogued.ask()
    catalogued.source.listings[0].errback(error)
    assert outcome(pending).tools == {}
    assert catalogued.counted(LISTING_FAILURES) == 1
    catalogued.listed("ping")


def test_a_slow_failure_is_not_waited_for_by_every_chat() -> None:
    catalogued = Catalogued()
    pending = catalogued.ask()
    catalogued.clock.advance(10)
    catalogued.source.listings[0].errback(UpstreamUnavailable("stalled"))
    assert outcome(pending).tools == {}
    catalogued.clock.advance(9)
    assert catalogued.names() == []
    assert len(catalogued.source.listings) == 1
    catalogued.clock.advance(1)
    catalogued.listed("ping")


def test_the_last_good_list_outlives_failures() -> None:
    """DESIGN: T2."""
    catalogued = Catalogued(ttl=60)
    catalogued.listed("ping")
    for failures in range(1, 4):
        catalogued.clock.advance(60)
        assert catalogued.names() == ["ping"]
        catalogued.source.listings[-1].errback(UpstreamUnavailable("refused"))
        assert catalogued.counted(LISTING_FAILURES) == failures
    assert catalogued.names() == ["ping"]


def test_a_group_that_cannot_be_listed_keeps_its_last_good_list() -> None:
    catalogued = Catalogued(ttl=60)
    pending = catalogued.ask()
    catalogued.source.listings[0].callback(Listing({"a": [tool("x", "a")], "b": [tool("y", "b")]}))
    assert list(outcome(pending).tools) == ["x", "y"]
    catalogued.clock.advance(60)
    catalogued.names()
    catalogued.source.listings[1].callback(Listing({"a": [tool("z", "a")]}, {"b": McpBroke("401")}))
    assert catalogued.names() == ["z", "y"]
    assert catalogued.counted(LISTING_FAILURES) == 1
    catalogued.clock.advance(60)
    catalogued.names()
    catalogued.source.listings[2].callback(Listing({"a": [tool("z", "a")]}))
    assert catalogued.names() == ["z"]


def test_groups_outlive_a_failure_to_learn_which_there_are() -> None:
    catalogued = Catalogued(ttl=60)
    pending = catalogued.ask()
    catalogued.source.listings[0].callback(
        Listing({"a": [tool("x", "a")], "named": [tool("y", "named")]})
    )
    assert list(outcome(pending).tools) == ["x", "y"]
    catalogued.clock.advance(60)
    catalogued.names()
    named = Listing({"named": [tool("z", "named")]}, groups_error=UpstreamUnavailable("refused"))
    catalogued.source.listings[1].callback(named)
    assert catalogued.names() == ["x", "z"]
    assert "refused" in catalogued.status.as_json()["tools"]["error"]
    catalogued.clock.advance(5)
    catalogued.names()
    catalogued.source.listings[2].callback(Listing({"named": [tool("z", "named")]}))
    assert catalogued.names() == ["z"]
    assert catalogued.status.as_json()["tools"]["error"] is None


def test_a_server_that_the_operator_removes_is_gone_while_llama_stack_cannot_be_listed() -> None:
    """OGX 1.0.4 never lists its connectors."""
    stack = [tool("stack", "stack")]
    one, two = ([tool(name, name, origin=CONFIGURED)] for name in ("one", "two"))
    refused, broken = UpstreamRefused(500), McpBroke("401")
    catalogued = Catalogued(ttl=60)
    pending = catalogued.ask()
    catalogued.source.listings[0].callback(Listing({"stack": stack, "one": one, "two": two}))
    assert list(outcome(pending).tools) == ["one", "stack", "two"]
    steps: list[tuple[Any, Any, list[str]]] = [
        ({"one": one, "two": two}, {}, ["one", "stack", "two"]),
        ({"one": one}, {"two": broken}, ["one", "stack", "two"]),
        ({"one": one}, {}, ["one", "stack"]),
        ({}, {}, ["stack"]),
    ]
    for number, (groups, failures, names) in enumerate(steps, 1):
        catalogued.clock.advance(60)
        catalogued.names()
        listing = Listing(
            groups, failures, refused, configured=dict.fromkeys([*groups, *failures], "")
        )
        catalogued.source.listings[number].callback(listing)
        assert catalogued.names() == names


def test_so_is_the_last_one_though_nothing_else_is_left() -> None:
    tools = [tool(name, "one", origin=CONFIGURED) for name in ("one", "two")]
    catalogued = Catalogued(ttl=60, offers=Offers(1, 10**9))
    pending = catalogued.ask()
    catalogued.source.listings[0].callback(Listing({"one": tools}))
    assert list(outcome(pending).tools) == ["one"]
    assert catalogued.status.as_json()["tools"]["left_out"] == ["one/two"]
    catalogued.clock.advance(60)
    catalogued.names()
    failed = Listing({}, groups_error=UpstreamRefused(500), configured={})
    catalogued.source.listings[1].callback(failed)
    assert catalogued.names() == []
    assert catalogued.status.as_json()["tools"]["left_out"] == []


def test_groups_that_are_in_a_callers_list_no_more_are_gone() -> None:
    catalogued = Catalogued(ttl=60)
    steps: list[tuple[Listing, list[str], int]] = [
        (Listing({"a": [tool("x", "a")]}, {"b": McpBroke("401")}), ["a", "b"], 1),
        (Listing({}, groups_error=UpstreamRefused(500)), ["a", "b"], 1),
        (Listing({"a": [tool("x", "a")]}, {"b": McpBroke("401")}), ["a", "b"], 1),
        (Listing({"a": [tool("x", "a")]}), ["a"], 0),
        (Listing({"c": [tool("x", "c")]}), ["c"], 0),
    ]
    for listing, groups, missing in steps:
        assert catalogued.groups_shown(listing) == groups
        assert catalogued.counted("llamaproxy_tool_groups_missing") == missing
        catalogued.clock.advance(60)
    others = Listing({"d": [tool("y", "d")]})
    assert catalogued.groups_shown(others, caller("other")) == ["c", "d"], "who sees others"


def test_a_failing_group_is_gone_though_a_listing_has_failed_in_between() -> None:
    catalogued = Catalogued(ttl=60)
    ping = {"a": [tool("x", "a")]}
    for listing, groups in (
        (Listing(ping, {"b": McpBroke("401")}), ["a", "b"]),
        (Listing({}, groups_error=UpstreamRefused(500)), ["a", "b"]),
        (Listing(ping, names_all=False), ["a", "b"]),
        (Listing(ping), ["a"]),
    ):
        assert catalogued.groups_shown(listing) == groups
        catalogued.clock.advance(60)


def test_a_group_that_one_caller_does_not_see_any_more_is_there_for_others() -> None:
    catalogued = Catalogued(ttl=60)

    def lists(who: str, *groups: str) -> list[str]:
        listing = Listing({group: [tool(group, group)] for group in groups})
        return catalogued.groups_shown(listing, caller(who))

    assert lists("one", "a", "b") == ["a", "b"]
    catalogued.clock.advance(40)
    assert lists("other", "a", "b") == ["a", "b"]
    catalogued.clock.advance(30)
    assert lists("one", "a") == ["a", "b"], "the list of the other one is fresh"
    catalogued.clock.advance(40)
    assert lists("third", "a") == ["a"], "it is not any more"
    assert lists("other", "a", "b") == ["a", "b"]
    catalogued.catalogue.reconfigured()
    catalogued.source.listings[-1].callback(Listing({"a": [tool("a", "a")]}))
    assert sorted(catalogued.status.as_json()["tool_groups"]) == ["a"], "all others are stale"


def test_a_server_that_the_operator_removes_is_gone_though_the_upstream_fails() -> None:
    catalogued = Catalogued(ttl=60)
    refused = UpstreamRefused(500)
    mine = {name: [tool(name, name, origin=CONFIGURED)] for name in "ab"}
    configured = dict.fromkeys("abc", "")
    first = Listing({**mine, "d": [tool("d", "d")]}, {"c": McpBroke("401")}, configured=configured)
    second = Listing({"a": mine["a"]}, groups_error=refused, configured={"a": ""})
    assert catalogued.groups_shown(first) == ["a", "b", "c", "d"]
    catalogued.clock.advance(60)
    assert catalogued.groups_shown(second) == ["a", "d"]


def test_what_a_server_had_is_not_kept_for_another_url() -> None:
    """The operator has moved it, and it cannot be listed where it is now."""
    catalogued = Catalogued(ttl=60)
    pending = catalogued.ask()
    old = tool("one", "x", origin=CONFIGURED, endpoint="http://old/mcp")
    listed = Listing({"x": [old]}, configured={"x": "http://old/mcp"})
    catalogued.source.listings[0].callback(listed)
    assert list(outcome(pending).tools) == ["one"]
    for place, names in (("http://old/mcp", ["one"]), ("http://new/mcp", [])):
        catalogued.clock.advance(60)
        catalogued.names()
        failed = Listing({}, {"x": McpBroke("401")}, configured={"x": place})
        catalogued.source.listings[-1].callback(failed)
        assert catalogued.names() == names


@pytest.mark.parametrize("removed", [True, False])
def test_what_one_group_had_is_not_kept_for_another_of_its_name(removed: bool) -> None:
    """The operator removes a server, or names one, and Llama Stack has a group of that name."""
    origins = ["", CONFIGURED]
    configured: list[dict[str, str]] = [{}, {"x": ""}]
    if removed:
        origins.reverse()
        configured.reverse()
    catalogued = Catalogued(ttl=60)
    pending = catalogued.ask()
    listed = Listing({"x": [tool("one", "x", origin=origins[0])]}, configured=configured[0])
    catalogued.source.listings[0].callback(listed)
    assert list(outcome(pending).tools) == ["one"]
    for names in (configured[0], configured[1]):
        catalogued.clock.advance(60)
        catalogued.names()
        failed = Listing({}, {"x": McpBroke("401")}, configured=names)
        catalogued.source.listings[-1].callback(failed)
        assert catalogued.names() == (["one"] if names == configured[0] else [])


def test_a_first_chat_has_what_can_be_listed_while_the_rest_is_down() -> None:
    catalogued = Catalogued()
    pending = catalogued.ask(caller("first"))
    named = Listing({"named": [tool("z", "named")]}, groups_error=UpstreamTimeout("slow"))
    catalogued.source.listings[0].callback(named)
    assert list(outcome(pending).tools) == ["z"]
    catalogued.clock.advance(0)
    assert catalogued.source.limits[1].down == {}, "asked once more, with limits"


def test_a_failure_that_is_believed_is_not_believed_for_longer_by_each_caller() -> None:
    catalogued = Catalogued()
    locked: dict[str, ProxyError] = {"locked": McpUnavailable("refused")}
    for second in range(40):
        pending = catalogued.ask(caller(str(second)))
        down = catalogued.source.limits[-1].down
        assert bool(down) == (0 < second < 30 or second > 30)
        catalogued.source.listings[-1].callback(Listing({}, dict(down) or locked))
        assert outcome(pending).tools == {}
        catalogued.clock.advance(1)


def test_a_failure_that_is_remembered_keeps_no_frames() -> None:
    """It is raised for each caller, and would grow by each."""
    catalogued = Catalogued()
    catalogued.ask(caller("first"))
    error = UpstreamTimeout("slow")
    catalogued.source.listings[0].errback(error)
    for number in range(3):
        assert catalogued.names(caller(str(number))) == []
        assert catalogued.source.limits[-1].down[""] is error
    assert error.__traceback__ is None


def suspecting() -> tuple[Catalogued, dict[str, ProxyError]]:
    """A catalogue for which the group ``x`` has failed a while ago, and with what."""
    catalogued = Catalogued()
    refused: dict[str, ProxyError] = {"x": McpUnavailable("refused")}
    catalogued.ask(caller("first"))
    catalogued.source.listings[0].callback(Listing({"g": [tool("ping")]}, refused))
    catalogued.clock.advance(31)
    return catalogued, refused


def test_what_there_was_no_time_for_is_listed_with_patience() -> None:
    """A suspect that is healthy again."""
    catalogued, refused = suspecting()
    pending = catalogued.ask(caller("second"))
    assert catalogued.source.limits[-1].down == {}
    assert dict(catalogued.source.limits[-1].suspects) == refused
    catalogued.source.listings[-1].callback(Listing({"g": [tool("ping")]}, refused))  # not asked
    assert list(outcome(pending).tools) == ["ping"]
    catalogued.clock.advance(0)
    assert catalogued.source.limits[-1].patient
    healthy = Listing({"g": [tool("ping")], "x": [tool("back", "x")]})
    catalogued.source.listings[-1].callback(healthy)
    assert catalogued.names(caller("second")) == ["ping", "back"]
    catalogued.ask(caller("third"))
    assert catalogued.source.limits[-1].suspects == {}


def test_what_there_was_no_time_for_has_not_failed() -> None:
    """A group that nobody has ever asked: the first chats of others still ask it."""
    catalogued = Catalogued()
    pending = catalogued.ask(caller("first"))
    not_asked = {"x": catalogued.source.limits[-1].late("x", 0)}
    catalogued.source.listings[-1].callback(Listing({"g": [tool("ping")]}, not_asked))
    assert list(outcome(pending).tools) == ["ping"]
    catalogued.clock.advance(0)
    assert catalogued.source.limits[-1].patient
    catalogued.ask(caller("second"))
    assert catalogued.source.limits[-1].down == catalogued.source.limits[-1].suspects == {}


def test_what_there_was_no_time_for_is_asked_for_again_by_other_processes() -> None:
    """They are told errors by their words, and cannot see that nobody was asked."""
    catalogued, refused = suspecting()
    limits = ListLimits(FIRST_WAIT_SECONDS)
    pending = Deferred.fromCoroutine(catalogued.catalogue.listing(caller("second"), limits))
    catalogued.source.listings[-1].callback(Listing({"g": [tool("ping")]}, refused))  # not asked
    assert outcome(pending).fresh_for == 0
    catalogued.clock.advance(0)
    catalogued.source.listings[-1].callback(Listing({"g": [], "x": [tool("back", "x")]}))
    told = outcome(Deferred.fromCoroutine(catalogued.catalogue.listing(caller("second"), limits)))
    assert (list(told.groups), told.fresh_for) == (["g", "x"], 60)


def test_what_could_be_listed_is_not_listed_at_every_chat_while_the_server_fails() -> None:
    """OGX 1.0.4 never lists its connectors; MCP servers of the operator's stand beside it."""
    catalogued = Catalogued(ttl=60)
    failed = UpstreamRefused(500)
    catalogued.ask()
    catalogued.source.listings[0].callback(Listing({"g": [tool("ping")]}, groups_error=failed))
    for _ in range(49):
        catalogued.clock.advance(0.1)
        assert catalogued.names() == ["ping"]
    assert len(catalogued.source.listings) == 1
    catalogued.clock.advance(0.2)
    catalogued.names()
    catalogued.source.listings[1].callback(Listing({"g": [tool("ping")], "a": [tool("a", "a")]}))
    assert catalogued.names() == ["a", "ping"]


def test_one_asks_again_for_all_whether_a_slow_server_answers() -> None:
    """However many callers there are, and whether their lists are new or to be refreshed."""
    catalogued = Catalogued(ttl=5)
    slow: dict[str, ProxyError] = {"slow": McpTimeout("slow")}

    def requests() -> int:
        """How many have asked the slow server; for the others it was down."""
        count = 0
        for pending, limits in zip(
            catalogued.source.listings, catalogued.source.limits, strict=True
        ):
            count += limits.down == {}
            if not pending.called:
                pending.callback(Listing({"g": [tool("ping")]}, dict(limits.down) or slow))
        catalogued.source.listings.clear()
        catalogued.source.limits.clear()
        return count

    for _ in range(3):
        for number in range(50):
            catalogued.ask(caller(str(number)))
            catalogued.clock.advance(0)
            if number == 0:
                first = requests()
        assert first + requests() <= 2
        catalogued.clock.advance(31)


def test_who_asks_again_for_all_may_never_come_back() -> None:
    """The others go on without; every half minute one of them asks, and not all at once."""
    catalogued = Catalogued(ttl=5)
    catalogued.ask(caller("0"))
    catalogued.source.listings[0].callback(Listing({"g": [tool("ping")]}, {"slow": McpTimeout("")}))
    asked = []
    for half_minute in range(4):
        catalogued.clock.advance(31)
        before = len(catalogued.source.limits)
        for number in range(100):
            catalogued.ask(caller(f"{half_minute} {number}"))
        new = catalogued.source.limits[before:]
        asked.append(sum("slow" not in limits.down for limits in new))
    assert asked == [1, 1, 1, 1]


def test_what_changes_while_a_list_is_fetched_is_fetched_too() -> None:
    catalogued = Catalogued(ttl=600)
    pending = catalogued.ask()
    catalogued.catalogue.changed()
    catalogued.source.listings[0].callback(listing("old"))
    assert list(outcome(pending).tools) == ["old"]
    assert catalogued.names() == ["old"], "while the new list is fetched"
    catalogued.source.listings[1].callback(listing("new"))
    assert catalogued.names() == ["new"]
    assert len(catalogued.source.listings) == 2


def test_what_the_operator_has_changed_is_not_down_any_more() -> None:
    catalogued = Catalogued(ttl=600)
    failed = Listing({"g": [tool("ping")]}, {"slow": McpUnavailable("")})
    catalogued.ask()
    for _ in range(2):  # a mistake that is mended soon after
        catalogued.source.listings[-1].callback(failed)
        catalogued.catalogue.reconfigured()
        assert catalogued.source.limits[-1].down == {}
    catalogued.source.listings[-1].callback(failed)
    catalogued.catalogue.changed()
    catalogued.ask()
    assert list(catalogued.source.limits[-1].down) == ["slow"]


def test_what_the_operator_has_changed_while_a_list_is_fetched_is_listed_when_it_has_ended() -> (
    None
):
    """What it says is of servers that there may not be any more, and so are its failures."""
    catalogued = Catalogued(ttl=600)
    pending = catalogued.ask(caller("first"))
    catalogued.catalogue.reconfigured()
    old = Listing({"removed": [tool("old", "removed")]}, {"moved": McpTimeout("it hangs")})
    catalogued.source.listings[0].callback(old)
    assert list(outcome(pending).tools) == ["old"]
    catalogued.clock.advance(0)
    assert len(catalogued.source.limits) == 2 and catalogued.source.limits[1].patient
    catalogued.ask(caller("second"))
    assert catalogued.source.limits[2].down == {}
    catalogued.source.listings[1].callback(Listing({"moved": [tool("new", "moved")]}))
    catalogued.clock.advance(0)
    assert catalogued.names(caller("first")) == ["new"]
    assert len(catalogued.source.listings) == 3


def test_who_has_no_list_yet_waits_for_that_of_the_new_source() -> None:
    catalogued = Catalogued(ttl=600)
    catalogued.ask()
    catalogued.catalogue.reconfigured()
    catalogued.source.listings[0].callback(Listing({}, groups_error=UpstreamRefused(500)))
    catalogued.clock.advance(0)
    pending = catalogued.ask()
    assert not pending.called and not catalogued.source.limits[-1].patient
    catalogued.source.listings[-1].callback(listing("new"))
    assert list(outcome(pending).tools) == ["new"]


def test_lists_are_kept_apart_by_credentials_and_by_nothing_else() -> None:
    """DESIGN: T4."""
    catalogued = Catalogued()
    catalogued.listed("hers", who=caller("Bearer her"))
    catalogued.listed("his", who=caller("Bearer his"))
    catalogued.listed("everybodys", who=caller())
    assert catalogued.names(caller("Bearer her", request_id="2")) == ["hers"]
    assert catalogued.names(caller("Bearer his")) == ["his"]
    assert catalogued.names(caller()) == ["everybodys"]
    asked = [dict(who.credentials).get(b"authorization") for who in catalogued.source.listed_for]
    assert asked == [(b"Bearer her",), (b"Bearer his",), None]


def test_a_bounded_number_of_callers_is_remembered_the_latest() -> None:
    catalogued = Catalogued(max_callers=3)
    for token in "abc":
        catalogued.listed(token, who=caller(token))
    assert catalogued.names(caller("a")) == ["a"]
    catalogued.listed("d", who=caller("d"))
    assert catalogued.names(caller("a")) == ["a"]
    assert catalogued.names(caller("c")) == ["c"]
    catalogued.listed("b", who=caller("b"))


def test_names_that_are_taken_are_not_offered() -> None:
    catalogued = Catalogued()
    catalogued.listed("ping", "pong", "web")
    offer = outcome(Deferred.fromCoroutine(catalogued.catalogue.offer(caller(), {"ping"})))
    assert list(offer.tools) == ["pong", "web"]
    narrowed = catalogued.catalogue.offer(caller(), {"pong"}, ["p*", "nothing"])
    assert list(outcome(Deferred.fromCoroutine(narrowed)).tools) == ["ping"]


def test_an_offer_is_a_list_of_openai_functions() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    offer = Offer({"g__web_1": ToolDefinition("g", "web search", "Searches.", schema)})
    function = {"name": "g__web_1", "description": "Searches.", "parameters": schema}
    assert offer.definitions == JsonList.of([{"type": "function", "function": function}])
    assert offer.named("web search") == offer.named("g__web_1") == ["g__web_1"]
    assert offer.named("other") == []


def test_stopping_gives_up_the_listings_under_way() -> None:
    catalogued = Catalogued()
    waiting = catalogued.ask()
    catalogued.catalogue.stop()
    with pytest.raises(CancelledError):
        outcome(waiting)
    assert catalogued.source.listings[0].called


# --- calls


def test_a_call_is_made_with_the_callers_credentials() -> None:
    catalogued = Catalogued()
    calling = catalogued.invoke(tool("ping"), {"a": 1}, caller("Bearer a", "7"))
    catalogued.source.calls[0].callback(ToolResult("pong"))
    assert outcome(calling) == ToolResult("pong")
    assert catalogued.source.invoked == [("ping", {"a": 1}, caller("Bearer a", "7"))]
    assert (
        catalogued.counted('llamaproxy_tool_calls_total{group="g",outcome="answered",tool="ping"}')
        == 1
    )


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ToolFailed("Error: no such city"), "Error: no such city"),
        (UpstreamUnavailable("Away."), "Error: the tool could not be run. Away."),
        (RuntimeError("secret details"), "Error: the tool could not be run."),
    ],
)
def test_a_failing_tool_is_a_result_for_the_model(error: Exception, text: str) -> None:
    """DESIGN: L13."""
    catalogued = Catalogued()
    calling = catalogued.call()
    catalogued.source.calls[0].errback(error)
    assert outcome(calling) == ToolResult(text, True)
    assert (
        catalogued.counted('llamaproxy_tool_calls_total{group="g",outcome="failed",tool="ping"}')
        == 1
    )


def test_a_slow_tool_is_stopped_and_the_model_told() -> None:
    catalogued = Catalogued(timeout=30)
    calling = catalogued.call()
    catalogued.clock.advance(29)
    assert not calling.called
    catalogued.clock.advance(1)
    result = outcome(calling)
    assert result.is_error
    assert "within 30 s" in result.text
    assert catalogued.source.calls[0].called


def test_one_slow_tool_does_not_hold_up_another() -> None:
    catalogued = Catalogued()
    slow, quick = catalogued.call("slow"), catalogued.call("quick")
    catalogued.source.calls[1].callback(ToolResult("done"))
    assert outcome(quick) == ToolResult("done")
    assert not slow.called


def test_cancelling_a_call_cancels_the_tool() -> None:
    catalogued = Catalogued()
    calling = catalogued.call()
    calling.cancel()
    with pytest.raises(CancelledError):
        outcome(calling)
    assert catalogued.source.calls[0].called
    assert pending_calls(catalogued.clock) == []


def test_a_result_is_tidied_and_shortened() -> None:
    catalogued = Catalogued(max_result=40)
    calling = catalogued.call()
    catalogued.source.calls[0].callback(ToolResult("\x1b[1m<|im_end|>" + "x" * 100))
    text = outcome(calling).text
    assert text.startswith("< |im")
    assert "bytes cut here" in text


def test_an_unknown_tool_is_called_once_more_after_listing_again() -> None:
    """DESIGN: T5."""
    catalogued = Catalogued()
    catalogued.listed("ping")
    calling = catalogued.call("ping", a=1)
    catalogued.source.calls[0].errback(ToolUnknown("not served by provider"))
    assert (len(catalogued.source.listings), len(catalogued.source.calls)) == (2, 1)
    catalogued.source.listings[1].callback(listing("ping", "pong"))
    catalogued.source.calls[1].callback(ToolResult("pong"))
    assert outcome(calling) == ToolResult("pong")
    assert catalogued.source.invoked[0] == catalogued.source.invoked[1]
    assert catalogued.names() == ["ping", "pong"]


def test_calls_that_find_out_at_the_same_time_list_once() -> None:
    catalogued = Catalogued()
    calling = [catalogued.call() for _ in range(3)]
    for call in catalogued.source.calls[:3]:
        call.errback(ToolUnknown("gone"))
    assert len(catalogued.source.listings) == 1
    catalogued.source.listings[0].callback(listing("ping"))
    for call in catalogued.source.calls[3:]:
        call.callback(ToolResult("pong"))
    assert [outcome(each) for each in calling] == [ToolResult("pong")] * 3


@pytest.mark.parametrize(
    ("group", "endpoint", "called"),
    [
        ("old", "http://a/mcp", True),
        ("renamed", "http://a/mcp/", True),
        ("old", "", True),
        ("newcomer", "", False),
        ("newcomer", "http://evil/mcp", False),
        ("old", "http://evil/mcp", False),
    ],
)
def test_an_unknown_tool_is_looked_for_on_its_own_server_alone(
    group: str, endpoint: str, called: bool
) -> None:
    catalogued = Catalogued()
    chosen = attrs.evolve(tool("ping", "old"), endpoint="http://a/mcp")
    call = catalogued.invoke(chosen, {}, caller())
    catalogued.source.calls[0].errback(ToolUnknown("gone"))
    now = attrs.evolve(tool("ping", group), endpoint=endpoint, origin="now")
    catalogued.source.listings[0].callback(Listing({group: [now]}))
    catalogued.source.calls[1].callback(ToolResult("pong"))
    assert outcome(call).text == "pong"
    assert catalogued.source.tools[1] == (now if called else chosen)


def test_a_tool_that_stays_unknown_fails() -> None:
    catalogued = Catalogued()
    calling = catalogued.call()
    catalogued.source.calls[0].errback(ToolUnknown("gone"))
    catalogued.source.listings[0].errback(UpstreamUnavailable("refused"))
    catalogued.source.calls[1].errback(ToolUnknown("Error: still gone"))
    assert outcome(calling) == ToolResult("Error: still gone", True)
    assert len(catalogued.source.calls) == 2


def test_listing_again_is_part_of_the_time_that_a_tool_has() -> None:
    catalogued = Catalogued(timeout=30)
    calling = catalogued.call()
    catalogued.clock.advance(20)
    catalogued.source.calls[0].errback(ToolUnknown("gone"))
    catalogued.clock.advance(10)
    assert "within 30 s" in outcome(calling).text


def test_a_refusal_is_never_repeated() -> None:
    catalogued = Catalogued()
    for error in (ToolFailed("no"), ProxyError("no")):
        calling = catalogued.call()
        catalogued.source.calls[-1].errback(error)
        assert outcome(calling).is_error
    assert len(catalogued.source.calls) == 2


# --- many callers, and servers that are down


def test_equal_lists_are_kept_once_however_many_callers_there_are() -> None:
    """DESIGN: T4."""
    catalogued = Catalogued()
    offers = []
    for number in range(1000):
        pending = catalogued.ask(caller(f"Bearer {number}"))
        # Every listing has objects of its own, as it comes off the wire.
        catalogued.source.listings[-1].callback(listing("ping", "pong"))
        offers.append(outcome(pending))
    assert len({id(offer) for offer in offers}) == 1
    assert catalogued.status.as_json()["tools"]["callers"] == 1000
    del offers
    pending = catalogued.ask(caller("Bearer other"))
    catalogued.source.listings[-1].callback(listing("other"))
    assert list(outcome(pending).tools) == ["other"]


def test_ten_thousand_callers_are_known_and_no_list_is_fetched_again() -> None:
    catalogued = Catalogued(ttl=600)
    for _ in range(2):
        for number in range(10_000):
            pending = catalogued.ask(caller(str(number)))
            if not pending.called:
                catalogued.source.listings[-1].callback(listing("ping"))
            assert outcome(pending).tools.keys() == {"ping"}
    assert len(catalogued.source.listings) == 10_000


def test_a_bounded_number_of_bytes_is_kept_the_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caller_lists, "_MAX_HELD", 10_000)
    catalogued = Catalogued(ttl=600)

    def serve(token: str, *names: str) -> None:
        pending = catalogued.ask(caller(token))
        if not pending.called:
            groups = {"g": [attrs.evolve(tool(name), description="x" * 1000) for name in names]}
            catalogued.source.listings[-1].callback(Listing(groups))
        assert list(outcome(pending).tools) == list(names)

    for number in range(100):
        serve(f"Bearer {number}", f"t{number}")
    assert len(catalogued.source.listings) == 100
    for number in range(99, 91, -1):
        serve(f"Bearer {number}", f"t{number}")
    assert len(catalogued.source.listings) == 100, "the last ones are kept"
    serve("Bearer 0", "t0")
    assert len(catalogued.source.listings) == 101
    for number in range(100):
        serve(f"Bearer same {number}", "same")
    for number in range(100):
        serve(f"Bearer same {number}", "same")
    assert len(catalogued.source.listings) == 201, "equal ones count once"
    serve("large", *(f"t{number:02}" for number in range(20)))
    serve("large", *(f"t{number:02}" for number in range(20)))
    assert len(catalogued.source.listings) == 202, "one is kept, whatever its size"
    gc.collect()
    assert catalogued.catalogue.figures()["callers"] == 1


def test_a_caller_costs_little_more_than_a_key() -> None:
    catalogued = Catalogued(ttl=600)

    def serve(numbers: range) -> None:
        for number in numbers:
            pending = catalogued.ask(caller(f"Bearer {number} {'x' * 10_000}"))
            catalogued.source.listings.pop().callback(listing("ping"))
            assert outcome(pending).tools.keys() == {"ping"}
            for kept in (catalogued.source.listed_for, catalogued.source.limits):
                kept.clear()

    serve(range(100))
    gc.collect()
    before = len(gc.get_objects())
    tracemalloc.start()
    serve(range(100, 1100))
    gc.collect()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(gc.get_objects()) - before < 2 * 1000
    assert size < 1000 * 700


def test_a_first_chat_waits_five_seconds_and_goes_on() -> None:
    """DESIGN: T3."""
    catalogued = Catalogued()
    pending = catalogued.ask()
    catalogued.clock.advance(5.4)
    assert not pending.called
    catalogued.clock.advance(0.1)
    assert outcome(pending).tools == {}
    assert catalogued.counted(LISTING_FAILURES) == 1, "it is never silent (DESIGN: L22)"
    assert "within 5.5 s" in catalogued.status.as_json()["tools"]["error"]
    assert catalogued.names() == [], "later ones wait for nothing"
    catalogued.source.listings[0].callback(listing("ping"))
    assert catalogued.names() == ["ping"]
    assert catalogued.status.as_json()["tools"]["error"] is None
    assert catalogued.counted(LISTING_FAILURES) == 1


def test_no_chat_waits_while_a_server_is_asked_with_patience_that_was_too_slow() -> None:
    """DESIGN: T3."""
    catalogued = Catalogued()
    pending = catalogued.ask()
    catalogued.clock.advance(5)
    catalogued.source.listings[0].errback(UpstreamTimeout("slow"))
    assert outcome(pending).tools == {}
    catalogued.clock.advance(0)
    assert [limits.patient for limits in catalogued.source.limits] == [False, True]
    catalogued.clock.advance(6)
    assert catalogued.names() == []
    assert catalogued.names(caller("other")) == []
    catalogued.source.listings[1].callback(listing("ping"))
    assert catalogued.names() == ["ping"]


def test_all_who_wait_for_a_listing_have_it_though_the_one_before_was_too_slow() -> None:
    """DESIGN: T2. To wait in vain is over when the listing is."""
    catalogued = Catalogued()
    catalogued.ask()
    catalogued.clock.advance(5)
    catalogued.source.listings[0].errback(UpstreamTimeout("slow"))
    catalogued.clock.advance(0)
    catalogued.source.listings[1].errback(UpstreamUnavailable("refused"))
    catalogued.clock.advance(60)
    waiting = [catalogued.ask() for _ in range(3)]
    catalogued.source.listings[2].callback(listing("ping"))
    assert [list(outcome(each).tools) for each in waiting] == [["ping"]] * 3


def test_each_listing_that_is_too_slow_is_told_of_once() -> None:
    """DESIGN: L22."""
    catalogued = Catalogued()
    for count in (1, 2):
        waiting = [catalogued.ask() for _ in range(3)]
        catalogued.clock.advance(5.5)
        assert [outcome(each).tools for each in waiting] == [{}] * 3
        assert catalogued.counted(LISTING_FAILURES) == 2 * count - 1
        catalogued.source.listings[-1].errback(UpstreamUnavailable("refused"))
        assert catalogued.counted(LISTING_FAILURES) == 2 * count
        catalogued.clock.advance(3600)


def test_a_first_chat_leaves_a_listing_no_more_than_five_seconds() -> None:
    catalogued = Catalogued()
    catalogued.clock.advance(100)
    catalogued.ask()
    [limits] = catalogued.source.limits
    assert limits.seconds_for(0.8, 100) == 4
    assert limits.seconds_for(0.8, 103) == 2
    assert limits.seconds_for(0.8, 106) == 0
    assert BACKGROUND.seconds_for(0.8, 10**9) == 24


def test_what_was_too_slow_for_a_first_chat_is_there_for_a_later_one() -> None:
    catalogued = Catalogued()
    pending = catalogued.ask()
    slow: dict[str, ProxyError] = {"slow": McpTimeout("slow")}
    catalogued.source.listings[0].callback(Listing({"g": [tool("ping")]}, slow))
    assert list(outcome(pending).tools) == ["ping"]
    catalogued.clock.advance(0)
    assert [limits.seconds for limits in catalogued.source.limits] == [5, 30]
    assert catalogued.source.limits[1].down == {}
    groups = {"g": [tool("ping")], "slow": [tool("late", "slow")]}
    catalogued.source.listings[1].callback(Listing(groups))
    assert catalogued.names() == ["ping", "late"]


def test_a_group_that_is_down_is_not_waited_for_by_the_next_caller() -> None:
    """DESIGN: T3."""
    catalogued = Catalogued()
    down: dict[str, ProxyError] = {"slow": McpTimeout("slow"), "locked": McpBroke("401")}
    for number, believed in enumerate(([], ["slow"])):
        pending = catalogued.ask(caller(str(number)))
        assert list(catalogued.source.limits[-1].down) == believed
        catalogued.source.listings[-1].callback(Listing({"g": [tool("ping")]}, down))
        assert list(outcome(pending).tools) == ["ping"]
    catalogued.clock.advance(31)
    catalogued.ask(caller("third"))
    assert catalogued.source.limits[-1].down == {}


def test_a_failure_that_is_remembered_is_as_old_as_it_is_and_counts_once() -> None:
    catalogued = Catalogued()
    down: dict[str, ProxyError] = {"slow": McpTimeout("slow")}
    for number in range(4):
        catalogued.ask(caller(str(number)))
        catalogued.source.listings[-1].callback(Listing({"g": [tool("ping")]}, down))
        slow = catalogued.status.as_json()["tool_groups"]["slow"]
        assert slow["error_seconds_ago"] == 7.0 * number
        assert catalogued.counted(LISTING_FAILURES) == 1
        assert catalogued.counted("llamaproxy_tool_groups_missing") == 1
        catalogued.clock.advance(7)
    catalogued.clock.advance(10)
    catalogued.ask(caller("later"))  # who has it listed again
    catalogued.source.listings[-1].callback(
        Listing({"g": [tool("ping")]}, {"slow": McpTimeout("slow")})
    )
    assert catalogued.status.as_json()["tool_groups"]["slow"]["error_seconds_ago"] == 0
    assert catalogued.counted(LISTING_FAILURES) == 2


def test_a_failure_that_is_over_is_not_remembered_by_a_list_that_comes_late() -> None:
    catalogued = Catalogued(ttl=60)
    source = catalogued.source
    catalogued.ask(caller("first"))
    source.listings[-1].callback(Listing({"g": [tool("ping")]}, {"w": McpTimeout("slow")}))
    catalogued.clock.advance(0)
    patient = source.listings[-1]
    catalogued.ask(caller("other"))
    down = source.limits[-1].down
    patient.callback(Listing({"g": [tool("ping")], "w": [tool("late", "w")]}))
    catalogued.clock.advance(1)
    source.listings[-1].callback(Listing({"g": [tool("ping")]}, {"w": down["w"]}))
    group = catalogued.status.as_json()["tool_groups"]["w"]
    assert (group["error"], group["tools"]) == (None, 1)
    assert catalogued.counted("llamaproxy_tool_groups_missing") == 0
    assert catalogued.counted(LISTING_FAILURES) == 1
    catalogued.clock.advance(0)
    assert source.limits[-1].patient, "it is listed again at once"
    source.listings[-1].callback(Listing({"g": [tool("ping")], "w": [tool("late", "w")]}))
    assert catalogued.names(caller("other")) == ["ping", "late"]


def test_a_list_that_is_slow_for_one_is_waited_for_by_nobody_else() -> None:
    catalogued = Catalogued()
    catalogued.ask(caller("first"))
    catalogued.clock.advance(30)
    catalogued.source.listings[0].errback(UpstreamTimeout("slow"))
    assert catalogued.names(caller("second")) == []
    catalogued.clock.advance(0)
    assert catalogued.source.listed_for[-1] == caller("first").for_listing(), "who asks for all"
    catalogued.source.listings[-1].callback(listing("ping"))
    pending = catalogued.ask(caller("second"))
    catalogued.source.listings[-1].callback(listing("ping"))
    assert list(outcome(pending).tools) == ["ping"]


def test_a_change_lists_again_for_a_few_and_makes_all_others_stale() -> None:
    catalogued = Catalogued(ttl=600)
    for number in range(100):
        catalogued.listed("old", who=caller(str(number)))
    catalogued.clock.advance(20)
    for _ in range(50):
        catalogued.catalogue.changed()
    assert len(catalogued.source.listings) == 100 + 16
    assert catalogued.names(caller("0")) == ["old"]
    catalogued.source.listings[-1].callback(listing("new"))
    assert catalogued.names(caller("0")) == ["new"]


@pytest.mark.parametrize("limits", [(2, 10**9), (10**9, 290)])
def test_what_does_not_fit_is_left_out_and_named(limits: tuple[int, int]) -> None:
    """DESIGN: T3."""
    catalogued = Catalogued(offers=Offers(*limits))
    pending = catalogued.ask()
    tools = [tool("a"), tool("b"), tool("c"), tool("d")]
    catalogued.source.listings[0].callback(Listing({"g": tools}))
    offer = outcome(pending)
    assert list(offer.tools) == ["a", "b"]
    assert [entry["function"]["name"] for entry in json.loads(offer.definitions.text)] == ["a", "b"]
    assert catalogued.status.as_json()["tools"]["left_out"] == ["g/c", "g/d"]


@pytest.mark.parametrize("limits", [(5, 10**9), (10**9, 600)])
def test_no_group_crowds_out_those_behind_it(limits: tuple[int, int]) -> None:
    catalogued = Catalogued(offers=Offers(*limits))
    pending = catalogued.ask()
    crowd = [tool(f"a{number}", "a") for number in range(9)]
    groups = {"a": crowd, "b": [tool("b0", "b")], "c": [tool("c0", "c"), tool("c1", "c")]}
    catalogued.source.listings[0].callback(Listing(groups))
    assert list(outcome(pending).tools) == ["a0", "a1", "a2", "b0", "c0"]
    left_out = catalogued.status.as_json()["tools"]["left_out"]
    assert left_out == [*(f"a/a{number}" for number in range(3, 9)), "c/c1"]


def test_the_first_groups_have_a_tool_each_where_there_are_more_groups_than_room() -> None:
    catalogued = Catalogued(offers=Offers(4, 10**9))
    pending = catalogued.ask()
    groups = {f"g{g}": [tool(f"t{g}{n}", f"g{g}") for n in range(3)] for g in range(9)}
    catalogued.source.listings[0].callback(Listing(groups))
    assert list(outcome(pending).tools) == ["t00", "t10", "t20", "t30"]


# --- what an operator sees


def test_callers_who_see_different_things_do_not_fill_the_log() -> None:
    catalogued = Catalogued(ttl=0)
    events: list[Any] = []
    observer = cast(ILogObserver, events.append)
    globalLogPublisher.addObserver(observer)
    try:
        for _ in range(5):
            for who, failures in ((caller("in"), {}), (caller("out"), {"g": McpBroke("401")})):
                catalogued.ask(who)
                groups = {} if failures else {"g": [tool("ping")]}
                catalogued.source.listings[-1].callback(Listing(groups, dict(failures)))
    finally:
        globalLogPublisher.removeObserver(observer)
    assert len(events) == 2


def test_the_status_lists_what_is_offered_and_why_the_rest_is_not() -> None:
    catalogued = Catalogued(ttl=60)
    catalogued.listed("ping", "pong")
    catalogued.clock.advance(60)
    catalogued.names()
    down = McpUnavailable("The MCP server could not be reached: refused.")
    down.where = "http://mcp:9000/mcp"
    catalogued.source.listings[-1].callback(Listing({}, {"g": down}))
    catalogued.clock.advance(1)
    group = catalogued.status.as_json()["tool_groups"]["g"]
    assert group["names"] == ["ping", "pong"], "the old list serves"
    assert group["error"] == (
        "mcp_unavailable (The MCP server could not be reached: refused.) at http://mcp:9000/mcp"
    )
    assert (group["listed_seconds_ago"], group["error_seconds_ago"]) == (61, 1)
    catalogued.clock.advance(60)
    catalogued.names()
    catalogued.source.listings[-1].errback(UpstreamUnavailable("refused"))
    assert "refused" in catalogued.status.as_json()["tools"]["error"]
    catalogued.names()
    catalogued.source.listings[-1].callback(listing("ping"))
    status = catalogued.status.as_json()
    assert status["tools"]["error"] is None and status["tool_groups"]["g"]["error"] is None


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (ToolFailed("Error: secret words", "HTTP status 401"), "HTTP status 401"),
        (UpstreamUnavailable("Llama Stack could not be reached: refused"), "refused"),
        (ToolResult("secret words", True), "as it says itself"),
    ],
)
def test_the_log_says_why_a_tool_failed_and_nothing_that_it_said(failure: Any, reason: str) -> None:
    lines: list[str] = []

    observe: Any = lambda event: lines.append(formatEvent(event))  # noqa: E731
    globalLogPublisher.addObserver(observe)
    try:
        catalogued = Catalogued()
        catalogued.call()
        ended = catalogued.source.calls[0].errback if isinstance(failure, Exception) else None
        (ended or catalogued.source.calls[0].callback)(failure)
    finally:
        globalLogPublisher.removeObserver(observe)
    [line] = [each for each in lines if "tool ping" in each]
    assert "failed" in line and reason in line and "secret" not in line
