"""Arbitrary answers: what is accepted, h11 reads as the same; however it is split."""

from __future__ import annotations

import h11
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaproxy.upstream.headers import HOP_BY_HOP
from tests.upstream.wires import CLOSES, World

Reading = tuple[int, list[tuple[bytes, bytes]], bytes]

STATUS_LINES = st.sampled_from(
    [
        *(b"HTTP/1.1 200 OK", b"HTTP/1.1 200", b"HTTP/1.0 200 OK", b"HTTP/1.1 204 No Content"),
        *(b"HTTP/1.1 304 Not Modified", b"HTTP/1.1 404 \xe9", b"HTTP/1.1 599 a\tb", b"HTTP/2 200"),
        *(b"HTTP/1.1 099 x", b"HTTP/1.1 2000 x", b"HTTP/1.1 700 ", b"HTTP/1.2 200 OK"),
    ]
)
INTERIM = st.sampled_from(
    [
        *(b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Hints\r\nLink: a\r\n\r\n"),
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ]
)
FIELDS = st.lists(
    st.one_of(
        st.sampled_from(
            [
                *(b"Content-Length: 5", b"Content-Length: 0", b"content-length:4 "),
                *(b"Content-Length: +5", b"Content-Length: 5, 5", b"Content-Length: 0x5"),
                *(b"Transfer-Encoding: chunked", b"Transfer-Encoding: Chunked"),
                *(b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: identity"),
                *(b"Connection: close", b"Connection: keep-alive, x-a", b"X-A: 1", b"X-B:  2\t"),
                *(b"A : b", b" a: b", b"A: b\r\n c", b"A: b\nC: d", b"A: \x01", b": a", b"A"),
                *(b"Set-Cookie: a", b"set-cookie: b", b"Trailer: a", b"X-\xe9: a", b"X-C: \xe9"),
            ]
        ),
        st.builds(
            lambda name, value: name + b":" + value,
            st.text("abcXYZ-_!", min_size=1, max_size=5).map(str.encode),
            st.binary(max_size=6),
        ),
    ),
    max_size=4,
)
BODIES = st.one_of(
    st.sampled_from(
        [
            *(
                b"",
                b"hello",
                b"five.more",
                b"5\r\nhello\r\n0\r\n\r\n",
                b"0\r\n\r\n",
                b"05\r\nhello",
            ),
            *(b"2;a=b\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", b"5\r\nhello\r\n0\r\nA: b\r\n\r\n"),
            *(
                b"5\nhello\n0\n\n",
                b"-1\r\n",
                b"5 \r\nhello\r\n0\r\n\r\n",
                b"5\r\nhello!\r\n0\r\n\r\n",
            ),
        ]
    ),
    st.binary(max_size=12),
)


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """An answer, perhaps with a byte more, less or changed."""
    head = b"\r\n".join([draw(STATUS_LINES), *draw(FIELDS), b"", b""])
    raw = draw(INTERIM) + head + draw(BODIES)
    if draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(raw)))
        raw = (
            raw[:at]
            + draw(st.sampled_from([b"", b"\n", b"\r", b" ", b"\0", b"5"]))
            + (raw[at + draw(st.integers(0, 1)) :])
        )
    return raw


def end_to_end(fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    tokens = b",".join(value for name, value in fields if name == b"connection").split(b",")
    dropped = HOP_BY_HOP | {token.strip().lower() for token in tokens} - {b"content-length"}
    return [field for field in fields if field[0] not in dropped]


def ours(method: bytes, parts: list[bytes]) -> Reading | None:
    """The answer, if it came to an orderly end before or with that of its connection."""
    world = World()
    taker, _ = world.ask(method)
    [wire] = world.wires
    for part in parts:
        if taker.end is None and part:
            wire.send(part)
    if taker.end is None:
        wire.lose(CLOSES)
    if taker.end != "ended":
        return None
    fields = [(name.lower(), value) for name, value in taker.head.fields]
    return taker.head.status, fields, taker.body


def theirs(method: bytes, raw: bytes) -> Reading:
    """What h11 makes of it."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/x", headers=[("Host", "stack")]))
    client.send(h11.EndOfMessage())
    client.receive_data(raw)
    client.receive_data(b"")
    status, fields, body = 0, [], b""
    while True:
        event = client.next_event()
        if isinstance(event, h11.Response):
            status = event.status_code
            fields = end_to_end([(bytes(name), bytes(value)) for name, value in event.headers])
            if status == 204:
                fields = [field for field in fields if field[0] != b"content-length"]
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            return status, fields, body
        else:
            assert isinstance(event, h11.InformationalResponse), event


@settings(max_examples=500)
@given(st.sampled_from([b"GET", b"HEAD"]), answers(), st.data())
def test_what_is_accepted_is_what_h11_reads(
    method: bytes, raw: bytes, draws: st.DataObject
) -> None:
    reading = ours(method, [raw])
    if reading is not None:
        assert reading == theirs(method, raw)
    cuts = sorted(draws.draw(st.lists(st.integers(0, len(raw)), max_size=4)))
    edges = zip([0, *cuts], [*cuts, len(raw)], strict=True)
    assert ours(method, [raw[begin:end] for begin, end in edges]) == reading


@given(st.binary(max_size=60), st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 "]))
def test_bytes_come_one_by_one_to_what_they_come_to_together(noise: bytes, begin: bytes) -> None:
    raw = begin + noise
    assert ours(b"GET", [raw[at : at + 1] for at in range(len(raw))]) == ours(b"GET", [raw])
