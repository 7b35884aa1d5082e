"""Whatever the front door lets in, the next parser must frame in the same way.

Requests are made of parts, proper and doubtful ones, then damaged byte by byte, and cut into
pieces. h11, which has nothing in common with this code, reads the same bytes: every request that
got through must be the one that h11 has seen in that place.
"""

from __future__ import annotations

import re

import h11
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from llamaproxy.errors import ProxyError
from llamaproxy.server.body import ChunkedBody
from tests.server.door import FrontDoor, Passed

#: Bytes that parsers disagree about.
TRICKY = [
    b"\r",
    b"\n",
    b"\r\n",
    b"\0",
    b" ",
    b"\t",
    b":",
    b";",
    b",",
    b"0",
    b"\x0b",
    b"\x85",
    b"\xa0",
]

BODIES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"", b"0\r\n\r\n", b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n", b"\r\n\r\n"]),
)


#: What can be odd about a request, by the part in which it is: at most one thing is.
ODDITIES: dict[str, list[bytes]] = {
    "none": [b""],
    "method": [b"get", b"X-Y", b"G@T", b"TRACE", b""],
    "target": [b"*", b"http://a/x", b"http://b/x", b"a", b"/%0d%0a", b"/a b", b"/\xe9", b"/#"],
    "version": [b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"http/1.1", b"HTTP/1.1 "],
    "host": [b"", b"Host: a\r\nHost: a\r\n", b"Host:\r\n", b"Host: a b\r\n", b"Host : a\r\n"],
    "line": [b"X:\r\n", b"X: \xff\r\n", b" folded\r\n", b"X : a\r\n", b"X: a\rb\r\n", b"X\r\n"],
    "close": [b"Connection: close\r\n", b"Connection: x, close\r\n"],
    "length": [b"0%d", b"+%d", b"%d, %d", b"%d ", b"\x0b%d", b"%d_0", b"0x%d", b"%d\r\n %d", b""],
    "wrong": [b"1", b"3", b"50"],
    "coding": [
        b"Chunked",
        b"chunked, chunked",
        b"x",
        b"",
        b"\x0bchunked",
        b"identity",
        b"chunked\0",
    ],
    "both": [b"Content-Length: 0\r\n", b"Content-Length: 5\r\n"],
    "size": [
        b"0%x",
        b"%x;a=b",
        b"%x ;a",
        b" %x",
        b"%x ",
        b"0x%x",
        b"+%x",
        b"%x\n",
        b"%x;\n",
        b"_%x",
    ],
    "data": [b"\n", b"\r", b"", b"\r\n\r\n", b"x\r\n"],
    "trailer": [b"X: a\r\n\r\n", b"X : a\r\n\r\n", b"\n", b"X: a\n\r\n", b"Host: b\r\n\r\n"],
}


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A request with at most one odd thing about it."""
    odd = draw(st.sampled_from([*ODDITIES, "none", "none"]))
    oddity = draw(st.sampled_from(ODDITIES[odd]))

    def part(name: str, *proper: bytes) -> bytes:
        return oddity if odd == name else draw(st.sampled_from(proper))

    method = part("method", b"GET", b"POST", b"HEAD", b"OPTIONS")
    line = [method, part("target", b"/", b"/a?b", b"//a"), part("version", b"HTTP/1.1")]
    fields = [part("host", b"Host: a\r\n"), part("line", b"", b"X: a\r\n"), part("close", b"")]
    body = b""
    if odd in ("coding", "both", "size", "data", "trailer") or draw(st.booleans()):
        coding = part("coding", b"chunked")
        fields += [b"Transfer-Encoding: " + coding + b"\r\n", part("both", b"")]
        size = part("size", b"%x", b"%X")
        for data in draw(st.lists(BODIES.filter(bool), max_size=2)):
            body += size.replace(b"%x", b"%x" % len(data)).replace(b"%X", b"%X" % len(data))
            body += b"\r\n" + data + part("data", b"\r\n")
        body += b"0\r\n" + part("trailer", b"\r\n")
    elif odd in ("length", "wrong") or draw(st.booleans()):
        body = draw(BODIES)
        length = part("wrong", part("length", b"%d")).replace(b"%d", b"%d" % len(body))
        fields += [b"Content-Length: " + length + b"\r\n"]
    return b" ".join(line) + b"\r\n" + b"".join(draw(st.permutations(fields))) + b"\r\n" + body


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """What one connection sends, in the pieces in which it arrives."""
    sent = b"".join(draw(st.lists(requests(), min_size=1, max_size=4)))
    for _ in range(draw(st.sampled_from([0, 0, 0, 0, 1, 2]))):
        at = draw(st.integers(0, len(sent)))
        sent = sent[:at] + draw(st.sampled_from(TRICKY)) + sent[at + draw(st.integers(0, 2)) :]
    cuts = sorted(draw(st.lists(st.integers(0, len(sent)), max_size=5)))
    return [sent[i:j] for i, j in zip([0, *cuts], [*cuts, len(sent)], strict=True)]


def assume_no_blank_before_a_semicolon(stream: bytes) -> None:
    """A blank there is to be accepted (RFC 9112 section 7.1.1), but h11 does not."""
    assume(not re.search(rb"[0-9A-Fa-f][ \t]+;", stream))


def as_h11_reads(stream: bytes) -> list[Passed]:
    """The requests that h11 sees, up to what it refuses."""
    requests_read: list[Passed] = []
    while True:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=100_000)
        # Empty lines are to be ignored (RFC 9112 section 2.2), but h11 does not.
        connection.receive_data(re.sub(rb"\A(\r\n){1,8}", b"", stream))
        try:
            request, body = connection.next_event(), b""
            while isinstance(event := connection.next_event(), h11.Data):
                body += bytes(event.data)
            if not isinstance(request, h11.Request) or not isinstance(event, h11.EndOfMessage):
                return requests_read
            requests_read.append(Passed(request.method, request.target, body, {}))
            stream, _ = connection.trailing_data
            connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
            connection.send(h11.EndOfMessage())
            connection.start_next_cycle()
        except (h11.RemoteProtocolError, h11.LocalProtocolError):
            return requests_read


def origin_form(request: Passed) -> Passed:
    target = request.target.removeprefix(b"http://a")
    return Passed(request.method, target, request.body, {})


@settings(max_examples=500, deadline=None)
@given(streams())
def test_what_gets_through_is_what_h11_reads(pieces: list[bytes]) -> None:
    assume_no_blank_before_a_semicolon(b"".join(pieces))
    door = FrontDoor()
    client = door.client()
    client.send(*pieces)
    client.leave()
    passed = door.inside.passed
    # OPTIONS * is answered by the proxy itself.
    read = [each for each in as_h11_reads(b"".join(pieces)) if each.target != b"*"]
    assert passed == [origin_form(each) for each in read][: len(passed)]


@settings(max_examples=200, deadline=None)
@given(streams())
def test_it_does_not_matter_how_a_stream_is_cut(pieces: list[bytes]) -> None:
    cut, whole = FrontDoor(), FrontDoor()
    ends = []
    for door, sent in ((cut, pieces), (whole, [b"".join(pieces)])):
        client = door.client()
        client.send(*sent)
        client.leave()
        heads = sum(each.method == b"HEAD" for each in door.inside.passed)
        ends.append((client.line.value().count(b"HTTP/1.1 "), client.ended, heads))
    assert cut.inside.passed == whole.inside.passed
    assert ends[0] == ends[1]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=50), max_size=5), st.data())
def test_a_chunked_body_is_read_back_however_it_is_cut(
    chunks: list[bytes], data: st.DataObject
) -> None:
    sent = b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in chunks) + b"0\r\n\r\nrest"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=8)))
    decoder, read = ChunkedBody(10_000), b""
    for i, j in zip([0, *cuts], [*cuts, len(sent)], strict=True):
        if decoder.rest is None:
            read += decoder.feed(sent[i:j])
        else:
            decoder.rest += sent[i:j]
    assert read == b"".join(chunks)
    assert decoder.rest == b"rest"


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from([*TRICKY, b"5", b"a", b"F", b"abcde", b"0\r\n\r\n", b"5;a"])))
@example([b"5", b"\r\n", b"abcde", b"\r\n", b"0\r\n\r\n"])
def test_a_chunked_body_that_is_read_is_read_so_by_h11(parts: list[bytes]) -> None:
    sent = b"".join(parts)
    assume_no_blank_before_a_semicolon(sent)
    decoder = ChunkedBody(10_000)
    try:
        body = decoder.feed(sent)
    except ProxyError:
        return
    if decoder.rest is None:
        return
    whole = sent[: len(sent) - len(decoder.rest)]
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert [each.body for each in as_h11_reads(head + whole)] == [body]
