"""The client leaves: in whatever phase it does, nothing goes on for it."""

from __future__ import annotations

import pytest

from tests.chat.connections import Connections
from tests.chat.streams import both, client_tool, nothing_left, stack_with
from tests.support import (
    CHAT,
    INVOKE,
    FakeStack,
    Proxy,
    answer,
    begin_events,
    call,
    calling,
    chunk,
    event,
    nothing,
    tool_result,
    turn,
)


def errors_of(capsys: pytest.CaptureFixture[str]) -> str:
    """What was logged as an error."""
    return capsys.readouterr().err


@both
def test_while_the_model_has_not_begun(stream: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """DESIGN: L17."""
    stack = stack_with("clock")
    stack.on(CHAT, nothing)
    proxy = Proxy(stack)
    exchange = proxy.chat(stream=stream)
    assert len(stack.open) == 1
    exchange.leave()
    assert nothing_left(proxy, stack)
    assert errors_of(capsys) == ""


def test_while_the_model_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    stack = stack_with("clock")
    stack.on(CHAT, begin_events)
    proxy = Proxy(stack)
    exchange = proxy.chat(stream=True)
    stack.open[-1].write(event(chunk({"role": "assistant", "content": "Once upon"})))
    proxy.settle()
    exchange.leave()
    assert nothing_left(proxy, stack)
    assert errors_of(capsys) == ""


def test_while_the_whole_answer_comes_in(capsys: pytest.CaptureFixture[str]) -> None:
    stack = stack_with("clock")

    def begin(request: object) -> None:
        assert hasattr(request, "write")
        request.write(b'{"choices": [')

    stack.on(CHAT, begin)
    proxy = Proxy(stack)
    exchange = proxy.chat()
    assert len(stack.open) == 1
    exchange.leave()
    assert nothing_left(proxy, stack)
    assert errors_of(capsys) == ""


def test_after_a_comment(capsys: pytest.CaptureFixture[str]) -> None:
    stack = stack_with("clock")
    stack.on(CHAT, nothing)
    proxy = Proxy(stack)
    exchange = proxy.chat(stream=True)
    proxy.advance(15)
    assert exchange.status == 200
    exchange.leave()
    assert nothing_left(proxy, stack)
    assert errors_of(capsys) == ""


@both
def test_while_tools_run(stream: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """DESIGN: L17."""
    stack = stack_with("clock", "dice")
    stack.on(CHAT, turn("Let me see.", [call("clock", {}, "a"), call("dice", {}, "b")]))
    stack.on(INVOKE, nothing)
    proxy = Proxy(stack)
    exchange = proxy.chat(stream=stream)
    assert len(stack.asked_for(INVOKE)) == 2
    exchange.leave()
    assert nothing_left(proxy, stack)
    assert len(stack.asked_for(CHAT)) == 1
    assert errors_of(capsys) == ""


@both
def test_while_one_tool_runs_and_another_is_done(stream: bool) -> None:
    stack = stack_with("clock", "dice")
    stack.on(CHAT, turn(None, [call("clock", {}, "a"), call("dice", {}, "b")]))
    stack.on(INVOKE, tool_result("12:00"), nothing)
    proxy = Proxy(stack)
    exchange = proxy.chat(stream=stream)
    exchange.leave()
    assert nothing_left(proxy, stack)
    assert len(stack.asked_for(CHAT)) == 1


@both
def test_while_a_mixed_rounds_tools_run(stream: bool) -> None:
    stack = stack_with("clock")
    stack.on(CHAT, turn(None, [call("own", {}, "a"), call("clock", {}, "b")]))
    stack.on(INVOKE, nothing)
    proxy = Proxy(stack)
    exchange = proxy.chat(stream=stream, tools=[client_tool("own")])
    exchange.leave()
    assert nothing_left(proxy, stack)


@both
def test_in_a_later_round(stream: bool, capsys: pytest.CaptureFixture[str]) -> None:
    stack = stack_with("clock")
    stack.on(CHAT, calling("clock"), nothing)
    stack.on(INVOKE, tool_result("12:00"))
    proxy = Proxy(stack)
    exchange = proxy.chat(stream=stream)
    assert len(stack.asked_for(CHAT)) == 2
    exchange.leave()
    assert nothing_left(proxy, stack)
    assert errors_of(capsys) == ""


@both
def test_while_a_tool_is_listed_again(stream: bool) -> None:
    stack = stack_with("clock")
    refusal = answer({"detail": "Tool_group `clock` not served by provider: `mcp`."}, 400)
    stack.on(CHAT, calling("clock"))
    stack.on(INVOKE, refusal)
    proxy = Proxy(stack)
    listed = answer({"data": [{"toolgroup_id": "g", "name": "clock"}]})
    stack.on("GET /v1/tools", listed, nothing)
    exchange = proxy.chat(stream=stream)
    assert len(stack.asked_for("GET /v1/tools")) == 2
    exchange.leave()
    # The list serves others too, and is let finish; nothing else is left.
    (listing,) = stack.open
    listed(listing)
    proxy.settle()
    assert nothing_left(proxy, stack)
    assert len(stack.asked_for(INVOKE)) == 1


@both
def test_while_the_tools_are_listed(stream: bool, capsys: pytest.CaptureFixture[str]) -> None:
    stack = FakeStack()
    stack.on("GET /v1/tools", nothing)
    proxy = Proxy(stack)
    exchange = proxy.chat(stream=stream)
    exchange.leave()
    (listing,) = stack.open
    answer({"data": []})(listing)
    proxy.settle()
    assert nothing_left(proxy, stack)
    assert stack.asked_for(CHAT) == []
    assert errors_of(capsys) == ""


@both
def test_while_the_generation_is_found_out(stream: bool) -> None:
    stack = FakeStack()
    stack.on("GET /v1/version", nothing)
    proxy = Proxy(stack)
    exchange = proxy.chat(stream=stream)
    exchange.leave()
    answer({"version": "0.6.1"})(stack.open[0])
    proxy.settle()
    assert nothing_left(proxy, stack)
    assert stack.asked_for(CHAT) == []


def test_one_who_leaves_takes_nobody_along() -> None:
    stack = FakeStack()
    stack.on("GET /v1/tools", nothing)
    stack.on(CHAT, calling("nosuch"))
    proxy = Proxy(stack)
    first, second = proxy.chat(), proxy.chat()
    first.leave()
    answer({"data": []})(stack.open[0])
    proxy.settle()
    assert second.status == 200
    assert len(stack.asked_for("GET /v1/tools")) == 1


def test_while_it_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    connections = Connections(monkeypatch)
    stack = stack_with()
    stack.on(CHAT, begin_events)
    proxy = Proxy(stack)
    exchange = proxy.chat(stream=True)
    stack.open[-1].write(event(chunk({"role": "assistant", "content": "a"})))
    proxy.settle()
    connections.to_the_client.pauseProducing()
    for _ in range(40):
        stack.open[-1].write(event(chunk({"content": "x" * 4096})))
    proxy.settle()
    exchange.leave()
    assert nothing_left(proxy, stack)


def test_before_it_has_read_that_tools_are_about_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    connections = Connections(monkeypatch)
    stack = stack_with("clock")
    stack.on(CHAT, begin_events)
    stack.on(INVOKE, nothing)
    proxy = Proxy(stack)
    exchange = proxy.chat(stream=True, fields={"X-OpenWebUI-Message-Id": "1"})
    stack.open[-1].write(event(chunk({"role": "assistant", "content": "a"})))
    proxy.settle()
    connections.to_the_client.pauseProducing()
    calls = [{"index": n, **call("clock", {"n": n}, f"call_{n}")} for n in range(3)]
    stack.open[-1].write(event(chunk({"tool_calls": calls}, "tool_calls")))
    stack.open[-1].finish()
    proxy.settle()
    exchange.leave()
    assert stack.asked_for(INVOKE) == []
    assert nothing_left(proxy, stack)
