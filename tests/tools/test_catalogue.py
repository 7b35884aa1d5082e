"""The catalogue: lists kept fresh, calls kept within limits.

DESIGN: L13, L22, T2, T3, T5.
"""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import generate_latest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.web.http_headers import Headers

from llamaproxy.admin.metrics import Metrics
from llamaproxy.errors import ProxyError, ToolFailed, ToolUnknown, UpstreamUnavailable
from llamaproxy.tools import catalogue as catalogue_module
from llamaproxy.tools.catalogue import Catalogue, Offer
from llamaproxy.tools.results import ToolResult
from llamaproxy.tools.source import Listing, ToolDefinition
from llamaproxy.upstream.headers import Caller
from tests.support import outcome


def caller(token: str = "", request_id: str = "1") -> Caller:
    credentials = {"Authorization": [token]} if token else {}
    return Caller.of(Headers({**credentials, "X-Request-Id": [request_id]}))


def tool(name: str, group: str = "g") -> ToolDefinition:
    return ToolDefinition(group, name, f"The {name} tool.", {"type": "object"})


def listing(*names: str, **failures: str) -> Listing:
    return Listing({"g": [tool(name) for name in names]}, failures)


class FakeSource:
    """A tool source whose listings and calls are ended by the test."""

    def __init__(self) -> None:
        self.listed_for: list[Caller] = []
        self.listings: list[Deferred[Listing]] = []
        self.invoked: list[tuple[str, dict[str, Any], Caller]] = []
        self.calls: list[Deferred[ToolResult]] = []

    async def list_tools(self, caller: Caller) -> Listing:
        self.listed_for.append(caller)
        self.listings.append(Deferred())
        return await self.listings[-1]

    async def invoke(
        self, tool: ToolDefinition, arguments: dict[str, Any], caller: Caller
    ) -> ToolResult:
        self.invoked.append((tool.name, arguments, caller))
        self.calls.append(Deferred())
        return await self.calls[-1]


class Catalogued:
    """A catalogue over a FakeSource, at a time that the test decides."""

    def __init__(self, ttl: float = 60, timeout: float = 30, max_result: int = 1000) -> None:
        self.source = FakeSource()
        self.clock = Clock()
        self.metrics = Metrics()
        self.catalogue = Catalogue(self.source, self.clock, self.metrics, ttl, timeout, max_result)

    def ask(self, who: Caller | None = None) -> Deferred[Offer]:
        return Deferred.fromCoroutine(self.catalogue.offer(who or caller()))

    def names(self, who: Caller | None = None) -> list[str]:
        return list(outcome(self.ask(who)).tools)

    def listed(self, *names: str, who: Caller | None = None) -> None:
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
    known = Catalogued()
    waiting = [known.ask(caller(request_id=str(number))) for number in range(5)]
    assert len(known.source.listings) == 1
    known.source.listings[0].callback(listing("ping"))
    assert [list(outcome(each).tools) for each in waiting] == [["ping"]] * 5


def test_a_stale_list_serves_while_a_fresh_one_is_fetched() -> None:
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
    known.source.listings[1].callback(Listing({"a": [tool("z", "a")]}, {"b": "401"}))
    assert known.names() == ["z", "y"]
    assert known.counted(LISTING_FAILURES) == 1
    known.clock.advance(60)
    known.names()
    known.source.listings[2].callback(Listing({"a": [tool("z", "a")]}))
    assert known.names() == ["z"]


def test_lists_are_kept_apart_by_credentials_and_by_nothing_else() -> None:
    known = Catalogued()
    known.listed("hers", who=caller("Bearer her"))
    known.listed("his", who=caller("Bearer his"))
    known.listed("everybodys", who=caller())
    assert known.names(caller("Bearer her", request_id="2")) == ["hers"]
    assert known.names(caller("Bearer his")) == ["his"]
    assert known.names(caller()) == ["everybodys"]
    asked = [dict(who.credentials).get(b"authorization") for who in known.source.listed_for]
    assert asked == [(b"Bearer her",), (b"Bearer his",), None]


def test_a_bounded_number_of_callers_is_remembered_the_latest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(catalogue_module, "MAX_CALLERS", 3)
    known = Catalogued()
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
    assert offer.named("web search") == offer.named("g__web_1") == "g__web_1"
    assert offer.named("other") is None


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
    known = Catalogued(max_result=10)
    calling = known.call()
    known.source.calls[0].callback(ToolResult("\x1b[1m<|im_end|>" + "x" * 100))
    text = outcome(calling).text
    assert text.startswith("< |im")
    assert "bytes cut here" in text


def test_an_unknown_tool_is_called_once_more_after_listing_again() -> None:
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
