"""One chat request at the front door: what is refused, how failures are told."""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.internet.defer import CancelledError

from llamaproxy.tools.catalogue import Catalogue
from tests.chat.script import Chat
from tests.chat.streams import both, failure_in, message_of, nothing_left, replying, stack_with
from tests.support import (
    CHAT,
    INVOKE,
    Exchange,
    FakeStack,
    Proxy,
    answer,
    calling,
    completion,
    events,
    hang_up,
    nothing,
    recorded,
    recording,
    saying,
    tool_result,
)

Json = dict[str, Any]

#: Where each recorded version serves chat completions.
PATHS = {
    "0.2.12": "/v1/openai/v1",
    "0.2.24": "/v1/openai/v1",
    "0.3.5": "/v1/openai/v1",
    "0.6.1": "/v1",
    "0.7.3": "/v1",
    "ogx-1.5.0": "/v1",
}


def of_version(version: str) -> tuple[FakeStack, str]:
    """A stack that says it is *version*, and the route of its chat completions."""
    stack = FakeStack()
    stack.on("GET /v1/version", answer({"version": version.removeprefix("ogx-")}))
    return stack, f"POST {PATHS[version]}/chat/completions"


def error_of(exchange: Exchange) -> Json:
    """The error of an answer, which is of OpenAI's shape and nothing else."""
    assert exchange.field("Content-Type") == "application/json"
    body = exchange.json()
    error: Json = body["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    assert isinstance(error["message"], str) and error["message"].strip()
    assert "<" not in error["message"] and "Traceback" not in error["message"]
    return error


# --- requests


@pytest.mark.parametrize("target", ["/v1/chat/completions", "/openai/v1/chat/completions"])
@both
def test_both_paths_lead_to_the_loop(target: str, stream: bool) -> None:
    stack = stack_with("clock")
    stack.on(CHAT, calling("clock"), saying("Noon."))
    stack.on(INVOKE, tool_result("12:00"))
    proxy = Proxy(stack)
    exchange = proxy.request("POST", target, {"messages": [], "model": "m", "stream": stream})
    assert message_of(exchange) == {"role": "assistant", "content": "Noon."}
    assert nothing_left(proxy, stack)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"null",
        b"7",
        b"{}",
        b'{"messages": null}',
        b'{"messages": "Hello"}',
        b'{"messages": [], "tools": {}}',
        b'{"messages": [], "stream": "yes"}',
        b"[" * 100_000,
        b'{"messages": [' + b"[" * 5000 + b"]" * 5000 + b"]}",
    ],
)
def test_a_malformed_request_is_a_400_and_goes_no_further(body: bytes) -> None:
    """DESIGN: L21."""
    stack = FakeStack()
    exchange = Proxy(stack).request("POST", "/v1/chat/completions", body)
    assert exchange.status == 400
    assert error_of(exchange)["type"] == "invalid_request_error"
    assert stack.asked == []


def test_the_answer_says_what_it_is() -> None:
    exchange = Chat(saying("Hi."), server=[]).exchange
    assert exchange.status == 200
    assert exchange.field("Content-Type") == "application/json"
    assert exchange.json()["object"] == "chat.completion"


@both
def test_the_callers_credentials_travel_with_everything(stream: bool) -> None:
    """DESIGN: T4."""
    stack = stack_with("clock")
    stack.on(CHAT, calling("clock"), saying("Noon."))
    stack.on(INVOKE, tool_result("12:00"))
    relayed = {
        "Authorization": "Bearer secret",
        "X-LlamaStack-Provider-Data": '{"a": 1}',
        "traceparent": "00-1-2-01",
        "X-Request-Id": "r1",
    }
    dropped = {"X-LlamaStack-Client-Version": "0.1", "X-Llamaproxy-Tools": "*"}
    only_with_chats = {"Cookie": "a=b", "Api-Key": "k", "X-API-Key": "x", "User-Agent": "u"}
    Proxy(stack).chat(fields=relayed | dropped | only_with_chats, stream=stream)
    for route in (CHAT, INVOKE, "GET /v1/tools"):
        for received in stack.asked_for(route):
            for name, value in relayed.items():
                assert received.headers.getRawHeaders(name) == [value]
            for name in dropped:
                assert not received.headers.hasHeader(name)
            for name, value in only_with_chats.items():
                values = received.headers.getRawHeaders(name, [])
                assert (value in values) is (route == CHAT)


# --- failures before anything was sent


@pytest.mark.parametrize("version", PATHS)
@pytest.mark.parametrize(
    "name",
    [
        "chat_backend_400",
        "chat_backend_429",
        "chat_backend_500",
        "chat_model_unknown",
        "chat_no_messages",
        "chat_tool_choice_none_no_tools",
    ],
)
@both
def test_every_generations_refusal_keeps_its_status_and_its_words(
    version: str, name: str, stream: bool
) -> None:
    stack, route = of_version(version)
    stack.on(route, recorded(version, name))
    exchange = Proxy(stack).chat(stream=stream)
    response = recording(version, name)["response"]
    assert exchange.status == response["status"]
    error = error_of(exchange)
    body = json.dumps(response["body"])
    for word in ("scripted failure", "not found", "Input should be", "'tool_choice' is only"):
        assert (word in error["message"]) == (word in body)


@pytest.mark.parametrize("version", PATHS)
def test_every_generations_refused_stream_is_an_http_error(version: str) -> None:
    stack, route = of_version(version)
    stack.on(route, recorded(version, "chat_backend_400_stream"))
    exchange = Proxy(stack).chat(stream=True)
    assert exchange.status == 400
    assert "scripted failure" in error_of(exchange)["message"]


_OPENAI = {"message": "m", "type": "t", "param": "p", "code": "c"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": _OPENAI}, "m"),
        ({"error": {"message": "m"}}, "m"),
        ({"error": {"message": "m", "type": None, "code": None, "param": None}}, "m"),
        ({"error": "m"}, "m"),
        ({"error": {"detail": "m"}}, "m"),
        ({"error": {"detail": {"errors": [{"loc": ["body", "n"], "msg": "m"}]}}}, "body.n: m"),
        ({"error": {"detail": {"message": "m"}}}, "m"),
        ({"detail": "m"}, "m"),
        ({"detail": [{"loc": ["body", 0], "msg": "m", "type": "t"}]}, "body.0: m"),
        ({"detail": {"errors": [{"msg": "a"}, {"msg": "b"}]}}, "a; b"),
        ({"detail": {"why": 7}}, '{"why":7}'),
        ({"detail": None}, "418"),
        ({"detail": ""}, "418"),
        ({"error": None}, "418"),
        ({"error": {}}, "418"),
        ({"error": {"message": None}}, "418"),
        ({"error": {"message": ""}}, "418"),
        ({"error": 7}, "418"),
        ({"error": [1]}, "418"),
        ({}, "418"),
        (None, "418"),
        ([], "418"),
        (7, "418"),
        ("m", "m"),
        (b"m", "m"),
        (b"", "418"),
        (b"<html><body>nginx</body></html>", "418"),
        (b"\xff\xfe", ""),
    ],
)
@both
def test_any_error_body_becomes_openais_shape(body: object, message: str, stream: bool) -> None:
    """DESIGN: L21."""
    exchange = Chat(answer(body, 418), server=[], stream=stream).exchange
    assert exchange.status == 418
    error = error_of(exchange)
    assert message in error["message"]
    if body == {"error": _OPENAI}:
        assert error == _OPENAI


@both
def test_a_body_of_openais_shape_is_kept_whole(stream: bool) -> None:
    body = {"error": {**_OPENAI, "inner": {"x": 1}}, "request_id": "r"}
    exchange = Chat(answer(body, 429, {"Retry-After": "7"}), server=[], stream=stream).exchange
    assert exchange.json() == body
    assert exchange.field("Retry-After") == "7"


@both
def test_an_upstream_that_hangs_up_is_a_502(stream: bool) -> None:
    exchange = Chat(hang_up, server=[], stream=stream).exchange
    assert exchange.status == 502
    assert error_of(exchange)["type"] == "upstream_error"


def test_an_upstream_that_is_too_slow_is_a_504() -> None:
    stack = FakeStack()
    stack.on(CHAT, nothing)
    proxy = Proxy(stack, timeout=10)
    exchange = proxy.chat()
    proxy.advance(9.9)
    assert not exchange.answered
    proxy.advance(0.2)
    assert exchange.status == 504
    assert "10 s" in error_of(exchange)["message"]
    assert nothing_left(proxy, stack)


def test_a_stream_that_is_too_slow_is_a_504_as_long_as_nothing_was_sent() -> None:
    stack = FakeStack()
    stack.on(CHAT, nothing)
    proxy = Proxy(stack, timeout=10, keep_alive=15)
    exchange = proxy.chat(stream=True)
    proxy.advance(10)
    assert exchange.status == 504
    assert error_of(exchange)["code"] == "upstream_timeout"
    assert nothing_left(proxy, stack)


@both
def test_a_redirect_is_not_followed(stream: bool) -> None:
    stack = FakeStack()
    stack.on(CHAT, answer({}, 307, {"Location": "http://elsewhere/"}))
    exchange = Proxy(stack).chat(stream=stream)
    assert exchange.status == 502
    assert "redirect (307) to http://elsewhere/" in error_of(exchange)["message"]
    assert len(stack.asked_for(CHAT)) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[]",
        b"null",
        b"{}",
        b'{"choices": []}',
        b'{"choices": null}',
        b'{"choices": [null, 1]}',
        b'{"choices": "x"}',
    ],
)
def test_an_answer_without_a_message_is_a_502(body: bytes) -> None:
    exchange = Chat(answer(body), server=[]).exchange
    assert exchange.status == 502
    assert error_of(exchange)["code"] == "upstream_broke"


@pytest.mark.parametrize(
    "body", [b"", b"not json", b"[]", b"null", b"{}", b'{"choices": []}', b'{"choices": null}']
)
def test_a_stream_without_a_message_is_no_clean_end(body: bytes) -> None:
    exchange = Chat(answer(body), server=[], stream=True).exchange
    assert exchange.status == 502
    assert error_of(exchange)["code"] == "upstream_broke"


@pytest.mark.parametrize("message", [None, "text", [], 7, {}])
@both
def test_a_message_that_is_no_object_is_an_empty_one(message: Any, stream: bool) -> None:
    stack = FakeStack()
    whole = completion({})
    whole["choices"][0]["message"] = message
    stack.on(CHAT, answer(whole))
    exchange = Proxy(stack).chat(stream=stream)
    assert exchange.status == 200
    message = message_of(exchange)
    assert message["role"] == "assistant" and not message.get("content")


def test_a_choice_of_nulls_is_an_empty_answer() -> None:
    stack = FakeStack()
    nulls = {"index": None, "message": None, "finish_reason": None, "logprobs": None}
    stack.on(CHAT, answer({"id": None, "created": None, "model": None, "choices": [nulls]}))
    exchange = Proxy(stack).chat()
    body = exchange.json()
    assert body["choices"][0]["message"] == {"role": "assistant"}
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["id"].startswith("chatcmpl-") and body["model"] == "m"
    assert isinstance(body["created"], int)


@both
def test_a_failure_in_a_later_round_is_told_too(stream: bool) -> None:
    exchange = Chat(
        calling("clock"), answer({"error": {"message": "scripted"}}, 429), stream=stream
    ).exchange
    if stream:
        assert exchange.status == 200
        error = failure_in(exchange.events())
    else:
        assert exchange.status == 429
        error = error_of(exchange)
    assert error["message"] == "scripted"


def test_several_choices_are_one_upstream_request_and_all_come_back() -> None:
    stack = stack_with("clock")
    whole = completion({"content": "a"})
    entry = {"id": "c", "type": "function", "function": {"name": "own", "arguments": "{}"}}
    second = {"role": None, "content": None, "tool_calls": [entry]}
    whole["choices"].append({"index": 1, "message": second, "finish_reason": "stop"})
    stack.on(CHAT, answer(whole))
    body = Proxy(stack).chat(n=2).json()
    assert [choice["message"].get("content") for choice in body["choices"]] == ["a", None]
    assert [choice["finish_reason"] for choice in body["choices"]] == ["stop", "tool_calls"]
    assert body["choices"][1]["message"]["tool_calls"] == [entry]
    assert len(stack.asked_for(CHAT)) == 1


def test_a_stream_answered_with_one_object_is_streamed_all_the_same() -> None:
    stack = stack_with("clock")
    stack.on(
        CHAT,
        answer(completion({"content": None, "tool_calls": [_clock()]}, "tool_calls")),
        answer(completion({"content": "Noon."}, usage={"total_tokens": 1})),
    )
    stack.on(INVOKE, tool_result("12:00"))
    exchange = Proxy(stack).chat(stream=True)
    assert message_of(exchange) == {"role": "assistant", "content": "Noon."}


def test_a_whole_message_beside_a_null_delta_is_not_lost() -> None:
    stack = stack_with()
    whole = completion({"content": "Noon."})
    whole["choices"][0]["delta"] = None
    stack.on(CHAT, events(whole))
    assert message_of(Proxy(stack).chat(stream=True))["content"] == "Noon."


def _clock() -> Json:
    return {"id": "c", "type": "function", "function": {"name": "clock", "arguments": "{}"}}


def _parts(text: str) -> list[Json]:
    return [{"type": "text", "text": text}]


@both
def test_content_in_parts_is_not_lost_behind_the_text_of_a_round(stream: bool) -> None:
    stack = stack_with("clock")
    stack.on(
        CHAT,
        replying({"content": "Let me see.", "tool_calls": [_clock()]}, "tool_calls"),
        replying({"content": _parts("It is noon.")}),
    )
    stack.on(INVOKE, tool_result("12:00"))
    exchange = Proxy(stack).chat(stream=stream)
    assert exchange.status == 200
    assert b"It is noon." in exchange.body
    assert message_of(exchange)["content"].endswith("It is noon.")


@both
@pytest.mark.parametrize("bug", [RuntimeError("secret"), CancelledError("secret")])
def test_a_bug_behind_the_door_is_told_without_a_trace(
    stream: bool, bug: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancelling that is nobody's is one, and no end of the daemon."""

    async def broken(*_: object) -> None:
        raise bug

    monkeypatch.setattr(Catalogue, "invoke", broken)
    stack = stack_with("clock")
    stack.on(CHAT, replying({"content": "Let me see.", "tool_calls": [_clock()]}, "tool_calls"))
    proxy = Proxy(stack)
    exchange = proxy.chat(stream=stream)
    if stream:
        error = failure_in(exchange.events())
        assert exchange.text() == "Let me see."
    else:
        assert exchange.status == 500
        error = error_of(exchange)
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert b"secret" not in exchange.body
    assert exchange.complete
    assert nothing_left(proxy, stack)


@both
def test_an_error_in_an_answer_that_claims_success_is_an_error(stream: bool) -> None:
    exchange = Chat(
        answer({"error": {"message": "400: Error code: 400 - scripted"}}), server=[], stream=stream
    ).exchange
    assert exchange.status == 400
    assert "scripted" in error_of(exchange)["message"]


@pytest.mark.parametrize("length", [None, "9999"])
def test_an_answer_that_breaks_off_is_a_502(length: str | None) -> None:
    def write(request: Any) -> None:
        if length is not None:
            request.setHeader("Content-Length", length)
        request.write(b'{"choices": [{"message": {"content": "Hi."}}]}')
        request.loseConnection()

    exchange = Chat(write, server=[]).exchange
    assert exchange.status == 502
    assert error_of(exchange)["message"] == "Llama Stack did not finish its answer."
