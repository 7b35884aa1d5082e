"""The catalogue: lists kept fresh, calls kept within limits."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

import attrs
import pytest
from prometheus_client import generate_latest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher
from twisted.web.http_headers import Headers

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
    UpstreamTimeout,
    UpstreamUnavailable,
)
from llamaproxy.events import Observers
from llamaproxy.tools.catalogue import Catalogue
from llamaproxy.tools.definitions import ToolDefinition
from llamaproxy.tools.offers import Offer, Offers
from llamaproxy.tools.results import ToolResult
from llamaproxy.tools.source import Listing, Patience
from llamaproxy.upstream.client_context import ClientContext
from tests.support import outcome


def caller(token: str = "", request_id: str = "1") -> ClientContext:
    credentials = {"Authorization": [token]} if token else {}
    return ClientContext.of(Headers({**credentials, "X-Request-Id": [request_id]}))


def tool(name: str, group: str = "g") -> ToolDefinition:
    return ToolDefinition(group, name, f"The {name} tool.", {"type": "object"})


def listing(*names: str, **failures: str) -> Listing:
    broken: dict[str, ProxyError] = {g: McpBroke(reason) for g, reason in failures.items()}
    return Listing({"g": [tool(name) for name in names]}, broken)


_PATIENT = Patience()


class FakeSource:
    """A tool source whose listings and calls are ended by the test."""

    def __init__(self) -> None:
        self.listed_for: list[ClientContext] = []
        self.listings: list[Deferred[Listing]] = []
        self.patience: list[Patience] = []
        self.invoked: list[tuple[str, dict[str, Any], ClientContext]] = []
        self.calls: list[Deferred[ToolResult]] = []
        self.tools: list[ToolDefinition] = []

    async def list_tools(self, caller: ClientContext, patience: Patience = _PATIENT) -> Listing:
        self.listed_for.append(caller)
        self.patience.append(patience)
        if "" in patience.down:
            raise patience.down[""]
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
        self.status = ToolStatus(self.clock)
        self.catalogue = Catalogue(
            self.source,
            self.clock,
            ttl,
            timeout,
            max_result,
            offers or Offers(1000, 10**9),
            max_callers,
            Observers(log_event, self.metrics, self.status),
        )

    def ask(self, who: ClientContext | None = None) -> Deferred[Offer]:
        return Deferred.fromCoroutine(self.catalogue.offer(who or caller()))

    def names(self, who: ClientContext | None = None) -> list[str]:
        return list(outcome(self.ask(who)).tools)

    def listed(self, *names: str, who: ClientContext | None = None) -> None:
        """*who* is offered *names*, which have just been listed."""
        asking = self.ask(who)
        self.source.listings[-1].callback(listing(*names))
        assert list(outcome(asking).tools) == sorted(names)

    def call(self, name: str = "ping", **arguments: Any) -> Deferred[ToolResult]:
        work = self.catalogue.invoke(tool(name), arguments, caller())
        return Deferred.fromCoroutine(work)

    def counted(self, name: str) -> float:
        text = generate_latest(self.metrics.registry).decode()
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if line.startswith(name)]
        return sum(float(value) for _, value in lines)


LISTING_FAILURES = "llamaproxy_tool_listing_failures_total"


# --- lists


def test_a_list_is_asked_for_once_while_it_is_fresh() -> None:
    known = Catalogued(ttl=60)
    known.listed("ping")
    known.clock.advance(59)
    assert known.names() == ["ping"]
    assert len(known.source.listings) == 1


def test_a_list_is_asked_for_once_however_many_wait() -> None:
    """DESIGN: T2."""
    known = Catalogued()
    waiting = [known.ask(caller(request_id=str(number))) for number in range(5)]
    assert len(known.source.listings) == 1
    known.source.listings[0].callback(listing("ping"))
    assert [list(outcome(each).tools) for each in waiting] == [["ping"]] * 5


def test_a_stale_list_serves_while_a_fresh_one_is_fetched() -> None:
    """DESIGN: T2."""
    known = Catalogued(ttl=60)
    known.listed("old")
    known.clock.advance(60)
    assert known.names() == known.names() == ["old"]
    assert len(known.source.listings) == 2
    known.source.listings[1].callback(listing("new"))
    assert known.names() == ["new"]
    known.clock.advance(59)
    assert known.names() == ["new"]
    assert len(known.source.listings) == 2


def test_no_list_is_fresh_if_the_ttl_is_nothing() -> None:
    known = Catalogued(ttl=0)
    known.listed("ping")
    known.names()
    assert len(known.source.listings) == 2


def test_one_who_leaves_does_not_stop_the_listing() -> None:
    known = Catalogued()
    leaving, staying = known.ask(), known.ask()
    leaving.cancel()
    with pytest.raises(CancelledError):
        outcome(leaving)
    known.source.listings[0].callback(listing("ping"))
    assert list(outcome(staying).tools) == ["ping"]


@pytest.mark.parametrize("error", [UpstreamUnavailable("refused"), RuntimeError("a bug")])
def test_a_chat_goes_on_without_tools_that_cannot_be_listed(error: Exception) -> None:
    """DESIGN: L22."""
    known = Catalogued()
    asking = known.ask()
    known.source.listings[0].errback(error)
    assert outcome(asking).tools == {}
    assert known.counted(LISTING_FAILURES) == 1
    known.listed("ping")


def test_a_slow_failure_is_not_waited_for_by_every_chat() -> None:
    known = Catalogued()
    asking = known.ask()
    known.clock.advance(10)
    known.source.listings[0].errback(UpstreamUnavailable("stalled"))
    assert outcome(asking).tools == {}
    known.clock.advance(9)
    assert known.names() == []
    assert len(known.source.listings) == 1
    known.clock.advance(1)
    known.listed("ping")


def test_the_last_good_list_outlives_failures() -> None:
    """DESIGN: T2."""
    known = Catalogued(ttl=60)
    known.listed("ping")
    for failures in range(1, 4):
        known.clock.advance(60)
        assert known.names() == ["ping"]
        known.source.listings[-1].errback(UpstreamUnavailable("refused"))
        assert known.counted(LISTING_FAILURES) == failures
    assert known.names() == ["ping"]


def test_a_group_that_cannot_be_listed_keeps_its_last_good_list() -> None:
    known = Catalogued(ttl=60)
    asking = known.ask()
    known.source.listings[0].callback(Listing({"a": [tool("x", "a")], "b": [tool("y", "b")]}))
    assert list(outcome(asking).tools) == ["x", "y"]
    known.clock.advance(60)
    known.names()
    known.source.listings[1].callback(Listing({"a": [tool("z", "a")]}, {"b": McpBroke("401")}))
    assert known.names() == ["z", "y"]
    assert known.counted(LISTING_FAILURES) == 1
    known.clock.advance(60)
    known.names()
    known.source.listings[2].callback(Listing({"a": [tool("z", "a")]}))
    assert known.names() == ["z"]


def test_groups_outlive_a_failure_to_learn_which_there_are() -> None:
    known = Catalogued(ttl=60)
    asking = known.ask()
    known.source.listings[0].callback(
        Listing({"a": [tool("x", "a")], "named": [tool("y", "named")]})
    )
    assert list(outcome(asking).tools) == ["x", "y"]
    known.clock.advance(60)
    known.names()
    named = Listing({"named": [tool("z", "named")]}, rest=UpstreamUnavailable("refused"))
    known.source.listings[1].callback(named)
    assert known.names() == ["x", "z"]
    assert "refused" in known.status.as_json()["tools"]["error"]
    known.source.listings[2].callback(Listing({"named": [tool("z", "named")]}))
    assert known.names() == ["z"]
    assert known.status.as_json()["tools"]["error"] is None


def test_a_first_chat_has_what_can_be_listed_while_the_rest_is_down() -> None:
    known = Catalogued()
    asking = known.ask(caller("first"))
    named = Listing({"named": [tool("z", "named")]}, rest=UpstreamTimeout("slow"))
    known.source.listings[0].callback(named)
    assert list(outcome(asking).tools) == ["z"]
    known.clock.advance(0)
    assert known.source.patience[1].down == {}, "asked once more, with patience"


def test_a_failure_that_is_believed_is_not_believed_for_longer_by_each_caller() -> None:
    known = Catalogued()
    locked: dict[str, ProxyError] = {"locked": McpUnavailable("refused")}
    for second in range(40):
        asking = known.ask(caller(str(second)))
        down = known.source.patience[-1].down
        assert bool(down) == (0 < second < 30 or second > 30)
        known.source.listings[-1].callback(Listing({}, dict(down) or locked))
        assert outcome(asking).tools == {}
        known.clock.advance(1)


def test_one_asks_again_for_all_whether_a_slow_server_answers() -> None:
    """However many callers there are, and whether their lists are new or to be refreshed."""
    known = Catalogued(ttl=5)
    slow: dict[str, ProxyError] = {"slow": McpTimeout("slow")}

    def asked() -> int:
        """How many have asked the slow server; the others were told that it is."""
        count = 0
        for listing, patience in zip(known.source.listings, known.source.patience, strict=True):
            count += patience.down == {}
            if not listing.called:
                listing.callback(Listing({"g": [tool("ping")]}, dict(patience.down) or slow))
        known.source.listings.clear()
        known.source.patience.clear()
        return count

    for _ in range(3):
        for number in range(50):
            known.ask(caller(str(number)))
            known.clock.advance(0)
            if number == 0:
                first = asked()
        assert first + asked() <= 2
        known.clock.advance(31)


def test_lists_are_kept_apart_by_credentials_and_by_nothing_else() -> None:
    """DESIGN: T4."""
    known = Catalogued()
    known.listed("hers", who=caller("Bearer her"))
    known.listed("his", who=caller("Bearer his"))
    known.listed("everybodys", who=caller())
    assert known.names(caller("Bearer her", request_id="2")) == ["hers"]
    assert known.names(caller("Bearer his")) == ["his"]
    assert known.names(caller()) == ["everybodys"]
    asked = [dict(who.credentials).get(b"authorization") for who in known.source.listed_for]
    assert asked == [(b"Bearer her",), (b"Bearer his",), None]


def test_a_bounded_number_of_callers_is_remembered_the_latest() -> None:
    known = Catalogued(max_callers=3)
    for token in "abc":
        known.listed(token, who=caller(token))
    assert known.names(caller("a")) == ["a"]
    known.listed("d", who=caller("d"))
    assert known.names(caller("a")) == ["a"]
    assert known.names(caller("c")) == ["c"]
    known.listed("b", who=caller("b"))


def test_names_that_are_taken_are_not_offered() -> None:
    known = Catalogued()
    known.listed("ping", "pong", "web")
    offer = outcome(Deferred.fromCoroutine(known.catalogue.offer(caller(), {"ping"})))
    assert list(offer.tools) == ["pong", "web"]
    narrowed = known.catalogue.offer(caller(), {"pong"}, ["p*", "nothing"])
    assert list(outcome(Deferred.fromCoroutine(narrowed)).tools) == ["ping"]


def test_an_offer_is_a_list_of_openai_functions() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    offer = Offer({"g__web_1": ToolDefinition("g", "web search", "Searches.", schema)})
    function = {"name": "g__web_1", "description": "Searches.", "parameters": schema}
    assert offer.definitions() == [{"type": "function", "function": function}]
    assert offer.named("web search") == offer.named("g__web_1") == ["g__web_1"]
    assert offer.named("other") == []


def test_stopping_gives_up_the_listings_under_way() -> None:
    known = Catalogued()
    waiting = known.ask()
    known.catalogue.stop()
    with pytest.raises(CancelledError):
        outcome(waiting)
    assert known.source.listings[0].called


# --- calls


def test_a_call_is_made_with_the_callers_credentials() -> None:
    known = Catalogued()
    work = known.catalogue.invoke(tool("ping"), {"a": 1}, caller("Bearer a", "7"))
    calling = Deferred.fromCoroutine(work)
    known.source.calls[0].callback(ToolResult("pong"))
    assert outcome(calling) == ToolResult("pong")
    assert known.source.invoked == [("ping", {"a": 1}, caller("Bearer a", "7"))]
    assert known.counted('llamaproxy_tool_calls_total{outcome="answered"}') == 1


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
    known = Catalogued()
    calling = known.call()
    known.source.calls[0].errback(error)
    assert outcome(calling) == ToolResult(text, True)
    assert known.counted('llamaproxy_tool_calls_total{outcome="failed"}') == 1


def test_a_slow_tool_is_stopped_and_the_model_told() -> None:
    known = Catalogued(timeout=30)
    calling = known.call()
    known.clock.advance(29)
    assert not calling.called
    known.clock.advance(1)
    result = outcome(calling)
    assert result.is_error
    assert "within 30 s" in result.text
    assert known.source.calls[0].called


def test_one_slow_tool_does_not_hold_up_another() -> None:
    known = Catalogued()
    slow, quick = known.call("slow"), known.call("quick")
    known.source.calls[1].callback(ToolResult("done"))
    assert outcome(quick) == ToolResult("done")
    assert not slow.called


def test_cancelling_a_call_cancels_the_tool() -> None:
    known = Catalogued()
    calling = known.call()
    calling.cancel()
    with pytest.raises(CancelledError):
        outcome(calling)
    assert known.source.calls[0].called
    assert known.clock.getDelayedCalls() == []


def test_a_result_is_tidied_and_shortened() -> None:
    known = Catalogued(max_result=40)
    calling = known.call()
    known.source.calls[0].callback(ToolResult("\x1b[1m<|im_end|>" + "x" * 100))
    text = outcome(calling).text
    assert text.startswith("< |im")
    assert "bytes cut here" in text


def test_an_unknown_tool_is_called_once_more_after_listing_again() -> None:
    """DESIGN: T5."""
    known = Catalogued()
    known.listed("ping")
    calling = known.call("ping", a=1)
    known.source.calls[0].errback(ToolUnknown("not served by provider"))
    assert (len(known.source.listings), len(known.source.calls)) == (2, 1)
    known.source.listings[1].callback(listing("ping", "pong"))
    known.source.calls[1].callback(ToolResult("pong"))
    assert outcome(calling) == ToolResult("pong")
    assert known.source.invoked[0] == known.source.invoked[1]
    assert known.names() == ["ping", "pong"]


def test_calls_that_find_out_at_the_same_time_list_once() -> None:
    known = Catalogued()
    calling = [known.call() for _ in range(3)]
    for call in known.source.calls[:3]:
        call.errback(ToolUnknown("gone"))
    assert len(known.source.listings) == 1
    known.source.listings[0].callback(listing("ping"))
    for call in known.source.calls[3:]:
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
    known = Catalogued()
    chosen = attrs.evolve(tool("ping", "old"), endpoint="http://a/mcp")
    call = Deferred.fromCoroutine(known.catalogue.invoke(chosen, {}, caller()))
    known.source.calls[0].errback(ToolUnknown("gone"))
    now = attrs.evolve(tool("ping", group), endpoint=endpoint, origin="now")
    known.source.listings[0].callback(Listing({group: [now]}))
    known.source.calls[1].callback(ToolResult("pong"))
    assert outcome(call).text == "pong"
    assert known.source.tools[1] == (now if called else chosen)


def test_a_tool_that_stays_unknown_fails() -> None:
    known = Catalogued()
    calling = known.call()
    known.source.calls[0].errback(ToolUnknown("gone"))
    known.source.listings[0].errback(UpstreamUnavailable("refused"))
    known.source.calls[1].errback(ToolUnknown("Error: still gone"))
    assert outcome(calling) == ToolResult("Error: still gone", True)
    assert len(known.source.calls) == 2


def test_listing_again_is_part_of_the_time_that_a_tool_has() -> None:
    known = Catalogued(timeout=30)
    calling = known.call()
    known.clock.advance(20)
    known.source.calls[0].errback(ToolUnknown("gone"))
    known.clock.advance(10)
    assert "within 30 s" in outcome(calling).text


def test_a_refusal_is_never_repeated() -> None:
    known = Catalogued()
    for error in (ToolFailed("no"), ProxyError("no")):
        calling = known.call()
        known.source.calls[-1].errback(error)
        assert outcome(calling).is_error
    assert len(known.source.calls) == 2


# --- many callers, and servers that are down


def test_equal_lists_are_kept_once_however_many_callers_there_are() -> None:
    """DESIGN: T4."""
    known = Catalogued()
    offers = []
    for number in range(1000):
        asking = known.ask(caller(f"Bearer {number}"))
        # Every listing has objects of its own, as it comes off the wire.
        known.source.listings[-1].callback(listing("ping", "pong"))
        offers.append(outcome(asking))
    assert len({id(offer) for offer in offers}) == 1
    assert known.status.as_json()["tools"]["callers"] == 1000
    del offers
    asking = known.ask(caller("Bearer other"))
    known.source.listings[-1].callback(listing("other"))
    assert list(outcome(asking).tools) == ["other"]


def test_ten_thousand_callers_are_known_and_no_list_is_fetched_again() -> None:
    known = Catalogued(ttl=600)
    for _ in range(2):
        for number in range(10_000):
            asking = known.ask(caller(str(number)))
            if not asking.called:
                known.source.listings[-1].callback(listing("ping"))
            assert outcome(asking).tools.keys() == {"ping"}
    assert len(known.source.listings) == 10_000


def test_a_caller_costs_little_more_than_a_key() -> None:
    known = Catalogued(ttl=600)

    def serve(numbers: range) -> None:
        for number in numbers:
            asking = known.ask(caller(f"Bearer {number} {'x' * 10_000}"))
            known.source.listings.pop().callback(listing("ping"))
            assert outcome(asking).tools.keys() == {"ping"}
            for kept in (known.source.listed_for, known.source.patience):
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
    known = Catalogued()
    asking = known.ask()
    known.clock.advance(5.4)
    assert not asking.called
    known.clock.advance(0.1)
    assert outcome(asking).tools == {}
    known.source.listings[0].callback(listing("ping"))
    assert known.names() == ["ping"]


def test_what_was_too_slow_for_a_first_chat_is_there_for_a_later_one() -> None:
    known = Catalogued()
    asking = known.ask()
    slow: dict[str, ProxyError] = {"slow": McpTimeout("slow")}
    known.source.listings[0].callback(Listing({"g": [tool("ping")]}, slow))
    assert list(outcome(asking).tools) == ["ping"]
    known.clock.advance(0)
    assert [patience.seconds for patience in known.source.patience] == [5, 30]
    assert known.source.patience[1].down == {}
    groups = {"g": [tool("ping")], "slow": [tool("late", "slow")]}
    known.source.listings[1].callback(Listing(groups))
    assert known.names() == ["ping", "late"]


def test_a_group_that_is_down_is_not_waited_for_by_the_next_caller() -> None:
    """DESIGN: T3."""
    known = Catalogued()
    down: dict[str, ProxyError] = {"slow": McpTimeout("slow"), "locked": McpBroke("401")}
    for number, believed in enumerate(([], ["slow"])):
        asking = known.ask(caller(str(number)))
        assert list(known.source.patience[-1].down) == believed
        known.source.listings[-1].callback(Listing({"g": [tool("ping")]}, down))
        assert list(outcome(asking).tools) == ["ping"]
    known.clock.advance(31)
    known.ask(caller("third"))
    assert known.source.patience[-1].down == {}


def test_a_list_that_is_slow_for_one_is_waited_for_by_nobody_else() -> None:
    known = Catalogued()
    known.ask(caller("first"))
    known.clock.advance(30)
    known.source.listings[0].errback(UpstreamTimeout("slow"))
    assert known.names(caller("second")) == []
    known.clock.advance(0)
    assert known.source.listed_for[-1] == caller("first").for_listing(), "who asks for all"
    known.source.listings[-1].callback(listing("ping"))
    asking = known.ask(caller("second"))
    known.source.listings[-1].callback(listing("ping"))
    assert list(outcome(asking).tools) == ["ping"]


def test_a_change_lists_again_for_a_few_and_makes_all_others_stale() -> None:
    known = Catalogued(ttl=600)
    for number in range(100):
        known.listed("old", who=caller(str(number)))
    known.clock.advance(20)
    for _ in range(50):
        known.catalogue.changed()
    assert len(known.source.listings) == 100 + 16
    assert known.names(caller("0")) == ["old"]
    known.source.listings[-1].callback(listing("new"))
    assert known.names(caller("0")) == ["new"]


@pytest.mark.parametrize("limits", [(2, 10**9), (10**9, 290)])
def test_what_does_not_fit_is_left_out_and_named(limits: tuple[int, int]) -> None:
    """DESIGN: T3."""
    known = Catalogued(offers=Offers(*limits))
    asking = known.ask()
    tools = [tool("a"), tool("b"), tool("c"), tool("d")]
    known.source.listings[0].callback(Listing({"g": tools}))
    offer = outcome(asking)
    assert list(offer.tools) == ["a", "b"]
    assert [entry["function"]["name"] for entry in offer.definitions()] == ["a", "b"]
    assert known.status.as_json()["tools"]["left_out"] == ["g/c", "g/d"]


@pytest.mark.parametrize("limits", [(5, 10**9), (10**9, 600)])
def test_no_group_crowds_out_those_behind_it(limits: tuple[int, int]) -> None:
    known = Catalogued(offers=Offers(*limits))
    asking = known.ask()
    crowd = [tool(f"a{number}", "a") for number in range(9)]
    groups = {"a": crowd, "b": [tool("b0", "b")], "c": [tool("c0", "c"), tool("c1", "c")]}
    known.source.listings[0].callback(Listing(groups))
    assert list(outcome(asking).tools) == ["a0", "a1", "a2", "b0", "c0"]
    left_out = known.status.as_json()["tools"]["left_out"]
    assert left_out == [*(f"a/a{number}" for number in range(3, 9)), "c/c1"]


# --- what an operator sees


def test_the_status_lists_what_is_offered_and_why_the_rest_is_not() -> None:
    known = Catalogued(ttl=60)
    known.listed("ping", "pong")
    known.clock.advance(60)
    known.names()
    down = McpUnavailable("The MCP server could not be reached: refused.")
    down.where = "http://mcp:9000/mcp"
    known.source.listings[-1].callback(Listing({}, {"g": down}))
    known.clock.advance(1)
    group = known.status.as_json()["tool_groups"]["g"]
    assert group["names"] == ["ping", "pong"], "the old list serves"
    assert group["error"] == (
        "mcp_unavailable (The MCP server could not be reached: refused.) at http://mcp:9000/mcp"
    )
    assert (group["listed_seconds_ago"], group["error_seconds_ago"]) == (61, 1)
    known.clock.advance(60)
    known.names()
    known.source.listings[-1].errback(UpstreamUnavailable("refused"))
    assert "refused" in known.status.as_json()["tools"]["error"]
    known.names()
    known.source.listings[-1].callback(listing("ping"))
    status = known.status.as_json()
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
        known = Catalogued()
        known.call()
        ended = known.source.calls[0].errback if isinstance(failure, Exception) else None
        (ended or known.source.calls[0].callback)(failure)
    finally:
        globalLogPublisher.removeObserver(observe)
    [line] = [each for each in lines if "tool ping" in each]
    assert "failed" in line and reason in line and "secret" not in line
