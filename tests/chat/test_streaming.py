"""A streamed answer, through the front door: its frame, its silences, its failures."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.chat.connections import Connections
from tests.chat.script import Ask, live, streamed
from tests.chat.streams import client_tool, names_of, own_ids, said
from tests.support import (
    INVOKE,
    answer,
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

KEEP_ALIVE = b": keep-alive\n\n"

HALF = chunk({"role": "assistant", "content": "Half"})


def call_chunk(index: int = 0, **entry: Any) -> Json:
    """A chunk with one call delta."""
    return chunk({"tool_calls": [{"index": index, **entry}]})


def more_arguments(text: str, index: int = 0) -> Json:
    """A chunk with more of a call's arguments."""
    return call_chunk(index, function={"arguments": text})


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
    assert ask(*map(said, rounds)).text == content


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
    chat.again(*rounds, stream=True, stream_options={"include_usage": True})
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


# --- failures


@pytest.mark.parametrize(
    "failure",
    [
        {"error": {"message": "scripted", "code": "500"}},
        {"error": {"message": "scripted"}},
        {"error": "scripted"},
        {"error": {"detail": "scripted"}},
    ],
)
def test_an_error_event_in_the_middle_ends_the_stream_with_it(failure: Json) -> None:
    """DESIGN: S7."""
    chat = streamed(events(HALF, failure), server=[])
    assert chat.error["message"] == "scripted"
    assert chat.exchange.text() == "Half"
    assert chat.exchange.complete
    assert chat.nothing_left


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        ({"error": {"message": "400: Error code: 400 - scripted"}}, 400),
        ({"error": {"message": "scripted", "code": "429"}}, 429),
        ({"error": {"message": "scripted", "code": 503}}, 503),
        ({"error": {"message": "scripted", "code": "overloaded"}}, 502),
        ({"error": "scripted"}, 502),
        ({"error": {"message": "200 scripted"}}, 502),
    ],
)
def test_an_error_as_the_first_event_is_an_ordinary_http_error(failure: Json, status: int) -> None:
    """DESIGN: S7."""
    exchange = streamed(events(failure), server=[]).exchange
    assert exchange.status == status
    assert exchange.field("Content-Type") == "application/json"
    assert "scripted" in exchange.json()["error"]["message"]


def test_after_a_comment_a_failure_is_told_in_the_stream() -> None:
    chat = streamed(nothing, server=[])
    chat.wait(15)
    chat.replies(answer({"detail": "scripted"}, 400))
    assert chat.exchange.status == 200
    assert chat.error["message"] == "scripted"
    assert chat.nothing_left


@pytest.mark.parametrize("orderly", [True, False])
@pytest.mark.parametrize(
    "chunks",
    [
        [chunk({"role": "assistant", "content": "Half a sent"})],
        [chunk({"role": "assistant", "content": ""})],
        [call_chunk(**call("clock", '{"a":'))],
        [chunk({"content": "a"}), {**chunk({}), "choices": [], "usage": {"n": 1}}],
    ],
)
def test_an_end_that_comes_too_early_is_a_failure(orderly: bool, chunks: list[Json]) -> None:
    """DESIGN: S7."""
    chat = live()
    chat.sends(*chunks)
    chat.ends() if orderly else chat.breaks()
    assert chat.error["type"] == "upstream_error"
    assert chat.stack.asked_for(INVOKE) == []
    assert chat.nothing_left


BROKE_OFF = "Llama Stack ended its answer in the middle."


def test_a_choice_that_never_ends_is_a_failure_though_another_does() -> None:
    second = {"index": 1, "delta": {"content": "Half"}, "finish_reason": None}
    chunks = [chunk({"content": "a"}, "stop"), {**chunk({}), "choices": [second]}]
    assert streamed(events(*chunks), server=[], n=2).error["message"] == BROKE_OFF


def test_a_connection_that_breaks_after_the_finish_reason_is_a_failure_told_as_one() -> None:
    chat = live()
    chat.sends(chunk({"content": "a"}, "stop"))
    chat.breaks()
    assert chat.error["message"] == "Llama Stack did not finish its answer."
    assert chat.exchange.complete


@pytest.mark.parametrize("mark", [b"data: {}\n\n", b'data: {"choices": []}\n\n'])
def test_an_event_that_says_nothing_is_no_end_mark(mark: bytes) -> None:
    chat = live(server=[])
    chat.sends(HALF, mark)
    chat.ends()
    assert chat.error["message"] == BROKE_OFF


@pytest.mark.parametrize("odd", [b"data: not json\n\n", b"data: [1]\n\n", b"data: null\n\n"])
def test_an_event_that_is_no_object_is_a_failure(odd: bytes) -> None:
    chat = live(server=[])
    chat.sends(HALF, odd)
    assert chat.error["message"] == "Llama Stack sent an event that is not a JSON object."
    assert chat.nothing_left


def test_a_call_cut_off_by_the_connection_is_not_run() -> None:
    chat = live()
    chat.sends(call_chunk(**call("clock", "{}")))
    chat.breaks()
    assert chat.error["message"] == "Llama Stack did not finish its answer."
    assert chat.stack.asked_for(INVOKE) == []


# --- back-pressure


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> Connections:
    return Connections(monkeypatch)


def test_a_client_that_does_not_read_stops_the_upstream(connections: Connections) -> None:
    """DESIGN: S11."""
    chat = live(server=[])
    chat.sends(chunk({"role": "assistant", "content": "first "}))
    assert not connections.paused
    connections.to_the_client.pauseProducing()
    chat.sends(chunk({"content": "second "}))
    assert connections.paused, "one event may have been on its way when the client stopped"
    connections.to_the_client.resumeProducing()
    assert not connections.paused
    chat.sends(chunk({"content": "third"}))
    assert not connections.paused
    assert chat.exchange.text() == "first second third"


def test_a_client_that_does_not_read_is_sent_no_comments(connections: Connections) -> None:
    chat = live(server=[])
    chat.sends(HALF)
    connections.to_the_client.pauseProducing()
    chat.wait(15, times=4)
    assert KEEP_ALIVE not in chat.exchange.body
    connections.to_the_client.resumeProducing()
    chat.wait(15)
    assert chat.exchange.body.count(KEEP_ALIVE) == 1


def test_a_client_that_does_not_read_is_no_silence_of_the_upstream(
    connections: Connections,
) -> None:
    chat = live(server=[], proxy={"timeout": 60})
    chat.sends(HALF)
    connections.to_the_client.pauseProducing()
    chat.sends(chunk({"content": "."}))
    chat.wait(15, times=10)
    connections.to_the_client.resumeProducing()
    chat.sends(chunk({}, "stop"))
    chat.ends()
    assert chat.text == "Half."
    assert chat.nothing_left
