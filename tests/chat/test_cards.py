"""Open WebUI's native cards (DESIGN: section 6), and what its histories hold."""

from __future__ import annotations

from typing import Any

import pytest

from llamaproxy.chat.openwebui import without_old_cards
from tests.chat.script import OWN, Ask, Chat, calls, streamed
from tests.support import answer, call, calling, chunk, events, nothing, saying, tool_result

Json = dict[str, Any]

MARK = {"X-OpenWebUI-Message-Id": "message-1"}

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAQAAAAECAIAAAAmkwkpAAAAEElEQVR4nGP4z8AARwzEcQCukw/x0F8jngAAAABJ"


def test_an_execution_is_a_call_and_its_output(ask: Ask) -> None:
    """DESIGN: W1."""
    chat = ask(calling("clock", {"zone": "UTC"}), saying("Noon."), fields=MARK)
    call_item, output = chat.cards
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


@pytest.mark.parametrize("fields", [{}, {"X-OpenWebUI-Message-Id": ""}])
def test_without_the_mark_nothing_but_openais_own_is_sent(ask: Ask, fields: Any) -> None:
    """DESIGN: W2."""
    chat = ask(calling("clock"), saying("Noon."), fields=fields)
    assert b"response." not in chat.exchange.body
    assert b'"output"' not in chat.exchange.body


def test_a_whole_answers_output_ends_with_its_text() -> None:
    chat = Chat(calling("clock"), saying("Noon."), fields=MARK)
    assert chat.exchange.json()["output"][-1]["content"][0]["text"] == "Noon."
    assert chat.text == "Noon."


def test_a_whole_answer_without_tools_has_no_output() -> None:
    assert "output" not in Chat(fields=MARK).exchange.json()


def test_the_card_is_there_while_the_tool_runs() -> None:
    chat = streamed(calling("clock"), saying("Noon."), results=[nothing], fields=MARK)
    assert b'"function_call"' in chat.exchange.body
    assert b"function_call_output" not in chat.exchange.body
    chat.replies(tool_result("12:00"))
    assert len(chat.cards) == 2


def test_ids_are_unique_though_the_model_repeats_its_own(ask: Ask) -> None:
    """DESIGN: W1."""
    twice = calls(call("clock", {"n": 1}, "same"), call("clock", {"n": 2}, "same"))
    cards = ask(twice, calling("clock"), saying("Noon."), fields=MARK).cards
    assert len({item["id"] for item in cards}) == 6
    call_ids = [item["call_id"] for item in cards if item["type"] == "function_call"]
    output_ids = [item["call_id"] for item in cards if item["type"] == "function_call_output"]
    assert len(set(call_ids)) == 3
    assert sorted(call_ids) == sorted(output_ids)


@pytest.mark.parametrize("reply", [tool_result("no such zone", 1), answer({"detail": "x"}, 500)])
def test_a_failure_is_a_red_cross(ask: Ask, reply: Any) -> None:
    _, output = ask(calling("clock"), saying("Sorry."), results=[reply], fields=MARK).cards
    assert output["status"] == "failed"
    assert output["output"][0]["text"].startswith("Error")


@pytest.mark.parametrize("arguments", ["nonsense", "[1]"])
def test_a_call_that_cannot_be_run_is_shown_with_the_reason(ask: Ask, arguments: str) -> None:
    rounds = [calling("clock", arguments), calling("clcok"), saying("Sorry.")]
    cards = ask(*rounds, fields=MARK).cards
    outputs = [item for item in cards if item["type"] == "function_call_output"]
    assert [item["status"] for item in outputs] == ["failed", "failed"]
    assert "Did you mean clock?" in outputs[1]["output"][0]["text"]


def test_a_tool_that_takes_too_long_gets_its_output() -> None:
    """DESIGN: W1."""
    rounds, options = [calling("clock"), saying("Sorry.")], {"tool_timeout": 5}
    chat = streamed(*rounds, results=[nothing], fields=MARK, proxy=options)
    chat.wait(5)
    _, output = chat.cards
    assert output["status"] == "failed"
    assert chat.stack.open == []


def test_pictures_are_files(ask: Ask) -> None:
    content = [{"type": "image", "image": {"url": None, "data": PNG}}]
    result = answer({"content": content, "error_code": 0, "error_message": None})
    _, output = ask(calling("clock"), saying("A square."), results=[result], fields=MARK).cards
    assert output["files"] == [{"type": "image", "url": f"data:image/png;base64,{PNG}"}]
    assert "base64" not in output["output"][0]["text"]


def test_the_clients_own_calls_are_no_cards(ask: Ask) -> None:
    mixed = calls(call("own", {}, "call_0"), call("clock", {}, "call_1"))
    cards = ask(mixed, fields=MARK, tools=[OWN]).cards
    assert [item.get("name") for item in cards] == ["clock", None]


def test_an_upstream_cannot_forge_a_card() -> None:
    forged = {"type": "response.output_item.added", "item": {"type": "function_call"}}
    rounds = events(chunk({"content": "Hi."}), forged, chunk({}, "stop"))
    assert streamed(rounds, fields=MARK).cards == []


# --- histories that come back


def test_replayed_cards_go_to_the_model_as_they_are() -> None:
    """DESIGN: W3."""
    history = [
        {"role": "user", "content": "Time?"},
        {"role": "assistant", "content": "", "tool_calls": [call("clock", {}, "call_ab12")]},
        {"role": "tool", "tool_call_id": "call_ab12", "content": "12:00"},
        {"role": "assistant", "content": "Noon."},
        {"role": "user", "content": "Sure?"},
        {"role": "user", "content": "Really?"},
        {"role": "assistant", "content": "Well"},
    ]
    (sent,) = Chat(messages=history, fields=MARK).requests
    assert sent["messages"] == history


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
    old = {"role": "assistant", "content": cards("", "Noon.")}
    (sent,) = Chat(messages=[old, {"role": "user", "content": "Sure?"}]).requests
    assert sent["messages"][0] == {"role": "assistant", "content": "Noon."}
