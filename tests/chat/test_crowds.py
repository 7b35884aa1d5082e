"""No chat, model or message can take everything: what is under way is bounded, work is linear."""

from __future__ import annotations

from typing import Any

import pytest

from llamaproxy.chat import arguments_buffer, openwebui
from llamaproxy.chat.calls import CallReader, CallVisibility
from llamaproxy.chat.messages import MAX_CALLS
from llamaproxy.chat.openwebui import without_old_cards
from llamaproxy.errors import UpstreamBroke
from tests.chat.script import Ask, Chat, calls
from tests.chat.streams import both, stack_with
from tests.support import CHAT, Answer, Proxy, call, nothing, saying, tool_result

Json = dict[str, Any]


def many(count: int) -> Answer:
    """The model makes *count* calls at once."""
    return calls(*(call("clock", {"n": n}, f"c{n}") for n in range(count)))


def running(chat: Chat) -> list[Any]:
    """The calls of tools that have been begun, and not answered."""
    return [request for request in chat.stack.open if request.path.endswith(b"/invoke")]


def end_call(chat: Chat, which: int = 0) -> None:
    """One of the running calls has its result."""
    tool_result("12:00")(running(chat)[which])
    chat.proxy.settle()


def test_the_calls_of_a_chat_run_a_few_at_a_time(ask: Ask) -> None:
    chat = ask(many(10), saying("Noon."), results=[nothing], proxy={"max_calls": (3, 100)})
    for ended in range(10):
        assert len(running(chat)) == min(3, 10 - ended)
        end_call(chat)
    assert chat.text == "Noon."
    assert len(chat.invoked) == 10
    assert chat.nothing_left


def test_all_chats_share_the_slots_and_none_has_all_of_them() -> None:
    chat = Chat(many(10), results=[nothing], proxy={"max_calls": (3, 4)})
    chat.again(many(1), saying("Noon."))
    assert len(running(chat)) == 4
    end_call(chat, -1)
    assert chat.text == "Noon."


def test_a_client_that_leaves_gives_its_slots_back(ask: Ask) -> None:
    chat = ask(many(10), results=[nothing], proxy={"max_calls": (3, 3)})
    leaving = chat.exchange
    chat.again(many(1), saying("Noon."))
    leaving.leave()
    assert len(running(chat)) == 1
    end_call(chat)
    assert chat.text == "Noon."
    assert len(chat.invoked) == 4
    assert chat.nothing_left


def test_a_call_that_waits_for_its_turn_has_all_its_time_left() -> None:
    options = {"max_calls": (1, 1), "tool_timeout": 10}
    chat = Chat(many(2), saying("Noon."), results=[nothing], proxy=options)
    chat.wait(10)
    chat.wait(9)
    assert not chat.exchange.answered
    end_call(chat)
    (_, first), (_, second) = chat.results
    assert first.startswith("Error") and second == "12:00"


def test_a_body_of_many_small_objects_counts_for_what_it_becomes() -> None:
    stack = stack_with()
    stack.on(CHAT, nothing)
    proxy = Proxy(stack, max_bodies=150_000)
    small: list[Json] = [{"role": "user", "content": ""}] * 100
    assert not proxy.chat(messages=small).answered
    assert not proxy.chat(messages=small).answered
    assert proxy.chat(messages=small).status == 503


@both
def test_the_bodies_of_running_chats_have_a_limit(stream: bool) -> None:
    stack = stack_with()
    stack.on(CHAT, nothing)
    proxy = Proxy(stack, max_bodies=10_000)
    text = [{"role": "user", "content": "x" * 9_000}]
    first = proxy.chat(stream=stream, messages=text)
    refused = proxy.chat(stream=stream, messages=text)
    assert refused.status == 503
    assert refused.field("Retry-After") == "1"
    assert refused.json()["error"]["code"] == "overloaded"
    first.leave()
    stack.on(CHAT, saying("Hi."))
    for _ in range(3):
        assert proxy.chat(stream=stream, messages=text).status == 200


def test_one_large_chat_is_served_where_there_is_no_other() -> None:
    messages = [{"role": "user", "content": "x" * 20_000}]
    assert Chat(messages=messages, proxy={"max_bodies": 10_000}).exchange.status == 200


def test_a_round_with_thousands_of_calls_is_no_round(ask: Ask) -> None:
    chat = ask(many(MAX_CALLS + 1))
    assert b"more than 1000 calls" in chat.exchange.body
    assert chat.invoked == []


def test_a_thousand_calls_in_one_event_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    names = CountedNames(f"tool{n}" for n in range(1000))
    reader = CallReader(CallVisibility(client_tools=names), lambda size: True)
    deltas = [
        {"function": {"name": f"tool{n % 1000}", "arguments": f'{{"n": {n}}}'}} for n in range(1000)
    ]
    assert len(reader.read(deltas)) == 1000
    assert names.walks <= 3
    with pytest.raises(UpstreamBroke):
        reader.read(deltas[:1])


class CountedNames(list[str]):
    """Counts how often all of it is walked through."""

    walks = 0

    def __iter__(self) -> Any:
        self.walks += 1
        return super().__iter__()


def test_a_name_in_each_of_thousands_of_deltas_costs_no_more_than_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    searched: list[int] = []

    class Counted:
        def __init__(self, pattern: Any) -> None:
            self._pattern = pattern

        def search(self, text: str, at: int) -> Any:
            match = self._pattern.search(text, at)
            searched.append((match.end() if match else len(text)) - at)
            return match

    for name in ("_OUTSIDE", "_WITHIN"):
        monkeypatch.setattr(arguments_buffer, name, Counted(getattr(arguments_buffer, name)))
    reader = CallReader(CallVisibility(server_tools=["act"]), lambda size: True)
    for n in range(5000):
        piece = '{"text": "' if n == 0 else "x" * 10
        reader.read([{"index": 0, "id": "c", "function": {"name": "act", "arguments": piece}}])
    assert sum(searched) <= 2 * (10 + 10 * 5000)


def test_old_cards_are_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    text = '<details type="tool_calls"</details>' * 20_000 + "<details" * 1000
    looked: list[int] = []

    class Counted(str):
        def find(self, substring: str, at: int = 0, *more: Any) -> int:  # type: ignore[override]
            place = str.find(self, substring, at, *more)
            looked.append((place if place >= 0 else len(self)) - at)
            return place

    assert openwebui._stripped(Counted(text)) == "<details" * 1000
    assert sum(looked) <= 3 * len(text)
    message = {"role": "assistant", "content": text}
    assert without_old_cards([message])[0]["content"] == "<details" * 1000
