"""A streamed answer, through the front door: its frame, its silences, its failures."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from twisted.test import iosim
from twisted.web.http import HTTPChannel

from tests.chat.streams import (
    client_tool,
    failure_in,
    joined,
    message_of,
    names_of,
    nothing_left,
    own_ids,
    said,
    stack_with,
)
from tests.support import (
    CHAT,
    INVOKE,
    Exchange,
    FakeStack,
    Proxy,
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


def open_stream(stack: FakeStack, **options: Any) -> tuple[Proxy, Exchange]:
    """A streamed chat whose upstream has begun to answer, and has said nothing yet."""
    stack.on(CHAT, begin_events)
    proxy = Proxy(stack, **options)
    return proxy, proxy.chat(stream=True)


def say(proxy: Proxy, stack: FakeStack, *said: Json | bytes) -> None:
    """The upstream sends *said*: chunks, or bytes as they are."""
    for each in said:
        stack.open[-1].write(each if isinstance(each, bytes) else event(each))
        proxy.settle()


# --- the frame


def test_the_fields_are_those_of_a_stream() -> None:
    """DESIGN: S10."""
    stack = stack_with("clock")
    stack.on(CHAT, saying("Hi."))
    exchange = Proxy(stack).chat(stream=True)
    assert exchange.status == 200
    assert (exchange.field("Content-Type") or "").startswith("text/event-stream")
    assert exchange.field("Cache-Control") == "no-cache"
    assert exchange.field("X-Accel-Buffering") == "no"
    assert exchange.complete


def test_many_rounds_look_like_one_completion() -> None:
    """DESIGN: S1."""
    stack = stack_with("clock")
    rounds = [
        [chunk({"role": "assistant", "content": f"{n}."}, id=f"id{n}", created=n, model=f"m{n}")]
        + [chunk({"tool_calls": [{"index": 0, **call("clock", {"n": n})}]}, id=f"id{n}")] * (n < 3)
        + [chunk({}, "stop", id=f"id{n}", model=f"m{n}")]
        for n in (1, 2, 3)
    ]
    stack.on(CHAT, *(events(*each) for each in rounds))
    stack.on(INVOKE, tool_result("12:00"))
    whole = joined(Proxy(stack).chat(stream=True).events())
    assert whole.identity == {
        "id": "id1", "object": "chat.completion.chunk", "created": 1, "model": "m1",
    }  # fmt: skip
    assert whole.message["content"] == "1.\n\n2.\n\n3."
    assert whole.finish_reason == "stop"


def test_an_answer_without_an_identity_is_given_one() -> None:
    stack = stack_with()
    bare = {"choices": [{"index": 0, "delta": {"content": "Hi."}, "finish_reason": "stop"}]}
    stack.on(CHAT, events({**bare, "id": None, "created": None, "model": None}))
    whole = joined(Proxy(stack).chat(stream=True).events())
    assert whole.identity["id"].startswith("chatcmpl-")
    assert whole.identity["model"] == "m"
    assert abs(whole.identity["created"] - time.time()) < 60


def test_an_identity_of_nothing_is_none() -> None:
    stack = stack_with()
    empty = {"id": "", "model": "", "created": None}
    stack.on(
        CHAT,
        events(
            {**chunk({}), "choices": [], "prompt_filter_results": [], **empty},
            chunk({"role": "assistant", "content": "Hi."}),
            chunk({}, "stop"),
        ),
    )
    exchange = Proxy(stack).chat(stream=True)
    whole = joined(exchange.events())
    assert whole.identity["id"] and whole.identity["model"]


def test_without_the_clients_wish_every_chunk_is_openais() -> None:
    stack = stack_with("clock")
    stack.on(CHAT, turn("Let me see.", [call("clock")]), saying("Noon."))
    stack.on(INVOKE, tool_result("12:00"))
    exchange = Proxy(stack).chat(stream=True, fields={"X-OpenWebUI-Message-Id": ""})
    joined(exchange.events())
    assert not any("type" in each or "item" in each for each in exchange.events()[:-1])
    assert b"12:00" not in exchange.body


def test_an_empty_answer_is_a_role_and_an_end() -> None:
    stack = stack_with()
    stack.on(CHAT, events(chunk({}, "stop")))
    whole = joined(Proxy(stack).chat(stream=True).events())
    assert whole.message["role"] == "assistant"
    assert not whole.message.get("content")
    assert whole.finish_reason == "stop"


@pytest.mark.parametrize(
    ("texts", "whole"),
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
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_blank_line_stands_between_the_texts_of_rounds(
    texts: list[str | None], whole: str, stream: bool
) -> None:
    """DESIGN: S4."""
    stack = stack_with("clock")
    rounds: list[Json] = [{"content": text} for text in texts]
    for place, message in enumerate(rounds[:-1]):
        message["tool_calls"] = [call("clock", {"n": place})]
    stack.on(CHAT, *map(said, rounds))
    stack.on(INVOKE, tool_result("12:00"))
    assert message_of(Proxy(stack).chat(stream=stream))["content"] == whole


def test_a_clients_call_is_relayed_live_and_a_servers_never() -> None:
    """DESIGN: S3."""
    stack = stack_with("clock")
    stack.on(CHAT, begin_events)
    proxy = Proxy(stack)
    exchange = proxy.chat(stream=True, tools=[client_tool("own")])
    ours = {"index": 0, **call("clock", "")}
    say(proxy, stack, chunk({"role": "assistant", "tool_calls": [ours]}))
    say(proxy, stack, chunk({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}))
    assert b"clock" not in exchange.body
    say(proxy, stack, chunk({"tool_calls": [{"index": 1, **call("own", "", "c1")}]}))
    shown = own_ids(exchange.events()[-1]["choices"][0]["delta"])["tool_calls"]
    assert shown == [{**call("own", "", "c1"), "index": 0}]
    for piece in ('{"a', '": 1}'):
        say(proxy, stack, chunk({"tool_calls": [{"index": 1, "function": {"arguments": piece}}]}))
        delta = exchange.events()[-1]["choices"][0]["delta"]["tool_calls"]
        assert delta == [{"index": 0, "function": {"arguments": piece}}]
    assert b"clock" not in exchange.body


def test_reasoning_is_relayed_the_moment_it_comes_in_every_round() -> None:
    """DESIGN: S2."""
    stack = stack_with("clock")
    stack.on(CHAT, calling("clock"), begin_events)
    stack.on(INVOKE, tool_result("12:00"))
    proxy = Proxy(stack)
    exchange = proxy.chat(stream=True)
    say(proxy, stack, chunk({"reasoning_content": "Hm."}))
    assert exchange.events()[-1]["choices"][0]["delta"]["reasoning_content"] == "Hm."


def test_usage_is_left_out_unless_it_is_asked_for() -> None:
    """DESIGN: S5."""
    stack = stack_with("clock")
    usage = {"total_tokens": 3}
    stack.on(CHAT, turn(None, [call("clock")], usage=usage), saying("Noon.", usage=usage))
    stack.on(INVOKE, tool_result("12:00"))
    proxy = Proxy(stack)
    plain = proxy.chat(stream=True)
    assert joined(plain.events()).usage is None
    assert b"total_tokens" not in plain.body
    stack.on(CHAT, turn(None, [call("clock")], usage=usage), saying("Noon.", usage=usage))
    asked = proxy.chat(stream=True, stream_options={"include_usage": True})
    last = asked.events()[-2]
    assert last["choices"] == [] and last["usage"] == {"total_tokens": 6}
    assert last["id"] == "chatcmpl-1" and last["object"] == "chat.completion.chunk"
    assert stack.asked_for(CHAT)[-1].json()["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("options", [None, [], "x", {}, {"include_usage": None}])
def test_odd_stream_options_ask_for_nothing(options: Any) -> None:
    stack = stack_with()
    stack.on(CHAT, saying("Hi.", usage={"total_tokens": 3}))
    exchange = Proxy(stack).chat(stream=True, stream_options=options)
    assert joined(exchange.events()).usage is None


def test_keys_that_clients_act_on_are_dropped_and_the_chunk_stays_one() -> None:
    """DESIGN: S9."""
    stack = stack_with()
    foreign: Json = {"event": {"type": "execute"}, "selected_model_id": "x", "sources": [{}]}
    stack.on(
        CHAT,
        events(
            foreign,
            {"type": "response.output_item.added", "item": {"type": "function_call"}},
            chunk({"role": "assistant", "content": "Hi."}, **foreign),
            chunk({}, "stop", **foreign),
        ),
    )
    exchange = Proxy(stack).chat(stream=True)
    for each in exchange.events()[:-1]:
        assert not foreign.keys() & each.keys()
        assert "item" not in each
    assert joined(exchange.events()).message["content"] == "Hi."


def test_several_choices_are_streamed_side_by_side() -> None:
    stack = stack_with("clock")

    def of(index: int, delta: Json, reason: str | None = None) -> Json:
        head = chunk({})
        return {**head, "choices": [{"index": index, "delta": delta, "finish_reason": reason}]}

    stack.on(
        CHAT,
        events(
            of(1, {"role": "assistant", "content": "x"}),
            of(0, {"role": "assistant", "content": "a"}),
            of(1, {}, "length"),
            of(0, {"content": "b"}, "stop"),
        ),
    )
    whole = joined(Proxy(stack).chat(stream=True, n=2).events())
    assert {n: c.message["content"] for n, c in whole.choices.items()} == {0: "ab", 1: "x"}
    assert {n: c.finish_reason for n, c in whole.choices.items()} == {0: "stop", 1: "length"}


# --- odd upstreams


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CR LF", "CR"])
@pytest.mark.parametrize("size", [1, 2, 3, 10_000])
@pytest.mark.parametrize("last", [b"", b"data: [DONE]\n\n", b"data:[DONE]"])
def test_events_may_be_written_and_cut_in_any_way(end: bytes, size: int, last: bytes) -> None:
    """DESIGN: S8."""
    text = "na\u00efve \N{SNOWMAN} \N{GRINNING FACE}"
    head = json.dumps(chunk({"role": "assistant", "content": text}), ensure_ascii=False).encode()
    tail = json.dumps(chunk({}, "stop")).encode()
    sent = b": hello\n\nretry: 3\nevent: x\nid: 7\ndata:" + head + b"\n\n\n: ping\ndata: " + tail
    sent = (sent + b"\n\n" + last).replace(b"\n", end)

    def write(request: Any) -> None:
        begin_events(request)
        for start in range(0, len(sent), size):
            request.write(sent[start : start + size])
        request.finish()

    stack = stack_with()
    stack.on(CHAT, write)
    proxy = Proxy(stack)
    whole = joined(proxy.chat(stream=True).events())
    assert whole.message == {"role": "assistant", "content": text}
    assert nothing_left(proxy, stack)


def test_the_last_event_may_lack_its_end() -> None:
    stack = stack_with()

    def write(request: Any) -> None:
        begin_events(request)
        request.write(event(chunk({"role": "assistant", "content": "Hi."})))
        request.write(event(chunk({}, "stop")).rstrip(b"\n"))
        request.finish()

    stack.on(CHAT, write)
    assert joined(Proxy(stack).chat(stream=True).events()).finish_reason == "stop"


@pytest.mark.parametrize("mark", [b"[DONE]", b" [DONE] "])
def test_the_end_mark_is_an_end_without_a_finish_reason(mark: bytes) -> None:
    stack = stack_with()
    stack.on(CHAT, events(chunk({"role": "assistant", "content": "Hi."}), mark))
    whole = joined(Proxy(stack).chat(stream=True).events())
    assert whole.message["content"] == "Hi."
    assert whole.finish_reason == "stop"


def test_what_comes_after_the_end_mark_is_ignored() -> None:
    stack = stack_with()
    stack.on(CHAT, events(chunk({"content": "Hi."}, "stop"), b"[DONE]", chunk({"content": "x"})))
    proxy = Proxy(stack)
    exchange = proxy.chat(stream=True)
    assert joined(exchange.events()).message["content"] == "Hi."
    assert nothing_left(proxy, stack)


def test_an_upstream_that_stays_after_its_end_mark_is_left() -> None:
    stack = stack_with()
    proxy, exchange = open_stream(stack)
    say(proxy, stack, chunk({"role": "assistant", "content": "Hi."}, "stop"), b"data: [DONE]\n\n")
    assert joined(exchange.events()).message["content"] == "Hi."
    assert exchange.complete
    proxy.advance(2)
    assert nothing_left(proxy, stack)


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
    stack = stack_with("clock")
    stack.on(CHAT, events(chunk(delta), chunk({}, reason)), saying("Noon."))
    stack.on(INVOKE, tool_result("12:00"))
    whole = joined(Proxy(stack).chat(stream=True).events())
    assert whole.message == {"role": "assistant", "content": "Noon."}
    sent = stack.asked_for(CHAT)[1].json()["messages"]
    (entry,) = sent[1]["tool_calls"]
    assert entry["type"] == "function"
    assert entry["function"] == {"name": "clock", "arguments": "{}"}
    assert entry["id"] and entry["id"] == sent[2]["tool_call_id"]


# --- silences


def test_a_silent_upstream_is_bridged_with_comments() -> None:
    """DESIGN: S6."""
    stack = stack_with()
    stack.on(CHAT, nothing)
    proxy = Proxy(stack)
    exchange = proxy.chat(stream=True)
    proxy.advance(14.9)
    assert not exchange.answered, "until then a failure can be an ordinary HTTP error"
    proxy.advance(0.1)
    assert exchange.status == 200 and exchange.body == KEEP_ALIVE
    for _ in range(3):
        proxy.advance(15)
    assert exchange.body == KEEP_ALIVE * 4
    saying("Hi.")(stack.open[-1])
    proxy.settle()
    assert joined(exchange.events()).message["content"] == "Hi."
    assert nothing_left(proxy, stack)


def test_the_silence_is_counted_from_the_last_thing_that_was_seen() -> None:
    stack = stack_with()
    proxy, exchange = open_stream(stack)
    proxy.advance(10)
    say(proxy, stack, chunk({"content": "a"}))
    proxy.advance(14)
    assert KEEP_ALIVE not in exchange.body
    proxy.advance(1)
    assert exchange.body.endswith(KEEP_ALIVE)


def test_a_slow_tool_is_bridged_with_comments() -> None:
    stack = stack_with("clock")
    stack.on(CHAT, calling("clock"), saying("Noon."))
    stack.on(INVOKE, nothing)
    proxy = Proxy(stack)
    exchange = proxy.chat(stream=True)
    for _ in range(2):
        proxy.advance(15)
    assert exchange.body.count(KEEP_ALIVE) == 2
    tool_result("12:00")(stack.open[-1])
    proxy.settle()
    assert joined(exchange.events()).message["content"] == "Noon."


def test_a_slow_listing_is_bridged_with_comments() -> None:
    stack = stack_with("clock")
    stack.on("GET /v1/tools", nothing)
    stack.on(CHAT, saying("Hi."))
    proxy = Proxy(stack, keep_alive=1)
    exchange = proxy.chat(stream=True)
    proxy.advance(1)
    assert exchange.body == KEEP_ALIVE


def test_deltas_that_the_client_may_not_see_are_a_silence_too() -> None:
    stack = stack_with("clock")
    proxy, exchange = open_stream(stack)
    say(proxy, stack, chunk({"role": "assistant", "content": "a"}))
    say(proxy, stack, chunk({"tool_calls": [{"index": 0, **call("clock", "{")}]}))
    for _ in range(15):
        proxy.advance(1)
        say(proxy, stack, chunk({"tool_calls": [{"index": 0, "function": {"arguments": " "}}]}))
    assert exchange.body.count(KEEP_ALIVE) == 1


def test_an_upstream_that_falls_silent_for_good_is_a_failure() -> None:
    stack = stack_with()
    proxy, exchange = open_stream(stack, timeout=60)
    say(proxy, stack, chunk({"content": "a"}))
    for _ in range(5):
        proxy.advance(15)
    assert failure_in(exchange.events())["type"] == "upstream_error"
    assert exchange.complete
    assert nothing_left(proxy, stack)


def test_the_status_goes_out_with_the_upstreams_first_event() -> None:
    """DESIGN: S6."""
    stack = stack_with()
    proxy, exchange = open_stream(stack)
    assert not exchange.answered
    say(proxy, stack, b": ping\n\n")
    assert not exchange.answered
    say(proxy, stack, chunk({"tool_calls": None}))
    assert exchange.status == 200 and exchange.body == b""


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
    stack = stack_with()
    stack.on(CHAT, events(chunk({"role": "assistant", "content": "Half"}), failure))
    proxy = Proxy(stack)
    exchange = proxy.chat(stream=True)
    assert failure_in(exchange.events())["message"] == "scripted"
    assert exchange.text() == "Half"
    assert exchange.complete
    assert nothing_left(proxy, stack)


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
    stack = stack_with()
    stack.on(CHAT, events(failure))
    exchange = Proxy(stack).chat(stream=True)
    assert exchange.status == status
    assert exchange.field("Content-Type") == "application/json"
    assert "scripted" in exchange.json()["error"]["message"]


def test_after_a_comment_a_failure_is_told_in_the_stream() -> None:
    stack = stack_with()
    stack.on(CHAT, nothing)
    proxy = Proxy(stack)
    exchange = proxy.chat(stream=True)
    proxy.advance(15)
    answer({"detail": "scripted"}, 400)(stack.open[-1])
    proxy.settle()
    assert exchange.status == 200
    assert failure_in(exchange.events())["message"] == "scripted"
    assert nothing_left(proxy, stack)


@pytest.mark.parametrize("orderly", [True, False])
@pytest.mark.parametrize(
    "said",
    [
        [chunk({"role": "assistant", "content": "Half a sent"})],
        [chunk({"role": "assistant", "content": ""})],
        [chunk({"tool_calls": [{"index": 0, **call("clock", '{"a":')}]})],
        [chunk({"content": "a"}), {**chunk({}), "choices": [], "usage": {"n": 1}}],
    ],
)
def test_an_end_that_comes_too_early_is_a_failure(orderly: bool, said: list[Json]) -> None:
    """DESIGN: S7."""
    stack = stack_with("clock")
    proxy, exchange = open_stream(stack)
    say(proxy, stack, *said)
    stack.open[-1].finish() if orderly else stack.open[-1].loseConnection()
    proxy.settle()
    assert failure_in(exchange.events())["type"] == "upstream_error"
    assert stack.asked_for(INVOKE) == []
    assert nothing_left(proxy, stack)


def test_a_choice_that_never_ends_is_a_failure_though_another_does() -> None:
    stack = stack_with()
    second = {"index": 1, "delta": {"content": "Half"}, "finish_reason": None}
    stack.on(CHAT, events(chunk({"content": "a"}, "stop"), {**chunk({}), "choices": [second]}))
    failure_in(Proxy(stack).chat(stream=True, n=2).events())


def test_a_connection_that_breaks_after_the_finish_reason_is_a_failure_told_as_one() -> None:
    stack = stack_with("clock")
    proxy, exchange = open_stream(stack)
    say(proxy, stack, chunk({"content": "a"}, "stop"))
    stack.open[-1].loseConnection()
    proxy.settle()
    failure_in(exchange.events())
    assert exchange.complete


@pytest.mark.parametrize("mark", [b"data: {}\n\n", b'data: {"choices": []}\n\n'])
def test_an_event_that_says_nothing_is_no_end_mark(mark: bytes) -> None:
    stack = stack_with()
    proxy, exchange = open_stream(stack)
    say(proxy, stack, chunk({"content": "Half"}), mark)
    stack.open[-1].finish()
    proxy.settle()
    failure_in(exchange.events())


@pytest.mark.parametrize("odd", [b"data: not json\n\n", b"data: [1]\n\n", b"data: null\n\n"])
def test_an_event_that_is_no_object_is_a_failure(odd: bytes) -> None:
    stack = stack_with()
    proxy, exchange = open_stream(stack)
    say(proxy, stack, chunk({"content": "Half"}), odd)
    failure_in(exchange.events())
    assert nothing_left(proxy, stack)


def test_a_call_cut_off_by_the_connection_is_not_run() -> None:
    stack = stack_with("clock")
    proxy, exchange = open_stream(stack)
    say(proxy, stack, chunk({"tool_calls": [{"index": 0, **call("clock", "{}")}]}))
    stack.open[-1].loseConnection()
    proxy.settle()
    failure_in(exchange.events())
    assert stack.asked_for(INVOKE) == []


# --- back-pressure


class Connections:
    """The connections in memory, and which of them are told to read no more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._paused: set[Any] = set()
        self._channels: list[HTTPChannel] = []
        register = HTTPChannel.registerProducer

        def registered(channel: HTTPChannel, producer: Any, streaming: bool) -> None:
            self._channels.append(channel)
            register(channel, producer, streaming)  # type: ignore[no-untyped-call]

        transport: Any = iosim.FakeTransport
        monkeypatch.setattr(HTTPChannel, "registerProducer", registered)
        monkeypatch.setattr(transport, "pauseProducing", lambda each: self._paused.add(each))
        monkeypatch.setattr(transport, "resumeProducing", lambda each: self._paused.discard(each))

    @property
    def paused(self) -> set[Any]:
        """Those of our side of upstream connections that are told to read no more."""
        return {each for each in self._paused if not each.isServer and not each.disconnected}

    @property
    def to_the_client(self) -> Any:
        """What the client's connection pauses; in memory only the proxy registers a producer."""
        return self._channels[0]


def test_a_client_that_does_not_read_stops_the_upstream(monkeypatch: pytest.MonkeyPatch) -> None:
    """DESIGN: S11."""
    connections = Connections(monkeypatch)
    stack = stack_with()
    proxy, exchange = open_stream(stack)
    say(proxy, stack, chunk({"role": "assistant", "content": "first "}))
    assert not connections.paused
    connections.to_the_client.pauseProducing()
    say(proxy, stack, chunk({"content": "second "}))
    assert connections.paused, "one event may have been on its way when the client stopped"
    connections.to_the_client.resumeProducing()
    assert not connections.paused
    say(proxy, stack, chunk({"content": "third"}))
    assert not connections.paused
    assert exchange.text() == "first second third"


def test_a_client_that_does_not_read_is_sent_no_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    connections = Connections(monkeypatch)
    stack = stack_with()
    proxy, exchange = open_stream(stack)
    say(proxy, stack, chunk({"role": "assistant", "content": "first"}))
    connections.to_the_client.pauseProducing()
    for _ in range(4):
        proxy.advance(15)
    assert KEEP_ALIVE not in exchange.body
    connections.to_the_client.resumeProducing()
    proxy.advance(15)
    assert exchange.body.count(KEEP_ALIVE) == 1


def test_a_client_that_does_not_read_is_no_silence_of_the_upstream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connections = Connections(monkeypatch)
    stack = stack_with()
    proxy, exchange = open_stream(stack, timeout=60)
    say(proxy, stack, chunk({"role": "assistant", "content": "Hi"}))
    connections.to_the_client.pauseProducing()
    say(proxy, stack, chunk({"content": "."}))
    for _ in range(10):
        proxy.advance(15)
    connections.to_the_client.resumeProducing()
    say(proxy, stack, chunk({}, "stop"))
    stack.open[-1].finish()
    proxy.settle()
    assert joined(exchange.events()).message["content"] == "Hi."
    assert nothing_left(proxy, stack)


def test_names_are_offered_to_a_stream_as_to_any_other() -> None:
    stack = stack_with("b", "a")
    stack.on(CHAT, saying("Hi."))
    Proxy(stack).chat(stream=True, tools=[client_tool("own")])
    assert names_of(stack.asked_for(CHAT)[0].json()) == ["own", "a", "b"]
