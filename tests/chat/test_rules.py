"""Rules whose other tests are cases from the field: see ``test_field.py``."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chat.script import OWN, Ask, Chat, live
from tests.chat.streams import replying
from tests.support import answer, call, calling, chunk, completion, events, saying, turn

Json = dict[str, Any]

EDIT: Json = {"type": "custom", "custom": {"name": "edit", "format": {"type": "text"}}}
EDITING: Json = {"id": "c1", "type": "custom", "custom": {"name": "edit", "input": "s/a/b/"}}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_call_of_a_tool_that_is_no_function_is_handed_over_as_it_is(stream: bool) -> None:
    """DESIGN: L8b."""
    message = {"role": "assistant", "content": None, "tool_calls": [EDITING]}
    first = {**EDITING, "index": 0, "custom": {**EDITING["custom"], "input": "s/a"}}
    second = {"index": 0, "custom": {"input": "/b/"}}
    chunks = [chunk({"tool_calls": [piece]}) for piece in (first, second)]
    whole = answer(completion(message, "tool_calls"))
    pieces = events(*chunks, chunk({}, "tool_calls"))
    chat = Chat(pieces if stream else whole, stream=stream, tools=[EDIT])
    [declared, _] = chat.requests[0]["tools"]
    assert declared == EDIT
    if stream:
        deltas = [each["choices"][0]["delta"] for each in chat.events[:-1]]
        entries = [entry for delta in deltas for entry in delta.get("tool_calls") or ()]
        assert entries[0]["type"] == "custom"
        assert entries[0]["custom"]["name"] == "edit"
        assert "".join(entry["custom"].get("input", "") for entry in entries) == "s/a/b/"
    else:
        [entry] = chat.message["tool_calls"]
        assert entry["custom"] == EDITING["custom"]
    assert len(chat.requests) == 1 and chat.invoked == []


#: What servers say of a model that was stopped, and what nobody has heard of yet.
STOPPED = [
    "length",
    "content_filter",
    "model_context_window_exceeded",
    "insufficient_system_resource",
    "network_error",
    "time_limit",
    "MALFORMED_FUNCTION_CALL",
    "whatever_comes",
]


@pytest.mark.parametrize("reason", STOPPED)
def test_a_call_that_was_cut_off_is_not_run(ask: Ask, reason: str) -> None:
    """Those before it are whole, and are run (DESIGN: L12b)."""
    cut = call("delete", '{"path": "/", "recursive": true, "only_match', "cut")
    message = {"content": None, "tool_calls": [call("list", {}, "whole"), cut]}
    rounds = [replying(message, reason), saying("Sorry.")]
    chat = ask(*rounds, server=["list", "delete"], results=["a, b"])
    assert chat.text == "Sorry."
    assert chat.invoked == [("list", {})]
    results = dict(chat.results)
    assert results["whole"] == "a, b"
    assert results["cut"].startswith("Error") and "cut off" in results["cut"]


@pytest.mark.parametrize("reason", STOPPED)
def test_no_bracket_is_added_to_a_call_that_was_cut_off(ask: Ask, reason: str) -> None:
    """DESIGN: L12b. The condition that should limit it may be what is missing."""
    cut = call("delete", '{"path": "/", "recursive": true', "cut")
    rounds = [replying({"content": None, "tool_calls": [cut]}, reason), saying("Sorry.")]
    chat = ask(*rounds, server=["delete"])
    assert chat.invoked == []
    assert "cut off" in dict(chat.results)["cut"]


@pytest.mark.parametrize("reason", STOPPED)
def test_a_clients_call_that_was_cut_off_does_not_end_as_a_call(ask: Ask, reason: str) -> None:
    own = call("own", '{"path": "/", "recursive": true', "cut")
    first = replying({"content": None, "tool_calls": [own]}, reason)
    chat = ask(first, tools=[OWN])
    assert chat.finish_reason not in ("tool_calls", "stop")


@pytest.mark.parametrize("reason", ["stop", "eos", "TOOL_CALLS", "function_call"])
def test_a_bracket_is_added_where_the_model_had_finished(ask: Ask, reason: str) -> None:
    """DESIGN: L12."""
    flawed = call("clock", '{"zone": "utc"')
    chat = ask(replying({"content": None, "tool_calls": [flawed]}, reason), saying("Noon."))
    assert chat.invoked == [("clock", {"zone": "utc"})]


@pytest.mark.parametrize("kind", ["json_object", "json_schema"])
def test_a_documents_content_is_that_of_the_last_round(ask: Ask, kind: str) -> None:
    """DESIGN: L15b."""
    rounds = [turn("Let me look.", [call("clock")]), saying('{"t": 21}')]
    chat = ask(*rounds, response_format={"type": kind})
    assert chat.text == '{"t": 21}'
    # The model is sent its own text all the same.
    assert chat.requests[1]["messages"][1]["content"] == "Let me look."


def test_all_that_stands_beside_a_documents_content_is_told_with_it() -> None:
    """DESIGN: L8, L15b."""
    pieces = ["", "{", "", "}"]
    beside = [{"logprobs": {"content": [n]}, "token_ids": [n]} for n in range(len(pieces))]
    chunks = [chunk({"content": piece}) for piece in pieces]
    for each, fields in zip(chunks, beside, strict=True):
        each["choices"][0] |= fields
    chunks[1]["choices"][0]["delta"]["reasoning"] = "Hm"
    first = turn("Let me look.", [call("clock")])
    empty = {**chunk({}), "choices": [], "citations": ["c"]}
    last = events(chunk({"role": "assistant"}), *chunks, empty, chunk({}, "stop"))
    chat = Chat(first, last, stream=True, response_format={"type": "json_object"})
    assert chat.text == "{}"
    assert chat.message["reasoning"] == "Hm"
    assert [each["citations"] for each in chat.events[:-1] if "citations" in each] == [["c"]]
    choices = [each["choices"][0] for each in chat.events[:-1] if each["choices"]]
    told = [{key: each[key] for key in beside[0]} for each in choices if each.get("token_ids")]
    assert told == beside


@pytest.mark.parametrize("ran", [False, True], ids=["no-tool", "tool"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_an_error_after_a_tool_has_run_says_that_nobody_should_ask_again(
    stream: bool, ran: bool
) -> None:
    """DESIGN: L15c."""
    failure = answer({"error": {"message": "boom"}}, 500)
    rounds = [calling("clock"), failure] if ran else [failure]
    chat = Chat(*rounds, stream=stream, tools=[OWN])
    if stream and ran:
        # The first round's events have been answered with a 200, which no SDK repeats.
        assert chat.exchange.status == 200 and "boom" in chat.error["message"]
        return
    assert chat.exchange.status == 500
    assert chat.exchange.field("x-should-retry") == ("false" if ran else None)


def test_text_is_relayed_the_moment_it_comes_in_every_round() -> None:
    """DESIGN: S2."""
    chat = live(turn("Let me see.", [call("clock")]))
    for word in ("It ", "is ", "noon."):
        chat.sends(chunk({"content": word}))
        assert chat.exchange.text().endswith(word)
    assert chat.exchange.text() == "Let me see.\n\nIt is noon."
