"""Server-sent events, cut and terminated in every way that a stream can be."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaproxy.upstream.sse import DONE, KEEP_ALIVE, Event, EventDecoder, EventTooLarge
from llamaproxy.upstream.sse import encode_event as encoded
from tests.support import recording

LINE_ENDS = (b"\n", b"\r\n", b"\r")

#: Lines as servers send them: fields, comments, nonsense; none holds a line end.
_text = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=8)
_lines = st.one_of(
    st.builds("data: {}".format, _text),
    st.builds("data:{}".format, _text),
    st.builds("{}: {}".format, st.sampled_from(["event", "id", "retry", "", "x"]), _text),
    st.sampled_from(["", "", "data", "retry: 5", "id: 1"]),
    _text,
).map(str.encode)


def decode(*pieces: bytes) -> list[Event]:
    """The events of a stream that came in *pieces*, its end included."""
    decoder = EventDecoder()
    parsed = [event for piece in pieces for event in decoder.feed(piece)]
    return parsed + decoder.finish()


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[start:end] for start, end in itertools.pairwise(edges)]


@given(st.lists(_lines), st.lists(st.integers(0, 10**6)))
def test_a_stream_may_be_cut_at_any_byte(lines: list[bytes], places: list[int]) -> None:
    stream = b"".join(line + b"\n" for line in lines)
    assert decode(*cut(stream, places)) == decode(stream)


@given(st.lists(st.tuples(_lines, st.sampled_from(LINE_ENDS))), st.lists(st.integers(0, 10**6)))
def test_lines_end_in_lf_or_crlf_or_cr_however_mixed(
    lines: list[tuple[bytes, bytes]], places: list[int]
) -> None:
    # An empty line that ends in LF, after a CR, is the second half of one CRLF.
    ends = [
        b"\r\n" if end == b"\n" and before == b"\r" and not line else end
        for (_, before), (line, end) in zip([(b"", b""), *lines], lines, strict=False)
    ]
    mixed = b"".join(line + end for (line, _), end in zip(lines, ends, strict=True))
    plain = b"".join(line + b"\n" for line, _ in lines)
    assert decode(*cut(mixed, places)) == decode(plain)


@pytest.mark.parametrize("end", LINE_ENDS)
def test_a_recorded_stream_is_the_same_whatever_its_line_ends_and_cuts(end: bytes) -> None:
    stream = recording("0.6.1", "chat_parallel_calls_stream")["response"]["text"].encode()
    joined = decode(stream)
    assert len(joined) > 5
    changed = stream.replace(b"\n", end)
    assert decode(*(changed[n : n + 1] for n in range(len(changed)))) == joined


@given(st.binary().filter(lambda text: b"\n" not in text and b"\r" not in text))
def test_what_is_encoded_is_decoded(text: bytes) -> None:
    # The decoder takes a leading byte order mark off the stream, never off the data.
    assert [event.data for event in decode(encoded(text))] == [text]


def test_several_data_lines_are_one_event() -> None:
    assert decode(b"data: a\ndata:b\ndata\n\n") == [Event(b"a\nb\n")]


def test_only_one_leading_space_is_not_part_of_a_value() -> None:
    assert decode(b"data:  two\n\n") == [Event(b" two")]


def test_fields_other_than_data_are_kept_for_their_own_event_only() -> None:
    stream = b"event: error\nid: 7\nretry: 10\ndata: a\n\ndata: b\n\n"
    assert decode(stream) == [Event(b"a", b"error", b"7", 10), Event(b"b")]


@pytest.mark.parametrize("line", [b"retry: soon", b"id: a\0b", b"unheard: of", b"data2: no"])
def test_a_field_that_means_nothing_is_left_out(line: bytes) -> None:
    assert decode(line + b"\ndata: a\n\n") == [Event(b"a")]


def test_comments_and_events_without_data_are_dropped() -> None:
    assert decode(KEEP_ALIVE, b"event: ping\n\n", b": data: no\n\n", DONE) == [Event(b"[DONE]")]


def test_the_byte_order_mark_is_dropped_once() -> None:
    bom = b"\xef\xbb\xbf"
    assert decode(*(bytes([byte]) for byte in bom), b"data: a\n\n") == [Event(b"a")]
    assert decode(b"data: a\n\n" + bom + b"data: b\n\n") == [Event(b"a")]


def test_the_end_of_the_stream_ends_the_last_event() -> None:
    for stream in (b"data: a", b"data: a\n", b"data: a\r", b"data: a\n\n"):
        assert decode(stream) == [Event(b"a")]


def test_the_end_of_an_empty_stream_is_no_event() -> None:
    assert decode() == decode(b"") == decode(b"\n\n") == []


def test_an_event_is_given_out_before_the_next_one_begins() -> None:
    decoder = EventDecoder()
    assert decoder.feed(b"data: a\n") == []
    assert decoder.feed(b"\n") == [Event(b"a")]
    # A CR may be half a CRLF, but that is no reason to wait.
    assert decoder.feed(b"data: b\r\r") == [Event(b"b")]
    assert decoder.feed(b"\ndata: c\r\n\r") == [Event(b"c")]


@pytest.mark.parametrize("piece", [b"x", b"data: xxxx\n", b": xxxx\n"])
def test_an_event_without_end_does_not_fill_the_memory(piece: bytes) -> None:
    decoder = EventDecoder(limit=1000)
    with pytest.raises(EventTooLarge, match="1000 bytes"):
        for _ in range(1001):
            decoder.feed(piece)


def test_many_events_are_no_large_event() -> None:
    decoder = EventDecoder(limit=100)
    assert sum(len(decoder.feed(encoded(b"x" * 40) * 10)) for _ in range(100)) == 1000


def test_number_and_delay_are_known_of_events_without_data_but_not_of_half_ones() -> None:
    decoder = EventDecoder()
    assert decoder.feed(b"id: 1\nretry: 500\n\n") == []
    assert (decoder.last_id, decoder.retry) == (b"1", 500)
    decoder.feed(b"data: x\n\nid: 2\nretry: 9\ndata: {")
    assert (decoder.last_id, decoder.retry) == (b"1", 500)
    decoder.feed(b"}\n\n")
    assert (decoder.last_id, decoder.retry) == (b"2", 9)
