"""Records: whom an answer has waited for."""

from __future__ import annotations

import pytest

from llamaproxy.records import (
    CallRecord,
    ChatRecord,
    Outcome,
    RequestRecord,
    RoundRecord,
    name_of,
)


def request_from(began: float) -> tuple[RequestRecord, ChatRecord]:
    request = RequestRecord("-", "-", "POST", "/v1/chat/completions", began)
    chat = request.chat = ChatRecord(request)
    return request, chat


def round_of(chat: ChatRecord, began: float, ended: float | None) -> None:
    chat.rounds.append(RoundRecord(chat, len(chat.rounds) + 1, began, ended=ended))


def call_of(chat: ChatRecord, asked: float, ended: float | None) -> None:
    number = len(chat.calls) + 1
    chat.calls.append(CallRecord(chat, number, len(chat.rounds), asked, ended=ended))


def test_tools_that_run_at_the_same_time_count_once() -> None:
    request, chat = request_from(10.0)
    chat.listing = 0.5
    round_of(chat, 11.0, 13.0)
    call_of(chat, 13.0, 16.0)
    call_of(chat, 13.0, 14.0)
    call_of(chat, 13.0, 17.0)
    round_of(chat, 17.0, 18.0)
    request.ended = 19.0
    assert request.shares(100.0) == (3.0, 4.5, 1.5)


@pytest.mark.parametrize(("outcome", "tools"), [("refused", 0), ("unknown", 0), ("cancelled", 2)])
def test_a_call_that_no_tool_was_given_has_waited_for_none(outcome: Outcome, tools: float) -> None:
    request, chat = request_from(0.0)
    call_of(chat, 1.0, 3.0)
    chat.calls[0].outcome = outcome
    request.ended = 3.0
    assert request.shares(100.0) == (0.0, tools, 3.0 - tools)


def test_what_runs_still_counts_until_now() -> None:
    request, chat = request_from(0.0)
    round_of(chat, 1.0, None)
    assert request.shares(4.0) == (3.0, 0.0, 1.0)


@pytest.mark.parametrize("value", [None, 1, ["m"], {"m": 1}])
def test_what_is_no_name_is_none(value: object) -> None:
    assert name_of(value) == ""


def test_what_a_server_counts_is_believed_only_if_it_can_be() -> None:
    chat = ChatRecord()
    round = RoundRecord(chat, 1, 0.0)
    round.note_answer("m", None, {"prompt_tokens": -1, "completion_tokens": 1 << 50})
    assert (round.model, round.input_tokens, round.output_tokens) == ("m", None, None)
    round.note_answer("m", "stop", "usage")
    round.note_answer("m", "stop", {"prompt_tokens": 3, "completion_tokens": 0})
    assert (round.finish_reason, round.input_tokens, round.output_tokens) == ("stop", 3, 0)


def test_a_part_does_not_keep_what_it_is_part_of() -> None:
    request, chat = request_from(0.0)
    round_of(chat, 0.0, None)
    [round] = chat.rounds
    assert chat.request is request and round.chat is chat
    del request
    assert chat.request is None
    del chat
    with pytest.raises(ReferenceError):
        round.note_first()
