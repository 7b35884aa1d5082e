"""The server's key, which it may repeat in its errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.web.http import Request

from llamaproxy.server.keys import ApiKeys
from llamaproxy.upstream.secrets import Secret
from tests.chat.streams import both
from tests.support import CHAT, Answer, Exchange, FakeStack, Proxy, answer, events

KEY = b"sk-secret-1234"
REFUSAL = {"error": {"message": f"Incorrect API key provided: {KEY.decode()}.", "code": "bad_key"}}


@given(st.lists(st.sampled_from([KEY, KEY[:5], KEY[5:], b"s", b"x"]), max_size=8), st.data())
def test_a_secret_is_hidden_however_it_is_cut(parts: list[bytes], data: st.DataObject) -> None:
    text = b"".join(parts)
    masker = Secret(KEY).masker()
    out, at = b"", 0
    while at < len(text):
        size = data.draw(st.integers(1, len(text)))
        out += masker.feed(text[at : at + size])
        at += size
    out += masker.finish()
    assert out == text.replace(KEY, b"*" * len(KEY))
    assert len(out) == len(text)


def proxy(stack: FakeStack, tmp_path: Path, key: bytes = KEY) -> Proxy:
    keys = tmp_path / "keys"
    keys.write_text("mine\n")
    return Proxy(stack, keys=ApiKeys.read(str(keys)), server_key=key)


def repeating(request: Request) -> None:
    fields = {"WWW-Authenticate": f'Bearer realm="{KEY.decode()}"'}
    answer(REFUSAL, 401, fields)(request)


@pytest.mark.parametrize(
    ("stream", "respond"),
    [
        (False, repeating),
        (True, repeating),
        (True, events(REFUSAL)),
        (False, answer(REFUSAL)),
        (False, events(REFUSAL)),
    ],
)
def test_a_chat_does_not_show_it(stream: bool, respond: Answer, tmp_path: Path) -> None:
    stack = FakeStack()
    stack.on(CHAT, respond)
    exchange = proxy(stack, tmp_path).chat(stream=stream, fields={"Authorization": "Bearer mine"})
    assert_hidden(exchange)
    assert exchange.json()["error"]["message"] == f"Incorrect API key provided: {'*' * len(KEY)}."
    [asked] = stack.asked_for(CHAT)
    assert asked.headers.getRawHeaders("Authorization") == [f"Bearer {KEY.decode()}"]


@both
def test_nor_where_it_was_redirected_to(stream: bool, tmp_path: Path) -> None:
    stack = FakeStack()
    stack.on(CHAT, answer(b"", 307, {"Location": f"http://elsewhere/{KEY.decode()}/"}))
    fields = {"Authorization": "Bearer mine"}
    exchange = proxy(stack, tmp_path).chat(stream=stream, fields=fields)
    assert exchange.status == 502
    assert "redirect (307) to http://elsewhere/***, which" in exchange.json()["error"]["message"]
    assert_hidden(exchange)


@both
@pytest.mark.parametrize("key", ["null", "429", "error", "message", "{", 'a"b\\c', "/"])
def test_a_key_that_stands_in_json_of_itself_leaves_that_whole(
    key: str, stream: bool, tmp_path: Path
) -> None:
    refusal = {"error": {"message": f"wrong: {key}", "code": 429, "param": None, "more": [key]}}
    stack = FakeStack()
    stack.on(CHAT, answer(refusal, 429))
    fields = {"Authorization": "Bearer mine"}
    exchange = proxy(stack, tmp_path, key.encode()).chat(stream=stream, fields=fields)
    assert exchange.status == 429
    error = exchange.json()["error"]
    hidden = "*" * len(key)
    assert error["message"] == f"wrong: {hidden}" and error["more"] == [hidden]
    assert error["code"] == 429 and error["param"] is None


def test_a_key_is_hidden_however_deep_it_stands_and_in_names_too(tmp_path: Path) -> None:
    stack = FakeStack()
    deep: Any = {KEY.decode(): KEY.decode()}
    for _ in range(190):
        deep = [deep]
    stack.on(CHAT, answer({"error": {"message": "no", "deep": deep}}, 400))
    exchange = proxy(stack, tmp_path).chat(fields={"Authorization": "Bearer mine"})
    assert exchange.status == 400
    assert exchange.body.count(b"*" * len(KEY)) == 2
    assert_hidden(exchange)


def test_nor_does_any_other_path(tmp_path: Path) -> None:
    stack = FakeStack()
    stack.on("GET /v1/models", repeating)
    fields = {"Authorization": "Bearer mine", "Accept-Encoding": "gzip"}
    exchange = proxy(stack, tmp_path).request("GET", "/v1/models", fields=fields)
    assert exchange.status == 401
    assert_hidden(exchange)
    assert exchange.complete


def test_nor_does_a_status_line(tmp_path: Path) -> None:
    def shouting(request: Request) -> None:
        request.setResponseCode(401, b"No such key: " + KEY)
        request.write(b"")
        request.finish()

    stack = FakeStack()
    stack.on("GET /v1/models", shouting)
    fields = {"Authorization": "Bearer mine"}
    exchange = proxy(stack, tmp_path).request("GET", "/v1/models", fields=fields)
    assert exchange.status == 401
    assert exchange.response.phrase == b"No such key: " + b"*" * len(KEY)


def assert_hidden(exchange: Exchange) -> None:
    output: Any = [exchange.body, *exchange.response.headers.getAllRawHeaders()]
    assert KEY.decode() not in repr(output)
