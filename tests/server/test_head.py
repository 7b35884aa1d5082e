"""The two readers of heads: one that reads a head at once, and one that goes by lines."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from llamaproxy.heads import RequestHead
from llamaproxy.server.framing import MAX_LINE, RequestRefused
from llamaproxy.server.head import LineReader, read_head
from tests.server.test_front_door_fuzz import streams

#: A head's fields with its line, and what follows it; or the status and message of a refusal; or
#: None, if it is not there as a whole.
Outcome = tuple[object, object, bytes] | tuple[int, str] | None


def at_once(received: bytes) -> Outcome:
    try:
        read = read_head(received)
    except RequestRefused as error:
        return error.status, str(error)
    return read and (read[0].line, read[0].fields, received[read[1] :])


def by_lines(*parts: bytes) -> Outcome:
    """What the reader of lines comes to; what comes after the head's end counts as following it."""
    reader = LineReader()
    rest: bytes | None = None
    try:
        for part in parts:
            rest = reader.read(part) if rest is None else rest + part
    except RequestRefused as error:
        return error.status, str(error)
    if rest is None or reader.head is None:
        return None
    return reader.head.line, reader.head.fields, rest


FIELD_PARTS = [
    b"Host",
    b"X",
    b":",
    b" ",
    b"\t",
    b"a",
    b"\xe9",
    b"\r\n",
    b"\r",
    b"\n",
    b"\0",
    b"\x7f",
]


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """A request line with fields of parts, some of them odd, an end and more."""
    empty_lines = draw(st.sampled_from([0, 0, 0, 1, 2, 8, 9]))
    line = draw(
        st.sampled_from(
            [
                *(b"GET / HTTP/1.1", b"GET / HTTP/1.0", b"GET /a HTTP/1.9", b"OPTIONS * HTTP/1.1"),
                *(b"GET http://a/b HTTP/1.1", b"TRACE / HTTP/1.1", b"GET / HTTP/2.0", b"GET x"),
                *(b"GET x HTTP/1.1", b"G\0T / HTTP/1.1", b"GET /" + b"a" * 8192 + b" HTTP/1.1"),
            ]
        )
    )
    proper = st.sampled_from([b"Host: a\r\n", b"X:\r\n", b"x:  a b\t \r\n", b"X: \xe9\r\n"])
    odd = st.lists(st.sampled_from(FIELD_PARTS), max_size=6).map(b"".join)
    fields = draw(st.lists(st.one_of(proper, proper, odd), max_size=5))
    many = draw(st.sampled_from([b"", b"", b"", b"X: a\r\n" * 126, b"X: a\r\n" * 129]))
    end = draw(st.sampled_from([b"\r\n", b"\r\n", b"\r\nGET", b"\n", b""]))
    return b"\r\n" * empty_lines + line + b"\r\n" + many + b"".join(fields) + end


def cut(sent: bytes, at: list[int]) -> list[bytes]:
    places = sorted(min(each, len(sent)) for each in at)
    return [sent[i:j] for i, j in zip([0, *places], [*places, len(sent)], strict=True)]


@settings(max_examples=1000, deadline=None)
@given(st.one_of(heads(), streams().map(b"".join)), st.lists(st.integers(0, 200), max_size=4))
@example(b"GET / HTTP/1.1\r\na\nY: b\r\n\r\n", [])
@example(b"GET / HTTP/1.1\r\nX Y: b\r\n\r\n", [])
@example(b"GET / HTTP/1.1\r\nX: a\r\n folded\r\n\r\n", [3, 17])
@example(b"\r\n\r\nGET / HTTP/1.1\r\n\r\n", [1, 3])
def test_both_come_to_the_same(sent: bytes, places: list[int]) -> None:
    whole, careful = at_once(sent), by_lines(sent)
    if whole is not None:
        assert whole == careful
    if careful is not None and len(careful) == 3 and len(sent) <= MAX_LINE:
        assert whole == careful, "what the careful one accepts, the other must"
    torn = by_lines(*cut(sent, places))
    refused = careful is not None and len(careful) == 2
    assert torn == careful or (refused and torn is not None and len(torn) == 2)


def test_a_head_longer_than_a_line_may_be_is_read_by_lines() -> None:
    fields = [(b"A", b"a" * 12_000), (b"B", b"b" * 16_000)]
    sent = b"GET / HTTP/1.1\r\n" + b"".join(b"%b: %b\r\n" % field for field in fields) + b"\r\n"
    assert read_head(sent) is None
    careful = by_lines(sent)
    assert careful is not None and careful[1] == fields


class Counting(bytearray):
    """Counts the bytes that are searched, or copied out of it."""

    looked_at = 0

    def find(self, sub: bytes, start: int = 0, *end: int) -> int:  # type: ignore[override]
        Counting.looked_at += len(self) - start
        return bytearray.find(self, sub, start, *end)

    def __getitem__(self, key: slice) -> bytearray:  # type: ignore[override]
        copied = bytearray.__getitem__(self, key)
        Counting.looked_at += len(copied)
        return copied


def test_a_head_that_comes_a_byte_at_a_time_is_looked_at_once() -> None:
    sent = b"GET / HTTP/1.1\r\n" + (b"X: " + b"a" * 16_000 + b"\r\n") * 4 + b"\r\n"
    reader = LineReader()
    reader._line = Counting()
    Counting.looked_at = 0
    parts = [sent[i : i + 1] for i in range(len(sent))]
    rests = [reader.read(part) for part in parts]
    assert rests[-1] == b"" and set(rests[:-1]) == {None}
    assert Counting.looked_at < 4 * len(sent)


def test_fields_are_found_by_any_spelling_and_kept_as_they_are_spelled() -> None:
    read = read_head(b"GET / HTTP/1.1\r\nhOsT: a\r\nX-a: 1\r\nx-A: 2\r\n\r\n")
    assert read is not None
    head: RequestHead = read[0]
    assert head.fields == [(b"hOsT", b"a"), (b"X-a", b"1"), (b"x-A", b"2")]
    assert head.by_name[b"host"] == [b"a"] and head.by_name[b"x-a"] == [b"1", b"2"]
    head.remove(b"x-a", b"cookie")
    assert head.fields == [(b"hOsT", b"a")] and b"x-a" not in head.by_name
