"""LlamaStackClient: JSON and streams, and every way in which they fail."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any
from urllib.parse import parse_qs

import pytest
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.error import (
    ConnectError,
    ConnectionRefusedError,
    DNSLookupError,
)
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from llamaproxy.errors import (
    ProxyError,
    UpstreamBroke,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamTls,
    UpstreamUnavailable,
)
from llamaproxy.jsontext import Json
from llamaproxy.upstream.bodies import BytesUpload
from llamaproxy.upstream.chunks import chunks_in, completion_in
from llamaproxy.upstream.client_context import ClientContext
from llamaproxy.upstream.failures import connecting_error, response_within
from tests.support import (
    Answer,
    Chunks,
    FakeStack,
    Upstream,
    answer,
    begin_events,
    chunk,
    event,
    events,
    hang_up,
    head_with,
    nothing,
    outcome,
    pending_calls,
    recorded,
)

SOMEBODY = ClientContext.of(head_with({"Authorization": ["Bearer a"], "X-Request-Id": ["7"]}))


def upstream_of(*answers: Answer) -> tuple[FakeStack, Upstream]:
    stack = FakeStack()
    stack.on("GET /x", *answers)
    stack.on("POST /x", *answers)
    return stack, Upstream(stack)


def ask(*answers: Answer) -> Any:
    _, upstream = upstream_of(*answers)
    return upstream.result(upstream.client.ask("GET", "/x", ClientContext()))


async def chunks_of(upstream: Upstream, into: list[Json | None]) -> list[Json | None]:
    upload = BytesUpload(b"{}")
    response = await upstream.client.open("/x", ClientContext(), upload, lambda *_: None)
    await upstream.client.relay(response, Chunks(into))
    return into


def stream(*answers: Answer) -> list[Any]:
    _, upstream = upstream_of(*answers)
    got: list[Any] = upstream.result(chunks_of(upstream, []))
    return got


# --- requests


def test_a_request_carries_what_it_is_asked_with() -> None:
    stack, upstream = upstream_of(answer({"a": 1}))
    query = {"toolgroup_id": "mcp::a b/&"}
    asked = upstream.client.ask("POST", "/x", SOMEBODY, b'{"b":2}', query)
    assert upstream.result(asked) == {"a": 1}
    [request] = stack.asked
    assert parse_qs(request.target.partition("?")[2]) == {"toolgroup_id": ["mcp::a b/&"]}
    assert request.json() == {"b": 2}
    assert request.headers.getRawHeaders("Content-Type") == ["application/json"]
    assert request.headers.getRawHeaders("Authorization") == ["Bearer a"]
    assert request.headers.getRawHeaders("X-Request-Id") == ["7"]


def test_no_cookie_of_one_caller_goes_out_with_anothers_request() -> None:
    stack, upstream = upstream_of(answer({}, fields={"Set-Cookie": "session=secret; Path=/"}))
    for _ in range(2):
        upstream.result(upstream.client.ask("GET", "/x", ClientContext()))
    assert not any(request.headers.hasHeader("Cookie") for request in stack.asked)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_not_followed(status: int) -> None:
    stack, upstream = upstream_of(answer(b"", status, {"Location": "http://elsewhere/"}))
    with pytest.raises(UpstreamBroke, match=f"redirect .{status}"):
        upstream.result(upstream.client.ask("GET", "/x", SOMEBODY))
    assert len(stack.asked) == 1


# --- answers


@pytest.mark.parametrize("text", [b"[]", b'"text"', b"7", b"null", b"", b"<html>", b"{"])
def test_what_is_no_json_object_is_no_answer(text: bytes) -> None:
    with pytest.raises(UpstreamBroke):
        ask(answer(text))


def test_an_answer_that_is_too_large_is_not_read_to_its_end() -> None:
    _, upstream = upstream_of(answer({"a": "x" * 1000}))
    with pytest.raises(UpstreamBroke, match="larger than 1000 bytes"):
        upstream.result(upstream.client.ask("GET", "/x", ClientContext(), limit=1000))


@pytest.mark.parametrize(
    ("version", "name", "status", "message"),
    [
        ("0.6.1", "not_found", 404, "Not Found"),
        ("0.6.1", "chat_backend_429", 429, "Error code: 429 - scripted failure"),
        ("0.2.24", "invoke_kwargs_string", 400, "body.kwargs: Input should be a valid dictionary"),
        ("0.2.12", "invoke_kwargs_missing", 400, "body.kwargs: Field required"),
        ("0.2.12", "tools_with_dead_group", 500, "Internal server error: An unexpected error"),
    ],
)
def test_every_generations_refusal_keeps_its_status_and_says_why(
    version: str, name: str, status: int, message: str
) -> None:
    with pytest.raises(UpstreamRefused, match=message) as refused:
        ask(recorded(version, name))
    assert refused.value.status == status
    assert refused.value.body["error"]["message"].startswith(message)
    assert set(refused.value.body["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("body", [b"<html><h1>Bad Gateway", b"", b"[]", b"{}", b"\xff\xfe"])
def test_a_refusal_without_words_gets_some(body: bytes) -> None:
    with pytest.raises(UpstreamRefused) as refused:
        ask(answer(body, 503))
    assert refused.value.status == 503
    assert "<" not in str(refused.value)
    assert str(refused.value)


def test_a_connection_lost_before_the_answer_is_a_broken_answer() -> None:
    with pytest.raises(UpstreamBroke, match="before it answered"):
        ask(hang_up)


def test_a_connection_lost_in_the_answer_is_a_broken_answer() -> None:
    def half(request: Any) -> None:
        request.setHeader(b"Content-Length", b"100")
        request.write(b'{"a": 1')
        request.loseConnection()

    with pytest.raises(UpstreamBroke):
        ask(half)


def cut(request: Any) -> None:
    request.setHeader(b"Content-Length", b"100")
    request.write(b'{"error": {"message": "slow')
    request.loseConnection()


def stalled(request: Any) -> None:
    request.setHeader(b"Content-Length", b"100")
    request.write(b'{"error": ')


def endless(request: Any) -> None:
    request.write(b"x" * 2_000_000)


def packed(request: Any) -> None:
    answer(b"no gzip", request.code, {"Content-Encoding": "gzip"})(request)


@pytest.mark.parametrize("body", [cut, stalled, endless, packed])
@pytest.mark.parametrize("status", [400, 401, 429, 500, 503])
def test_a_refusal_keeps_its_status_whatever_its_body_does(status: int, body: Answer) -> None:
    def refuse(request: Any) -> None:
        request.setResponseCode(status)
        body(request)

    for way in ("asked", "whole", "streamed"):
        stack, upstream = upstream_of(refuse)
        client, upload = upstream.client, BytesUpload(b"{}")
        waiting: Deferred[Any] = Deferred.fromCoroutine(
            chunks_of(upstream, [])
            if way == "streamed"
            else client.whole("/x", ClientContext(), upload, lambda *_: None)
            if way == "whole"
            else client.ask("GET", "/x", ClientContext())
        )
        upstream.settle()
        with pytest.raises(UpstreamRefused) as refused:
            upstream.result(waiting, after=10)
        assert refused.value.status == status
        assert set(refused.value.body["error"]) == {"message", "type", "param", "code"}
        assert str(status) in str(refused.value)
        assert stack.open == []


# --- time


@pytest.mark.parametrize("answers", [nothing, begin_events])
def test_silence_ends_after_the_timeout(answers: Answer) -> None:
    stack, upstream = upstream_of(answers)
    waiting = Deferred.fromCoroutine(upstream.client.ask("GET", "/x", ClientContext(), timeout=5))
    upstream.settle()
    upstream.clock.advance(4.9)
    assert not waiting.called
    with pytest.raises(UpstreamTimeout):
        upstream.result(waiting, after=0.2)
    assert stack.open == []
    assert pending_calls(upstream.clock) == []


def test_no_timer_is_left_after_an_answer() -> None:
    _, upstream = upstream_of(answer({"a": 1}))
    upstream.result(upstream.client.ask("GET", "/x", ClientContext()))
    assert pending_calls(upstream.clock) == []


def test_a_stream_may_be_long_but_not_silent() -> None:
    stack = FakeStack()
    stack.on("POST /x", begin_events)
    upstream = Upstream(stack, timeout=5)
    got: list[Json | None] = []
    reading = Deferred.fromCoroutine(chunks_of(upstream, got))
    for number in range(4):
        upstream.settle()
        upstream.clock.advance(4)
        stack.open[0].write(event({"n": number}))
    upstream.settle()
    assert got == [{"n": number} for number in range(4)]
    with pytest.raises(UpstreamTimeout, match="middle"):
        upstream.result(reading, after=5)
    assert stack.open == []
    assert pending_calls(upstream.clock) == []


@pytest.mark.parametrize("answers", [nothing, begin_events])
def test_cancelling_ends_the_request_at_once(answers: Answer) -> None:
    stack, upstream = upstream_of(answers)
    for work in (
        upstream.client.ask("POST", "/x", ClientContext(), b"{}"),
        chunks_of(upstream, []),
    ):
        waiting: Deferred[Any] = Deferred.fromCoroutine(work)
        upstream.settle()
        assert len(stack.open) == 1
        waiting.cancel()
        with pytest.raises(CancelledError):
            upstream.result(waiting)
        assert stack.open == []
        assert pending_calls(upstream.clock) == []


# --- streams


def test_chunks_come_one_by_one_as_they_are_sent() -> None:
    stack, upstream = upstream_of(begin_events)
    got: list[Json | None] = []
    reading = Deferred.fromCoroutine(chunks_of(upstream, got))
    for number in range(3):
        upstream.settle()
        stack.open[0].write(event({"n": number}))
        upstream.settle()
        assert got[-1] == {"n": number}
    stack.open[0].finish()
    upstream.result(reading)
    assert len(got) == 3


@pytest.mark.parametrize("version", ["0.2.24", "0.3.5", "0.6.1"])
def test_recorded_streams_are_read(version: str) -> None:
    name = {"0.2.24": "chat_v1_openai_v1_tools_stream"}.get(version, "chat_v1_tools_stream")
    chunks = stream(recorded(version, name))
    assert all(each["object"] == "chat.completion.chunk" for each in chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_the_end_mark_is_told_and_nothing_after_it_counts() -> None:
    assert stream(events({"a": 1}, b"[DONE]", {"b": 2})) == [{"a": 1}, None]


def test_an_end_mark_without_a_blank_line_counts() -> None:
    def write(request: Any) -> None:
        begin_events(request)
        request.write(b'data: {"a":1}\n\ndata: [DONE]')
        request.finish()

    assert stream(write) == [{"a": 1}, None]


def test_blanks_before_the_first_event_are_neither_kept_nor_read_twice() -> None:
    stack, upstream = upstream_of(begin_events)
    reading = Deferred.fromCoroutine(chunks_of(upstream, []))
    upstream.settle()
    blanks = b" \r\n" * 10_000
    tracemalloc.start()
    try:
        for _ in range(100):
            stack.open[0].write(blanks)
            upstream.settle()
        assert tracemalloc.get_traced_memory()[0] < 10 * len(blanks)
    finally:
        tracemalloc.stop()
    for piece in (b"\xef\xbb", b"\xbf", event({"a": 1}) + event(b"[DONE]")):
        stack.open[0].write(piece)
        upstream.settle()
    assert upstream.result(reading) == [{"a": 1}, None]


def test_a_peer_that_never_ends_after_its_end_mark_is_let_go() -> None:
    stack, upstream = upstream_of(begin_events)
    reading = Deferred.fromCoroutine(chunks_of(upstream, []))
    upstream.settle()
    stack.open[0].write(event({"a": 1}) + event(b"[DONE]"))
    assert upstream.result(reading) == [{"a": 1}, None]
    assert len(stack.open) == 1
    upstream.clock.advance(1)
    upstream.settle()
    assert stack.open == []


def test_leaving_a_stream_closes_the_upstream_connection() -> None:
    stack, upstream = upstream_of(begin_events)
    got: list[Json | None] = []
    reading = Deferred.fromCoroutine(chunks_of(upstream, got))
    upstream.settle()
    stack.open[0].write(event({"a": 1}))
    upstream.settle()
    assert got == [{"a": 1}]
    reading.cancel()
    with pytest.raises(CancelledError):
        outcome(reading)
    upstream.settle()
    assert stack.open == []


def test_one_json_object_will_do_for_a_stream() -> None:
    completion_json = {"choices": [{"index": 0}]}
    assert stream(answer(completion_json)) == [completion_json, None]


@pytest.mark.parametrize("body", [b"[]", b"<html>", b""])
def test_neither_stream_nor_object_is_no_answer(body: bytes) -> None:
    with pytest.raises(UpstreamBroke):
        stream(answer(body))


@pytest.mark.parametrize("data", [b"{", b"[]", b'"x"', b"null"])
def test_an_event_that_is_no_object_ends_the_stream(data: bytes) -> None:
    with pytest.raises(UpstreamBroke, match="not a JSON object"):
        stream(events(data))


def test_a_stream_that_breaks_off_is_no_end() -> None:
    def write(request: Any) -> None:
        begin_events(request)
        request.write(event(chunk({"content": "a"})))
        request.loseConnection()

    with pytest.raises(UpstreamBroke):
        stream(write)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"message": "400: Error code: 400 - no"}, 400),
        ({"message": "boom", "code": "500"}, 500),
        ({"message": "boom", "code": 429}, 429),
        ({"message": "1000 tokens are too many"}, 502),
        ({"message": "boom", "code": "context_length_exceeded"}, 502),
        ({"message": None}, 502),
        ("503: away", 503),
        ("no", 502),
        (["no"], 502),
    ],
)
def test_an_error_event_is_a_refusal_with_the_status_it_tells(error: Any, status: int) -> None:
    with pytest.raises(UpstreamRefused) as refused:
        stream(events({"error": error}))
    assert refused.value.status == status
    assert refused.value.body["error"]["message"]


@pytest.mark.parametrize(
    ("version", "name", "status"),
    [
        ("0.2.24", "chat_backend_400_stream", 400),
        ("0.6.1", "chat_backend_400_stream", 400),
        ("0.6.1", "chat_backend_error_event_midstream", 500),
    ],
)
def test_recorded_refusals_of_streams_tell_their_status(
    version: str, name: str, status: int
) -> None:
    with pytest.raises(UpstreamRefused) as refused:
        stream(recorded(version, name))
    assert refused.value.status == status


@pytest.mark.parametrize(
    ("chunk", "status"),
    [
        ([{"error": {"code": 429, "message": "too much"}}], 429),
        ({"detail": "too much", "status": 503, "title": "Overload"}, 503),
        ({"statusCode": 429, "message": "too much"}, 429),
        ({"msg": "too much", "code": 401}, 401),
        ({"error_code": "x", "error_message": "too much"}, 502),
        ({"fault": {"faultstring": "too much", "detail": {"errorcode": "x"}}}, 502),
        ({"error": "overload", "error_description": "too much"}, 502),
        ({"error": {"status_code": "500", "message": "too much"}}, 500),
        ({"error": {"code": 1e400, "message": "too much"}}, 502),
        ({"error": {"code": 400.5, "message": "too much"}}, 502),
        ({"error": {"code": {"a": 1}, "message": "too much"}}, 502),
        ({"error": {"code": "9" * 5000, "message": "too much"}}, 502),
        ({"error": {"code": "٤٢٩", "message": "too much"}}, 502),
    ],
)
def test_every_shape_of_an_error_is_read_in_an_event_as_in_a_whole_answer(
    chunk: Any, status: int
) -> None:
    text = json.dumps(chunk).replace("Infinity", "1e400").encode()
    for body in (text, b"data: " + text + b"\n\n", b"event: error\ndata: " + text + b"\n\n"):
        with pytest.raises(UpstreamRefused, match="too much") as refused:
            stream(answer(body))
        assert refused.value.status == status
        with pytest.raises(UpstreamRefused, match="too much"):
            (chunks_in if body.startswith((b"data", b"event")) else completion_in)(body)


@pytest.mark.parametrize("words", [b"too much", b'"too much"', b'["too much"]', b"{too much"])
def test_an_error_event_may_be_plain_words(words: bytes) -> None:
    with pytest.raises(UpstreamRefused, match="too much"):
        stream(answer(b"event: error\ndata: " + words + b"\n\n"))


@pytest.mark.parametrize("wrap", ["detail", "error"])
def test_an_error_within_another_is_the_error(wrap: str) -> None:
    error = {"message": "too much", "type": "quota", "param": None, "code": "q1"}
    with pytest.raises(UpstreamRefused) as refused:
        ask(answer({wrap: {"error": error}}, 429))
    assert refused.value.body == {"error": error}


def test_no_error_is_no_refusal() -> None:
    assert stream(events({"error": None, "a": 1})) == [{"error": None, "a": 1}]


# --- what an HTTP client's failure means


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectionRefusedError(), UpstreamUnavailable),
        (DNSLookupError("no such host"), UpstreamUnavailable),
        (ConnectError(), UpstreamUnavailable),
        (RuntimeError("odd"), UpstreamUnavailable),
        (ConnectTimeout(), UpstreamTimeout),
        (UpstreamTls("odd"), UpstreamTls),
    ],
)
def test_a_failure_to_connect_has_one_meaning(error: Exception, kind: type[ProxyError]) -> None:
    assert type(connecting_error(Failure(error))) is kind


def test_cancellation_stays_cancellation() -> None:
    clock = Clock()
    with pytest.raises(CancelledError):
        outcome(Deferred.fromCoroutine(response_within(fail(CancelledError()), clock, 5)))
    assert pending_calls(clock) == []


def test_a_connection_that_takes_too_long_is_a_timeout() -> None:
    connecting: Deferred[Any] = Deferred()
    clock = Clock()
    waiting = Deferred.fromCoroutine(response_within(connecting, clock, 5))
    clock.advance(5)
    with pytest.raises(UpstreamTimeout):
        outcome(waiting)


@pytest.mark.parametrize("status", [401, 404, 500])
def test_an_error_says_which_url_it_is_about(status: int) -> None:
    stack = FakeStack()
    stack.on("GET /v1/tools", answer({"detail": "no"}, status))
    upstream = Upstream(stack)
    asked = upstream.client.ask(
        "GET", "/v1/tools", ClientContext(), query={"authorization": "secret"}
    )
    with pytest.raises(UpstreamRefused) as caught:
        upstream.result(asked)
    assert caught.value.logged == (
        f"upstream_refused (HTTP status {status}) at http://stack:8321/v1/tools"
    )
