"""The link between a worker and its parent."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols import amp
from twisted.python.failure import Failure
from twisted.test.iosim import FakeTransport, connect

from llamaproxy.jsontext import Json
from llamaproxy.workers.link import Link, Long, LongJson


class Echo(amp.Command):
    """Answers what it was asked."""

    arguments: ClassVar[Any] = (
        (b"data", Long()),
        (b"value", LongJson()),
        (b"maybe", Long(optional=True)),
    )
    response: ClassVar[Any] = arguments
    errors = {ValueError: b"VALUE"}  # noqa: RUF012


class Silent(amp.Command):
    """Is never answered."""


class Responders(amp.CommandLocator):
    def __init__(self) -> None:
        self.asked: list[Json] = []

    @Echo.responder
    def echo(self, data: bytes, value: Any, maybe: bytes | None = None) -> Json:
        self.asked.append({"data": data, "value": value, "maybe": maybe})
        if value == "wrong":
            raise ValueError("no")
        if value == "fault":
            raise KeyError("a fault of ours")
        return dict(self.asked[-1])

    @Silent.responder
    def silent(self) -> Deferred[Json]:
        return Deferred()


def linked(*locators: amp.CommandLocator) -> tuple[Link, Link, Any]:
    """Two ends, and what moves bytes between them."""
    here, there = Link(), Link(*locators)
    pump = connect(there, FakeTransport(there, True), here, FakeTransport(here, False))
    return here, there, pump


def asked(command: type[amp.Command], *locators: amp.CommandLocator, **values: Any) -> Json:
    here, _, pump = linked(*locators)
    answers: list[Any] = []
    asking = Deferred.fromCoroutine(here.ask(Clock(), 1, command, **values))
    asking.addBoth(answers.append)
    while pump.pump():
        pass
    [answer] = answers
    if not isinstance(answer, dict):
        answer.raiseException()
    return dict(answer)


@given(
    st.integers(0, 3 * 0xFFFF + 2),
    st.booleans() | st.text(max_size=5) | st.lists(st.integers(0, 9), max_size=3),
    st.none() | st.binary(max_size=5),
)
def test_values_arrive_whatever_their_length(length: int, value: Any, maybe: bytes | None) -> None:
    values = {"data": b"x" * length, "value": value, "maybe": maybe}
    if maybe is None:
        del values["maybe"]
    answer = asked(Echo, Responders(), **values)
    assert answer["data"] == b"x" * length and answer["value"] == value
    assert answer.get("maybe") == maybe


def test_the_first_locator_that_knows_a_command_answers_it() -> None:
    first, second = Responders(), Responders()
    asked(Echo, amp.CommandLocator(), first, second, data=b"", value=1)
    assert (len(first.asked), len(second.asked)) == (1, 0)


def test_errors_arrive() -> None:
    with pytest.raises(ValueError):
        asked(Echo, Responders(), data=b"", value="wrong")
    with pytest.raises(amp.UnhandledCommand):
        asked(Echo, data=b"", value=1)


def test_a_fault_of_who_answers_is_not_the_end_of_the_link() -> None:
    here, _, pump = linked(Responders())
    failures: list[Any] = []
    for value in ("fault", "well"):
        asking = Deferred.fromCoroutine(here.ask(Clock(), 1, Echo, data=b"", value=value))
        asking.addErrback(failures.append)
        while pump.pump():
            pass
        assert not here.lost.called
    [failure] = failures
    assert failure.check(amp.UnknownRemoteError)
    assert asking.called and not failure.check(ValueError)


def test_who_uses_a_link_can_answer_on_it_later() -> None:
    here, there, pump = linked()
    responders = Responders()
    there.answer_with(responders)
    asking = Deferred.fromCoroutine(here.ask(Clock(), 1, Echo, data=b"x", value=1))
    while pump.pump():
        pass
    assert asking.called and [each["data"] for each in responders.asked] == [b"x"]


def test_what_is_not_answered_in_time_is_given_up() -> None:
    here, _, pump = linked(Responders())
    clock = Clock()
    asking = Deferred.fromCoroutine(here.ask(clock, 5, Silent))
    pump.flush()
    for _ in range(7):  # limits are looked at once a second
        clock.advance(1)
    failures: list[Any] = []
    asking.addErrback(failures.append)
    assert failures[0].check(TimeoutError)


def test_who_waits_hears_that_the_other_end_is_gone() -> None:
    here: Any = Link()
    here.makeConnection(StringTransport())
    outcomes: list[Any] = []
    asking = Deferred.fromCoroutine(here.ask(Clock(), 5, Silent))
    asking.addErrback(outcomes.append)
    here.lost.addCallback(outcomes.append)
    here.connectionLost(Failure(ConnectionDone()))
    assert len(outcomes) == 2 and outcomes[-1] is None
