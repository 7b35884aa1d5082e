"""The seam for all who watch: what is told, in which order, and to whom."""

from __future__ import annotations

from typing import Any, cast

import pytest
from twisted.logger import ILogObserver, globalLogPublisher

from llamaproxy.events import (
    CallBegan,
    CallEnded,
    CallUnknown,
    ChatRecord,
    Event,
    FirstByte,
    LoopLimited,
    Observers,
    RoundBegan,
    RoundEnded,
)
from tests.chat.script import Chat
from tests.support import Proxy, answer, calling, nothing, saying


def told(proxy: Proxy) -> list[str]:
    return [type(event).__name__ for event in proxy.events]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_the_life_of_a_chat_is_told_in_its_order(stream: bool) -> None:
    proxy = Chat(calling("clock"), saying("Noon."), stream=stream).proxy
    rounds = ["RoundBegan", "RoundEnded", "CallBegan", "CallEnded", "RoundBegan", "RoundEnded"]
    expected = ["ListRefreshed", *rounds]
    expected.insert(2 if stream else 7, "FirstByte")
    assert told(proxy) == expected
    began = next(event for event in proxy.events if isinstance(event, CallBegan))
    assert (began.tool, began.group) == ("clock", "mcp::main")
    ended = next(event for event in proxy.events if isinstance(event, CallEnded))
    assert (ended.tool, ended.failed, ended.reason) == ("clock", False, "")
    chat = ended.chat
    assert (chat.tools, chat.rounds, chat.calls, chat.run, chat.failed) == (1, 2, 1, 1, 0)
    of_chat = (RoundBegan, RoundEnded, CallBegan, CallEnded, FirstByte)
    assert all(event.chat is chat for event in proxy.events if isinstance(event, of_chat))


def test_a_round_that_fails_has_the_kind_of_its_error() -> None:
    proxy = Chat(answer({"error": {"message": "no"}}, 429), server=()).proxy
    kinds = [event.kind for event in proxy.events if isinstance(event, RoundEnded)]
    assert kinds == ["upstream_refused"]
    assert FirstByte not in map(type, proxy.events)


def test_a_client_that_leaves_ends_its_round() -> None:
    chat = Chat(nothing, server=())
    chat.exchange.leave()
    proxy = chat.proxy
    proxy.settle()
    kinds = [event.kind for event in proxy.events if isinstance(event, RoundEnded)]
    assert kinds == ["cancelled"]


def test_what_ends_a_loop_is_told() -> None:
    rounds = [calling("clock", {"n": n}) for n in range(2)]
    proxy = Chat(*rounds, saying("So."), proxy={"max_rounds": 2}).proxy
    assert [e.limit for e in proxy.events if isinstance(e, LoopLimited)] == ["rounds"]


def test_a_tool_that_there_is_not_is_told_without_its_name() -> None:
    proxy = Chat(calling("nonsense"), saying("So.")).proxy
    [unknown] = [event for event in proxy.events if isinstance(event, CallUnknown)]
    assert "nonsense" not in repr(unknown)


def test_a_listener_that_fails_is_counted_and_costs_nothing_else() -> None:
    heard: list[Event] = []
    lines: list[Any] = []

    def broken(event: Event) -> None:
        raise RuntimeError("a listener's own")

    tell = Observers(broken, heard.append)
    observer = cast(ILogObserver, lines.append)
    globalLogPublisher.addObserver(observer)
    try:
        for count in (1, 2):
            tell(RoundBegan(ChatRecord()))
            assert len(heard) == count and tell.failures == count
    finally:
        globalLogPublisher.removeObserver(observer)
    assert [line["log_failure"].type for line in lines] == [RuntimeError, RuntimeError]


def test_a_listener_may_hear_of_some_kinds_alone() -> None:
    heard: list[Event] = []
    tell = Observers()
    tell.listen(heard.append, RoundBegan, LoopLimited)
    began, ended = RoundBegan(ChatRecord()), RoundEnded(ChatRecord())
    tell(began)
    tell(ended)
    assert heard == [began]
    tell.listen(heard.append)
    tell(ended)
    assert heard == [began, ended]
