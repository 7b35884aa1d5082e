"""What a store sends is read, or the connection to it is left."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from txredisapi import BaseRedisProtocol

from llamaproxy.memory import connection
from llamaproxy.memory.connection import StoreConnection, StoreError


class Wire(StringTransport):
    """What is written; a connection that is left is lost."""

    def __init__(self) -> None:
        StringTransport.__init__(self)
        self.peer: Any = None

    @property
    def written(self) -> bytes:
        value: Any = self.value
        text: bytes = value()
        return text

    def abortConnection(self) -> None:
        self.disconnecting = True
        if self.connected:
            self.connected = False
            self.peer.connectionLost(Failure(ConnectionDone()))


def connected() -> tuple[Any, Wire, Clock]:
    clock, wire = Clock(), Wire()
    made: Any = StoreConnection(clock)
    wire.peer = made
    made.makeConnection(wire)
    return made, wire, clock


def asking(store: StoreConnection, *command: bytes | str | int) -> list[Any]:
    """The reply when it has come, or the error."""
    outcome: list[Any] = []
    asked = Deferred.fromCoroutine(store.ask(*command))
    asked.addCallbacks(outcome.append, lambda failure: outcome.append(failure.value))
    return outcome


#: Replies as they are sent, and as they are had.
REPLIES: list[tuple[bytes, Any]] = [
    (b"+OK\r\n", "OK"),
    (b":12\r\n", 12),
    (b"$5\r\na\r\nb\xff\r\n", b"a\r\nb\xff"),
    (b"$2\r\n12\r\n", b"12"),
    (b"$-1\r\n", None),
    (b"$0\r\n\r\n", b""),
    (b"*3\r\n$1\r\nx\r\n$-1\r\n:7\r\n", [b"x", None, 7]),
    (b"*2\r\n$9\r\n127.0.0.1\r\n$4\r\n6379\r\n", [b"127.0.0.1", b"6379"]),
]


@given(
    st.lists(st.sampled_from(REPLIES), min_size=1, max_size=6),
    st.lists(st.integers(0, 200), max_size=6),
)
def test_replies_come_in_order_however_they_are_split(
    replies: list[tuple[bytes, Any]], cuts: list[int]
) -> None:
    store, wire, clock = connected()
    outcomes = [asking(store, "GET", b"k") for _ in replies]
    assert wire.written == b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n" * len(replies)
    text = b"".join(sent for sent, _ in replies)
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    for start, end in pairwise(places):
        store.dataReceived(text[start:end])
        clock.advance(0)
    for _ in replies:
        clock.advance(0)
    assert outcomes == [[value] for _, value in replies]
    assert not wire.disconnecting


def test_a_large_value_is_read_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is behind a line is copied for each line."""
    sizes: list[int] = []
    receive = BaseRedisProtocol.dataReceived

    def noted(self: Any, data: bytes, unpause: bool = False) -> None:
        sizes.append(len(data))
        receive(self, data, unpause)

    monkeypatch.setattr(BaseRedisProtocol, "dataReceived", noted)
    store, _, clock = connected()
    outcome = asking(store, "GET", b"k")
    value = bytes(1_000_000)
    store.dataReceived(b"$1000000\r\n" + value + b"\r\n")
    clock.advance(0)
    assert outcome == [value]
    assert max(sizes) <= 4096 and sum(sizes) < 1.01 * len(value)


def reason(outcome: list[Any]) -> tuple[str, str]:
    [error] = outcome
    assert isinstance(error, StoreError)
    return error.kind, error.reason


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"-OOM command not allowed when used memory > 'maxmemory'.", "OOM"),
        (b"-READONLY You can't write against a read only replica.", "READONLY"),
        (b"-NOPERM User x has no permissions", "NOPERM"),
        (b"-ERR unknown command 'AUTH', with args beginning with: 'user' 'hunter2'", "ERR"),
        (b"-HUNTER2 is wrong", "an error"),
        (b"-", "an error"),
    ],
)
def test_an_error_is_said_in_a_word_that_is_no_secret(sent: bytes, words: str) -> None:
    store, wire, _ = connected()
    outcome = asking(store, "AUTH", "user", "hunter2")
    store.dataReceived(sent + b"\r\n")
    assert reason(outcome) == ("refused", f"it answers AUTH with {words}")
    assert not wire.disconnecting


#: Of what a reply may be in these tests.
MAX_REPLY = 100_000

NO_ANSWER = ("broken", "it sends what is no answer")


@pytest.mark.parametrize(
    "sent",
    [
        b"+\xff\r\n",
        b"$x\r\n",
        b"*x\r\n",
        b":x\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(MAX_REPLY),
        bytes(MAX_REPLY + 1),
        b"x" * 20_000,
        b"$5000000\r\n" + bytes(MAX_REPLY),
        b"$-7\r\n" + bytes(MAX_REPLY),
        b"*9999999\r\n" + b":1\r\n" * (MAX_REPLY // 4),
        b"*1\r\n" * (MAX_REPLY // 4 + 1),
    ],
    ids=range(11),
)
def test_what_is_no_answer_or_too_much_of_one_is_an_error(
    sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "MAX_REPLY", MAX_REPLY)
    store, wire, clock = connected()
    outcome = asking(store, "GET", b"k")
    for place in range(0, len(sent), 65536):
        if not wire.disconnecting:
            store.dataReceived(sent[place : place + 65536])
            clock.advance(0)
    assert reason(outcome) == NO_ANSWER


def test_an_answer_that_nobody_asked_for_ends_the_connection() -> None:
    store, wire, _ = connected()
    outcome = asking(store, "GET", b"k")
    store.dataReceived(b"+OK\r\n" * 3000)
    assert outcome == ["OK"] and wire.disconnecting
    assert reason(asking(store, "GET", b"k")) == NO_ANSWER


@given(st.lists(st.binary(max_size=30), max_size=5))
def test_whatever_it_sends_somebody_hears_of_it(pieces: list[bytes]) -> None:
    store, wire, clock = connected()
    outcome = asking(store, "GET", b"k")
    for piece in pieces:
        if not wire.disconnecting:
            store.dataReceived(piece)
            clock.advance(0)
    store.abort()
    clock.advance(0)
    assert len(outcome) == 1


def test_who_waits_hears_that_the_connection_is_lost() -> None:
    store, wire, _ = connected()
    outcomes = [asking(store, "GET", b"k") for _ in range(3)]
    gone: list[Any] = []
    store.lost.addCallback(gone.append)
    store.abort()
    assert [*map(reason, outcomes)] == [("unreachable", "the connection was closed")] * 3
    assert gone == [None]
    store.tell("EXPIRE", b"k", 1)
    assert reason(asking(store, "GET", b"k"))[0] == "unreachable"
    assert wire.written.count(b"EXPIRE") == 0


def test_who_has_left_leaves_the_others_their_replies() -> None:
    store, _, _ = connected()
    first = Deferred.fromCoroutine(store.ask("GET", b"1"))
    first.addErrback(lambda _: None)
    second = asking(store, "GET", b"2")
    first.cancel()
    store.tell("EXPIRE", b"k", 1)
    third = asking(store, "GET", b"3")
    store.dataReceived(b"+one\r\n+two\r\n-ERR refused\r\n+three\r\n")
    assert (second, third) == (["two"], ["three"])
