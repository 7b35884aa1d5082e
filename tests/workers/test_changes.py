"""A server tells one process that its tools have changed: all list anew, once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.protocols import amp
from twisted.test.iosim import FakeTransport, connect

from llamaproxy.jsontext import Json
from llamaproxy.workers.changes import ChangesHeard, ChangeTeller, ToolsChanged
from llamaproxy.workers.link import Link
from tests.support import CHAT, FakeStack, answer, calling, pending_calls, saying
from tests.tools.mcp_servers import FakeMcp, begin, described, frame, result
from tests.tools.test_mcp_session import CHANGED, CHANGING
from tests.tools.test_mcp_source import ONE, Hosts
from tests.workers.several import Several


class World:
    """Several workers in front of a server that names an MCP server, which tells of changes."""

    def __init__(self, workers: int = 3) -> None:
        stack = FakeStack()
        stack.on("GET /v1/version", answer({"version": "0.7.3"}))
        connector = {"connector_id": "one", "url": ONE}
        stack.on("GET /v1beta/connectors", answer({"data": [connector]}))
        stack.on(CHAT, saying("Hello."))
        self.mcp = FakeMcp("old", capabilities=CHANGING)
        #: Those that processes listen to, in the order in which they began.
        self.streams: list[Any] = []
        self.mcp.get = self._listen
        self.several = Several(workers, stack, mcp=lambda: Hosts(one=self.mcp))

    def _listen(self, request: Any) -> None:
        begin(request)
        self.streams.append(request)

    def everybody(self) -> list[list[str]]:
        return [self.several.offered(number) for number in range(len(self.several.workers))]

    def change(self, stream: int, name: str = "new") -> None:
        """The server has another tool, and tells of it on one of the streams."""
        self.mcp.handlers["tools/list"] = result({"tools": [described(name)]})
        self.streams[stream].write(frame(CHANGED))
        self.several.settle()

    def listings(self) -> int:
        return len(self.mcp.received("tools/list"))


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    for proxy in (made.several.parent, *made.several.workers):
        proxy.catalogue.stop()
        proxy.result(proxy.sessions.close())
    made.several.advance(60)


def test_a_change_that_the_parent_hears_of_is_listed_once_for_all(world: World) -> None:
    assert world.everybody() == [["old"]] * 3
    assert (world.listings(), len(world.streams)) == (1, 1)
    world.change(0)
    assert world.listings() == 2
    assert world.everybody() == [["new"]] * 3
    assert world.listings() == 2


def test_a_change_that_a_worker_hears_of_is_listed_once_for_all(world: World) -> None:
    world.everybody()
    world.several.stack.on(CHAT, calling("old"), saying("Done."))
    world.several.chat(1)
    world.several.stack.on(CHAT, saying("Hello."))
    assert len(world.streams) == 2, "the worker's session listens too"
    world.change(1)
    assert world.listings() == 2
    assert world.everybody() == [["new"]] * 3
    assert world.listings() == 2


def test_a_thousand_changes_are_no_thousand_listings(world: World) -> None:
    world.everybody()
    world.change(0)
    for number in range(1000):
        world.streams[0].write(frame(CHANGED))
        if not number % 100:
            world.several.settle()
    world.several.settle()
    assert world.listings() == 2, "nobody wants them just now"
    world.everybody()
    assert world.everybody() == [["new"]] * 3
    assert world.listings() == 3


def test_nobody_tells_on_what_he_is_told(world: World) -> None:
    commands = Counter[str]()
    for pump in world.several.pumps:
        count_commands(pump.server, "parent", commands)
        count_commands(pump.client, "worker", commands)
    world.everybody()
    world.change(0)
    for _ in range(5):
        world.several.advance(1)
    assert commands == {"parent": 3}
    world.several.workers[2].app.sessions._changed()
    world.several.settle()
    assert commands == {"parent": 6, "worker": 1}
    for _ in range(5):
        world.several.advance(1)
    assert commands == {"parent": 6, "worker": 1}


def count_commands(link: Link, who: str, commands: Counter[str]) -> None:
    """Count how often this end of *link* tells of a change."""
    send: Any = link.callRemote

    def sent(command: type[amp.Command], **values: Any) -> Any:
        if command is ToolsChanged:
            commands[who] += 1
        return send(command, **values)

    setattr(link, "callRemote", sent)  # noqa: B010


def test_a_worker_that_is_gone_is_told_nothing(world: World) -> None:
    world.everybody()
    world.several.cut(0)
    world.change(0)
    assert [world.several.offered(number) for number in (0, 1, 2)] == [["old"], ["new"], ["new"]]


def test_while_one_change_is_not_answered_the_others_are_one_more() -> None:
    heard: list[Json] = []
    clock = Clock()
    here, there = Link(), Link(ChangesHeard(lambda: heard.append({})))
    pump = connect(there, FakeTransport(there, True), here, FakeTransport(here, False))
    teller = ChangeTeller(here, clock)
    for _ in range(1000):
        teller.changed()
    pump.flush()
    assert len(heard) == 2
    teller.changed()
    pump.flush()
    assert len(heard) == 3
    assert pending_calls(clock) == []


def test_who_does_not_answer_hears_of_the_next_change_all_the_same() -> None:
    heard: list[Json] = []
    clock = Clock()
    here, there = Link(), Link(ChangesHeard(lambda: heard.append({})))
    pump = connect(there, FakeTransport(there, True), here, FakeTransport(here, False))
    teller = ChangeTeller(here, clock)
    teller.changed()
    for _ in range(15):
        clock.advance(1)
    teller.changed()
    pump.flush()
    assert len(heard) == 2
    assert pending_calls(clock) == []


def test_who_is_gone_is_told_nothing_and_nothing_is_left() -> None:
    clock = Clock()
    here, there = Link(), Link()
    pump = connect(there, FakeTransport(there, True), here, FakeTransport(here, False))
    teller = ChangeTeller(here, clock)
    there_transport: Any = there.transport
    there_transport.loseConnection()
    pump.flush()
    teller.changed()
    teller.changed()
    assert pending_calls(clock) == []
