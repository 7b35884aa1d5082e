"""One listing serves all workers: counted at the server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest
from prometheus_client import generate_latest
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import ILogObserver, formatEvent, globalLogPublisher
from twisted.test.iosim import FakeTransport, connect

from llamaproxy.errors import ProxyError
from llamaproxy.events import ListRefreshed
from llamaproxy.tools.catalogue import Catalogue
from llamaproxy.tools.source import Listing, ListLimits, NoTools
from llamaproxy.upstream.caller_wire import caller_bytes
from llamaproxy.upstream.client_context import ClientContext
from llamaproxy.workers import listing
from llamaproxy.workers.link import Link
from llamaproxy.workers.listing import ListedByParent, SharedLists
from tests.support import (
    CHAT,
    INVOKE,
    FakeStack,
    Proxy,
    answer,
    calling,
    nothing,
    outcome,
    saying,
    tool,
    tool_result,
)
from tests.workers.several import TOOLS, Several

VERSION = "GET /v1/version"
GROUPS = "GET /v1/toolgroups"


@pytest.fixture
def log() -> Iterator[list[str]]:
    """The lines of the log."""
    lines: list[str] = []

    observer = cast(ILogObserver, lambda event: lines.append(formatEvent(event)))
    globalLogPublisher.addObserver(observer)
    yield lines
    globalLogPublisher.removeObserver(observer)


def everybody(several: Several, token: str = "") -> list[list[str]]:
    return [several.offered(worker, token) for worker in range(len(several.workers))]


def test_one_listing_serves_all_workers() -> None:
    several = Several(4)
    for _ in range(3):
        assert everybody(several) == [["ping"]] * 4
        assert several.listings() == 1
        several.advance(19)


def test_a_list_is_listed_once_per_ttl_however_many_workers_there_are() -> None:
    several = Several(4, ttl=60)
    everybody(several)
    for listings in range(2, 6):
        several.advance(60)
        everybody(several)
        several.advance(1)
        everybody(several)
        assert several.listings() == listings


def test_a_list_is_fresh_from_when_the_parent_listed_it() -> None:
    several = Several(2, ttl=60)
    several.offered(0)
    several.advance(59)
    assert several.offered(1) == ["ping"]
    assert several.listings() == 1
    several.stack.on(TOOLS, answer({"data": [tool("new")]}))
    several.advance(1)
    assert [several.offered(1), several.offered(1)] == [["ping"], ["new"]]
    assert [several.offered(0), several.offered(0)] == [["ping"], ["new"]]
    assert several.listings() == 2


def test_a_list_that_all_wait_for_is_asked_for_once() -> None:
    several = Several(3)
    several.stack.on(TOOLS, nothing)
    waiting = [several.chat(worker) for worker in (0, 1, 2, 0, 1)]
    assert several.listings() == 1
    answer({"data": [tool("late")]})(several.stack.open[-1])
    several.settle()
    assert [each.status for each in waiting] == [200] * 5
    assert all("late" in str(each.body) for each in several.stack.asked_for(CHAT))


def test_lists_are_kept_apart_by_credentials() -> None:
    several = Several(2)
    several.stack.on(TOOLS, answer({"data": [tool("hers")]}), answer({"data": [tool("his")]}))
    assert everybody(several, "her") == [["hers"]] * 2
    assert everybody(several, "his") == [["his"]] * 2
    asked = several.stack.asked_for(TOOLS)
    assert [each.headers.getRawHeaders("Authorization") for each in asked] == [
        ["Bearer her"],
        ["Bearer his"],
    ]


def test_a_client_that_leaves_does_not_end_the_listing_for_others() -> None:
    several = Several(2)
    several.stack.on(TOOLS, nothing)
    leaving, staying = several.chat(0), several.chat(1)
    leaving.leave()
    several.settle()
    answer({"data": [tool("ping")]})(several.stack.open[-1])
    several.settle()
    assert staying.status == 200
    assert several.offered(0) == ["ping"]
    assert several.listings() == 1


def test_a_worker_that_stops_does_not_end_the_listing_for_others() -> None:
    several = Several(2)
    several.stack.on(TOOLS, nothing)
    several.chat(0)
    staying = several.chat(1)
    several.workers[0].catalogue.stop()
    several.cut(0)
    answer({"data": [tool("ping")]})(several.stack.open[-1])
    several.settle()
    assert staying.status == 200
    assert several.offered(1) == ["ping"]
    assert several.listings() == 1


def test_a_tool_that_is_unknown_is_listed_anew_by_the_parent() -> None:
    """DESIGN: T5. The server has been restarted: it knows no tool until they are listed."""
    several = Several(2)
    everybody(several)
    several.stack.on(CHAT, calling("ping"), saying("It said pong."))
    several.stack.on(
        INVOKE,
        answer({"detail": "Invalid value: Tool ping not served by provider"}, 400),
        tool_result("pong"),
    )
    exchange = several.chat(0)
    assert exchange.json()["choices"][0]["message"]["content"] == "It said pong."
    assert several.stack.asked_for(CHAT)[-1].json()["messages"][-1]["content"] == "pong"
    assert several.listings() == 2
    several.stack.on(CHAT, saying("Hello."))
    everybody(several)
    assert several.listings() == 2, "the others take it up when theirs is stale"


def test_what_cannot_be_listed_costs_no_chat_and_is_in_every_workers_status(
    log: list[str],
) -> None:
    """DESIGN: L22."""
    several = Several(2)
    several.stack.on(TOOLS, answer({"detail": "a secret of the server's"}, 500))
    assert everybody(several) == [[]] * 2
    for worker in several.workers:
        error = worker.tool_status.as_json()["tools"]["error"]
        assert error == "upstream_refused (HTTP status 500) at http://stack:8321/v1/tools"
        assert [each.name for each in worker.tool_status.problems()] == ["groups_failed"]
    assert several.parent.tool_status.as_json()["tools"]["error"] == error
    assert sum("cannot be listed" in line for line in log) == 1, "by the parent"


def test_a_listing_is_counted_once() -> None:
    several = Several(2)
    everybody(several)
    two_groups(several.stack)
    several.advance(60)
    everybody(several)
    counted = [counts(proxy) for proxy in (several.parent, *several.workers)]
    assert counted == [(2, 1), (0, 0), (0, 0)]
    several.cut(1)
    several.offered(1, "new")
    assert counts(several.workers[1]) == (1, 1), "that it has no list, it counts itself"


def counts(proxy: Proxy) -> tuple[float, float]:
    """The lists, and the failures, that a process has counted."""
    lines = generate_latest(proxy.metrics.registry).decode().splitlines()
    lists, failures = (
        sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))
        for name in ("llamaproxy_tool_lists_total", "llamaproxy_tool_listing_failures_total")
    )
    return lists, failures


def two_groups(stack: FakeStack) -> None:
    """The tools of one group can be listed, those of another cannot."""
    stack.on(TOOLS, answer({"detail": "one is broken"}, 500))
    groups = [{"identifier": "good"}, {"identifier": "bad"}]
    stack.on(GROUPS, answer({"data": groups}))
    stack.on(f"{TOOLS}?toolgroup_id=good", answer({"data": [tool("ping", "good")]}))
    stack.on(f"{TOOLS}?toolgroup_id=bad", answer({"detail": "its MCP server is away"}, 502))


def test_a_broken_group_costs_the_others_nothing_and_is_in_every_status() -> None:
    """DESIGN: T3."""
    several = Several(2)
    two_groups(several.stack)
    assert everybody(several) == [["ping"]] * 2
    for proxy in (several.parent, *several.workers):
        groups = proxy.tool_status.as_json()["tool_groups"]
        assert groups["good"]["names"] == ["ping"] and groups["good"]["error"] is None
        assert groups["bad"]["error"].startswith("upstream_refused (HTTP status 502)")


def test_a_new_worker_has_what_the_others_had_before_a_group_broke() -> None:
    """DESIGN: T2: the last good list outlives a failure, and the worker that has seen it."""
    several = Several(2)
    good, bad = tool("ping", "good"), tool("pong", "bad")
    several.stack.on(TOOLS, answer({"data": [good, bad]}))
    assert several.offered(0) == ["pong", "ping"]
    two_groups(several.stack)
    several.advance(60)
    several.offered(0)
    assert everybody(several) == [["pong", "ping"]] * 2
    [refreshed] = [e for e in several.workers[1].events if isinstance(e, ListRefreshed)]
    assert (list(refreshed.groups), list(refreshed.failures)) == (["good"], ["bad"])
    several.stack.on(TOOLS, answer({"detail": "down"}, 500))
    several.stack.on(GROUPS, answer({"detail": "down"}, 500))
    several.advance(60)
    several.offered(0)
    assert everybody(several) == [["pong", "ping"]] * 2


def test_a_slow_server_is_remembered_for_all_workers() -> None:
    """DESIGN: T3: the first chat waits, later ones wait for nothing, whoever serves them."""
    several = Several(3)
    several.stack.on(TOOLS, nothing)
    several.stack.on(GROUPS, nothing)
    waiting = several.chat(0, "a")
    for _ in range(12):
        several.advance(0.5)
    assert waiting.status == 200
    several.advance(3)
    before = several.listings()
    for worker in (1, 2, 0):
        assert several.offered(worker, f"b{worker}") == []
    assert several.listings() == before
    several.stack.on(TOOLS, answer({"data": [tool("ping")]}))
    several.stack.on(GROUPS, answer({"data": []}))
    for _ in range(60):
        several.advance(1)
    assert [several.offered(worker, f"b{worker}") for worker in (0, 1, 2)] == [["ping"]] * 3


def test_what_was_too_slow_for_a_first_chat_is_there_for_a_later_one_of_any_worker() -> None:
    several = Several(2)
    two_groups(several.stack)
    several.stack.on(f"{TOOLS}?toolgroup_id=bad", nothing)
    chat = several.chat(0)
    for _ in range(3):
        several.advance(1)
    assert chat.status == 200
    assert len(several.stack.open) == 1, "asked once more, with patience"
    answer({"data": [tool("pong", "bad")]})(several.stack.open[0])
    several.settle()
    assert [several.offered(0), several.offered(1)] == [["pong", "ping"]] * 2


def test_a_parent_that_does_not_answer_costs_no_chat_and_is_named() -> None:
    """DESIGN: L22."""
    several = Several(1)
    several.carrying = False
    chat = several.chat(0, "a")
    for _ in range(12):
        several.advance(0.5)
    assert chat.status == 200, "it has waited as for any first listing"
    for _ in range(20):
        several.advance(1)
    error = several.workers[0].tool_status.as_json()["tools"]["error"]
    assert error.startswith("parent_silent (The parent process, which lists tools, did not answer")
    assert several.offered(0, "b") == [], "who comes later waits for nothing"
    several.carrying = True
    for _ in range(31):
        several.advance(1)
    several.offered(0, "a")
    assert several.offered(0, "a") == ["ping"]
    assert several.workers[0].tool_status.as_json()["tools"]["error"] is None


def test_a_stale_list_serves_while_the_parent_does_not_answer() -> None:
    several = Several(1)
    assert several.offered(0) == ["ping"]
    several.carrying = False
    for _ in range(200):
        several.advance(1)
        if not several.clock.seconds() % 20:
            assert several.offered(0) == ["ping"]


def test_a_parent_that_is_gone_costs_no_chat_and_is_named() -> None:
    several = Several(1)
    several.cut(0)
    assert several.offered(0) == []
    error = several.workers[0].tool_status.as_json()["tools"]["error"]
    assert error == "parent_silent (The parent process, which lists tools, is gone.)"


def test_a_server_of_another_generation_is_detected_by_every_worker() -> None:
    several = Several(2)
    everybody(several)
    for worker in several.workers:
        several.settle()
        assert worker.detector.detected is not None
    several.stack.on(VERSION, answer({"version": "0.5.2"}))
    several.advance(60)
    for _ in range(2):
        everybody(several)
    for proxy in (several.parent, *several.workers):
        assert proxy.detector.detected is not None and proxy.detector.detected.version == "0.5.2"


def test_workers_do_not_ask_what_the_server_is_for_each_listing() -> None:
    several = Several(4)
    for _ in range(5):
        everybody(several)
        several.advance(60)
    asked = len(several.stack.asked_for(VERSION))
    assert asked <= 5 + 4, "the parent for each listing, each worker once"


def test_a_workers_first_chat_has_the_parents_old_list_while_the_server_stalls() -> None:
    """DESIGN: T2."""
    several = Several(2, ttl=60)
    several.offered(0)
    several.advance(61)
    several.stack.on(TOOLS, nothing)
    assert several.offered(1) == ["ping"]
    assert several.offered(0) == ["ping"]


def test_a_server_that_stalls_is_waited_for_once_by_all_workers_together(log: list[str]) -> None:
    """DESIGN: T3, L22."""
    several = Several(2)
    everybody(several)
    several.stack.on(VERSION, nothing)
    waiting = several.chat(0, "his")
    several.advance(4.9)
    assert not waiting.answered
    several.advance(0.1)
    assert waiting.status == 200
    assert everybody(several, "his") == everybody(several, "hers") == [[], []]
    lines = [line for line in log if "cannot be listed" in line]
    assert lines == [
        "the tools cannot be listed: "
        "upstream_timeout (Llama Stack did not begin to answer within 5 s.)"
    ]
    several.stack.on(VERSION, answer({"version": "0.6.1"}))
    answer({"version": "0.6.1"})(several.stack.open[0])
    several.advance(0)
    assert everybody(several, "his") == everybody(several, "hers") == [["ping"], ["ping"]]
    assert "the tools can be listed again" in log


def test_a_worker_says_when_what_it_has_missed_is_there_again(log: list[str]) -> None:
    """DESIGN: L22."""
    several = Several(1)
    several.carrying = False
    waiting = several.chat(0)
    several.advance(5.5)
    assert waiting.status == 200
    assert any("were not listed within 5.5 s" in line for line in log)
    several.carrying = True
    several.advance(0)
    assert several.offered(0) == ["ping"]
    assert "the tools can be listed again" in log


def settled_in_slices(several: Several) -> None:
    """A first chat's listing, of which the parent takes in a slice at a time."""
    several.chat(0)
    for _ in range(20):
        several.advance(0)


def test_a_list_larger_than_the_link_carries_costs_no_other_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listing, "_MAX_LISTING", 50_000)
    several = Several(1, max_offered=10_000)
    large = [tool(f"l{number}", "large", description="x" * 10_000) for number in range(10)]
    several.stack.on(TOOLS, answer({"data": [*large, tool("ping", "small")]}))
    settled_in_slices(several)
    assert several.offered(0) == ["ping"]
    error = several.workers[0].tool_status.as_json()["tool_groups"]["large"]["error"]
    assert "too large for workers" in error


def test_a_long_list_arrives_whole() -> None:
    several = Several(1)
    tools = [tool(f"t{number:03}", description="\u00fc" * 1000) for number in range(300)]
    several.stack.on(TOOLS, answer({"data": tools}))
    settled_in_slices(several)
    assert len(several.offered(0)) == 300


# --- what the parent answers


class Broken:
    """A catalogue that fails."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def listing(self, caller: ClientContext, limits: ListLimits) -> Listing:
        raise self._error


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (RuntimeError("a bug"), "parent_silent", "The parent process, which lists tools, broke."),
        (CancelledError(), "shutting_down", "The proxy is shutting down; please ask again."),
    ],
)
def test_a_failure_in_the_parent_is_an_answer(error: Exception, kind: str, words: str) -> None:
    """And not the link's end, nor the worker's."""
    broken: Any = Broken(error)
    failure = failure_of(broken, caller_bytes(ClientContext()))
    assert (failure.kind, str(failure)) == (kind, words)


def test_what_is_no_caller_is_answered_too() -> None:
    assert failure_of(Several(0).parent.catalogue, b"{}").kind == "parent_silent"


def failure_of(catalogue: Catalogue, caller: bytes) -> ProxyError:
    """Why a worker has no tools, if its parent has that *catalogue*."""
    several = Several(0)
    here, there = Link(), Link(SharedLists(catalogue, several.parent.detector, 1000))
    pump = connect(there, FakeTransport(there, True), here, FakeTransport(here, False))
    source = ListedByParent(NoTools(), several.parent.detector, here, several.clock)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing, "caller_bytes", lambda _: caller)
        asked = Deferred.fromCoroutine(source.list_tools(ClientContext()))
    pump.flush()
    assert not here.lost.called
    try:
        failure = outcome(asked).groups_error
    except ProxyError as error:
        failure = error
    assert failure is not None
    return failure
