"""Answers that are compressed though nobody asked for it."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.web.http import Request

from llamaproxy.errors import UpstreamBroke, UpstreamRefused
from llamaproxy.upstream.client_context import ClientContext
from llamaproxy.upstream.inflate import STEP, Inflater
from llamaproxy.upstream.response_head import ResponseHead
from tests.support import (
    CHAT,
    FakeStack,
    Proxy,
    Upstream,
    answer,
    chunk,
    completion,
    event,
    pending_calls,
)
from tests.upstream.wires import CLOSES, Taker, World


def raw_deflate(data: bytes) -> bytes:
    inflated = zlib.compressobj(wbits=-15)
    return inflated.compress(data) + inflated.flush()


CODERS: dict[str, Any] = {"gzip": gzip.compress, "deflate": zlib.compress, "x-gzip": gzip.compress}


class Reader:
    """Takes what it is given; from *stop_after* bytes on, no more until it is resumed."""

    def __init__(self, stop_after: int = 2**40) -> None:
        self.got = b""
        self.steps: list[int] = []
        self.ends: list[Exception | None] = []
        self._stop_after = stop_after
        self.clock = Clock()
        self.producer: Any = None

    def answered(self, head: ResponseHead) -> None:
        assert (head.length, head.fields) == (None, [(b"A", b"b")])
        assert head.names == {b"a"}

    def received(self, data: bytes) -> None:
        self.got += data
        self.steps.append(len(data))
        if len(self.got) >= self._stop_after:
            self.producer.pause()

    def ended(self) -> None:
        self.ends.append(DONE)

    def failed(self, error: Exception) -> None:
        self.ends.append(error)


class Source:
    """The exchange that a compressed answer comes by."""

    state = "producing"

    def pause(self) -> None:
        self.state = "paused"

    def resume(self) -> None:
        self.state = "producing"

    def cancel(self) -> None:
        self.state = "cancelled"


def inflating(reader: Reader) -> tuple[Inflater, Source]:
    inflater = reader.producer = Inflater(reader, reader.clock)
    inflater.exchange = source = Source()
    fields = [(b"Content-Encoding", b"GZIP"), (b"A", b"b"), (b"content-length", b"9")]
    inflater.answered(ResponseHead(200, b"OK", fields, 9))
    return inflater, source


DONE = None


@given(
    st.binary(max_size=2000),
    st.sampled_from([gzip.compress, zlib.compress, raw_deflate]),
    st.data(),
)
def test_what_was_compressed_comes_out(data: bytes, coder: Any, draws: st.DataObject) -> None:
    packed = coder(data)
    cut = draws.draw(st.integers(1, len(packed)))
    reader = Reader()
    inflater, _ = inflating(reader)
    inflater.received(packed[:cut])
    inflater.received(packed[cut:])
    inflater.ended()
    assert reader.got == data
    assert reader.ends == [DONE]


def test_a_bomb_goes_off_in_steps_and_no_faster_than_it_is_read() -> None:
    packed = gzip.compress(bytes(100 * STEP))
    assert len(packed) < STEP
    reader = Reader(stop_after=3 * STEP)
    inflater, source = inflating(reader)
    inflater.received(packed)
    assert reader.steps == [STEP], "one in a turn of the reactor"
    assert source.state == "paused"
    reader.clock.advance(0)
    assert reader.steps == 3 * [STEP]
    assert source.state == "paused"
    inflater.ended()
    assert reader.ends == []
    for _ in range(200):
        reader.producer.resume()
        reader.clock.advance(0)
    assert len(reader.got) == 100 * STEP
    assert reader.ends == [DONE]


def test_what_comes_while_a_step_waits_for_its_turn_comes_behind_it() -> None:
    data = bytes(STEP) + b"x" * (3 * STEP)
    packed = gzip.compress(data)
    reader = Reader()
    inflater, source = inflating(reader)
    inflater.received(packed[:-20])
    inflater.received(packed[-20:])
    assert len(reader.steps) == 1 and source.state == "paused"
    reader.clock.advance(0)
    assert reader.got == data and source.state == "producing"
    inflater.ended()
    assert reader.ends == [DONE]


def test_a_reader_that_has_gone_has_no_turn() -> None:
    reader = Reader()
    inflater, _ = inflating(reader)
    inflater.received(gzip.compress(bytes(10 * STEP)))
    reader.producer.cancel()
    assert not pending_calls(reader.clock)
    inflater.ended()
    assert len(reader.got) == STEP


def test_a_reader_that_wants_no_more_gets_no_more() -> None:
    reader = Reader(stop_after=STEP)
    inflater, source = inflating(reader)
    inflater.received(gzip.compress(bytes(10 * STEP)))
    reader.producer.cancel()
    assert source.state == "cancelled"
    inflater.ended()
    assert len(reader.got) == STEP


@pytest.mark.parametrize("packed", [b"no gzip at all", gzip.compress(b"x" * 1000)[:20]])
def test_what_is_damaged_or_cut_short_is_no_answer(packed: bytes) -> None:
    reader = Reader()
    inflater, _ = inflating(reader)
    inflater.received(packed)
    inflater.ended()
    [end] = reader.ends
    assert isinstance(end, UpstreamBroke)


@pytest.mark.parametrize("coding", CODERS)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_chat_is_asked_for_uncompressed_and_understood_all_the_same(
    stream: bool, coding: str
) -> None:
    stack = FakeStack()
    body = json.dumps(completion({"content": "Hi."})).encode()
    text = event(chunk({"content": "Hi."}, "stop")) if stream else body

    def write(request: Request) -> None:
        request.setHeader(b"Content-Encoding", coding.encode())
        request.write(CODERS[coding](text))
        request.finish()

    stack.on(CHAT, write)
    exchange = Proxy(stack).chat(stream=stream, fields={"Accept-Encoding": "gzip, br"})
    [asked] = stack.asked_for(CHAT)
    assert asked.headers.getRawHeaders("Accept-Encoding") == ["identity"]
    assert b"Hi." in exchange.body and not exchange.field("Content-Encoding")


def test_a_coding_that_is_not_known_is_no_answer() -> None:
    stack = FakeStack()
    stack.on("GET /x", answer(b"?", fields={"Content-Encoding": "br"}))
    upstream = Upstream(stack)
    with pytest.raises(UpstreamBroke, match="compressed"):
        upstream.result(upstream.client.ask("GET", "/x", ClientContext()))


def test_the_status_of_a_refusal_is_kept_though_its_words_cannot_be_read() -> None:
    stack = FakeStack()
    stack.on("GET /x", answer(b"?" * 10, 429, fields={"Content-Encoding": "zstd"}))
    upstream = Upstream(stack)
    with pytest.raises(UpstreamRefused) as caught:
        upstream.result(upstream.client.ask("GET", "/x", ClientContext()))
    assert caught.value.status == 429 and "?" not in str(caught.value)


@pytest.mark.parametrize("coder", [gzip.compress, zlib.compress, raw_deflate])
def test_what_ends_just_behind_a_step_is_whole(coder: Any) -> None:
    for size in [*range(STEP - 2, STEP + 300), 2 * STEP, 2 * STEP + 1]:
        reader = Reader()
        inflater, _ = inflating(reader)
        inflater.received(coder(b"a" * size))
        inflater.ended()
        for _ in range(5):
            reader.clock.advance(0)
        assert len(reader.got) == size
        assert reader.ends == [DONE], size


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=4), st.binary(max_size=5), st.data())
def test_gzip_members_follow_each_other_and_what_comes_behind_is_nothing(
    members: list[bytes], junk: bytes, draws: st.DataObject
) -> None:
    """RFC 1952 section 2.2."""
    junk = b"" if junk.startswith(b"\x1f") else junk
    packed = b"".join(map(gzip.compress, members)) + junk
    reader = Reader()
    inflater, _ = inflating(reader)
    while packed:
        cut = draws.draw(st.integers(1, len(packed)))
        inflater.received(packed[:cut])
        packed = packed[cut:]
        reader.clock.advance(0)
    inflater.ended()
    reader.clock.advance(0)
    assert reader.got == b"".join(members)
    assert reader.ends == [DONE]


def test_what_comes_behind_the_body_is_not_kept() -> None:
    reader = Reader()
    inflater, _ = inflating(reader)
    inflater.received(gzip.compress(b"a") + b"junk")
    reader.clock.advance(0)
    for _ in range(100):
        inflater.received(bytes(STEP))
    held = [value for value in vars(inflater).values() if isinstance(value, bytes)]
    assert sum(map(len, held)) == 0 and reader.got == b"a"
    assert inflater._zlib.unused_data == b"junk"


@pytest.mark.parametrize("cut", [1, 10, 10_000])
def test_what_came_before_an_answer_broke_off_is_delivered(cut: int) -> None:
    reader = Reader(stop_after=STEP)
    inflater, _ = inflating(reader)
    inflater.received(gzip.compress(bytes(3 * STEP))[:-cut] or b"\x1f\x8b")
    error = UpstreamBroke("cut")
    inflater.failed(error)
    for _ in range(4):
        reader.producer.resume()
        reader.clock.advance(0)
    assert reader.ends == [error]
    assert reader.got == bytes(len(reader.got))
    assert len(reader.got) > 2 * STEP or cut > 10


def test_an_empty_body_is_whole() -> None:
    reader = Reader()
    inflater, _ = inflating(reader)
    inflater.ended()
    assert reader.ends == [DONE] and reader.got == b""


def test_a_reader_that_pauses_and_goes_on_within_a_piece_gets_the_next() -> None:
    class Hesitant(Reader):
        def received(self, data: bytes) -> None:
            Reader.received(self, data)
            self.producer.pause()
            self.producer.resume()

    reader = Hesitant()
    inflater, source = inflating(reader)
    packed = gzip.compress(bytes(5 * STEP))
    inflater.received(packed[:-10])
    reader.clock.advance(0)
    assert source.state == "producing"
    inflater.received(packed[-10:])
    inflater.ended()
    reader.clock.advance(0)
    assert len(reader.got) == 5 * STEP and reader.ends == [DONE]


@pytest.mark.parametrize("length", ["counted", "chunked", "until close"])
@pytest.mark.parametrize("cut", [0, 5])
def test_a_compressed_answer_ends_where_its_framing_says(length: str, cut: int) -> None:
    """What the taker within is told of the length must not be what the connection counts by."""
    world = World()
    body = gzip.compress(b"text")
    framing, sent = {
        "counted": (b"Content-Length: %d\r\n" % len(body), body),
        "chunked": (
            b"Transfer-Encoding: chunked\r\n",
            b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body),
        ),
        "until close": (b"", body),
    }[length]
    head = b"HTTP/1.1 200 OK\r\nA: b\r\nContent-Encoding: gzip\r\n" + framing + b"\r\n"
    reader = Reader()
    inflater = Inflater(reader, world.clock)
    _, inflater.exchange = world.ask(taker=inflater)
    [wire] = world.wires
    wire.send(head + sent[:cut])
    assert reader.ends == []
    wire.send(sent[cut:])
    if length == "until close":
        wire.lose(CLOSES)
    assert (reader.got, reader.ends) == (b"text", [DONE])
    assert world.idle == (length != "until close")


def test_half_a_compressed_answer_is_no_whole_one() -> None:
    world = World()
    body = gzip.compress(b"text") + gzip.compress(b"more")
    reader = Reader()
    inflater = Inflater(reader, world.clock)
    _, inflater.exchange = world.ask(taker=inflater)
    head = b"HTTP/1.1 200 OK\r\nA: b\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
    world.wires[0].send(head % len(body) + gzip.compress(b"text"))
    world.wires[0].lose(CLOSES)
    [end] = reader.ends
    assert isinstance(end, UpstreamBroke)


@pytest.mark.parametrize(
    ("framing", "before", "behind", "idle"),
    [
        (b"Content-Length: %d\r\n\r\n", b"", b"", 1),
        (b"Transfer-Encoding: chunked\r\n\r\n", b"%x\r\n", b"\r\n0\r\n\r\n", 1),
        (b"\r\n", b"", b"", 0),
    ],
    ids=["counted", "chunked", "until close"],
)
def test_a_compressed_answer_ends_where_its_connection_says(
    framing: bytes, before: bytes, behind: bytes, idle: int
) -> None:
    world, taker = World(), Taker()
    inflater = Inflater(taker, world.clock)
    inflater.exchange = world.pool.send(world, b"GET", b"/x", [], None, inflater)
    [wire] = world.wires
    body = gzip.compress(b"hello")
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n" + framing.replace(
        b"%d", b"%d" % len(body)
    )
    wire.send(head + before.replace(b"%x", b"%x" % len(body)) + body + behind)
    if not idle:
        wire.lose(CLOSES)
    assert (taker.body, taker.end, world.idle) == (b"hello", "ended", idle)
    assert taker.head is not None and taker.head.length is None
    assert not taker.head.body_follows, "what has come of it may not be enough to unpack"
    assert b"Content-Encoding" not in dict(taker.head.fields)
