"""What ends a streamed answer with an error, and how its client learns of it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chat.script import HALF, call_chunk, live, streamed
from tests.support import INVOKE, answer, call, chunk, events, nothing

Json = dict[str, Any]


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
