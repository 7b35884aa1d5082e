"""A streamed answer, through the front door: its frame, odd upstreams, silences."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.chat.script import HALF, KEEP_ALIVE, Ask, call_chunk, live, more_arguments, streamed
from tests.chat.streams import client_tool, names_of, own_ids, replying
from tests.support import (
    begin_events,
    call,
    calling,
    chunk,
    event,
    events,
    nothing,
    saying,
    tool_result,
    turn,
)

Json = dict[str, Any]


# --- the frame


def test_the_fields_are_those_of_a_stream() -> None:
    """DESIGN: S10."""
    exchange = streamed().exchange
    assert exchange.status == 200
    assert (exchange.field("Content-Type") or "").startswith("text/event-stream")
    assert exchange.field("Cache-Control") == "no-cache"
    assert exchange.field("X-Accel-Buffering") == "no"
    assert exchange.complete


def test_many_rounds_look_like_one_completion() -> None:
    """DESIGN: S1."""
    rounds = [
        [chunk({"role": "assistant", "content": f"{n}."}, id=f"id{n}", created=n, model=f"m{n}")]
        + [chunk({"tool_calls": [{"index": 0, **call("clock", {"n": n})}]}, id=f"id{n}")] * (n < 3)
        + [chunk({}, "stop", id=f"id{n}", model=f"m{n}")]
        for n in (1, 2, 3)
    ]
    whole = streamed(*(events(*chunks) for chunks in rounds)).joined
    head = {"id": "id1", "object": "chat.completion.chunk", "created": 1, "model": "m1"}
    assert whole.identity == head
    assert whole.message["content"] == "1.\n\n2.\n\n3."
    assert whole.finish_reason == "stop"


def test_an_answer_without_an_identity_is_given_one() -> None:
    bare = {"choices": [{"index": 0, "delta": {"content": "Hi."}, "finish_reason": "stop"}]}
    chat = streamed(events({**bare, "id": None, "created": None, "model": None}), server=[])
    head = chat.joined.identity
    assert head["id"].startswith("chatcmpl-")
    assert head["model"] == "m"
    assert abs(head["created"] - time.time()) < 60


def test_an_identity_of_nothing_is_none() -> None:
    empty: Json = {
        "id": "",
        "model": "",
        "created": None,
        "choices": [],
        "prompt_filter_results": [],
    }
    chat = streamed(events({**chunk({}), **empty}, HALF, chunk({}, "stop")), server=[])
    assert chat.joined.identity["id"] and chat.joined.identity["model"]


def test_without_the_clients_wish_every_chunk_is_openais() -> None:
    rounds = [turn("Let me see.", [call("clock")]), saying("Noon.")]
    chat = streamed(*rounds, fields={"X-OpenWebUI-Message-Id": ""})
    assert chat.text == "Let me see.\n\nNoon."
    assert not any("type" in each or "item" in each for each in chat.events[:-1])
    assert b"12:00" not in chat.exchange.body


def test_an_empty_answer_is_a_role_and_an_end() -> None:
    whole = streamed(events(chunk({}, "stop")), server=[]).joined
    assert whole.message["role"] == "assistant"
    assert not whole.message.get("content")
    assert whole.finish_reason == "stop"


@pytest.mark.parametrize(
    ("texts", "content"),
    [
        (["a", "b"], "a\n\nb"),
        (["a\n", "b"], "a\n\nb"),
        (["a\n\n", "b"], "a\n\nb"),
        (["", "b"], "b"),
        ([None, "b"], "b"),
        (["\n\n", "b"], "\n\nb"),
        (["a", "", "b"], "a\n\nb"),
        (["a", "b", "c"], "a\n\nb\n\nc"),
        (["a", ""], "a"),
    ],
)
def test_a_blank_line_stands_between_the_texts_of_rounds(
    ask: Ask, texts: list[str | None], content: str
) -> None:
    """DESIGN: S4."""
    rounds: list[Json] = [
        {"content": text, "tool_calls": [call("clock", {"n": n})]} for n, text in enumerate(texts)
    ]
    del rounds[-1]["tool_calls"]
    assert ask(*map(replying, rounds)).text == content


def test_a_clients_call_is_relayed_live_and_a_servers_never() -> None:
    """DESIGN: S3."""
    chat = live(tools=[client_tool("own")])
    entry = {"index": 0, **call("clock", "")}
    chat.sends(chunk({"role": "assistant", "tool_calls": [entry]}), more_arguments("{}"))
    assert b"clock" not in chat.exchange.body
    chat.sends(call_chunk(1, **call("own", "", "c1")))
    assert own_ids(chat.delta)["tool_calls"] == [{**call("own", "", "c1"), "index": 0}]
    for piece in ('{"a', '": 1}'):
        chat.sends(more_arguments(piece, 1))
        assert chat.delta["tool_calls"] == [{"index": 0, "function": {"arguments": piece}}]
    assert b"clock" not in chat.exchange.body


def test_reasoning_is_relayed_the_moment_it_comes_in_every_round() -> None:
    """DESIGN: S2."""
    chat = live(calling("clock"))
    chat.sends(chunk({"reasoning_content": "Hm."}))
    assert chat.delta["reasoning_content"] == "Hm."


def test_usage_is_left_out_unless_it_is_asked_for() -> None:
    """DESIGN: S5."""
    usage = {"total_tokens": 3}
    rounds = [calling("clock", usage=usage), saying("Noon.", usage=usage)]
    chat = streamed(*rounds)
    assert chat.usage is None
    assert b"total_tokens" not in chat.exchange.body
    chat.again(*rounds, stream_options={"include_usage": True})
    last = chat.events[-2]
    assert last["choices"] == [] and last["usage"] == {"total_tokens": 6}
    assert last["id"] == "chatcmpl-1" and last["object"] == "chat.completion.chunk"
    assert chat.requests[-1]["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("options", [None, [], "x", {}, {"include_usage": None}])
def test_odd_stream_options_ask_for_nothing(options: Any) -> None:
    usage = {"total_tokens": 3}
    chat = streamed(saying("Hi.", usage=usage), server=[], stream_options=options)
    assert chat.usage is None


def test_keys_that_clients_act_on_are_dropped_and_the_chunk_stays_one() -> None:
    """DESIGN: S9."""
    foreign: Json = {"event": {"type": "execute"}, "selected_model_id": "x", "sources": [{}]}
    item = {"type": "response.output_item.added", "item": {"type": "function_call"}}
    chat = streamed(events(foreign, item, HALF | foreign, chunk({}, "stop", **foreign)), server=[])
    for each in chat.events[:-1]:
        assert not foreign.keys() & each.keys()
        assert "item" not in each
    assert chat.text == "Half"


def test_several_choices_are_streamed_side_by_side() -> None:
    def of(index: int, delta: Json, reason: str | None = None) -> Json:
        choice = {"index": index, "delta": delta, "finish_reason": reason}
        return {**chunk({}), "choices": [choice]}

    chunks = [
        of(1, {"role": "assistant", "content": "x"}),
        of(0, {"role": "assistant", "content": "a"}),
        of(1, {}, "length"),
        of(0, {"content": "b"}, "stop"),
    ]
    choices = streamed(events(*chunks), n=2).joined.choices
    assert {n: choice.message["content"] for n, choice in choices.items()} == {0: "ab", 1: "x"}
    assert {n: c.finish_reason for n, c in choices.items()} == {0: "stop", 1: "length"}


def test_names_are_offered_to_a_stream_as_to_any_other() -> None:
    chat = streamed(server=["b", "a"], tools=[client_tool("own")])
    assert names_of(chat.requests[0]) == ["own", "a", "b"]


# --- odd upstreams


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CR LF", "CR"])
@pytest.mark.parametrize("size", [1, 2, 3, 10_000])
@pytest.mark.parametrize("last", [b"", b"data: [DONE]\n\n", b"data:[DONE]"])
def test_events_may_be_written_and_cut_in_any_way(end: bytes, size: int, last: bytes) -> None:
    """DESIGN: S8."""
    message = {"role": "assistant", "content": "na\u00efve \N{SNOWMAN} \N{GRINNING FACE}"}
    head = json.dumps(chunk(message), ensure_ascii=False).encode()
    tail = json.dumps(chunk({}, "stop")).encode()
    sent = b": hello\n\nretry: 3\nevent: x\nid: 7\ndata:" + head + b"\n\n\n: ping\ndata: " + tail
    sent = (sent + b"\n\n" + last).replace(b"\n", end)

    def write(request: Any) -> None:
        begin_events(request)
        for start in range(0, len(sent), size):
            request.write(sent[start : start + size])
        request.finish()

    chat = streamed(write, server=[])
    assert chat.joined.message == message
    assert chat.nothing_left


def test_the_last_event_may_lack_its_end() -> None:
    chat = live(server=[])
    chat.sends(HALF, event(chunk({}, "stop")).rstrip(b"\n"))
    chat.ends()
    assert chat.finish_reason == "stop"


@pytest.mark.parametrize("mark", [b"[DONE]", b" [DONE] "])
def test_the_end_mark_is_an_end_without_a_finish_reason(mark: bytes) -> None:
    chat = streamed(events(HALF, mark), server=[])
    assert chat.text == "Half"
    assert chat.finish_reason == "stop"


def test_what_comes_after_the_end_mark_is_ignored() -> None:
    last = chunk({"content": "Hi."}, "stop")
    chat = streamed(events(last, b"[DONE]", chunk({"content": "x"})), server=[])
    assert chat.text == "Hi."
    assert chat.nothing_left


def test_an_upstream_that_stays_after_its_end_mark_is_left() -> None:
    chat = live(server=[])
    chat.sends(chunk({"role": "assistant", "content": "Hi."}, "stop"), b"data: [DONE]\n\n")
    assert chat.text == "Hi."
    assert chat.exchange.complete
    chat.wait(2)
    assert chat.nothing_left


@pytest.mark.parametrize(
    "delta",
    [
        {"tool_calls": [call("clock")]},
        {"tool_calls": [{"function": {"name": "clock", "arguments": "{}"}}]},
        {"tool_calls": [{"index": 0, "function": {"name": "clock", "arguments": {}}}]},
        {"tool_calls": [{"index": None, "id": None, "type": None, **call("clock")}, None, "x"]},
        {"tool_calls": [{"index": 5, **call("clock")}]},
        {"content": None, "role": None, "tool_calls": [{"id": "", **call("clock")}]},
    ],
)
@pytest.mark.parametrize("reason", ["stop", "", None, "TOOL_CALLS"])
def test_a_call_in_any_shape_is_run(delta: Json, reason: str | None) -> None:
    """DESIGN: S8."""
    chat = streamed(events(chunk(delta), chunk({}, reason)), saying("Noon."))
    assert chat.joined.message == {"role": "assistant", "content": "Noon."}
    _, assistant, result = chat.requests[1]["messages"]
    (entry,) = assistant["tool_calls"]
    assert entry["type"] == "function"
    assert entry["function"] == {"name": "clock", "arguments": "{}"}
    assert entry["id"] and entry["id"] == result["tool_call_id"]


# --- silences


def test_a_silent_upstream_is_bridged_with_comments() -> None:
    """DESIGN: S6."""
    chat = streamed(nothing, server=[])
    chat.wait(14.9)
    assert not chat.exchange.answered, "until then a failure can be an ordinary HTTP error"
    chat.wait(0.1)
    assert chat.exchange.status == 200 and chat.exchange.body == KEEP_ALIVE
    chat.wait(15, times=3)
    assert chat.exchange.body == KEEP_ALIVE * 4
    chat.replies(saying("Hi."))
    assert chat.text == "Hi."
    assert chat.nothing_left


def test_the_silence_is_counted_from_the_last_thing_that_was_seen() -> None:
    chat = live(server=[])
    chat.wait(10)
    chat.sends(chunk({"content": "a"}))
    chat.wait(14)
    assert KEEP_ALIVE not in chat.exchange.body
    chat.wait(1)
    assert chat.exchange.body.endswith(KEEP_ALIVE)


def test_a_slow_tool_is_bridged_with_comments() -> None:
    chat = streamed(calling("clock"), saying("Noon."), results=[nothing])
    chat.wait(15, times=2)
    assert chat.exchange.body.count(KEEP_ALIVE) == 2
    chat.replies(tool_result("12:00"))
    assert chat.text == "Noon."


def test_a_slow_listing_is_bridged_with_comments() -> None:
    chat = streamed(server=nothing, proxy={"keep_alive": 1})
    chat.wait(1)
    assert chat.exchange.body == KEEP_ALIVE


def test_deltas_that_the_client_may_not_see_are_a_silence_too() -> None:
    chat = live()
    chat.sends(HALF, call_chunk(**call("clock", "{")))
    for _ in range(15):
        chat.wait(1)
        chat.sends(more_arguments(" "))
    assert chat.exchange.body.count(KEEP_ALIVE) == 1


def test_an_upstream_that_falls_silent_for_good_is_a_failure() -> None:
    chat = live(server=[], proxy={"timeout": 60})
    chat.sends(chunk({"content": "a"}))
    chat.wait(15, times=5)
    assert chat.error["type"] == "upstream_error"
    assert chat.exchange.complete
    assert chat.nothing_left


def test_the_status_goes_out_with_the_upstreams_first_event() -> None:
    """DESIGN: S6."""
    chat = live(server=[])
    assert not chat.exchange.answered
    chat.sends(b": ping\n\n")
    assert not chat.exchange.answered
    chat.sends(chunk({"tool_calls": None}))
    assert chat.exchange.status == 200 and chat.exchange.body == b""
