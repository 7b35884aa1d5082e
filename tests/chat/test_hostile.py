"""What a hostile upstream, or a careless model, once got through."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chat.script import Chat, calls, live, streamed
from tests.chat.streams import client_tool
from tests.support import call, calling, chunk, event, events, nothing, saying, tool_result

Json = dict[str, Any]

CONTROL_KEYS: Json = {
    "event": {"type": "execute"},
    "selected_model_id": "x",
    "sources": [{}],
    "output": [{"type": "function_call", "name": "x"}],
}


def test_a_whole_answer_loses_what_clients_act_on_too() -> None:
    body = Chat(saying("Hi.", **CONTROL_KEYS, mine=1)).exchange.json()
    assert not CONTROL_KEYS.keys() & body.keys()
    assert body["mine"] == 1


ERRORS = [
    b'event: error\ndata: {"message": "boom", "code": 500}\n\n',
    b'event: error\ndata: {"detail": "boom"}\n\n',
    event({"type": "error", "message": "boom"}),
    event({"object": "error", "message": "boom", "code": 400}),
    event({"detail": "boom"}),
]


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_event_of_any_kind_is_no_clean_end(error: bytes) -> None:
    chat = live(server=[])
    chat.sends(event(chunk({"content": "Half"})) + error + b"data: [DONE]\n\n")
    assert "boom" in chat.error["message"]


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_event_that_comes_first_is_an_http_error(error: bytes) -> None:
    chat = live(server=[])
    chat.sends(error)
    assert chat.exchange.status >= 400
    assert "boom" in chat.exchange.json()["error"]["message"]


@pytest.mark.parametrize("key", ["id", "model"])
def test_a_huge_field_of_the_first_chunk_is_not_repeated_with_every_other(key: str) -> None:
    """One read may hold a thousand small events."""
    chat = live(server=[])
    chat.sends({**chunk({"content": "a"}), key: "x" * 100_000})
    before = len(chat.exchange.body)
    chat.sends(b"".join(event({"choices": [{"delta": {"content": "b"}}]}) for _ in range(1000)))
    assert len(chat.exchange.body) - before < 1_000_000


def test_nor_is_a_huge_model_of_the_request() -> None:
    chat = live(server=[], model="x" * 100_000)
    chat.sends(b"".join(event({"choices": [{"delta": {"content": "b"}}]}) for _ in range(1000)))
    assert len(chat.exchange.body) < 1_000_000


def test_an_empty_event_is_no_event() -> None:
    assert streamed(events(chunk({"content": "Hi."}), b"", chunk({}, "stop"))).text == "Hi."


def test_two_calls_of_one_name_are_two_though_both_are_numbered_0() -> None:
    entries = [
        {"index": 0, "function": {"name": "clock", "arguments": arguments}}
        for arguments in ('{"a":1}', '{"a":2}')
    ]
    first = events(chunk({"tool_calls": entries}), chunk({}, "tool_calls"))
    chat = streamed(first, saying("Noon."))
    assert chat.invoked == [("clock", {"a": 1}), ("clock", {"a": 2})]


def test_a_misspelt_name_that_could_be_the_clients_is_nobodys() -> None:
    client = [client_tool("t_i_m_e")]
    chat = Chat(calling("TIME_"), saying("Sorry."), server=["time"], tools=client)
    assert chat.invoked == []
    ((_, result),) = chat.results
    assert "Did you mean" in result and "t_i_m_e" in result and "time" in result


def test_one_call_under_three_spellings_is_a_repetition() -> None:
    chat = Chat(*map(calling, ("clock", "Clock", "CLOCK")), saying("Noon."))
    assert chat.text == "Noon."
    assert chat.choices[3] == "none"


def test_the_output_of_a_whole_answer_is_in_the_order_of_the_calls() -> None:
    both = calls(call("slow", {}, "a"), call("quick", {}, "b"))
    chat = Chat(
        both, saying("Done."), server=["slow", "quick"], results=[nothing, "quick"],
        fields={"X-OpenWebUI-Message-Id": "m"},
    )  # fmt: skip
    chat.replies(tool_result("slow"))
    names = [item["name"] for item in chat.cards if item["type"] == "function_call"]
    assert names == ["slow", "quick"]
