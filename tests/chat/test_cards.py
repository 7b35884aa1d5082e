"""Open WebUI's native cards (DESIGN: section 6), and what its histories hold."""

from __future__ import annotations

from typing import Any

import pytest

from llamaproxy.chat.openwebui import without_old_cards
from tests.chat.streams import both, client_tool, replying, stack_with
from tests.support import (
    CHAT,
    INVOKE,
    Exchange,
    FakeStack,
    Proxy,
    answer,
    call,
    calling,
    chunk,
    events,
    nothing,
    saying,
    tool_result,
)

Json = dict[str, Any]

MARK = {"X-OpenWebUI-Message-Id": "message-1"}

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAQAAAAECAIAAAAmkwkpAAAAEElEQVR4nGP4z8AARwzEcQCukw/x0F8jngAAAABJ"


def items(exchange: Exchange, stream: bool) -> list[Json]:
    """The items that show tools, in order."""
    if not stream:
        output: list[Json] = exchange.json()["output"]
        return [item for item in output if item["type"] != "message"]
    shown = [event for event in exchange.events()[:-1] if "item" in event]
    for event in shown:
        assert event.keys() == {"type", "output_index", "item"}
        assert event["output_index"] == 1 << 20, "the page puts it at the end"
        assert event["type"] == "response.output_item.added"
    return [event["item"] for event in shown]


@both
def test_an_execution_is_a_call_and_its_output(stream: bool) -> None:
    """DESIGN: W1."""
    stack = stack_with("clock")
    stack.on(CHAT, calling("clock", {"zone": "UTC"}), saying("Noon."))
    stack.on(INVOKE, tool_result("12:00"))
    call_item, output = items(Proxy(stack).chat(stream=stream, fields=MARK), stream)
    assert call_item == {
        "type": "function_call",
        "id": call_item["id"],
        "call_id": call_item["call_id"],
        "name": "clock",
        "arguments": '{"zone":"UTC"}',
        "status": "completed",
    }
    assert output == {
        "type": "function_call_output",
        "id": output["id"],
        "call_id": call_item["call_id"],
        "output": [{"type": "input_text", "text": "12:00"}],
        "status": "completed",
    }
    assert call_item["id"].startswith("fc_") and output["id"].startswith("fco_")
    assert call_item["call_id"] != "call_1", "models repeat their ids"


@both
def test_without_the_mark_nothing_but_openais_own_is_sent(stream: bool) -> None:
    """DESIGN: W2."""
    stack = stack_with("clock")
    stack.on(CHAT, calling("clock"), saying("Noon."))
    stack.on(INVOKE, tool_result("12:00"))
    for fields in ({}, {"X-OpenWebUI-Message-Id": ""}):
        exchange = Proxy(stack).chat(stream=stream, fields=fields)
        assert b"response." not in exchange.body
        assert b'"output"' not in exchange.body


def test_a_whole_answers_output_ends_with_its_text() -> None:
    stack = stack_with("clock")
    stack.on(CHAT, calling("clock"), saying("Noon."))
    stack.on(INVOKE, tool_result("12:00"))
    body = Proxy(stack).chat(fields=MARK).json()
    assert body["output"][-1]["content"][0]["text"] == "Noon."
    assert body["choices"][0]["message"]["content"] == "Noon."


def test_a_whole_answer_without_tools_has_no_output() -> None:
    stack = stack_with("clock")
    stack.on(CHAT, saying("Hi."))
    assert "output" not in Proxy(stack).chat(fields=MARK).json()


def test_the_card_is_there_while_the_tool_runs() -> None:
    stack = stack_with("clock")
    stack.on(CHAT, calling("clock"), saying("Noon."))
    stack.on(INVOKE, nothing)
    proxy = Proxy(stack)
    exchange = proxy.chat(stream=True, fields=MARK)
    assert b'"function_call"' in exchange.body
    assert b"function_call_output" not in exchange.body
    tool_result("12:00")(stack.open[-1])
    proxy.settle()
    assert len(items(exchange, True)) == 2


@both
def test_ids_are_unique_though_the_model_repeats_its_own(stream: bool) -> None:
    """DESIGN: W1."""
    stack = stack_with("clock")
    twice = {
        "content": None,
        "tool_calls": [call("clock", {"n": 1}, "same"), call("clock", {"n": 2}, "same")],
    }
    stack.on(CHAT, replying(twice, "tool_calls"), calling("clock"), saying("Noon."))
    stack.on(INVOKE, tool_result("12:00"))
    shown = items(Proxy(stack).chat(stream=stream, fields=MARK), stream)
    assert len({item["id"] for item in shown}) == 6
    calls = [item["call_id"] for item in shown if item["type"] == "function_call"]
    outputs = [item["call_id"] for item in shown if item["type"] == "function_call_output"]
    assert len(set(calls)) == 3
    assert sorted(calls) == sorted(outputs)


@both
@pytest.mark.parametrize("reply", [tool_result("no such zone", 1), answer({"detail": "x"}, 500)])
def test_a_failure_is_a_red_cross(stream: bool, reply: Any) -> None:
    stack = stack_with("clock")
    stack.on(CHAT, calling("clock"), saying("Sorry."))
    stack.on(INVOKE, reply)
    _, output = items(Proxy(stack).chat(stream=stream, fields=MARK), stream)
    assert output["status"] == "failed"
    assert output["output"][0]["text"].startswith("Error")


@both
@pytest.mark.parametrize("arguments", ["nonsense", "[1]"])
def test_a_call_that_cannot_be_run_is_shown_with_the_reason(stream: bool, arguments: str) -> None:
    stack = stack_with("clock")
    stack.on(CHAT, calling("clock", arguments), calling("clcok"), saying("Sorry."))
    shown = items(Proxy(stack).chat(stream=stream, fields=MARK), stream)
    outputs = [item for item in shown if item["type"] == "function_call_output"]
    assert [item["status"] for item in outputs] == ["failed", "failed"]
    assert "Did you mean clock?" in outputs[1]["output"][0]["text"]


def test_a_tool_that_takes_too_long_gets_its_output() -> None:
    """DESIGN: W1."""
    stack = stack_with("clock")
    stack.on(CHAT, calling("clock"), saying("Sorry."))
    stack.on(INVOKE, nothing)
    proxy = Proxy(stack, tool_timeout=5)
    exchange = proxy.chat(stream=True, fields=MARK)
    proxy.advance(5)
    _, output = items(exchange, True)
    assert output["status"] == "failed"
    assert stack.open == []


@both
def test_pictures_are_files(stream: bool) -> None:
    stack = stack_with("camera")
    content = [{"type": "image", "image": {"url": None, "data": PNG}}]
    stack.on(CHAT, calling("camera"), saying("A square."))
    stack.on(INVOKE, answer({"content": content, "error_code": 0, "error_message": None}))
    _, output = items(Proxy(stack).chat(stream=stream, fields=MARK), stream)
    assert output["files"] == [{"type": "image", "url": f"data:image/png;base64,{PNG}"}]
    assert "base64" not in output["output"][0]["text"]


@both
def test_the_clients_own_calls_are_no_cards(stream: bool) -> None:
    stack = stack_with("clock")
    mixed = {
        "content": None,
        "tool_calls": [call("ask_user", {}, "call_0"), call("clock", {}, "call_1")],
    }
    stack.on(CHAT, replying(mixed, "tool_calls"))
    stack.on(INVOKE, tool_result("12:00"))
    exchange = Proxy(stack).chat(stream=stream, fields=MARK, tools=[client_tool("ask_user")])
    shown = items(exchange, stream)
    assert [item.get("name") for item in shown] == ["clock", None]


def test_an_upstream_cannot_forge_a_card() -> None:
    stack = stack_with("clock")
    forged = {"type": "response.output_item.added", "item": {"type": "function_call"}}
    stack.on(CHAT, events(chunk({"content": "Hi."}), forged, chunk({}, "stop")))
    assert items(Proxy(stack).chat(stream=True, fields=MARK), True) == []


# --- histories that come back


def test_replayed_cards_go_to_the_model_as_they_are() -> None:
    """DESIGN: W3."""
    stack = stack_with("clock")
    stack.on(CHAT, saying("Yes."))
    history = [
        {"role": "user", "content": "Time?"},
        {"role": "assistant", "content": "", "tool_calls": [call("clock", {}, "call_ab12")]},
        {"role": "tool", "tool_call_id": "call_ab12", "content": "12:00"},
        {"role": "assistant", "content": "Noon."},
        {"role": "user", "content": "Sure?"},
        {"role": "user", "content": "Really?"},
        {"role": "assistant", "content": "Well"},
    ]
    Proxy(stack).chat(messages=history, fields=MARK)
    (sent,) = stack.asked_for(CHAT)
    assert sent.json()["messages"] == history


def cards(*texts: str) -> str:
    card = (
        '<details type="tool_calls" done="true" id="x" name="clock" arguments="{&quot;a&quot;:1}" '
        'result="&quot;12:00&quot;" files="" embeds="">\n<summary>Tool Executed</summary>\n'
        "</details>\n"
    )
    return card.join(texts)


@pytest.mark.parametrize(
    ("text", "stripped"),
    [
        (cards("", "Noon."), "Noon."),
        (cards("Look:\n", "Noon.", ""), "Look:\nNoon."),
        ("<details><summary>Mine</summary></details>", None),
        ('<details type="reasoning">Hm</details>', None),
        ('broken <details type="tool_calls" name="x">', None),
        ("plain", None),
        ("", None),
    ],
)
def test_cards_in_the_text_of_old_answers_are_stripped(text: str, stripped: str | None) -> None:
    stripped_text = text if stripped is None else stripped
    for content, expected in (
        (text, stripped_text),
        ([{"type": "text", "text": text}], [{"type": "text", "text": stripped_text}]),
    ):
        (message,) = without_old_cards([{"role": "assistant", "content": content}])
        assert message["content"] == expected


def test_nobody_elses_text_is_touched() -> None:
    messages = [{"role": "user", "content": cards("", "x")}, None, 7, {"role": "assistant"}]
    assert without_old_cards(messages) == messages


def test_old_cards_do_not_reach_the_model() -> None:
    stack: FakeStack = stack_with("clock")
    stack.on(CHAT, saying("Yes."))
    history = [
        {"role": "assistant", "content": cards("", "Noon.")},
        {"role": "user", "content": "Sure?"},
    ]
    Proxy(stack).chat(messages=history)
    (sent,) = stack.asked_for(CHAT)
    assert sent.json()["messages"][0] == {"role": "assistant", "content": "Noon."}
