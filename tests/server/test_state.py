"""The phases of a connection and its deadlines, by a clock and without a connection."""

from __future__ import annotations

from math import inf

import pytest
from twisted.internet.task import Clock

from llamaproxy.server.limits import Limits
from llamaproxy.server.state import ANSWER, BODY, CLOSING, HEAD, IDLE, TUNNEL, ConnectionState

LIMITS = Limits(
    header_timeout=10,
    client_timeout=20,
    read_timeout=600,
    linger_timeout=30,
    linger_silence=5,
    over_limit_timeout=3,
)


class Timed:
    """A state and its clock."""

    def __init__(self, over_limit: bool = False) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.state = ConnectionState(self.clock.seconds, LIMITS, over_limit)

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.state.deadline - self.clock.seconds()


def test_a_request_goes_through_the_phases_each_with_its_deadline() -> None:
    timed = Timed()
    state = timed.state
    seen = [(state.phase, timed.left)]
    for transition in (
        state.head_begins,
        state.body_continues,
        state.answer_begins,
        state.answer_ended,
        state.head_begins,
        state.tunnel_begins,
    ):
        timed.clock.advance(1)
        transition()
        seen.append((state.phase, timed.left))
    assert seen == [
        (HEAD, 10),
        (HEAD, 9),
        (BODY, 20),
        (ANSWER, inf),
        (IDLE, 20),
        (HEAD, 10),
        (TUNNEL, inf),
    ]


def test_a_head_has_one_deadline_and_a_body_a_new_one_with_every_part() -> None:
    timed = Timed()
    for _ in range(4):
        timed.clock.advance(2)
        timed.state.head_begins()
    assert timed.left == 2
    for _ in range(4):
        timed.state.body_continues()
        timed.clock.advance(15)
    assert timed.left == 5


def test_what_comes_while_a_request_is_answered_begins_no_head_yet() -> None:
    timed = Timed()
    timed.state.answer_begins()
    timed.state.head_begins()
    assert (timed.state.phase, timed.left) == (ANSWER, inf)


def test_a_connection_over_the_limit_has_less_time() -> None:
    assert Timed(over_limit=True).left == 3
    short = ConnectionState(Clock().seconds, Limits(header_timeout=1), over_limit=True)
    assert short.deadline == 1


def test_only_a_request_that_has_begun_to_come_is_being_received() -> None:
    timed = Timed()
    state = timed.state
    received = [state.receiving]
    for transition in (
        state.head_begins,
        state.body_continues,
        state.answer_begins,
        state.answer_ended,
        state.close,
    ):
        transition()
        received.append(state.receiving)
    assert received == [False, True, True, False, False, False]


@pytest.mark.parametrize("tunnel", [False, True])
def test_a_stalled_client_has_one_deadline_until_it_has_read_everything(tunnel: bool) -> None:
    timed = Timed()
    timed.state.answer_begins()
    if tunnel:
        timed.state.tunnel_begins()
    timed.state.stall()
    timed.clock.advance(100)
    timed.state.stall()
    assert timed.state.stalled
    assert timed.left == 500
    timed.state.unstall()
    assert not timed.state.stalled
    assert timed.left == inf


def test_the_next_request_is_awaited_from_when_the_answer_has_been_read() -> None:
    timed = Timed()
    timed.state.answer_begins()
    timed.state.stall()
    timed.state.answer_ended()
    assert (timed.state.phase, timed.left) == (IDLE, 600)
    timed.clock.advance(100)
    timed.state.unstall()
    assert (timed.state.phase, timed.left) == (IDLE, 20)


@pytest.mark.parametrize("phase", [HEAD, BODY, CLOSING])
def test_a_stall_changes_no_other_deadline(phase: int) -> None:
    timed = Timed()
    if phase == BODY:
        timed.state.body_continues()
    elif phase == CLOSING:
        timed.state.close()
    before = timed.left
    timed.state.stall()
    timed.state.unstall()
    assert (timed.state.phase, timed.left) == (phase, before)


def test_a_closing_connection_is_given_time_to_read() -> None:
    timed = Timed()
    timed.state.close()
    timed.clock.advance(100)
    timed.state.linger()  # for a client that was not refused, sending changes nothing
    assert (timed.state.phase, timed.left) == (CLOSING, 500)


def test_a_refused_client_may_send_for_a_while_and_be_silent_for_a_moment() -> None:
    timed = Timed()
    timed.state.refuse()
    left = []
    for _ in range(8):
        timed.clock.advance(4)
        timed.state.linger()
        left.append(timed.left)
    assert timed.state.phase == CLOSING
    assert left == [5, 5, 5, 5, 5, 5, 2, -2]
