"""MCP servers that are programs, and several workers: the programs are the parent's."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from llamaproxy.errors import McpBroke, McpTimeout, ParentSilent
from llamaproxy.jsontext import Json
from llamaproxy.tools.mcp.messages import RpcError
from llamaproxy.upstream.client_context import ClientContext
from llamaproxy.workers.programs import ProgramCalls, ProgramsOfParent
from tests.support import logged
from tests.test_twistd import Daemon
from tests.workers.test_link import linked

T = TypeVar("T")

ROOT = Path(__file__).parent.parent
PROGRAM = str(ROOT / "tools" / "program.py")
MODEL = str(ROOT / "real" / "scripted_model.py")


# --- in memory


class FakePool:
    """Programs whose calls come to what the test says."""

    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome
        self.called: list[Any] = []
        self.cancelled = 0

    def session_of(self, endpoint: str, owner: object) -> FakePool:
        self.called.append((endpoint, owner))
        return self

    async def call(self, *call: Any) -> Json:
        self.called.append(call)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        if self.outcome is None:
            await Deferred(lambda _: self._note_cancelled())
        result: Json = self.outcome
        return result

    def _note_cancelled(self) -> None:
        self.cancelled += 1


class Pair:
    """A worker's programs, and the parent's pool behind them."""

    def __init__(self, outcome: Any) -> None:
        pool: Any = FakePool(outcome)
        self.pool = pool
        self.calls = ProgramCalls(self.pool)
        self.here, self.there, self.pump = linked(self.calls)
        programs = ProgramsOfParent(self.here, Clock())
        tools = programs.session("stdio://it#1", ClientContext())
        work = tools.call("echo", {"n": 2**70}, {"type": "object"}, (("traceparent", "00-1"),))
        self.outcomes: list[Any] = []
        self.call = Deferred.fromCoroutine(work).addBoth(self.outcomes.append)
        self.flush()

    def flush(self) -> None:
        while self.pump.pump():
            pass


def test_a_call_is_the_parents() -> None:
    result = {"content": [{"type": "text", "text": "\N{SNOWMAN}"}], "n": 2**70}
    pair = Pair(result)
    assert pair.outcomes == [result]
    [(endpoint, owner), call] = pair.pool.called
    assert endpoint == "stdio://it#1" and len(owner) == 32
    assert call == ("echo", {"n": 2**70}, {"type": "object"}, (("traceparent", "00-1"),))


def test_errors_are_what_they_were() -> None:
    [failure] = Pair(RpcError({"code": -32602, "message": "Unknown tool"})).outcomes
    assert failure.check(RpcError) and failure.value.rpc_code == -32602
    assert failure.value.rpc_message == "Unknown tool"
    [failure] = Pair(McpTimeout("too slow")).outcomes
    assert failure.check(McpTimeout) and str(failure.value) == "too slow"


def test_a_call_that_nobody_waits_for_is_cancelled_in_the_parent() -> None:
    pair = Pair(None)
    pair.call.cancel()
    pair.flush()
    assert pair.pool.cancelled == 1


def test_the_calls_of_a_worker_that_is_gone_are_cancelled() -> None:
    pair = Pair(None)
    pair.calls.stop()
    pair.flush()
    assert pair.pool.cancelled == 1
    [failure] = pair.outcomes
    assert failure.check(McpBroke)


def test_a_parent_that_is_gone_is_an_error() -> None:
    pair = Pair(None)
    there: Any = pair.there
    there.transport.loseConnection()
    pair.flush()
    [failure] = pair.outcomes
    assert failure.check(ParentSilent)


# --- processes


def eventually(look: Callable[[], T]) -> T:
    deadline = time.monotonic() + 60
    while not (seen := look()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return seen


@pytest.fixture
def model() -> Iterator[str]:
    """The URL of a plain OpenAI server, whose model does as it is told."""
    process = subprocess.Popen([sys.executable, MODEL, "0"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield "http://" + process.stdout.readline().split()[-1]
    process.kill()
    process.wait()
    process.stdout.close()


def chat(port: int, text: str) -> str:
    """What is answered on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        body = {"model": "scripted-1", "messages": [{"role": "user", "content": text}]}
        fields = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), fields)
        answer = json.loads(connection.getresponse().read())
        content: str = answer["choices"][0]["message"]["content"]
        return content
    finally:
        connection.close()


def programs() -> set[int]:
    """The process ids of the test's own programs."""
    found = set()
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = cmdline.read_bytes().split(b"\0")
        except OSError:
            continue
        if PROGRAM.encode() in words and b"-S" not in words:  # nor its reaper
            found.add(int(cmdline.parent.name))
    return found


def test_programs_are_started_once_for_all_workers_and_changed_on_sighup(
    model: str, tmp_path: Path
) -> None:
    config = tmp_path / "mcp.json"
    entry = {"command": sys.executable, "args": [PROGRAM, "good"]}
    config.write_text(json.dumps({"mcpServers": {"one": entry}}))
    daemon = Daemon(
        tmp_path / "log",
        *("--llamastack-url", model, "--workers", "2", "--mcp-config", str(config)),
        *("--tools-ttl", "600", "--log-format", "json"),
    )
    try:

        def place() -> Any:
            said = chat(daemon.port, '[call echo {"want": "place"}]')
            return json.loads(said[said.index("{") :]) if "pid" in said else None

        pid = eventually(place)["pid"]
        workers: set[int] = set()
        for _ in range(200):
            assert place()["pid"] == pid
            workers = {
                each["worker"]
                for each in logged(daemon.log)
                if "worker" in each and "calls" in each
            }
            if len(workers) == 2:
                break
        assert workers == {1, 2} and programs() == {pid}

        config.write_text(json.dumps({"mcpServers": {"two": {**entry, "env": {"A": "b"}}}}))
        daemon.process.send_signal(signal.SIGHUP)
        eventually(lambda: programs() and pid not in programs())
        assert eventually(place)["pid"] != pid

        config.write_text("{")
        daemon.process.send_signal(signal.SIGHUP)
        eventually(lambda: "stay as they were" in daemon.log.read_text("utf-8"))
        assert place()
        os.kill(daemon.process.pid, signal.SIGTERM)
        assert daemon.process.wait(30) in (0, -signal.SIGTERM)
        eventually(lambda: not programs())
    finally:
        daemon.process.kill()
        daemon.process.wait()
