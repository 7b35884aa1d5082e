"""Exchanges in memory: what is told, in which phase, and what becomes of the connection."""

from __future__ import annotations

import sys
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError

from llamaproxy.errors import BadRequest, UpstreamBroke, UpstreamUnavailable
from llamaproxy.upstream.bodies import PIECE_BYTES, BytesUpload, LateUpload, Upload
from llamaproxy.upstream.connection import MOST_READ_BYTES, READ_BYTES
from llamaproxy.upstream.pool import IDLE_TIMEOUT, MAX_IDLE, SWEEP_SECONDS
from llamaproxy.upstream.response_head import MAX_HEAD, ResponseHead
from tests.upstream.wires import CLOSES, RESETS, Taker, World

OK = b"HTTP/1.1 200 OK\r\n"
DONE = OK + b"Content-Length: 5\r\n\r\ndone."
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"

# --- what it costs


@pytest.mark.parametrize("body", [None, b"", b"x" * 65536])
def test_a_request_on_an_idle_connection_makes_one_write_and_nothing_else(
    body: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    world.warm()
    method, upload = (b"GET", None) if body is None else (b"POST", BytesUpload(body))
    made: list[object] = []
    make = Deferred.__init__

    def counted(self: Deferred[Any], *more: Any) -> None:
        made.append(self)
        make(self, *more)

    calls = world.clock.getDelayedCalls()
    with monkeypatch.context() as patch:
        patch.setattr(Deferred, "__init__", counted)
        patch.setattr(world.clock, "callLater", made.append)
        taker, _ = world.ask(method, upload)
        [wire] = world.wires
        wire.send(DONE)
    assert made == []
    assert world.clock.getDelayedCalls() == calls
    assert len(wire.transport.writes) == 1
    assert wire.transport.sent.endswith(b"\r\n\r\n" + (body or b""))
    assert taker.calls == ["answered", "received", "ended"]
    assert world.idle == 1


@pytest.mark.parametrize(
    ("method", "head", "calls"),
    [
        (b"GET", DONE[:-5], ["answered"]),
        (b"GET", DONE[:-4], ["answered", "received"]),
        (b"GET", DONE, ["answered", "received", "ended"]),
        (b"HEAD", DONE[:-5], ["answered", "ended"]),
        (b"GET", OK + b"Content-Length: 0\r\n\r\n", ["answered", "ended"]),
        (b"GET", CHUNKED, ["answered"]),
        (b"GET", CHUNKED + b"5\r\n", ["answered"]),
        (b"GET", OK + b"\r\n", ["answered"]),
    ],
)
def test_a_body_is_said_to_follow_only_if_it_does(
    method: bytes, head: bytes, calls: list[str]
) -> None:
    world = World()
    taker, _ = world.ask(method, None)
    world.wires[0].send(head)
    assert taker.calls == calls
    assert taker.head is not None
    # Who believes it would hold back a head for something that does not come.
    assert taker.head.body_follows == ("received" in calls)


def test_a_body_is_made_once_there_is_a_connection_for_it() -> None:
    made: list[bytes] = []

    def make() -> bytes:
        made.append(b"body")
        return made[-1]

    world = World()
    world.at_once = False
    world.ask(b"POST", LateUpload(make))
    assert made == []
    world.connected()
    assert made == [b"body"]
    assert world.wires[0].transport.sent.endswith(b"\r\nContent-Length: 4\r\n\r\nbody")


@pytest.mark.parametrize("warm", [False, True], ids=["connecting", "idle"])
def test_a_body_that_cannot_be_made_ends_the_exchange_at_once(warm: bool) -> None:
    def make() -> bytes:
        raise MemoryError

    world = World()
    world.at_once = warm
    if warm:
        world.warm()
        with pytest.raises(MemoryError):
            world.ask(b"POST", LateUpload(make))
    else:
        taker, _ = world.ask(b"POST", LateUpload(make))
        world.connected()
        assert isinstance(taker.end, MemoryError)
    assert [wire.transport.aborted for wire in world.wires] == [True]
    assert world.idle == 0


def test_one_delayed_call_serves_all_idle_connections() -> None:
    world = World()
    takers = [world.ask()[0] for _ in range(20)]
    for wire in world.wires:
        wire.send(DONE)
        world.clock.advance(0.01)
    assert all(taker.body == b"done." for taker in takers)
    assert (len(world.clock.getDelayedCalls()), world.idle) == (1, 20)
    world.clock.advance(IDLE_TIMEOUT - 0.25)
    assert [wire.transport.closed for wire in world.wires].count(True) == 0
    world.clock.pump([SWEEP_SECONDS] * 6)
    assert all(wire.transport.closed for wire in world.wires)
    assert (world.idle, world.clock.getDelayedCalls()) == (0, [])


def test_the_bytes_of_one_read_are_one_call_however_many_chunks_they_are() -> None:
    world = World()
    taker, _ = world.ask()
    world.wires[0].send(CHUNKED)
    world.wires[0].send(b"1\r\nx\r\n" * 1000)
    assert (taker.calls, taker.body) == (["answered", "received"], b"x" * 1000)


@pytest.mark.parametrize("head", [OK + b"Content-Length: 131077\r\n\r\n", CHUNKED])
def test_more_is_read_at_once_of_a_body_that_comes_faster_than_it_is_read(head: bytes) -> None:
    world = World()
    taker, _ = world.ask()
    [wire] = world.wires
    wire.send(head)
    if head is CHUNKED:
        wire.send(b"20005\r\n")
    read: Any = wire.transport
    wire.send(b"x" * (READ_BYTES - 1))
    assert getattr(read, "bufferSize", READ_BYTES) == READ_BYTES
    wire.send(b"x" * READ_BYTES)
    assert read.bufferSize == MOST_READ_BYTES
    wire.send(b"x" * 6)
    if head is CHUNKED:
        wire.send(b"\r\n0\r\n\r\n")
    assert (taker.end, len(taker.body), world.idle) == ("ended", 131077, 1)
    assert read.bufferSize == READ_BYTES, "whose connection is idle may be asked for little"


def test_what_is_read_at_once_is_what_twisted_reads_and_no_mapping_of_its_own() -> None:
    assert READ_BYTES == FileDescriptor.bufferSize
    assert sys.getsizeof(b"") + MOST_READ_BYTES < 128 * 1024


def test_a_head_that_comes_byte_by_byte_is_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in bytes that are looked at: each a few times, not once for each that follows."""
    looked = 0

    class Counting(bytearray):
        def find(self, what: Any, start: Any = 0, *more: Any) -> int:
            nonlocal looked
            looked += len(self) - start
            return bytearray.find(self, what, start, *more)

    monkeypatch.setattr("llamaproxy.upstream.connection.bytearray", Counting, raising=False)
    world = World()
    taker, _ = world.ask()
    head = OK + b"A: " + b"x" * 5000 + b"\r\nContent-Length: 0\r\n\r\n"
    for byte in head:
        world.wires[0].send(bytes([byte]))
    assert taker.end == "ended"
    assert 0 < looked < 5 * len(head)


# --- idle connections


def test_an_idle_connection_is_used_again_and_the_youngest_first() -> None:
    world = World()
    world.ask(), world.ask()
    for wire in world.wires:
        wire.send(DONE)
        world.clock.advance(1)
    world.ask()
    assert [len(wire.transport.writes) for wire in world.wires] == [1, 2]


def test_no_more_are_kept_than_may_be() -> None:
    world = World()
    for _ in range(MAX_IDLE + 1):
        world.ask()
    for wire in world.wires:
        wire.send(DONE)
    assert world.idle == MAX_IDLE
    assert world.wires[-1].transport.closed


@pytest.mark.parametrize("way", ["expired", "closed by the server", "spoke", "seen", "heard"])
def test_a_stale_connection_is_not_used(way: str) -> None:
    world = World()
    world.warm()
    [wire] = world.wires
    if way == "expired":
        world.clock.rightNow += IDLE_TIMEOUT  # its delayed call is late
    elif way == "closed by the server":
        wire.transport.unread = b""
    elif way == "spoke":
        wire.transport.unread = b"H"
    elif way == "seen":
        wire.lose(CLOSES)
        assert world.idle == 0
    else:
        wire.send(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        assert wire.transport.aborted
        wire.lose(RESETS)
    taker, _ = world.ask()
    assert len(world.wires) == 2
    world.wires[1].send(DONE)
    assert (taker.end, taker.body) == ("ended", b"done.")
    assert wire.transport.writes == []


def test_a_connection_that_is_being_closed_is_not_used_in_the_same_turn() -> None:
    """Its socket is there until the reactor has closed it."""
    world = World()
    world.warm()
    [wire] = world.wires
    wire.send(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    taker, _ = world.ask(b"POST", BytesUpload(b"x"))
    assert len(world.wires) == 2 and wire.transport.writes == []
    wire.lose(RESETS)
    world.wires[1].send(DONE)
    assert (taker.end, world.idle) == ("ended", 1)


def test_a_pool_that_is_closed_keeps_nothing() -> None:
    world = World()
    world.warm()
    world.ask(), world.ask()
    world.wires[0].send(DONE)
    world.pool.close()
    world.wires[1].send(DONE)
    assert all(wire.transport.closed for wire in world.wires)
    assert world.clock.getDelayedCalls() == []


def test_servers_have_connections_of_their_own() -> None:
    world, other = World(), World()
    other.pool = world.pool
    other.kept_by = b"http://other"
    world.warm()
    other.ask()
    assert len(other.wires) == 1 and world.wires[0].transport.writes == []


# --- what is sent


def test_a_request_is_sent_as_it_is() -> None:
    world = World()
    world.ask(b"POST", BytesUpload(b"body"))
    assert world.wires[0].transport.sent == (
        b"POST /x HTTP/1.1\r\nHost: stack:8321\r\nA: b\r\nContent-Length: 4\r\n\r\nbody"
    )
    world.ask(b"POST")
    assert world.wires[1].transport.sent.endswith(b"\r\nContent-Length: 0\r\n\r\n")
    world.ask(b"GET")
    assert b"Content-Length" not in world.wires[2].transport.sent


@pytest.mark.parametrize("value", [b"a\r\nb: c", b"a\nb", b"a\rb", b"a\0b"])
def test_no_field_becomes_two(value: bytes) -> None:
    world = World()
    for field in ((b"A", value), (value, b"a")):
        with pytest.raises(BadRequest):
            world.pool.send(world, b"GET", b"/", [field], None, Taker())
    assert world.wires == []


# --- the matrix of failures

#: What has come when it happens, and whether that is more than a head.
PHASES = {
    "before the head": b"",
    "in the status": b"HTTP/1",
    "in the head": OK + b"A: b",
    "after an interim answer": b"HTTP/1.1 103 Early Hints\r\n\r\n",
    "before the body": OK + b"Content-Length: 9\r\n\r\n",
    "in a counted body": OK + b"Content-Length: 9\r\n\r\nsome",
    "in a chunk": CHUNKED + b"9\r\nsome",
    "between chunks": CHUNKED + b"4\r\nsome\r\n",
    "in the last chunk": CHUNKED + b"4\r\nsome\r\n0\r\n",
    "until close": OK + b"\r\nsome",
}

HAPPENINGS = ["closes", "resets", "cancelled", "paused, closes", "paused, cancelled"]


@pytest.mark.parametrize("happening", HAPPENINGS)
@pytest.mark.parametrize("method", ["GET", "DELETE", "POST", "upload"])
@pytest.mark.parametrize("reused", [False, True])
@pytest.mark.parametrize("phase", PHASES)
def test_every_failure_in_every_phase(
    phase: str, reused: bool, method: str, happening: str
) -> None:
    world = World()
    if reused:
        world.warm()
    file = BytesIO(b"x" * PIECE_BYTES * (3 if method == "upload" else 1))
    body = Upload(file) if method in ("POST", "upload") else None
    if method == "upload":
        assert body is not None
        body.pauseProducing()
    taker, exchange = world.ask(b"POST" if body else method.encode(), body)
    [wire] = world.wires
    if PHASES[phase]:
        wire.send(PHASES[phase])
    if happening.startswith("paused"):
        exchange.pause()
        assert wire.transport.producerState == "paused"
    before = list(taker.calls)
    if happening.endswith("cancelled"):
        exchange.cancel()
        assert wire.transport.aborted
        wire.send(b"more")
        wire.lose(CLOSES)
        assert taker.calls == before, "it is told nothing any more"
    else:
        repeated = phase == "before the head" and reused and method == "GET"
        wire.lose(RESETS if happening == "resets" else CLOSES)
        if repeated:
            assert (len(world.wires), taker.calls) == (2, [])
            world.wires[1].send(DONE)
            assert (taker.end, taker.body) == ("ended", b"done.")
        elif phase == "until close" and happening != "resets":
            assert taker.end == "ended"
        else:
            assert isinstance(taker.end, UpstreamBroke)
            assert ("before it answered" in str(taker.end)) == (taker.head is None)
        assert len(world.wires) == 1 + repeated
    if taker.head is not None and b"some" in PHASES[phase]:
        assert taker.body in (b"some", b"done.")
    assert body is None or (body.finished and file.closed)
    assert world.idle == (1 if len(world.wires) == 2 else 0)
    for late in (exchange.pause, exchange.resume, exchange.cancel):
        late()


def test_it_is_sent_no_third_time() -> None:
    world = World()
    world.warm()
    taker, _ = world.ask()
    world.wires[0].lose(CLOSES)
    world.wires[1].lose(CLOSES)
    assert isinstance(taker.end, UpstreamBroke) and len(world.wires) == 2


@pytest.mark.parametrize("again", [False, True])
def test_one_who_leaves_while_it_connects(again: bool) -> None:
    world = World()
    if again:
        world.warm()
    world.at_once = False
    file = BytesIO(b"x")
    taker, exchange = world.ask() if again else world.ask(b"POST", Upload(file))
    if again:
        world.wires[0].lose(CLOSES)
    [connecting] = world.connecting
    exchange.cancel()
    assert connecting.called and taker.calls == []
    assert file.closed or again


def test_a_server_that_cannot_be_reached() -> None:
    world = World()
    world.at_once = False
    file = BytesIO(b"x")
    taker, exchange = world.ask(b"POST", Upload(file))
    world.connecting.pop().errback(ConnectionRefusedError())
    assert isinstance(taker.end, UpstreamUnavailable) and file.closed
    exchange.cancel()


class Leaving(Taker):
    """Leaves within one of the calls."""

    def __init__(self, call: str) -> None:
        Taker.__init__(self)
        self.exchange: Any = None
        self._call = call

    def answered(self, head: ResponseHead) -> None:
        Taker.answered(self, head)
        if self._call == "answered":
            self.exchange.cancel()

    def received(self, data: bytes) -> None:
        Taker.received(self, data)
        self.exchange.cancel()


@pytest.mark.parametrize("call", ["answered", "received"])
@pytest.mark.parametrize("answer", [DONE, CHUNKED + b"5\r\ndone.\r\n0\r\n\r\n"])
def test_one_who_leaves_within_a_call_is_told_nothing_more(call: str, answer: bytes) -> None:
    world = World()
    taker = Leaving(call)
    _, taker.exchange = world.ask(taker=taker)
    world.wires[0].send(answer)
    assert taker.calls == ["answered", "received"][: 1 + (call == "received")]
    assert world.wires[0].transport.aborted and world.idle == 0


def test_another_request_may_be_made_within_the_end_of_one() -> None:
    world = World()
    second = Taker()

    class Asking(Taker):
        def ended(self) -> None:
            Taker.ended(self)
            world.ask(taker=second)

    world.ask(taker=Asking())
    world.wires[0].send(DONE)
    world.wires[0].send(DONE)
    assert second.end == "ended" and len(world.wires) == 1


# --- uploads, and answers that do not wait for them


def test_an_upload_waits_for_the_server_and_an_answer_for_its_reader() -> None:
    world = World()
    upload = Upload(BytesIO(b"x" * PIECE_BYTES * 4))
    upload.pauseProducing()
    taker, exchange = world.ask(b"POST", upload)
    [wire] = world.wires
    assert len(wire.transport.writes) == 1, "nothing is read ahead"
    assert wire.transport.producer is upload and wire.transport.streaming
    upload.resumeProducing()
    assert upload.finished and wire.transport.producer is None
    exchange.pause()
    assert wire.transport.producerState == "paused"
    exchange.resume()
    assert wire.transport.producerState == "producing"
    wire.send(DONE)
    assert taker.end == "ended" and world.idle == 1


def test_a_reader_that_has_paused_does_not_pause_the_next_answer() -> None:
    world = World()
    _, exchange = world.ask()
    exchange.pause()
    world.wires[0].send(DONE)
    assert world.wires[0].transport.producerState == "producing"
    assert world.idle == 1


@pytest.mark.parametrize("status", [b"200 OK", b"413 Content Too Large"])
@pytest.mark.parametrize("answer", [DONE, CHUNKED + b"5\r\ndone.\r\n0\r\n\r\n"])
def test_an_answer_to_half_a_request_is_the_last_on_its_connection(
    answer: bytes, status: bytes
) -> None:
    answer = answer.replace(b"200 OK", status)
    world = World()
    file = BytesIO(b"x" * PIECE_BYTES * 4)
    upload = Upload(file)
    upload.pauseProducing()
    taker, _ = world.ask(b"POST", upload)
    [wire] = world.wires
    wire.send(answer[:-3])
    assert taker.head is not None
    # A server that has begun to succeed may still read.
    assert upload.finished == file.closed == (status != b"200 OK")
    assert not wire.transport.closed
    wire.send(answer[-3:])
    assert upload.finished and file.closed
    assert (taker.end, taker.body) == ("ended", b"done.")
    assert wire.transport.aborted, "what is still to be sent is not waited for"
    assert len(wire.transport.writes) == 1


def test_an_interim_answer_is_no_end_of_an_upload() -> None:
    world = World()
    upload = Upload(BytesIO(b"x" * PIECE_BYTES * 4))
    upload.pauseProducing()
    world.ask(b"POST", upload)
    world.wires[0].send(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert not upload.finished


# --- framing

ANSWERS: dict[str, tuple[bytes, bytes, bytes, bytes]] = {
    "counted": (b"GET", OK + b"Content-Length: 5\r\n\r\n", b"done.", b"done."),
    "empty": (b"GET", OK + b"Content-Length: 0\r\n\r\n", b"", b""),
    "chunked": (b"GET", CHUNKED, b"2\r\ndo\r\n3;a=b\r\nne.\r\n0\r\n\r\n", b"done."),
    "chunked, empty": (b"GET", CHUNKED, b"0\r\n\r\n", b""),
    "204": (b"GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", b"", b""),
    "304": (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", b"", b""),
    "HEAD": (b"HEAD", OK + b"Content-Length: 5\r\n\r\n", b"", b""),
    "HEAD, chunked": (b"HEAD", CHUNKED, b"", b""),
    "HEAD, neither": (b"HEAD", OK + b"\r\n", b"", b""),
    "204, chunked": (b"GET", b"HTTP/1.1 204 N\r\nTransfer-Encoding: chunked\r\n\r\n", b"", b""),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_whole_answer_leaves_its_connection_idle(name: str) -> None:
    method, head, raw, body = ANSWERS[name]
    for cut in range(len(head + raw) + 1):
        world = World()
        taker, _ = world.ask(method)
        for part in filter(None, ((head + raw)[:cut], (head + raw)[cut:])):
            world.wires[0].send(part)
        assert (taker.end, taker.body, world.idle) == ("ended", body, 1)
        world.warm()
        assert len(world.wires) == 1


JUNK = st.one_of(
    st.binary(min_size=1, max_size=20),
    st.sampled_from([b"\r\n", b"\n", b"\r", b"0\r\n\r\n", b"\r\n0\r\n\r\n", b"5\r\n", DONE, OK]),
    st.sampled_from([DONE, CHUNKED]).map(lambda answer: answer + b"evil\r\n0\r\n\r\n"),
    st.just(b"HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n0\r\n\r\n"),
)


@given(st.sampled_from(sorted(ANSWERS)), JUNK)
def test_what_comes_behind_an_answer_is_nobodys(name: str, junk: bytes) -> None:
    method, head, raw, body = ANSWERS[name]
    world = World()
    taker, _ = world.ask(method)
    world.wires[0].send(head + raw + junk)
    assert (taker.end, taker.body) == ("ended", body)
    assert world.idle == 0 and world.wires[0].transport.closed


@pytest.mark.parametrize(
    ("head", "kept"),
    [
        (b"HTTP/1.1 200 OK\r\n", True),
        (b"HTTP/1.1 302 Found\r\n", True),
        (b"HTTP/1.1 200 OK\r\nConnection: x, Close\r\n", False),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n", False),
        (b"HTTP/1.1 400 Bad Request\r\n", False),
        (b"HTTP/1.1 500 Internal Server Error\r\n", False),
    ],
)
@pytest.mark.parametrize("chunked", [False, True])
def test_which_connections_are_used_again(head: bytes, kept: bool, chunked: bool) -> None:
    world = World()
    taker, _ = world.ask()
    framing = b"Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"
    world.wires[0].send(head + (framing if chunked else b"Content-Length: 4\r\n\r\nbody"))
    assert (taker.end, taker.body, world.idle) == ("ended", b"body", int(kept))
    assert world.wires[0].transport.closed == (not kept)


def test_trailers_are_dropped_and_their_connection_is_closed() -> None:
    world = World()
    taker, _ = world.ask()
    world.wires[0].send(CHUNKED + b"5\r\ndone.\r\n0\r\nA: b\r\n\r\n")
    assert (taker.end, taker.body, world.idle) == ("ended", b"done.", 0)
    assert taker.head is not None and taker.head.fields == []


def test_fields_of_interim_answers_are_not_those_of_the_answer() -> None:
    world = World()
    taker, _ = world.ask()
    for part in (b"HTTP/1.1 103 Early Hints\r\nLink: a\r\nContent-Length: 9\r\n\r\n" * 2, DONE):
        world.wires[0].send(part)
    assert taker.head is not None
    assert (taker.head.fields, taker.body) == ([(b"Content-Length", b"5")], b"done.")


# --- limits

ENDLESS = {
    "a head": (OK + b"A: ", b"x" * 1000),
    "a head of many fields": (OK, b"A: b\r\n" * 100),
    "interim heads": (b"", b"HTTP/1.1 102 Processing\r\n\r\n" * 40),
    "an extension of a chunk": (CHUNKED + b"1;", b"x" * 1000),
    "a trailer": (CHUNKED + b"0\r\nA: ", b"x" * 1000),
    "trailers": (CHUNKED + b"0\r\n", b"A: b\r\n" * 100),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_what_brings_no_body_is_bounded(name: str) -> None:
    begin, more = ENDLESS[name]
    world = World()
    taker, _ = world.ask()
    world.wires[0].send(begin or more)
    sent = 0
    while taker.end is None and sent < 3 * MAX_HEAD:
        world.wires[0].send(more)
        sent += len(more)
    assert isinstance(taker.end, UpstreamBroke)
    assert sent <= MAX_HEAD + len(more)
    assert world.wires[0].transport.aborted


def test_a_head_in_one_piece_has_the_same_limit() -> None:
    for size, end in ((MAX_HEAD, "ended"), (MAX_HEAD + 1, None)):
        world = World()
        taker, _ = world.ask()
        head = OK + b"Content-Length: 0\r\nA: %b\r\n\r\n"
        world.wires[0].send(head % (b"x" * (size - len(head) + 2)))
        assert (taker.end == "ended") == (end == "ended")


def test_chunks_without_end_are_no_limit() -> None:
    world = World()
    taker, _ = world.ask()
    world.wires[0].send(CHUNKED)
    for _ in range(MAX_HEAD // 8):
        world.wires[0].send(b"1;abcdefgh=ijklmnop\r\nx\r\n")
    assert taker.end is None and len(taker.body) == MAX_HEAD // 8


# --- a switch of protocols


def test_a_tunnel_is_given_what_follows_the_head() -> None:
    world = World()
    taker = Taker()
    fields = [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
    world.pool.send(world, b"GET", b"/x", fields, None, taker)
    [wire] = world.wires
    wire.send(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Accept: x\r\nContent-Length: 3\r\n\r\nhello"
    )
    head: ResponseHead | None = taker.head
    assert head is not None and head.status == 101 and head.tunnel is wire.connection
    assert (head.fields, taker.body) == ([(b"Sec-WebSocket-Accept", b"x")], b"hello")
    head.tunnel.send(b"hi")
    assert wire.transport.writes[-1] == b"hi"
    wire.lose(CLOSES)
    assert taker.end == "ended"
