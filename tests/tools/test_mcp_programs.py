"""MCP servers that are programs, real ones: what they say, and that nothing is left of them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted  # type: ignore[import-untyped]
from twisted.internet import reactor as installed
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import globalLogPublisher

from llamaproxy.errors import McpBroke, McpUnavailable
from llamaproxy.jsontext import Json
from llamaproxy.tools.mcp import program
from llamaproxy.tools.mcp import session as mcp_session
from llamaproxy.tools.mcp.messages import RpcError
from llamaproxy.tools.mcp.program import Command, ProgramEnded
from llamaproxy.tools.mcp.session import Session
from llamaproxy.tools.mcp.stdio import StdioOpener

reactor: Any = installed

SERVER = str(Path(__file__).parent / "program.py")


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and not just what is left of one."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
    except FileNotFoundError:
        return False
    return state.rpartition(")")[2].split()[0] != "Z"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "GRACE_SECONDS", 0.2)


@pytest.fixture
def lines() -> Iterator[list[Any]]:
    """What is logged meanwhile."""
    logged: list[Any] = []
    observer: Any = logged.append
    globalLogPublisher.addObserver(observer)
    yield logged
    globalLogPublisher.removeObserver(observer)


class Talk:
    """A session with a program."""

    def __init__(self, how: str, **more: Any) -> None:
        self.command = Command("it", sys.executable, (SERVER, how), **more)
        self.opener = StdioOpener(self.command, reactor, reactor)
        self.changes = 0
        self.session = Session(self.opener, self._changed)

    def _changed(self) -> None:
        self.changes += 1

    async def call(self, **arguments: Any) -> str:
        answer = await self.session.call("echo", arguments, {})
        text: str = answer["content"][0]["text"]
        return text

    async def place(self) -> Json:
        place: Json = json.loads(await self.call(want="place"))
        return place

    async def until_gone(self, *pids: int) -> None:
        while any(map(is_alive, pids)):
            await deferLater(reactor, 0.01)


def talk(how: str, **more: Any) -> Callable[[Callable[..., Coroutine[Any, Any, None]]], Any]:
    """A test of a session with the program that does *how*; it has ended when the test has."""

    def decorate(test: Callable[..., Coroutine[Any, Any, None]]) -> Any:
        @pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
        async def run(lines: list[Any]) -> None:
            talk = Talk(how, **more)
            work = Deferred.fromCoroutine(
                test(talk) if test.__code__.co_argcount == 1 else test(talk, lines)
            )
            try:
                await work.addTimeout(60, reactor)
            finally:
                await talk.session.close()
            left = [call for call in reactor.getDelayedCalls() if "Program" in str(call.func)]
            assert left == []

        return run

    return decorate


@talk("good")
async def test_tools_are_listed_and_called(talk: Talk) -> None:
    assert [each["name"] for each in await talk.session.tools()] == ["echo"]
    assert talk.session.instructions == "Say echo."
    assert await talk.call(say="\N{SNOWMAN}\n") == "\N{SNOWMAN}\n"
    place = await talk.place()
    await talk.session.close()
    await talk.until_gone(place["pid"])


@talk("stateless")
async def test_one_that_knows_no_handshake(talk: Talk) -> None:
    assert [each["name"] for each in await talk.session.tools()] == ["echo"]
    assert talk.session.instructions == "Say echo."
    assert await talk.call(say="hello") == "hello"


@talk("doubles")
async def test_one_that_writes_numbers_as_doubles(talk: Talk) -> None:
    assert [each["name"] for each in await talk.session.tools()] == ["echo"]
    assert await talk.call(say="hello") == "hello"


@talk("good")
async def test_one_program_serves_all_calls(talk: Talk) -> None:
    places = [(await talk.place())["pid"] for _ in range(3)]
    assert len(set(places)) == 1


@talk("good")
async def test_a_change_is_heard(talk: Talk) -> None:
    await talk.call(want="change")
    assert talk.changes == 1


@talk("good", env=(("TOKEN", "sk-secret"),), cwd="/")
async def test_the_environment_is_what_the_file_says_and_what_programs_need(talk: Talk) -> None:
    os.environ["LLAMASTACK_API_KEY"] = "sk-of-the-proxy"
    try:
        found = json.loads(await talk.call(want="environment"))
    finally:
        del os.environ["LLAMASTACK_API_KEY"]
    assert found["TOKEN"] == "sk-secret" and found["PATH"] == os.environ["PATH"]
    assert "sk-of-the-proxy" not in found.values()
    assert found.keys() <= {"TOKEN", *program._INHERITED, "LC_CTYPE", "PWD", "SHLVL", "_"}
    assert (await talk.place())["cwd"] == "/"


@talk("stubborn")
async def test_one_that_ignores_sigterm_is_killed_with_all_that_it_started(talk: Talk) -> None:
    place, child = await talk.place(), int(await talk.call(want="children"))
    assert place["group"] == place["pid"] and is_alive(child)
    await talk.session.close()
    await talk.until_gone(place["pid"], child)


@talk("good")
async def test_what_a_program_has_started_ends_with_it(talk: Talk) -> None:
    child = int(await talk.call(want="children"))
    with pytest.raises(ProgramEnded, match="ended with status 3"):
        await talk.call(want="die")
    await talk.until_gone(child)


@talk("good")
async def test_one_that_dies_is_started_again_but_not_at_once(talk: Talk) -> None:
    with pytest.raises(ProgramEnded, match="ended with status 3"):
        await talk.call(want="die")
    with pytest.raises(McpUnavailable, match="started again in"):
        await talk.call(say="hello")
    talk.opener._not_before = 0.0
    assert await talk.call(say="hello") == "hello"


@talk("dead")
async def test_one_that_cannot_begin_is_tried_less_and_less_often(talk: Talk, lines: Any) -> None:
    pauses = []
    for _ in range(8):
        with pytest.raises(McpBroke):
            await talk.session.tools()
        pauses.append(round(talk.opener._not_before - reactor.seconds()))
        talk.opener._not_before = 0.0
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    assert any(line.get("line") == "I cannot" for line in lines)


@talk("good")
async def test_what_has_left_its_group_ends_with_it_too(talk: Talk) -> None:
    child = int(await talk.call(want="daemon"))
    assert is_alive(child)
    await talk.session.close()
    await talk.until_gone(child)


@pytest.mark.parametrize("command", ["/no/such/program", "no-such-program", "/etc"])
@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_what_is_no_program_is_a_clear_error(command: str, lines: list[Any]) -> None:
    opener = StdioOpener(Command("it", command), reactor, reactor)
    words = "Permission denied" if command == "/etc" else "No such file or directory"
    with pytest.raises(McpBroke, match=f"status 1. It wrote: cannot be started: {words}"):
        await Session(opener, lambda: None).tools()
    assert any(line.get("line") == f"cannot be started: {words}" for line in lines)


@talk("garbage")
async def test_garbage_between_messages_does_no_harm(talk: Talk, lines: Any) -> None:
    assert await talk.call(say="hello") == "hello"
    told = [line for line in lines if "what is no message" in line.get("log_format", "")]
    assert 1 <= len(told) <= 3


@talk("errors", env=(("TOKEN", "sk-secret"),))
async def test_lines_of_its_errors_are_logged_and_not_too_many(talk: Talk, lines: Any) -> None:
    await talk.call(say="hello")
    told = [line["line"] for line in lines if line.get("line")]
    assert told[0] == "line 0 with *** < |im_start|>" and len(told) == 50


@talk("endless")
async def test_a_line_without_an_end_ends_the_program(talk: Talk) -> None:
    with pytest.raises(ProgramEnded, match="more than 16777216 bytes"):
        await talk.session.tools()


@talk("good")
async def test_a_message_that_is_too_long_ends_the_program(talk: Talk) -> None:
    with pytest.raises(ProgramEnded, match="more than 16777216 bytes"):
        await talk.call(want="long")


@talk("good")
async def test_a_flood_ends_the_program(talk: Talk) -> None:
    place = await talk.place()
    with pytest.raises(ProgramEnded, match="writes without end"):
        await talk.call(want="flood")
    await talk.until_gone(place["pid"])


@talk("good")
async def test_one_that_does_not_read_is_not_sent_more_and_more(
    talk: Talk, lines: list[Any]
) -> None:
    place = await talk.place()
    work = Deferred.fromCoroutine(talk.call(want="silence"))
    work.addErrback(lambda _: None)
    waiting = []
    with pytest.raises(McpBroke, match="does not read"):
        for _ in range(10_000):
            transport: Any = talk.session._transport
            if transport.program.stalled:
                await transport.ask({"id": 99})
            each = Deferred.fromCoroutine(talk.call(say="x" * 65536))
            each.addErrback(lambda _: None)
            waiting.append(each)
            await deferLater(reactor, 0)
    assert len(waiting) < 100
    await talk.session.close()
    await talk.until_gone(place["pid"])


@talk("silent")
async def test_one_that_says_nothing_is_given_up(talk: Talk) -> None:
    talk.opener.seconds = 0.2
    with pytest.raises(McpBroke, match=r"did not answer within 0\.2 s"):
        await talk.session.tools()


@talk("good")
async def test_a_call_that_is_cancelled_is_told_and_the_program_stays(talk: Talk) -> None:
    before = await talk.place()
    Deferred.fromCoroutine(talk.call(say="x")).addErrback(lambda _: None).cancel()
    assert await talk.place() == before


@pytest.mark.parametrize("how", ["good", "stateless"])
@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_one_that_hangs_is_replaced(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp_session, "_LONG_SILENCE", 0.0)
    monkeypatch.setattr(mcp_session, "CLEANUP_SECONDS", 1.0)
    talk = Talk(how)
    try:
        place = await talk.place()
        Deferred.fromCoroutine(talk.call(want="silence")).addErrback(lambda _: None).cancel()
        assert await talk.call(say="hello") == "hello"
        await talk.until_gone(place["pid"])
    finally:
        await talk.session.close()


@talk("good")
async def test_a_call_that_was_slow_is_no_reason_to_end_a_program(talk: Talk) -> None:
    before = await talk.place()
    Deferred.fromCoroutine(talk.call(say="x")).addErrback(lambda _: None).cancel()
    talk.session._maybe_lost = True
    assert await talk.place() == before


@pytest.mark.parametrize(
    ("want", "words"), [("close output", "nor writes"), ("close input", "nor reads")]
)
@pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
async def test_one_that_closes_a_stream_and_lives_on_is_ended(want: str, words: str) -> None:
    talk = Talk("good")
    try:
        place = await talk.place()
        with pytest.raises(ProgramEnded, match=words):
            await talk.call(want=want)
        await talk.until_gone(place["pid"])
    finally:
        await talk.session.close()


@talk("moody")
async def test_one_that_will_not_list_is_not_ended_while_a_call_runs(talk: Talk) -> None:
    """All callers share it: the others' calls go on (DESIGN: L13, T3)."""
    before = await talk.place()
    waiting = Deferred.fromCoroutine(talk.call(want="wait", say="at last"))
    with pytest.raises(RpcError, match="not now"):
        await talk.session.tools()
    assert await talk.place() == before
    assert await waiting == "at last"


@talk("moody")
async def test_one_that_will_not_list_is_replaced_once_nothing_runs_in_it(talk: Talk) -> None:
    before = await talk.place()
    with pytest.raises(RpcError, match="not now"):
        await talk.session.tools()
    assert (await talk.place())["pid"] != before["pid"]


@talk("errors", env=(("TOKEN", "sk-secret"),))
async def test_what_is_not_logged_is_not_looked_at(talk: Talk) -> None:
    cleaned: list[bytes] = []
    clean = Command.cleaned

    def counting(command: Command, line: bytes) -> str:
        cleaned.append(line)
        return clean(command, line)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Command, "cleaned", counting)
        await talk.call(say="hello")
    assert len(cleaned) <= 50
