"""Whatever an upstream sends, a client gets an answer or an error, and nothing stays behind."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.chat.streams import client_tool, nothing_left, stack_with
from tests.chat.test_stream import odd_choices, odd_chunks
from tests.support import (
    CHAT,
    INVOKE,
    Exchange,
    Proxy,
    answer,
    chunk,
    completion,
    events,
    tool_result,
)

Json = dict[str, Any]

_end = st.sampled_from([[], [b"[DONE]"], [chunk({}, "stop")], [{"error": {"message": "scripted"}}]])
_slow = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])


def exchange_with(reply: Any, **more: Any) -> tuple[Exchange, bool]:
    """What a client gets of an upstream that sends *reply*, then a word; is nothing left?"""
    stack = stack_with("clock", "a")
    stack.on(CHAT, reply, events(chunk({"content": "Hi."}, "stop")))
    if not more.get("stream"):
        stack.on(CHAT, reply, answer(completion({"content": "Hi."})))
    stack.on(INVOKE, tool_result("12:00"))
    proxy = Proxy(stack)
    exchange = proxy.chat(tools=[client_tool("own")], **more)
    proxy.advance(2)
    return exchange, nothing_left(proxy, stack)


def is_error(body: Json) -> bool:
    """Whether *body* is an error of OpenAI's shape that is not the proxy's own fault."""
    message = body["error"]["message"]
    return isinstance(message, str) and "inside llamaproxy" not in message


@pytest.mark.parametrize("content", [1, True, {"text": "a"}])
def test_content_that_is_no_text_is_no_bug_of_ours(content: Any) -> None:
    exchange, tidy = exchange_with(
        events(chunk({"content": content}), chunk({}, "stop")), stream=True
    )
    assert tidy and exchange.events()[-1] == "[DONE]"
    assert all(is_error(each) for each in exchange.events()[:-1] if "error" in each)


@_slow
@given(st.lists(odd_chunks, max_size=4), _end, st.sampled_from([None, 2]))
def test_an_odd_stream_is_streamed_or_refused(
    chunks: list[Json], end: list[Any], n: int | None
) -> None:
    exchange, tidy = exchange_with(events(*chunks, *end), stream=True, n=n)
    assert exchange.complete and tidy
    if exchange.status != 200:
        assert is_error(exchange.json())
        return
    shown = exchange.events()
    assert shown[-1] == "[DONE]"
    for each in shown[:-1]:
        assert is_error(each) if "error" in each else isinstance(each["choices"], list)


@_slow
@given(
    st.fixed_dictionaries(
        {}, optional={"id": st.none() | st.integers(), "usage": st.none() | st.integers()}
    ),
    st.lists(odd_choices, max_size=3),
    st.sampled_from([None, 2]),
)
def test_an_odd_answer_is_an_answer_or_refused(
    fields: Json, choices: list[Json], n: int | None
) -> None:
    whole = [{**c, "message": c["delta"]} if "delta" in c else c for c in choices]
    exchange, tidy = exchange_with(answer({**fields, "choices": whole}), n=n)
    assert exchange.complete and tidy
    if exchange.status == 200:
        for choice in exchange.json()["choices"]:
            assert choice["message"]["role"] == "assistant"
            assert isinstance(choice["finish_reason"], str)
    else:
        assert exchange.status == 502
        assert is_error(exchange.json())
