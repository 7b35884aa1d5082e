"""Which answers the page shows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from twisted.internet.task import Clock

from llamaproxy.admin.answers import MAX_ANSWERS, MAX_OTHERS, MAX_PARTS, Answer, Answers
from llamaproxy.events import MANY, RequestEnded
from llamaproxy.records import CallRecord, ChatRecord, RequestRecord, RoundRecord


class Kept:
    """Answers, and the chats and requests that become them."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.requests: list[RequestRecord] = []
        self.answers = Answers(
            self.clock, lambda: self.requests, lambda: 1_000_000.0 + self.clock.seconds()
        )
        self.changed: list[Answer] = []
        self.dropped: list[int] = []
        self.answers.on_drop = lambda answer: self.dropped.append(answer.key)

    def begin(self) -> ChatRecord:
        request = RequestRecord("-", "-", "POST", "/v1/chat/completions", self.clock.seconds())
        self.requests.append(request)
        request.chat = ChatRecord(request, self.clock.seconds)
        self.answers.hear()
        return request.chat

    def end(self, chat: ChatRecord) -> None:
        assert chat.request is not None
        chat.request.ended = self.clock.seconds()
        self.answers.ended([RequestEnded(chat.request)])

    def other(self, kind: str) -> None:
        request = RequestRecord("-", "-", "GET", "/v1/models", self.clock.seconds())
        request.kind = kind
        self.answers.ended([RequestEnded(request)])

    @property
    def keys(self) -> list[int]:
        return [answer.key for answer in self.answers.kept]


def test_an_answer_is_its_record() -> None:
    kept = Kept()
    kept.clock.advance(5)
    chat = kept.begin()
    [answer] = kept.answers.kept
    assert answer.record is chat.request and answer.at == 1_000_005.0
    kept.end(chat)
    assert list(kept.answers.kept) == [answer] and not kept.answers.running
    assert kept.answers.get(answer.key) is answer and kept.answers.get(2) is None


def test_of_other_requests_those_are_kept_that_failed_and_not_too_many() -> None:
    kept = Kept()
    kept.other("")
    assert kept.keys == []
    chat = kept.begin()
    kept.end(chat)
    for _ in range(MAX_ANSWERS):
        kept.other("invalid_api_key")
    assert len(kept.keys) == 1 + MAX_OTHERS and kept.keys[0] == 1


def test_those_that_run_are_dropped_last() -> None:
    kept = Kept()
    running = kept.begin()
    for _ in range(MAX_ANSWERS + 10):
        kept.end(kept.begin())
    assert len(kept.keys) == MAX_ANSWERS
    assert kept.keys[:2] == [1, 13]
    assert kept.dropped == list(range(2, 13))
    kept.end(running)
    assert kept.keys[0] == 1


def in_one_moment(kept: Kept, count: int, kind: str = "", status: int = 200) -> None:
    """So many chats that have begun and ended before anything is heard of them."""
    for _ in range(count):
        request = RequestRecord("-", "-", "POST", "/v1/chat/completions", kept.clock.seconds())
        request.chat = ChatRecord(request, kept.clock.seconds)
        request.ended, request.status, request.kind = request.began, status, kind
        kept.requests.append(request)
    kept.answers.ended([RequestEnded(request) for request in kept.requests[-count:]])


def test_of_thousands_in_a_second_some_are_left_out_but_no_errors_and_not_the_last() -> None:
    kept = Kept()
    in_one_moment(kept, MAX_ANSWERS)
    assert len(kept.keys) == MAX_ANSWERS and not kept.dropped  # however fast they came
    in_one_moment(kept, 5, "upstream_broke")
    in_one_moment(kept, 5, status=499)
    for _ in range(500):
        in_one_moment(kept, 10)
        kept.clock.advance(0.0025)
    assert 100 <= list(kept.answers.kept)[-1].key - MAX_ANSWERS - 10 < 200
    errors = [answer for answer in kept.answers.kept if answer.record.status != 200]
    assert len(errors) == 5, "who has left is not pushed out by what goes well"
    errors = [answer for answer in kept.answers.kept if answer.record.kind]
    assert len(errors) == 5, "nor are errors"
    last = kept.requests[-1]
    in_one_moment(kept, MANY - 1)  # somebody has just looked
    assert list(kept.answers.kept)[-1].record is kept.requests[-1] is not last


def test_errors_are_not_pushed_out_while_somebody_looks() -> None:
    kept = Kept()
    in_one_moment(kept, 5, "upstream_broke")
    kept.other("invalid_api_key")
    for _ in range(3 * MAX_ANSWERS):
        kept.end(kept.begin())  # each is seen
        kept.clock.advance(0.001)
    assert len(kept.keys) == MAX_ANSWERS and kept.keys[:6] == [1, 2, 3, 4, 5, 6]
    in_one_moment(kept, 3 * MAX_ANSWERS, "upstream_broke")
    well = [answer for answer in kept.answers.kept if not answer.record.kind]
    assert len(well) == (MAX_ANSWERS - 1) // 2, "nor what goes well by errors"
    assert list(kept.answers.kept)[-1].record is kept.requests[-1]


def test_if_all_of_them_run_the_oldest_is_dropped_and_its_end_is_shown() -> None:
    kept = Kept()
    chats = [kept.begin() for _ in range(MAX_ANSWERS + 1)]
    assert kept.keys == list(range(2, MAX_ANSWERS + 2)) and len(kept.answers.running) == MAX_ANSWERS
    kept.end(chats[0])  # while all others run
    assert kept.keys == list(range(2, MAX_ANSWERS + 2))
    kept.end(chats[1])
    kept.end(chats[2])
    assert len(kept.keys) == MAX_ANSWERS == len(set(kept.keys))


def test_the_answer_to_one_chat_is_found_without_going_through_all_that_run() -> None:
    answers = Answers(Clock(), lambda: pytest.fail("all that run are gone through"))
    request = RequestRecord("-", "-", "POST", "/v1/chat/completions", 0.0)
    request.chat = chat = ChatRecord(request)
    answer = answers.answer_to(chat)
    assert answer is not None and answer.record is request
    assert answers.answer_to(chat) is answer
    request.ended = 1.0
    answers.ended([RequestEnded(request)])
    assert answers.answer_to(chat) is answers.answer_to(None) is None


def test_who_is_found_first_is_not_the_oldest() -> None:
    """Contents tell of one chat, and nobody has looked at the others yet."""
    kept = Kept()
    for _ in range(MAX_ANSWERS + 100):
        kept.clock.advance(1)
        request = RequestRecord("-", "-", "POST", "/v1/chat/completions", kept.clock.seconds())
        request.chat = ChatRecord(request, kept.clock.seconds)
        kept.requests.append(request)
    newest = kept.answers.answer_to(kept.requests[-1].chat)
    assert newest is not None
    running = [answer.record for answer in kept.answers.running]
    assert sorted(running, key=lambda each: each.began) == kept.requests[-MAX_ANSWERS:]
    assert newest in kept.answers.running


def test_one_with_nearly_all_the_parts_goes_when_it_ended_first() -> None:
    kept = Kept()
    huge = kept.begin()
    huge.calls += [CallRecord(huge, 1, 1, 0.0)] * (MAX_PARTS - 1)
    assert huge.request is not None
    huge.request.kind = "upstream_broke"
    kept.end(huge)
    for _ in range(MAX_ANSWERS):
        kept.clock.advance(1)
        chat = kept.begin()
        chat.rounds.append(RoundRecord(chat, 1, 0.0))
        kept.end(chat)
    assert len(kept.keys) == MAX_ANSWERS and 1 not in kept.keys


def test_of_answers_with_very_many_calls_fewer_are_kept() -> None:
    kept = Kept()
    running, small = kept.begin(), kept.begin()
    running.calls += [CallRecord(running, 1, 1, 0.0)] * MAX_PARTS
    kept.end(small)
    for _ in range(3):
        chat = kept.begin()
        chat.rounds += [RoundRecord(chat, 1, 0.0)] * (MAX_PARTS // 4)
        chat.calls += [CallRecord(chat, 1, 1, 0.0)] * (MAX_PARTS // 4)
        kept.end(chat)
    assert (kept.keys, kept.dropped) == ([1, 4, 5], [2, 3])
    kept.end(running)  # as many as there may be, alone
    assert (kept.keys, kept.dropped) == ([1], [2, 3, 4, 5])
    for _ in range(2):
        kept.end(kept.begin())
    assert kept.keys == [1, 6, 7]


def test_how_far_those_have_come_that_run_is_told_to_who_asks_and_once() -> None:
    kept = Kept()
    chat = kept.begin()
    kept.answers.note_running()  # nobody asks
    kept.answers.on_change = kept.changed.append
    kept.answers.note_running()
    round, call = RoundRecord(chat, 1, 0.0), CallRecord(chat, 1, 1, 0.0)

    def ended() -> None:
        round.ended = 1.0

    steps: list[Callable[[], object]] = [
        lambda: setattr(chat, "offered", ("clock",)),
        lambda: setattr(chat, "not_injected", "its tool_choice is none"),
        lambda: chat.rounds.append(round),
        round.note_first,
        ended,
        lambda: chat.calls.append(call),
        lambda: setattr(call, "began", 1.0),
        lambda: setattr(call, "ended", 2.0),
        lambda: setattr(kept.requests[0], "first_byte", 2.0),
        lambda: setattr(chat, "limit", "rounds"),
    ]
    for number, step in enumerate(steps, 2):
        step()
        for _ in range(3):
            kept.answers.note_running()
        assert len(kept.changed) == number
    kept.end(chat)
    kept.answers.note_running()
    assert [answer.key for answer in kept.changed] == [1] * (len(steps) + 2)
