"""The readers of heads: by one that came before, as a whole, and by lines."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from llamaproxy.errors import ProxyError
from llamaproxy.heads import KINDS, Kinds, RequestHead
from llamaproxy.server import head
from llamaproxy.server.checks import OWN_CHECKS
from llamaproxy.server.framing import MAX_LINE, RequestRefused
from llamaproxy.server.head import LineReader, read_head, read_head_again
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


def test_blanks_before_what_may_not_stand_there_are_looked_at_once() -> None:
    # To try each way to divide them, between what is before a value and the value itself, would
    # take minutes for so many, and a second for as many as a head may have.
    blanks = b"GET / HTTP/1.1\r\nHost: a\r\nX:" + b" " * 300_000
    assert head._FIELD.findall(blanks + b"\1\r\n") == [(b"Host", b"a")]
    assert at_once(blanks[: MAX_LINE - 50] + b"\1\r\n\r\n") is None


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


Read = tuple[RequestHead, int] | None


def checked(sent: bytes) -> Read:
    """A head as it is read as a whole, and checked; None if it is refused."""
    try:
        read = read_head(sent)
        if read is not None:
            for check in OWN_CHECKS:
                check(read[0], None)
    except ProxyError:
        return None
    return read


def told(read: Read) -> object:
    """All that is known of a head that has been read."""
    if read is None:
        return None
    head, end = read
    known = head.body_length, head.expects_continue, head.over_limit, head.id
    return head.line, head.path, head.fields, head.by_name, known, end


LENGTHS = ["0", "7", "07", "+7", "", "9" * 18, "9" * 19, "7, 7"]


@settings(max_examples=500, deadline=None)
@given(
    st.lists(
        st.sampled_from(["GET / HTTP/1.1", "POST /a?b HTTP/1.0", "PUT http://a/b HTTP/1.1", "G"]),
        min_size=1,
        max_size=2,
    ),
    st.lists(
        st.sampled_from(
            [
                *("Host: a", "Host: a", "Content-Length: {}", "content-length: {}", "x:  a \t"),
                *("Content-length:{}", "X-Content-Length: {}", "Transfer-Encoding: chunked"),
                *("Expect: 100-continue", "Connection: close", "Authorization: a", "Bad : 1"),
                *("X: \r\n Content-Length: {}", "Content-Length: \r\nContent-Length: {}"),
            ]
        ),
        max_size=5,
    ),
    st.lists(st.sampled_from(LENGTHS), min_size=1, max_size=3),
    st.sampled_from(["", "\r\n", "\r\n\r\n"]),
)
def test_a_head_like_another_is_read_and_checked_as_if_there_had_been_no_other(
    lines: list[str], fields: list[str], lengths: list[str], before: str
) -> None:
    for line in lines:
        for length in lengths:
            written = [line, *(field.format(length) for field in fields), "", "and more"]
            sent = (before + "\r\n".join(written)).encode()
            plain = told(checked(sent))
            again = [told(read_head_again(sent)) for _ in range(3)]
            # An end of a head among the empty lines before it is not looked behind.
            assert again[1:] == ([None, None] if len(before) > 2 else [plain, plain])
            assert again[0] in (None, plain), "it may have come before"


def test_requests_of_one_kind_have_their_own_heads() -> None:
    sent = b"POST / HTTP/1.1\r\nHost: a\r\nX: 1\r\nContent-Length: %d\r\n\r\n"
    read_head_again(sent % 4)
    first, second = read_head_again(sent % 5), read_head_again(sent % 6)
    assert first is not None and second is not None
    changed, other = first[0], second[0]
    changed.identify(b"id")
    changed.add(b"X", b"2")
    changed.remove(b"host")
    third = read_head_again(sent % 6)
    assert third is not None and told(third) == told(second) == told(checked(sent % 6))
    assert changed.by_name[b"x"] == [b"1", b"2"] and b"host" not in changed.by_name
    assert third[0].kind is other.kind and changed.kind is None, "it has lost a field"
    third[0].let_go()
    assert third[0].kind is None and not third[0].fields, "a stream would keep it"
    assert other.fields and other.kind is not None


def test_a_head_that_is_too_long_to_be_kept_is_read_as_it_comes() -> None:
    sent = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 2048 + b"\r\n\r\n"
    assert [read_head_again(sent) for _ in range(3)] == [None] * 3
    assert checked(sent) is not None


def test_kinds_are_kept_of_heads_that_come_again_and_only_of_the_last() -> None:
    made: list[bytes] = []

    def make(before: bytes, after: bytes) -> bytes:
        made.append(before)
        return before

    kinds = Kinds(make)
    for number in range(5000):
        assert kinds.of(b"%d" % number, b"") is None
    assert not made and len(kinds._once) <= 2000, "nothing that comes once is kept"
    for number in range(1000):
        kinds.of(b"%d" % number, b"a")
        assert kinds.of(b"%d" % number, b"a") == b"%d" % number
    assert len(kinds._kept) == KINDS and len(made) == 1000
    assert kinds.of(b"999", b"a") == b"999" and len(made) == 1000
    assert kinds.of(b"0", b"a") is None, "it has been pushed out, and begins anew"
    assert kinds.of(b"0", b"a") == b"0" and len(made) == 1001
    assert kinds.of(b"99", b"9a") is None, "where the number stands matters"
