"""Rules whose other tests are cases from the field: see ``test_field.py``."""

from __future__ import annotations

from typing import Any

import pytest

from llamaproxy.chat.mixed_turns import split_id
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


def _shown_calls(chat: Chat) -> list[Json]:
    """The deltas of calls that the client of a streamed chat is sent, without their indices."""
    deltas = [each["choices"][0]["delta"] for each in chat.events[:-1]]
    entries = [dict(entry) for delta in deltas for entry in delta.get("tool_calls") or ()]
    assert all(entry.pop("index") == 0 for entry in entries)
    return entries


SEARCH: Json = {"type": "builtin_function", "function": {"name": "$web_search"}}
SEARCHING: Json = {
    "id": "w:0",
    "type": "builtin_function",
    "function": {"name": "$web_search", "arguments": '{"q":1}'},
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_what_a_call_says_need_not_be_under_its_type(stream: bool) -> None:
    """DESIGN: L8b. As Moonshot has it."""
    message = {"role": "assistant", "content": None, "tool_calls": [SEARCHING]}
    first = {**SEARCHING, "index": 0, "function": {"name": "$web_search", "arguments": '{"q"'}}
    second = {"index": 0, "function": {"arguments": ":1}"}}
    chunks = [chunk({"tool_calls": [piece]}) for piece in (first, second)]
    whole = answer(completion(message, "tool_calls"))
    pieces = events(*chunks, chunk({}, "tool_calls"))
    chat = Chat(pieces if stream else whole, stream=stream, tools=[SEARCH])
    if stream:
        first, second = _shown_calls(chat)
        assert split_id(first.pop("id"))[0] == "w:0"
        assert first["type"] == "builtin_function"
        assert first["function"] == {"name": "$web_search", "arguments": '{"q"'}
        assert second == {"function": {"arguments": ":1}"}}
    else:
        assert chat.message["tool_calls"] == [SEARCHING]
    assert len(chat.requests) == 1 and chat.invoked == []


def test_what_else_a_call_of_another_type_says_is_streamed_on() -> None:
    """DESIGN: L8b. There is no ``input`` where the model's text has another key."""
    find = {"type": "find", "find": {"name": "files"}}
    payloads: list[Json] = [{"name": "files", "deep": True}, {"query": "*."}, {"query": "py"}]
    entries: list[Json] = [{"index": 0, "find": payload} for payload in payloads]
    entries[0] |= {"id": "f", "type": "find"}
    server = {"index": 1, "id": "s", "function": {"name": "clock", "arguments": "{}"}}
    entries.insert(0, server)
    chunks = [chunk({"tool_calls": [entry]}) for entry in entries]
    chat = Chat(events(*chunks, chunk({}, "tool_calls")), stream=True, tools=[find])
    shown = _shown_calls(chat)
    assert [entry["find"] for entry in shown] == payloads
    # What the model is reminded of is whole.
    asked = {**find, "id": shown[0]["id"]}
    result = {"role": "tool", "tool_call_id": shown[0]["id"], "content": "a.py"}
    turn_sent = {"role": "assistant", "content": None, "tool_calls": [asked]}
    chat.again(saying("Done."), tools=[find], messages=[turn_sent, result])
    _, found = chat.requests[-1]["messages"][0]["tool_calls"]
    said = {"name": "files", "deep": True, "query": "*.py"}
    assert found == {"id": "f", "type": "find", "find": said}


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
