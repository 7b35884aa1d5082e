"""Heads of responses: what is taken, what is refused, and what becomes of the fields."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaproxy.heads import MAX_KIND
from llamaproxy.upstream.headers import HOP_BY_HOP
from llamaproxy.upstream.response_head import MAX_FIELDS, BadHead, ResponseHead, read_response_head


def head(*lines: str, status: str = "HTTP/1.1 200 OK", method: bytes = b"GET") -> ResponseHead:
    return read_response_head("\r\n".join([status, *lines, "", ""]).encode("latin-1"), method)


def test_fields_keep_their_order_repetitions_and_bytes() -> None:
    read = head("B: 1", "a:\xff \t", "b:  2  2 ", "C:")
    assert read.fields == [(b"B", b"1"), (b"a", b"\xff"), (b"b", b"2  2"), (b"C", b"")]


@pytest.mark.parametrize(
    ("line", "status", "phrase"),
    [
        ("HTTP/1.1 200 OK", 200, b"OK"),
        ("HTTP/1.1 200 ", 200, b""),
        ("HTTP/1.1 200", 200, b""),
        ("HTTP/1.0 404 Not \xe9 Found", 404, b"Not \xe9 Found"),
        ("HTTP/1.1 799 \t", 799, b"\t"),
    ],
)
def test_status_lines(line: str, status: int, phrase: bytes) -> None:
    """RFC 9112 section 4."""
    read = head(status=line)
    assert (read.status, read.phrase) == (status, phrase)


@pytest.mark.parametrize(
    "line",
    [
        "HTTP/2 200 OK",
        "HTTP/1 200 OK",
        "HTTP/1.2 200 OK",
        "HTTP/0.9 200 OK",
        "HTTP/2.0 200 OK",
        "HTTP/1.1 000 OK",
        "HTTP/1.1 200 O\x01K",
        "RTSP/1.0 200 OK",
        "HTTP/1.1  200 OK",
        "HTTP/1.1 20 OK",
        "HTTP/1.1 2000 OK",
        "HTTP/1.1 099 OK",
        "HTTP/1.1 +20 OK",
        "HTTP/1.1 200\tOK",
        "HTTP/1.1 200 O\rK",
        "HTTP/1.1 200 O\0K",
        "http/1.1 200 OK",
        "ICY 200 OK",
        " HTTP/1.1 200 OK",
        "\r\nHTTP/1.1 200 OK",
        "",
    ],
)
def test_what_is_no_status_line_is_refused(line: str) -> None:
    with pytest.raises(BadHead):
        head(status=line)


@pytest.mark.parametrize(
    "line",
    [
        "no colon",
        ": no name",
        "a b: c",
        "a\0: b",
        "a: b\0",
        "a: b\rc",
        "a: b\r",
        "\xe9: a",
        "(a): b",
        "a : b",
        "a\t: b",
        "a: b\x01",
        "a: b\r\n c",
        "a: b\r\n\tc",
        " a: b",
        "a: b\nc: d",
    ],
)
def test_a_malformed_field_is_refused(line: str) -> None:
    """RFC 9110 section 5.5, RFC 9112 section 5."""
    with pytest.raises(BadHead):
        head(line)
    with pytest.raises(BadHead):
        head("a: b", line, "c: d")


def test_a_single_line_feed_ends_no_line() -> None:
    """RFC 9112 section 2.2 lets a recipient take it for the end of one, and does not ask for it."""
    for raw in (b"HTTP/1.1 200 OK\nA: b\n\n", b"HTTP/1.1 200 OK\r\nA: b\r\n\n"):
        with pytest.raises(BadHead):
            read_response_head(raw, b"GET")


@pytest.mark.parametrize("name", sorted(HOP_BY_HOP - {b"transfer-encoding"}))
def test_hop_by_hop_fields_are_not_handed_on(name: bytes) -> None:
    """RFC 9110 section 7.6.1."""
    assert head(f"{name.decode().upper()}: x", "Kept: y").fields == [(b"Kept", b"y")]


def test_fields_that_connection_nominates_are_not_handed_on() -> None:
    read = head("Connection: X-One, ,x-two", "X-ONE: 1", "X-Two: 2", "connection:\tX-3", "X-3: 3")
    assert read.fields == []


def test_nominating_the_framing_does_not_change_it() -> None:
    read = head("Connection: content-length", "Content-Length: 5")
    assert (read.length, read.until_close) == (5, False)
    assert head("Connection: transfer-encoding", "Transfer-Encoding: chunked").length is None


@pytest.mark.parametrize(
    ("lines", "length"),
    [
        (["Content-Length: 0"], 0),
        (["Content-Length: 5"], 5),
        (["Content-Length: 5 "], 5),
        (["Transfer-Encoding: Chunked"], None),
    ],
)
def test_framing(lines: list[str], length: int | None) -> None:
    """RFC 9112 section 6.3."""
    read = head(*lines)
    assert (read.length, read.until_close, read.close) == (length, False, False)
    assert [field for field in read.fields if field[0] != b"Content-Length"] == []


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: 5", "Content-Length: 6"],
        ["Content-Length: 5", "content-length: 5"],
        ["Content-Length: 5, 5"],
        ["Content-Length: 5, 6"],
        ["Content-Length: -5"],
        ["Content-Length: +5"],
        ["Content-Length: 0x5"],
        ["Content-Length: 5 5"],
        ["Content-Length: 5_0"],
        ["Content-Length: "],
        ["Content-Length: 5,"],
        ["Content-Length: \xb2"],
        ["Content-Length: 9999999999999999999"],
        ["Content-Length: 5", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: gzip, chunked"],
        ["Transfer-Encoding: chunked, chunked"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: identity"],
        ["Transfer-Encoding: "],
    ],
)
def test_a_body_whose_end_would_be_anybodys_guess_is_refused(lines: list[str]) -> None:
    """RFC 9112 sections 6.1 and 6.3: what else could split one answer into two."""
    with pytest.raises(BadHead):
        head(*lines)


@pytest.mark.parametrize(
    ("status", "method", "fields_kept"),
    [("200", b"HEAD", True), ("304", b"GET", True), ("204", b"GET", False)],
)
def test_an_answer_without_a_body_has_none_whatever_length_it_tells(
    status: str, method: bytes, fields_kept: bool
) -> None:
    """RFC 9110 section 8.6."""
    read = head("Content-Length: 7", status=f"HTTP/1.1 {status} x", method=method)
    assert (read.length, read.bodiless, read.until_close) == (0, True, False)
    assert read.fields == ([(b"Content-Length", b"7")] if fields_kept else [])


@pytest.mark.parametrize(
    ("status", "lines", "close"),
    [
        ("HTTP/1.1 200", ["Content-Length: 0", "Connection: Keep-Alive"], False),
        ("HTTP/1.1 200", ["Content-Length: 0", "Connection: CLOSE"], True),
        ("HTTP/1.1 200", ["Content-Length: 0", "Connection: x, close"], True),
        ("HTTP/1.1 200", [], True),
        ("HTTP/1.0 200", ["Content-Length: 0", "Connection: keep-alive"], True),
    ],
)
def test_whether_the_connection_can_be_used_again(
    status: str, lines: list[str], close: bool
) -> None:
    read = head(*lines, status=status)
    assert read.close == close


def test_interim_answers_and_a_protocol_for_which_nobody_asked() -> None:
    """RFC 9110 section 15.2."""
    assert head("Link: </a>", status="HTTP/1.1 103 Early Hints").interim
    assert not head().interim
    with pytest.raises(BadHead, match="switches protocols"):
        head("Upgrade: h2c", status="HTTP/1.1 101 Switching Protocols")


def test_more_fields_than_anybody_needs_are_refused() -> None:
    assert len(head(*["A: b"] * MAX_FIELDS).fields) == MAX_FIELDS
    with pytest.raises(BadHead):
        head(*["A: b"] * (MAX_FIELDS + 1))


@given(st.binary(max_size=60))
def test_nothing_but_a_refusal_comes_of_arbitrary_bytes(noise: bytes) -> None:
    for raw in (noise, b"HTTP/1.1 200 OK\r\n" + noise + b"\r\n\r\n", b"HTTP/1.1 " + noise):
        try:
            read = read_response_head(raw, b"GET")
        except BadHead:
            continue
        assert not any(set(name + value) & set(b"\r\n\0") for name, value in read.fields)


_LINES = (
    *("Content-Length: ", "content-length: ", "Content-Length:", "X-Content-Length: "),
    *("Content-Length: \r\nContent-Length: 5", "X: \r\n Content-Length: 1", "Connection: close"),
    *(
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: chunked",
        "Connection: X-Hop, content-length",
        "X-Hop: 1",
        "Server: a",
    ),
    *("Bad Field: 1", "Upgrade: h2c", "A: Content-Length: 7", "B:  1 \t"),
)


@settings(max_examples=2000)
@given(
    status=st.sampled_from(["HTTP/1.1 200 OK", "HTTP/1.0 200 OK", "HTTP/1.1 404", "HTTP/1.1 503 x"])
    | st.sampled_from(["HTTP/1.1 204 None", "HTTP/1.1 304 Same", "HTTP/1.1 103 Early"]),
    lines=st.lists(st.sampled_from(_LINES), min_size=1, max_size=4),
    numbers=st.lists(
        st.sampled_from(["", "0", "5", "7", "05", "+5", "9" * 18, "9" * 19]), min_size=1, max_size=3
    ),
    method=st.sampled_from([b"GET", b"HEAD"]),
    body=st.sampled_from([b"2\r\nab\r\n0\r\n\r\n", b"0\r\nA: b\r\n\r\n", b"2\r\nabc", b""])
    | st.sampled_from([b"0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", b"2;x=y\r\nab\r\n", b"\n", b"x"]),
)
def test_a_head_like_another_is_read_as_if_there_had_been_no_other(
    status: str, lines: list[str], numbers: list[str], method: bytes, body: bytes
) -> None:
    for number in numbers:
        fields = [f"{line}{number}" if line.endswith((": ", "h:")) else line for line in lines]
        # Too long to be remembered, it is read as it comes.
        unlike = [*fields, f"Pad: {'x' * MAX_KIND}"]
        expected = _read_as(unlike, status, method, body)
        assert [_read_as(fields, status, method, body) for _ in range(3)] == [expected] * 3


def _read_as(lines: list[str], status: str, method: bytes, body: bytes) -> object:
    """Whatever is read of a head, without its padding, and of what follows it."""
    try:
        read = head(*lines, status=status, method=method)
    except BadHead as error:
        return str(error)
    fields = [(name, value) for name, value in read.fields if name != b"Pad"]
    names = read.names - {b"pad"}
    length = read.length, read.bodiless, read.close, read.until_close
    told = read.status, read.phrase, fields, length, names
    if (chunks := read.chunks) is None:
        return told
    return told, chunks.feed(body), chunks.complete, chunks.ends_exactly, chunks.feed(body)


def test_the_fields_of_a_head_are_no_other_heads() -> None:
    head("Content-Length: 4", "A: b")
    first = head("Content-Length: 5", "A: b")
    first.fields.append((b"C", b"d"))
    first.fields[0] = (b"Content-Length", b"7")
    again = head("Content-Length: 6", "A: b")
    assert again.fields == [(b"Content-Length", b"6"), (b"A", b"b")]
    assert (first.length, again.length) == (5, 6)
