"""Whether the server can be reached: when it is asked, and how patiently."""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from llamaproxy.admin.reachability import Reachability
from llamaproxy.errors import (
    McpTimeout,
    ProxyError,
    UpstreamBroke,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamTls,
    UpstreamUnavailable,
)
from llamaproxy.events import Event, ListRefreshed, Observers, RequestEnded
from llamaproxy.records import ChatRecord, RequestRecord, RoundRecord
from tests.support import pending_calls


class Asked:
    """A server that answers when it is told to."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.questions: list[Deferred[int]] = []
        self.reachability = Reachability(self.clock, self._ask)
        self.tell = Observers()
        self.reachability.listen(self.tell)

    def _ask(self) -> Deferred[int]:
        self.questions.append(Deferred())
        return self.questions[-1]

    def fail_for(self, seconds: float, step: float = 5) -> None:
        """Let time pass in which every question fails at once."""
        end = self.clock.seconds() + seconds
        while self.clock.seconds() < end:
            if self.questions and not self.questions[-1].called:
                self.questions[-1].errback(UpstreamUnavailable())
            self.clock.advance(step)


def request_ended(kind: str) -> RequestEnded:
    record = RequestRecord("r", "-", "POST", "/v1/chat/completions", 0.0)
    record.kind, record.error = kind, f"{kind} (words)"
    return RequestEnded(record)


#: The records of requests, which those of their chats do not keep.
_requests: list[RequestRecord] = []


def chat_ended(*rounds: str, status: int = 200, kind: str = "", at: float = 0.0) -> RequestEnded:
    """A chat whose rounds have ended with these kinds of errors, empty for none, *at* that time."""
    record = RequestRecord("r", "-", "POST", "/v1/chat/completions", 0.0, status=status, kind=kind)
    record.route, record.chat = "chat_completions", ChatRecord(record)
    _requests.append(record)
    for number, each in enumerate(rounds, 1):
        record.chat.rounds.append(RoundRecord(record.chat, number, 0.0, ended=at, kind=each))
    return RequestEnded(record)


def test_nothing_is_asked_until_somebody_wants_to_know() -> None:
    server = Asked()
    server.clock.advance(1000)
    assert server.questions == [] and server.reachability.reachable is None


def test_an_answer_is_news_for_a_while() -> None:
    server = Asked()
    server.reachability.wanted()
    server.questions[0].callback(404)
    assert server.reachability.reachable is True
    for _ in range(14):
        server.clock.advance(1)
        server.reachability.wanted()
    assert len(server.questions) == 1
    server.clock.advance(1)
    server.reachability.wanted()
    assert len(server.questions) == 2


@pytest.mark.parametrize(
    ("status", "reachable"), [(200, True), (404, True), (500, True), (502, None), (503, None)]
)
def test_a_gateway_that_answers_for_the_server_says_nothing_of_it(
    status: int, reachable: bool | None
) -> None:
    server = Asked()
    record = RequestRecord("r", "-", "GET", "/v1/models", 0.0, route="passthrough", status=status)
    server.tell(RequestEnded(record))
    assert server.reachability.reachable is reachable


@pytest.mark.parametrize(
    ("status", "reachable"), [(400, True), (429, True), (500, True), (502, None)]
)
def test_a_chat_that_the_server_refuses_is_answered(status: int, reachable: bool | None) -> None:
    server = Asked()
    event = chat_ended("upstream_refused", status=200, kind="upstream_refused")  # it had begun
    assert event.request.chat is not None
    event.request.chat.rounds[0].status = status
    server.tell(event)
    assert server.reachability.reachable is reachable


def test_an_answer_like_the_last_is_no_news_but_an_error_and_what_follows_it_is() -> None:
    server = Asked()

    def ends(kind: str = "") -> float | None:
        event = chat_ended(kind, kind=kind, at=server.clock.seconds())
        event.request.ended = server.clock.seconds()
        server.tell(event)
        return server.reachability.answered_at

    server.clock.advance(1)
    assert ends() == 1.0
    server.clock.advance(0.05)
    assert ends() == 1.0
    ends("upstream_broke")
    assert (server.reachability.failures, server.reachability.reachable) == (1, None)
    assert ends() == 1.05 and server.reachability.failures == 0
    server.clock.advance(0.2)
    assert ends() == 1.25


def test_chats_that_are_answered_spare_the_question() -> None:
    server = Asked()
    for _ in range(100):
        server.tell(chat_ended("", at=server.clock.seconds()))
        server.reachability.wanted()
        server.clock.advance(10)
    assert server.questions == [] and server.reachability.reachable is True


@pytest.mark.parametrize(
    ("event", "failures"),
    [
        (chat_ended("", "upstream_timeout", status=504, kind="upstream_timeout"), 1),
        (chat_ended("", "cancelled", status=499), 0),
        (chat_ended("upstream_timeout", status=504, kind="upstream_timeout"), 2),
        (chat_ended("cancelled", status=499), 1),
        (chat_ended(), 1),
    ],
)
def test_a_round_that_is_answered_counts_whatever_follows_it(
    event: RequestEnded, failures: int
) -> None:
    server = Asked()
    server.tell(request_ended("upstream_unavailable"))
    server.tell(event)
    assert server.reachability.failures == failures


@pytest.mark.parametrize("kind", ["", "upstream_unavailable"])
def test_an_answer_of_before_the_errors_is_no_news(kind: str) -> None:
    """A chat whose tool has run for long since; its client leaves, or its next round fails."""
    server = Asked()
    server.clock.advance(3)
    server.tell(request_ended("upstream_unavailable"))
    server.fail_for(40)
    assert server.reachability.reachable is False
    failures = server.reachability.failures
    rounds = ["", kind] if kind else [""]
    event = chat_ended(*rounds, status=502 if kind else 499, kind=kind)
    event.request.ended = server.clock.seconds()
    server.tell(event)
    assert server.reachability.reachable is False
    assert server.reachability.failures == failures + bool(kind)
    assert server.reachability.as_json()["answered_seconds_ago"] == server.clock.seconds()
    assert pending_calls(server.clock) or not server.questions[-1].called


def test_an_answer_that_is_told_late_ends_the_failures_before_it() -> None:
    """Of processes beside each other, what each has heard comes in any order."""
    server = Asked()
    reachability = server.reachability
    for at in (0.0, 10.0, 29.9, 31.0):
        server.clock.advance(at - server.clock.seconds())
        reachability.failed(at, "upstream_broke", "words")
    assert reachability.reachable is False
    reachability.answered(30.0)
    shown = reachability.as_json()
    assert (shown["reachable"], shown["errors_in_a_row"]) == (None, 1)
    assert shown["answered_seconds_ago"] == 1.0
    reachability.answered(9.0)
    reachability.failed(29.95, "upstream_broke", "older words")
    assert (reachability.failures, reachability.error) == (1, "words")
    reachability.failed(62.0, "upstream_broke", "words")
    assert reachability.reachable is None, "there are two in a row"
    reachability.answered(62.5)
    assert reachability.reachable is True


def test_an_answer_after_a_question_that_failed_is_news() -> None:
    server = Asked()
    server.reachability.wanted()
    for fails in (False, True, False):
        event = chat_ended("", at=server.clock.seconds())
        event.request.ended = server.clock.seconds()
        if fails:
            server.questions[0].errback(UpstreamUnavailable())
            assert server.reachability.reachable is None
        else:
            server.tell(event)
            assert server.reachability.reachable is True
        server.clock.advance(0.03)


def test_an_answer_is_as_old_as_it_is() -> None:
    server = Asked()
    server.clock.advance(10)
    server.tell(chat_ended("", at=1.0))
    assert server.reachability.as_json()["answered_seconds_ago"] == 9.0


def test_many_failures_at_once_are_one_stall() -> None:
    server = Asked()
    for _ in range(500):
        server.tell(request_ended("upstream_timeout"))
    assert server.reachability.reachable is None
    server.clock.advance(5)
    assert len(server.questions) == 1
    server.clock.advance(11)  # for which real servers have been seen to stall
    server.questions[0].callback(200)
    assert server.reachability.reachable is True
    assert not pending_calls(server.clock)


def test_it_cannot_be_reached_after_failures_for_thirty_seconds() -> None:
    server = Asked()
    server.tell(request_ended("upstream_unavailable"))
    server.fail_for(30)
    assert server.reachability.reachable is None
    server.fail_for(5)
    assert server.reachability.reachable is False
    asked = len(server.questions)
    assert asked <= 8
    server.fail_for(600)
    assert len(server.questions) <= asked + 121


def test_a_slow_question_is_the_only_one() -> None:
    server = Asked()
    server.tell(request_ended("upstream_broke"))
    server.clock.advance(5)
    for _ in range(20):
        server.tell(request_ended("upstream_broke"))
        server.reachability.wanted()
        server.clock.advance(1)
    assert len(server.questions) == 1


@pytest.mark.parametrize("to_a_chat", [True, False])
def test_an_answer_ends_it_at_once(to_a_chat: bool) -> None:
    server = Asked()
    server.tell(request_ended("upstream_unavailable"))
    server.fail_for(60)
    assert server.reachability.reachable is False
    if to_a_chat:
        server.tell(chat_ended("", at=server.clock.seconds()))
    else:
        server.questions[-1].callback(401)
    assert server.reachability.reachable is True
    assert not pending_calls(server.clock)
    shown = server.reachability.as_json()
    assert shown["errors_in_a_row"] == 0 and "upstream_unavailable" in shown["last_error"]


@pytest.mark.parametrize(
    "event",
    [
        request_ended(""),
        request_ended("invalid_request"),
        request_ended("upstream_refused"),
        request_ended("shutting_down"),
        ListRefreshed(1, {}, {"g": McpTimeout()}),
        ListRefreshed(1, {}, {}, UpstreamRefused(500)),
        ListRefreshed(1, {}, {}, UpstreamTimeout(), remembered={""}),
    ],
)
def test_what_says_nothing_of_it_changes_nothing(event: Event) -> None:
    server = Asked()
    server.tell(event)
    assert server.reachability.reachable is None and server.reachability.failures == 0
    assert not pending_calls(server.clock)


@pytest.mark.parametrize(
    "error", [UpstreamUnavailable(), UpstreamTls(), UpstreamTimeout(), UpstreamBroke()]
)
def test_a_listing_and_a_question_that_fail_count(error: ProxyError) -> None:
    server = Asked()
    server.tell(ListRefreshed(1, {}, {}, error))
    server.clock.advance(5)
    server.questions[-1].errback(error)
    assert server.reachability.failures == 2 and server.reachability.kind == error.kind


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_gateway_without_its_server_is_none(status: int) -> None:
    server = Asked()
    server.reachability.wanted()
    server.questions[0].callback(status)
    assert server.reachability.failures == 1 and str(status) in server.reachability.error


@pytest.mark.parametrize("asking", [True, False])
def test_nothing_is_asked_when_it_has_stopped(asking: bool) -> None:
    server = Asked()
    server.tell(request_ended("upstream_unavailable"))
    if asking:
        server.clock.advance(5)
    server.reachability.stop()
    server.tell(request_ended("upstream_unavailable"))
    server.reachability.wanted()
    server.clock.advance(100)
    assert len(server.questions) == asking and not pending_calls(server.clock)


def test_the_question_may_have_its_answer_at_once() -> None:
    clock = Clock()
    asked: list[int] = []

    async def answer() -> int:
        asked.append(1)
        raise UpstreamUnavailable("x" * 10_000)

    reachability = Reachability(clock, answer)
    reachability.wanted()
    clock.advance(5)
    assert len(asked) == 2 and len(reachability.error) <= 500
    reachability.stop()


def test_what_is_passed_on_is_an_answer_of_the_servers() -> None:
    server = Asked()
    server.tell(request_ended("upstream_unavailable"))
    for route, status, failures in (("", 401, 1), ("passthrough", 499, 1), ("passthrough", 404, 0)):
        record = RequestRecord("r", "-", "GET", "/v1/models", 0.0)
        record.route, record.status = route, status
        server.tell(RequestEnded(record))
        assert server.reachability.failures == failures
