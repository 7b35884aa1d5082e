"""What is written goes out in the same turn, and what a socket does not take is not forgotten."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IReactorFDSet
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from zope.interface import implementer
from zope.interface.verify import verifyObject

from llamaproxy.server.prompt_writes import PromptWrites, prompt_writes


@implementer(IReactorFDSet)
class WatchingClock(Clock):
    """A clock that notes which descriptors it is to watch."""

    def __init__(self) -> None:
        Clock.__init__(self)
        self.writers: list[Any] = []
        self.readers: list[Any] = []

    def addReader(self, reader: Any) -> None:
        self.readers.append(reader)

    def removeReader(self, reader: Any) -> None:
        self.readers.remove(reader)

    def addWriter(self, writer: Any) -> None:
        self.writers.append(writer)

    def removeWriter(self, writer: Any) -> None:
        self.writers.remove(writer)

    def removeAll(self) -> list[Any]:
        return self.readers

    def getReaders(self) -> list[Any]:
        return self.readers

    def getWriters(self) -> list[Any]:
        return self.writers


class Socket:
    """Something to send, of which the system takes *room* bytes at a time."""

    def __init__(self, reactor: Any, room: int = 100) -> None:
        self._reactor = reactor
        self.room = room
        self.unsent = b""
        self.sent: list[bytes] = []
        self.error: Any = None
        self.then: Any = lambda: None

    def write(self, data: bytes) -> None:
        self.unsent += data
        self._reactor.addWriter(self)

    def close(self) -> None:
        self._reactor.removeWriter(self)

    def doWrite(self) -> Any:
        if isinstance(self.error, ZeroDivisionError):
            raise self.error
        if self.error is not None:
            return self.error
        self.sent.append(self.unsent[: self.room])
        self.unsent = self.unsent[self.room :]
        if not self.unsent:
            self._reactor.removeWriter(self)
            self.then()
        return None


@pytest.fixture
def clock() -> WatchingClock:
    return WatchingClock()


@pytest.fixture
def prompt(clock: WatchingClock) -> Any:
    return prompt_writes(clock)


def test_what_is_written_in_a_turn_goes_out_at_its_end_in_one_piece(
    clock: WatchingClock, prompt: Any
) -> None:
    one, other = Socket(prompt), Socket(prompt)
    one.write(b"a")
    other.write(b"b")
    one.write(b"c")
    assert one.sent == []
    assert len(clock.getDelayedCalls()) == 1
    clock.advance(0)
    assert (one.sent, other.sent) == ([b"ac"], [b"b"])
    assert clock.writers == []
    assert clock.getDelayedCalls() == []


def test_what_the_socket_did_not_take_is_left_to_the_reactor(
    clock: WatchingClock, prompt: Any
) -> None:
    socket = Socket(prompt, room=2)
    socket.write(b"abc")
    clock.advance(0)
    assert socket.sent == [b"ab"]
    assert clock.writers == [socket]
    socket.write(b"d")
    assert clock.getDelayedCalls() == []  # the reactor asks it as soon as there is room
    socket.doWrite()
    assert socket.sent == [b"ab", b"cd"]
    assert clock.writers == []
    socket.write(b"e")
    clock.advance(0)
    assert socket.sent[-1] == b"e"


def test_a_producer_that_writes_when_all_was_taken_is_served_without_the_reactor(
    clock: WatchingClock, prompt: Any
) -> None:
    socket = Socket(prompt)
    more = [b"second"]

    def resume() -> None:
        if more:
            socket.write(more.pop())
            assert socket.sent == [b"first"]

    socket.then = resume
    socket.write(b"first")
    clock.advance(0)
    assert socket.sent == [b"first", b"second"]
    assert clock.writers == []


@pytest.mark.parametrize("error", [ConnectionDone(), -1, ZeroDivisionError()])
def test_a_socket_that_has_failed_is_left_to_the_reactor_which_closes_it(
    clock: WatchingClock, prompt: Any, error: Any
) -> None:
    socket = Socket(prompt)
    socket.error = error
    socket.write(b"a")
    clock.advance(0)
    assert clock.writers == [socket]


def test_a_socket_closed_by_another_of_the_same_turn_is_not_written_to(
    clock: WatchingClock, prompt: Any
) -> None:
    one, other = Socket(prompt), Socket(prompt)
    one.then = other.close
    one.write(b"a")
    other.write(b"b")
    clock.advance(0)
    assert other.sent == []
    assert clock.writers == []


def test_a_socket_that_waits_for_room_can_be_closed(clock: WatchingClock, prompt: Any) -> None:
    socket = Socket(prompt, room=1)
    socket.write(b"ab")
    clock.advance(0)
    assert prompt.getWriters() == [socket]
    socket.close()
    assert clock.writers == []
    assert prompt.getWriters() == []


def test_the_work_of_a_turns_end_is_done_once_and_before_anything_is_sent(
    clock: WatchingClock, prompt: Any
) -> None:
    socket, done = Socket(prompt), list[object]()
    socket.write(b"a")
    prompt.at_end_of_turn(lambda: 1 / 0)
    prompt.at_end_of_turn(lambda: done.append(list(socket.sent)))
    assert len(clock.getDelayedCalls()) == 1
    with capturedLogs() as logged:
        clock.advance(0)
    assert done == [[]] and socket.sent == [b"a"]
    assert ["ZeroDivisionError" in str(each.get("log_failure")) for each in logged] == [True]
    prompt.at_end_of_turn(lambda: prompt.at_end_of_turn(lambda: done.append("the next turn")))
    clock.advance(0)
    assert done[1:] == ["the next turn"] and clock.getDelayedCalls() == []


def test_readers_and_all_else_are_the_reactors(clock: WatchingClock, prompt: Any) -> None:
    socket = Socket(prompt)
    prompt.addReader(socket)
    assert clock.readers == prompt.getReaders() == prompt.removeAll() == [socket]
    prompt.removeReader(socket)
    assert clock.readers == []
    assert prompt.getDelayedCalls() == []
    assert verifyObject(IReactorFDSet, prompt)


def test_a_reactor_without_descriptors_stays_as_it_is() -> None:
    clock = Clock()
    assert prompt_writes(clock) is clock
    assert isinstance(prompt_writes(WatchingClock()), PromptWrites)
