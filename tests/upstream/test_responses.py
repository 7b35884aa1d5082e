"""Answers as ``IResponse``: they wait for their reader, and end when it leaves."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import CancelledError
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http_headers import Headers

from llamaproxy.upstream.exchange import AnswerTaker, Exchange
from llamaproxy.upstream.responses import SendingAgent
from tests.support import outcome
from tests.upstream.wires import CLOSES, World

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nA: b\r\na: c\r\n\r\n"


class Agent(SendingAgent):
    """Asks one server in memory."""

    def __init__(self) -> None:
        self.world = World()

    def send(
        self, method: bytes, target: bytes, fields: Any, body: Any, taker: AnswerTaker
    ) -> Exchange:
        return self.world.pool.send(self.world, method, target, fields, body, taker)


class Reader(Protocol):
    """Keeps a body and its end; closes, or pauses, after the first bytes if it is told so."""

    def __init__(self, then: str = "") -> None:
        self.got = b""
        self.end: Any = None
        self._then = then

    def dataReceived(self, data: bytes) -> None:
        self.got += data
        if self._then:
            getattr(self.transport, self._then)()

    def connectionLost(self, reason: Any = None) -> None:
        self.end = reason


def test_a_body_waits_for_its_reader() -> None:
    agent = Agent()
    asking = agent.request(b"GET", b"/x", Headers({"X": ["1", "2"]}))
    [wire] = agent.world.wires
    assert b"\r\nX: 1\r\nX: 2\r\n" in wire.transport.sent
    wire.send(HEAD + b"do")
    response = outcome(asking)
    assert (response.code, response.length) == (200, 5)
    assert list(response.headers.getAllRawHeaders()) == [(b"A", [b"b", b"c"])]
    assert wire.transport.producerState == "paused"
    reader = Reader()
    response.deliverBody(reader)
    assert (reader.got, wire.transport.producerState) == (b"do", "producing")
    wire.send(b"ne.")
    assert reader.got == b"done." and reader.end.check(ResponseDone)


@pytest.mark.parametrize(("rest", "whole"), [(b"done.", True), (b"do", False)])
def test_an_answer_may_have_ended_before_it_is_read(rest: bytes, whole: bool) -> None:
    agent = Agent()
    asking = agent.request(b"GET", b"/x")
    [wire] = agent.world.wires
    wire.send(HEAD + rest)
    wire.lose(CLOSES)
    reader = Reader()
    outcome(asking).deliverBody(reader)
    assert reader.got == rest
    assert isinstance(reader.end, Failure) and bool(reader.end.check(ResponseDone)) == whole


def test_a_reader_that_pauses_on_what_had_waited_stays_paused() -> None:
    agent = Agent()
    asking = agent.request(b"GET", b"/x")
    [wire] = agent.world.wires
    wire.send(HEAD + b"do")
    outcome(asking).deliverBody(Reader("pauseProducing"))
    assert wire.transport.producerState == "paused"


@pytest.mark.parametrize("rest", [b"do", b"done."])
def test_a_reader_that_leaves_is_told_nothing_more(rest: bytes) -> None:
    agent = Agent()
    asking = agent.request(b"GET", b"/x")
    [wire] = agent.world.wires
    wire.send(HEAD + rest)
    reader = Reader("loseConnection")
    outcome(asking).deliverBody(reader)
    assert (reader.got, reader.end) == (rest, None)
    assert wire.transport.aborted == (rest == b"do")


def test_who_has_left_before_reading_is_not_told_that_it_was_all() -> None:
    agent = Agent()
    asking = agent.request(b"GET", b"/x")
    [wire] = agent.world.wires
    wire.send(HEAD + b"done.")
    response, reader = outcome(asking), Reader()
    response.loseConnection()
    response.deliverBody(reader)
    assert (reader.got, reader.end) == (b"", None)


def test_cancelling_ends_the_request() -> None:
    agent = Agent()
    asking = agent.request(b"GET", b"/x")
    asking.cancel()
    with pytest.raises(CancelledError):
        outcome(asking)
    assert agent.world.wires[0].transport.aborted
