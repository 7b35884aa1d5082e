"""The seam for all who watch: what is told, in which order, and to whom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest
from twisted.logger import ILogObserver, globalLogPublisher

from llamaproxy.events import (
    MANY,
    CallBegan,
    CallEnded,
    ChatBegan,
    Contents,
    Event,
    LoopLimited,
    Observers,
    RequestBegan,
    RequestEnded,
    RoundBegan,
    RoundEnded,
)
from llamaproxy.records import ChatRecord, RequestRecord, RoundRecord
from tests.chat.script import Chat
from tests.support import Proxy, answer, calling, chunk, completion, events, nothing, saying


def told(proxy: Proxy) -> list[str]:
    return [type(event).__name__ for event in proxy.events if not isinstance(event, Contents)]


def rounds_of(proxy: Proxy) -> list[RoundRecord]:
    return [event.round for event in proxy.events if isinstance(event, RoundEnded)]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_the_life_of_a_chat_is_told_in_its_order(stream: bool) -> None:
    proxy = Chat(calling("clock"), saying("Noon."), stream=stream).proxy
    rounds = ["RoundBegan", "RoundEnded", "CallBegan", "CallEnded", "RoundBegan", "RoundEnded"]
    expected = ["RequestBegan", "ChatBegan", "ListRefreshed", *rounds]
    assert told(proxy) == [*expected, "RequestEnded"]
    began = next(event for event in proxy.events if isinstance(event, CallBegan))
    call = began.call
    assert (call.tool, call.group, call.number, call.round) == ("clock", "mcp::main", 1, 1)
    assert (call.outcome, call.reason, call.cut) == ("answered", "", False)
    chat = call.chat
    assert (list(chat.offered), len(chat.rounds), chat.run, chat.failed) == (["clock"], 2, 1, 0)
    assert chat.calls == [call]
    for event in proxy.events:
        match event:
            case ChatBegan():
                assert event.chat is chat
            case RoundBegan() | RoundEnded():
                assert event.round in chat.rounds and event.round.chat is chat
            case CallBegan() | CallEnded():
                assert event.call is call
            case RequestBegan() | RequestEnded():
                assert event.request is chat.request and event.request.chat is chat


def test_a_round_that_fails_has_the_kind_of_its_error() -> None:
    proxy = Chat(answer({"error": {"message": "no"}}, 429), server=()).proxy
    assert [round.kind for round in rounds_of(proxy)] == ["upstream_refused"]


def test_a_client_that_leaves_ends_its_round() -> None:
    chat = Chat(nothing, server=())
    chat.exchange.leave()
    proxy = chat.proxy
    proxy.settle()
    assert [round.kind for round in rounds_of(proxy)] == ["cancelled"]


def test_what_ends_a_loop_is_told() -> None:
    rounds = [calling("clock", {"n": n}) for n in range(2)]
    proxy = Chat(*rounds, saying("So."), proxy={"max_rounds": 2}).proxy
    assert [e.chat.limit for e in proxy.events if isinstance(e, LoopLimited)] == ["rounds"]


def test_a_tool_that_there_is_not_is_told_without_its_name() -> None:
    proxy = Chat(calling("nonsense"), saying("So.")).proxy
    [ended] = [event.call for event in proxy.events if isinstance(event, CallEnded)]
    assert (ended.outcome, ended.tool, ended.began) == ("unknown", "", None)


def test_a_listener_that_fails_is_counted_and_costs_nothing_else(
    listener_failures: list[Observers],
) -> None:
    heard: list[Event] = []
    lines: list[Any] = []

    def broken(event: Event) -> None:
        raise RuntimeError("a listener's own")

    tell = Observers(broken, heard.append)
    round = RoundRecord(ChatRecord(), 1, 0.0)
    observer = cast(ILogObserver, lines.append)
    globalLogPublisher.addObserver(observer)
    try:
        for count in (1, 2):
            tell(RoundBegan(round))
            assert len(heard) == count and tell.failures == count
    finally:
        globalLogPublisher.removeObserver(observer)
    assert [line["log_failure"].type for line in lines] == [RuntimeError, RuntimeError]
    listener_failures.clear()


def test_a_listener_may_hear_of_some_kinds_alone() -> None:
    heard: list[Event] = []
    tell = Observers()
    tell.listen(heard.append, RoundBegan, LoopLimited)
    round = RoundRecord(ChatRecord(), 1, 0.0)
    began, ended = RoundBegan(round), RoundEnded(round)
    tell(began)
    tell(ended)
    assert heard == [began]
    tell.listen(heard.append)
    tell(ended)
    assert heard == [began, ended]


def test_a_listener_that_leaves_hears_nothing_any_more() -> None:
    heard: list[Event] = []
    others: list[Event] = []
    tell = Observers()
    tell.listen(heard.append, RoundBegan, LoopLimited)
    tell.listen(others.append)
    tell.leave(heard.append)
    began = RoundBegan(RoundRecord(ChatRecord(), 1, 0.0))
    tell(began)
    assert (heard, others) == ([], [began])


def ended(number: int) -> RequestEnded:
    return RequestEnded(RequestRecord(str(number), "-", "GET", "/", 0.0))


def test_who_hears_later_hears_of_many_at_once_the_ends_of_requests_last() -> None:
    heard: list[list[Event]] = []
    tell = Observers()
    tell.listen_later(lambda events: heard.append(list(events)), RequestEnded)
    tell.listen_later(lambda events: heard.append(list(events)), RoundBegan)
    ends = [ended(number) for number in range(MANY + 1)]
    began = RoundBegan(RoundRecord(ChatRecord(), 1, 0.0))
    for end in ends[: MANY - 1]:
        tell(end)
    tell(began)
    assert heard == []
    tell(ends[MANY - 1])
    assert heard == [[began], ends[:MANY]]
    tell(ends[MANY])
    tell.deliver()
    tell.deliver()
    assert heard == [[began], ends[:MANY], ends[MANY:]]


def test_who_hears_of_parts_alone_does_not_let_them_pile_up() -> None:
    heard: list[Event] = []
    tell = Observers()
    tell.listen_later(heard.extend, RoundEnded)
    for number in range(MANY):
        tell(RoundEnded(RoundRecord(ChatRecord(), number, 0.0)))
        assert len(heard) == 0
        tell(ended(number))
    assert len(heard) == MANY


def test_one_that_fails_later_costs_the_others_nothing(listener_failures: list[Observers]) -> None:
    heard: list[Event] = []

    def broken(events: Sequence[Event]) -> None:
        raise RuntimeError("a listener's own")

    tell = Observers()
    tell.listen_later(broken, RequestEnded)
    tell.listen_later(heard.extend, RequestEnded)
    tell(ended(1))
    tell.deliver()
    assert (len(heard), tell.failures) == (1, 1)
    listener_failures.clear()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_round_keeps_what_the_server_says_of_it(stream: bool) -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": True, "total_tokens": 9}
    chunks = [
        chunk({"content": "So."}, model="m" * 200),
        chunk({}, "stop"),
        {**chunk({}), "choices": [], "usage": usage},
    ]
    said = answer(completion({"content": "So."}, model="m" * 200, usage=usage))
    proxy = Chat(events(*chunks) if stream else said, stream=stream, server=()).proxy
    [round] = rounds_of(proxy)
    assert (round.model, round.finish_reason) == ("m" * 100, "stop")
    assert (round.input_tokens, round.output_tokens) == (7, None)
    assert round.first is not None and round.ended is not None


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_contents_are_in_no_other_event(stream: bool) -> None:
    proxy = Chat(calling("clock", {"secret": "in"}), saying("Noon."), stream=stream).proxy
    contents = [event for event in proxy.events if isinstance(event, Contents)]
    names = ["request", "answer", "arguments", "result", "request", "answer"]
    assert [event.name for event in contents] == names
    assert contents[2].part is contents[3].part
    assert "secret" in str(contents[2].content)
