"""The client leaves: in whatever phase it does, nothing goes on for it, and no error is logged."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chat.connections import Connections
from tests.chat.script import HALF, OWN, Ask, Chat, calls, live, streamed
from tests.support import (
    CHAT,
    FakeStack,
    Proxy,
    answer,
    call,
    calling,
    chunk,
    event,
    nothing,
    pending_calls,
)

TWO_CALLS = calls(call("clock", {}, "a"), call("dice", {}, "b"), content="Let me see.")


@pytest.fixture(autouse=True)
def no_error_is_logged(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    assert capsys.readouterr().err == ""


def leave(chat: Chat) -> None:
    """The client leaves, and nothing is left."""
    chat.exchange.leave()
    assert chat.nothing_left


def test_while_the_model_has_not_begun(ask: Ask) -> None:
    """DESIGN: L17."""
    chat = ask(nothing)
    assert len(chat.stack.open) == 1
    leave(chat)


def test_while_the_model_speaks() -> None:
    chat = live()
    chat.sends(HALF)
    leave(chat)


def test_while_the_whole_answer_comes_in() -> None:
    chat = Chat(lambda request: request.write(b'{"choices": ['))
    assert len(chat.stack.open) == 1
    leave(chat)


def test_after_a_comment() -> None:
    chat = streamed(nothing)
    chat.wait(15)
    assert chat.exchange.status == 200
    leave(chat)


def test_while_tools_run(ask: Ask) -> None:
    """DESIGN: L17."""
    chat = ask(TWO_CALLS, server=["clock", "dice"], results=[nothing])
    assert len(chat.invoked) == 2
    leave(chat)
    assert len(chat.requests) == 1


def test_while_one_tool_runs_and_another_is_done(ask: Ask) -> None:
    chat = ask(TWO_CALLS, server=["clock", "dice"], results=["12:00", nothing])
    leave(chat)
    assert len(chat.requests) == 1


def test_while_a_mixed_rounds_tools_run(ask: Ask) -> None:
    mixed = calls(call("own", {}, "a"), call("clock", {}, "b"))
    leave(ask(mixed, results=[nothing], tools=[OWN]))


def test_in_a_later_round(ask: Ask) -> None:
    chat = ask(calling("clock"), nothing)
    assert len(chat.requests) == 2
    leave(chat)


def test_while_a_tool_is_listed_again(ask: Ask) -> None:
    listed = answer({"data": [{"toolgroup_id": "g", "name": "clock"}]})
    listings = iter([listed, nothing])
    refusal = answer({"detail": "Tool_group `clock` not served by provider: `mcp`."}, 400)
    chat = ask(calling("clock"), server=lambda r: next(listings)(r), results=[refusal])
    assert len(chat.stack.asked_for("GET /v1/tools")) == 2
    chat.exchange.leave()
    # The list serves others too, and is let finish; nothing else is left.
    assert len(chat.stack.open) == 1
    chat.replies(listed)
    assert chat.nothing_left
    assert len(chat.invoked) == 1


def test_while_the_tools_are_listed(ask: Ask) -> None:
    chat = ask(server=nothing)
    chat.exchange.leave()
    assert len(chat.stack.open) == 1
    chat.replies(answer({"data": []}))
    assert chat.nothing_left
    assert chat.requests == []


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_while_the_generation_is_found_out(stream: bool) -> None:
    stack = FakeStack()
    stack.on("GET /v1/version", nothing)
    proxy = Proxy(stack)
    exchange = proxy.chat(stream=stream)
    exchange.leave()
    answer({"version": "0.6.1"})(stack.open[0])
    proxy.settle()
    assert stack.open == [] and pending_calls(proxy.clock) == []
    assert stack.asked_for(CHAT) == []


def test_one_who_leaves_takes_nobody_along() -> None:
    chat = Chat(server=nothing)
    leaving = chat.exchange
    chat.again(calling("nosuch"))
    leaving.leave()
    chat.replies(answer({"data": []}))
    assert chat.exchange.status == 200
    assert len(chat.stack.asked_for("GET /v1/tools")) == 1


def test_while_it_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    connections = Connections(monkeypatch)
    chat = live(server=[])
    chat.sends(HALF)
    connections.to_the_client.pauseProducing()
    chat.sends(event(chunk({"content": "x" * 4096})) * 40)
    leave(chat)


def test_before_it_has_read_that_tools_are_about_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    connections = Connections(monkeypatch)
    chat = live(results=[nothing], fields={"X-OpenWebUI-Message-Id": "1"})
    chat.sends(HALF)
    connections.to_the_client.pauseProducing()
    entries = [{"index": n, **call("clock", {"n": n}, f"call_{n}")} for n in range(3)]
    chat.replies(
        lambda request: (
            request.write(event(chunk({"tool_calls": entries}, "tool_calls"))),
            request.finish(),
        )
    )
    leave(chat)
    assert chat.invoked == []
