"""Rules whose other tests are cases from the field: see ``test_field.py``."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chat.streams import both, client_tool, message_of, replying, stack_with
from tests.support import (
    CHAT,
    INVOKE,
    Proxy,
    answer,
    begin_events,
    call,
    calling,
    chunk,
    completion,
    event,
    events,
    saying,
    tool_result,
    turn,
)

Json = dict[str, Any]

EDIT: Json = {"type": "custom", "custom": {"name": "edit", "format": {"type": "text"}}}
EDITING: Json = {"id": "c1", "type": "custom", "custom": {"name": "edit", "input": "s/a/b/"}}


@both
def test_a_call_of_a_tool_that_is_no_function_is_handed_over_as_it_is(stream: bool) -> None:
    """DESIGN: L8b."""
    stack = stack_with("clock")
    message = {"role": "assistant", "content": None, "tool_calls": [EDITING]}
    pieces = [{**EDITING, "index": 0, "custom": {**EDITING["custom"], "input": "s/a"}}]
    more = [{"index": 0, "custom": {"input": "/b/"}}]
    streamed = [chunk({"tool_calls": each}) for each in (pieces, more)]
    stack.on(
        CHAT,
        events(*streamed, chunk({}, "tool_calls"))
        if stream
        else answer(completion(message, "tool_calls")),
    )
    exchange = Proxy(stack).chat(stream=stream, tools=[EDIT])
    [declared, _] = stack.asked_for(CHAT)[0].json()["tools"]
    assert declared == EDIT
    if stream:
        entries = [
            each
            for event in exchange.events()[:-1]
            for choice in event["choices"]
            for each in choice["delta"].get("tool_calls") or ()
        ]
        assert entries[0]["type"] == "custom"
        assert entries[0]["custom"]["name"] == "edit"
        assert "".join(each["custom"].get("input", "") for each in entries) == "s/a/b/"
    else:
        [made_whole] = exchange.json()["choices"][0]["message"]["tool_calls"]
        assert made_whole["custom"] == EDITING["custom"]
    assert len(stack.asked_for(CHAT)) == 1 and stack.asked_for(INVOKE) == []


@both
@pytest.mark.parametrize("reason", ["length", "content_filter"])
def test_a_call_that_was_cut_off_is_not_run(stream: bool, reason: str) -> None:
    """Those before it are whole, and are run (DESIGN: L12b)."""
    stack = stack_with("list", "delete")
    cut = call("delete", '{"path": "/", "recursive": true, "only_match', "cut")
    message = {"content": None, "tool_calls": [call("list", {}, "whole"), cut]}
    stack.on(CHAT, replying(message, reason), saying("Sorry."))
    stack.on(INVOKE, tool_result("a, b"))
    assert message_of(Proxy(stack).chat(stream=stream))["content"] == "Sorry."
    assert [each.json()["tool_name"] for each in stack.asked_for(INVOKE)] == ["list"]
    messages = stack.asked_for(CHAT)[1].json()["messages"]
    results = {each["tool_call_id"]: each["content"] for each in messages[2:]}
    assert results["whole"] == "a, b"
    assert results["cut"].startswith("Error") and "cut off" in results["cut"]


@both
@pytest.mark.parametrize("kind", ["json_object", "json_schema"])
def test_a_documents_content_is_that_of_the_last_round(stream: bool, kind: str) -> None:
    """DESIGN: L15b."""
    stack = stack_with("clock")
    stack.on(CHAT, turn("Let me look.", [call("clock")]), saying('{"t": 21}'))
    stack.on(INVOKE, tool_result("12:00"))
    exchange = Proxy(stack).chat(stream=stream, response_format={"type": kind})
    assert message_of(exchange)["content"] == '{"t": 21}'
    # The model is reminded of what it said all the same.
    assert stack.asked_for(CHAT)[1].json()["messages"][1]["content"] == "Let me look."


@pytest.mark.parametrize("ran", [False, True], ids=["no-tool", "tool"])
@both
def test_an_error_after_a_tool_has_run_says_that_nobody_should_ask_again(
    stream: bool, ran: bool
) -> None:
    """DESIGN: L15c."""
    stack = stack_with("send_mail")
    failure = answer({"error": {"message": "boom"}}, 500)
    stack.on(CHAT, *([calling("send_mail")] if ran else []), failure)
    stack.on(INVOKE, tool_result("sent"))
    exchange = Proxy(stack).chat(stream=stream, tools=[client_tool("own")])
    if stream and ran:
        # The first round's events have been answered with a 200, which no SDK repeats.
        assert exchange.status == 200 and "boom" in exchange.events()[-2]["error"]["message"]
        return
    assert exchange.status == 500
    assert exchange.field("x-should-retry") == ("false" if ran else None)


def test_text_is_relayed_the_moment_it_comes_in_every_round() -> None:
    """DESIGN: S2."""
    stack = stack_with("clock")
    stack.on(CHAT, turn("Let me see.", [call("clock")]), begin_events)
    stack.on(INVOKE, tool_result("12:00"))
    proxy = Proxy(stack)
    exchange = proxy.chat(stream=True)
    for word in ("It ", "is ", "noon."):
        stack.open[-1].write(event(chunk({"content": word})))
        proxy.settle()
        assert exchange.text().endswith(word)
    assert exchange.text() == "Let me see.\n\nIt is noon."
