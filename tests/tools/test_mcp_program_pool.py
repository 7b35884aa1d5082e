"""Which programs run, and for how long; no processes are started."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure

from llamaproxy.errors import McpBroke
from llamaproxy.tools.mcp import programs
from llamaproxy.tools.mcp.pool import IDLE_TIMEOUT
from llamaproxy.tools.mcp.program import Command
from llamaproxy.tools.mcp.programs import ProgramPool, ProgramServer


class Process:
    """Answers what it is sent, but calls of the tool ``hold``; ends when its input is closed."""

    pid = 4711

    def __init__(self, protocol: Any, command: str) -> None:
        self.protocol, self.command = protocol, command
        self.runs = True
        protocol.transport = self
        protocol.connectionMade()

    def write(self, data: bytes) -> None:
        for line in data.splitlines():
            message = json.loads(line)
            held = message["method"] == "tools/call" and message["params"]["name"] == "hold"
            if "id" in message and not held:
                self.answer(message["id"])

    def answer(self, number: int) -> None:
        result = {"protocolVersion": "2025-11-25", "capabilities": {}, "content": []}
        message = {"jsonrpc": "2.0", "id": number, "result": result}
        self.protocol.outReceived(json.dumps(message).encode() + b"\n")

    def closeStdin(self) -> None:
        self.runs = False
        self.protocol.processExited(Failure(ProcessDone(0)))
        self.protocol.processEnded(Failure(ProcessDone(0)))

    def registerProducer(self, producer: Any, streaming: bool) -> None: ...
    def unregisterProducer(self) -> None: ...
    def loseConnection(self) -> None: ...
    def signalProcess(self, number: int) -> None: ...


@attrs.define(eq=False)
class Reactor:
    """Starts them."""

    processes: list[Process] = attrs.Factory(list)

    def spawnProcess(self, protocol: Any, executable: str, args: list[str], **_: Any) -> None:
        self.processes.append(Process(protocol, args[-1]))

    def running(self) -> list[str]:
        return [process.command for process in self.processes if process.runs]


class House:
    """A pool of programs, and what it runs on."""

    def __init__(self, *servers: ProgramServer) -> None:
        self.clock, self.reactor = Clock(), Reactor()
        starts: Any = self.reactor
        self.pool = ProgramPool(starts, self.clock)
        self.pool.configure(list(servers))

    def call(self, server: ProgramServer, owner: str = "", tool: str = "echo") -> Deferred[Any]:
        session = self.pool.session_of(server.endpoint, owner)
        calling = Deferred.fromCoroutine(session.call(tool, {}, {}))
        calling.addErrback(lambda _: None)
        return calling


def server(name: str, per_caller: bool = False) -> ProgramServer:
    return ProgramServer(Command(name, name), per_caller)


@pytest.fixture
def lines() -> Iterator[list[Any]]:
    """What is logged meanwhile."""
    logged: list[Any] = []
    observer: Any = logged.append
    globalLogPublisher.addObserver(observer)
    yield logged
    globalLogPublisher.removeObserver(observer)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "MAX_PROGRAMS", 2)


def test_one_for_all_callers_or_one_for_each() -> None:
    shared, private = server("shared"), server("private", True)
    house = House(shared, private)
    for owner in ("a", "b", "a"):
        assert house.call(shared, owner).result and house.call(private, owner).result
    assert house.reactor.running() == ["shared", "private", "private"]
    house.clock.advance(IDLE_TIMEOUT + 1)
    house.clock.advance(IDLE_TIMEOUT + 1)
    assert house.reactor.running() == ["shared"]


def test_one_that_is_not_wanted_any_more_ends_after_its_calls() -> None:
    old, idle, new = server("old"), server("idle"), server("new")
    house = House(old, idle)
    house.call(idle)
    holding = house.call(old, tool="hold")
    for _ in range(2):
        house.pool.configure([new])
    assert house.reactor.running() == ["old"]
    with pytest.raises(McpBroke, match="not configured any more"):
        house.call(old)
    holding.cancel()
    house.clock.advance(2)
    assert house.reactor.running() == []
    assert house.call(new).result
    assert house.reactor.running() == ["new"]


@pytest.mark.usefixtures("few")
def test_those_of_one_caller_make_room_before_those_of_all() -> None:
    shared, private = server("shared"), server("private", True)
    house = House(shared, private)
    house.call(shared)
    for owner in ("a", "b", "c"):
        assert house.call(private, owner).result
    assert house.reactor.running() == ["shared", "private"]


@pytest.mark.usefixtures("few")
def test_one_at_work_makes_no_room() -> None:
    house = House(*(servers := [server(name) for name in "abc"]))
    holding = house.call(servers[0], tool="hold")
    house.call(servers[1])
    house.call(servers[2])
    assert house.reactor.running() == ["a", "c"]
    house.call(servers[2], tool="hold")
    with pytest.raises(McpBroke, match="2 MCP servers running already"):
        house.call(servers[1])
    holding.cancel()
    assert house.call(servers[1]).result
    assert house.reactor.running() == ["c", "b"]


@pytest.mark.usefixtures("few")
def test_more_than_can_run_at_a_time_are_said(lines: list[Any]) -> None:
    House(*map(server, "ab"))
    assert not [line for line in lines if "run at a time" in line.get("log_format", "")]
    House(*map(server, "abc"))
    [line] = [line for line in lines if "run at a time" in line.get("log_format", "")]
    assert (line["count"], line["limit"]) == (3, 2)


def test_all_end_together() -> None:
    house = House(*(servers := [server(name) for name in "abc"]))
    for each in servers:
        house.call(each, tool="hold")
    Deferred.fromCoroutine(house.pool.close())
    assert house.reactor.running() == []
