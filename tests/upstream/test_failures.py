"""What a client sees of an upstream that fails, and of answers in every framing.

The upstream is raw: a test sends what bytes it likes, or closes the connection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hyperlink import DecodedURL
from twisted.internet import reactor as _reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.testing import MemoryReactorClock

from llamaproxy.errors import UpstreamTimeout
from llamaproxy.upstream.agent import UpstreamAgent
from llamaproxy.upstream.failures import response_within
from llamaproxy.upstream.pool import UpstreamPool
from tests.support import outcome, pending_calls
from tests.test_sockets import (
    Asked,
    Wires,
    closed_port,
    dechunked,
    error_of,
    fields,
    head_and_body,
    on_sockets,
    status_of,
    wires,
)

__all__ = ["wires"]

reactor: Any = _reactor

#: The time limit to the first byte, and of silence, where a test waits for it.
SOON = ("--upstream-timeout", "0.3")

Script = Callable[[Asked], object]


def sends(raw: bytes, then: str = "waits") -> Script:
    """The upstream answers with *raw*, and then ``closes``, ``resets`` or ``waits``."""

    def script(asked: Asked) -> None:
        asked.peer.send(raw)
        transport: Any = asked.peer.transport
        if then == "closes":
            transport.loseConnection()
        elif then == "resets":
            # A reset takes along what has not been sent yet.
            reactor.callLater(0, asked.peer.leave)

    return script


OK = b"HTTP/1.1 200 OK\r\n"
LONG = b"x" * 17000

#: Each script, and what the client sees: a status and a code, or how much of an answer of which
#: the end is missing.
FAILURES: dict[str, tuple[Script, tuple[int, str]]] = {
    "closes": (sends(b"", "closes"), (502, "upstream_broke")),
    "resets": (sends(b"", "resets"), (502, "upstream_broke")),
    "stalls": (sends(b""), (504, "upstream_timeout")),
    "garbage": (sends(b"garbage"), (502, "upstream_broke")),
    "garbage lines": (sends(b"\0\r\n" * 9), (502, "upstream_broke")),
    "another protocol": (sends(b"SSH-2.0-OpenSSH_9.2\r\n"), (502, "upstream_broke")),
    "an old protocol": (sends(b"<html></html>", "closes"), (502, "upstream_broke")),
    "closes in the status": (sends(b"HTTP/1.1 2", "closes"), (502, "upstream_broke")),
    "closes in the head": (sends(OK + b"A: b\r\n", "closes"), (502, "upstream_broke")),
    "resets in the head": (sends(OK + b"A: b", "resets"), (502, "upstream_broke")),
    "stalls in the head": (sends(OK + b"A: b\r\n"), (504, "upstream_timeout")),
    "a bad status": (sends(b"HTTP/1.1 2x0 OK\r\n\r\n"), (502, "upstream_broke")),
    "a bad field": (sends(OK + b"A b\r\n\r\n"), (502, "upstream_broke")),
    "a long head": (sends(OK + b"A: " + LONG * 4), (502, "upstream_broke")),
    "many fields": (sends(OK + b"A: b\r\n" * 300 + b"\r\n"), (502, "upstream_broke")),
    "two lengths": (
        sends(OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx"),
        (502, "upstream_broke"),
    ),
    "equal lengths": (
        sends(OK + b"Content-Length: 4, 4\r\n\r\nsome"),
        (502, "upstream_broke"),
    ),
    "bare line feeds": (
        sends(b"HTTP/1.1 200 OK\nContent-Length: 4\n\nsome"),
        (502, "upstream_broke"),
    ),
    "a folded line": (sends(OK + b"A: b\r\n c\r\n\r\n"), (502, "upstream_broke")),
    "a space before the colon": (sends(OK + b"A : b\r\n\r\n"), (502, "upstream_broke")),
    "a negative length": (sends(OK + b"Content-Length: -1\r\n\r\n"), (502, "upstream_broke")),
    "length and coding": (
        sends(OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        (502, "upstream_broke"),
    ),
    "an unknown coding": (
        sends(OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n"),
        (502, "upstream_broke"),
    ),
    "switches protocols": (
        sends(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n"),
        (502, "upstream_broke"),
    ),
    "interim answers alone": (sends(b"HTTP/1.1 100 Continue\r\n\r\n"), (504, "upstream_timeout")),
}


@pytest.mark.parametrize("line", ["GET /x", "POST /v1/chat/completions"])
@pytest.mark.parametrize("name", FAILURES)
@on_sockets
async def test_an_upstream_that_fails_before_its_answer(wires: Wires, name: str, line: str) -> None:
    script, (status, code) = FAILURES[name]
    port = wires.proxy(*(SOON if status == 504 else ()))
    client = await wires.ask(port, line, body=b'{"messages": []}' if line[0] == "P" else b"")
    asked = await wires.stack.asked()
    script(asked)
    answer = await client.end()
    assert status_of(answer) == status
    assert error_of(answer)["code"] == code
    assert error_of(answer)["message"]
    await asked.peer.end()


CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"

CUTS: dict[str, Script] = {
    "length, closes": sends(OK + b"Content-Length: 9\r\n\r\nsome", "closes"),
    "length, resets": sends(OK + b"Content-Length: 9\r\n\r\nsome"),
    "length, stalls": sends(OK + b"Content-Length: 9\r\n\r\nsome"),
    "chunked, closes": sends(CHUNKED + b"4\r\nsome\r\n", "closes"),
    "chunked, resets": sends(CHUNKED + b"4\r\nsome\r\n"),
    "chunked, stalls": sends(CHUNKED + b"4\r\nsome\r\n"),
    "chunked, closes in the last chunk": sends(CHUNKED + b"4\r\nsome\r\n0\r\n", "closes"),
    "chunked, a bad size": sends(CHUNKED + b"4\r\nsome\r\n-1\r\n"),
    "chunked, a size with a space": sends(CHUNKED + b"4\r\nsome\r\n 4\r\nmore\r\n"),
    "chunked, too long a chunk": sends(CHUNKED + b"4\r\nsome!\r\n0\r\n\r\n"),
    "chunked, a length behind it": sends(CHUNKED + b"4\r\nsome\r\n0\r\nContent-Length: 4\r\n\r\n"),
    "until close, resets": sends(OK + b"\r\nsome"),
    "until close, stalls": sends(OK + b"\r\nsome"),
}


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("name", CUTS)
@on_sockets
async def test_an_upstream_that_fails_in_its_answer(wires: Wires, name: str, version: str) -> None:
    port = wires.proxy(*SOON)
    client = await wires.client(port)
    client.send(f"GET /x HTTP/{version}\r\nHost: proxy\r\n\r\n".encode())
    asked = await wires.stack.asked()
    CUTS[name](asked)
    if name.endswith("resets"):
        await client.reads(b"some")
        asked.peer.leave()
    head, body = head_and_body(await client.end())
    assert head.startswith(b"HTTP/1.1 200 ") or version == "1.0"
    if name.startswith("length"):
        assert (fields(head, "Content-Length"), body) == ([b"9"], b"some")
    elif version == "1.1":
        assert body == b"4\r\nsome\r\n", "there must be no last chunk"
    else:
        # What has been received is lost with a reset.
        assert b"some".startswith(body)
        assert client.reset
    await asked.peer.end()


@pytest.mark.parametrize("line", ["GET /x", "GET /v1/models", "POST /v1/chat/completions"])
@pytest.mark.parametrize(
    ("host", "message"), [("127.0.0.1", "refused"), ("nowhere.invalid", "DNS lookup failed")]
)
@on_sockets
async def test_an_upstream_that_cannot_be_reached(
    wires: Wires, line: str, host: str, message: str
) -> None:
    port = wires.proxy(upstream=f"http://{host}:{closed_port()}")
    answer = await (
        await wires.ask(port, line, body=b'{"messages": []}' if line[0] == "P" else b"")
    ).end()
    assert status_of(answer) == 502
    assert error_of(answer)["code"] == "upstream_unavailable"
    assert message in error_of(answer)["message"]


# --- answers in every framing


def complete(message: bytes) -> bytes:
    """The body of an answer that must be whole."""
    head, body = head_and_body(message)
    if fields(head, "Transfer-Encoding"):
        assert fields(head, "Content-Length") == []
        return dechunked(body)
    [length] = fields(head, "Content-Length")
    assert len(body) == int(length)
    return body


FRAMINGS: dict[str, Script] = {
    "length": sends(OK + b"Content-Length: 4\r\n\r\nsome"),
    "length and more": sends(OK + b"Content-Length: 4\r\n\r\nsomeHTTP/1.1 200 OK\r\n\r\n"),
    "chunked": sends(CHUNKED + b"3;a=b\r\nsom\r\n01\r\ne\r\n0\r\n\r\n"),
    "trailers": sends(CHUNKED + b"4\r\nsome\r\n0\r\nA: b\r\n\r\n"),
    "until close": sends(OK + b"\r\nsome", "closes"),
    "1.0 until close": sends(b"HTTP/1.0 200 OK\r\n\r\nsome", "closes"),
    "1.0 length": sends(b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nsome"),
    "after interim answers": sends(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\nA: b\r\n\r\n"
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK + b"Content-Length: 4\r\n\r\nsome"
    ),
}


@pytest.mark.parametrize("name", FRAMINGS)
@on_sockets
async def test_an_answer_in_any_framing_arrives_whole(wires: Wires, name: str) -> None:
    port = wires.proxy()
    client = await wires.ask(port, "GET /x")
    FRAMINGS[name](await wires.stack.asked())
    answer = await client.end()
    assert complete(answer) == b"some"
    for connections_kept in ("A", "Link", "Trailer"):
        assert fields(answer, connections_kept) == []


@pytest.mark.parametrize("name", FRAMINGS)
@on_sockets
async def test_a_client_of_http_1_0_gets_no_chunks(wires: Wires, name: str) -> None:
    """RFC 9112 section 7.1."""
    port = wires.proxy()
    client = await wires.client(port)
    client.send(b"GET /x HTTP/1.0\r\nHost: proxy\r\n\r\n")
    FRAMINGS[name](await wires.stack.asked())
    head, body = head_and_body(await client.end())
    assert (body, fields(head, "Transfer-Encoding")) == (b"some", [])
    assert not client.reset


@pytest.mark.parametrize(
    "raw",
    [b"A: b\r\nContent-Length: 4\r\n\r\nsome", b"Transfer-Encoding: chunked\r\n\r\n4\r\nsome"],
)
@on_sockets
async def test_an_answer_may_come_byte_by_byte(wires: Wires, raw: bytes) -> None:
    port = wires.proxy()
    client = await wires.ask(port, "GET /x")
    asked = await wires.stack.asked()
    transport: Any = asked.peer.transport
    transport.setTcpNoDelay(True)
    for byte in OK + raw:
        asked.peer.send(bytes([byte]))
        turn: Deferred[None] = Deferred()
        reactor.callLater(0, turn.callback, None)
        await turn
    asked.peer.send(b"\r\n0\r\n\r\n" if b"chunked" in raw else b"")
    assert complete(await client.end()) == b"some"


@pytest.mark.parametrize(
    ("line", "status", "lines"),
    [
        ("HEAD /x", "200 OK", ["Content-Length: 1234"]),
        ("HEAD /x", "200 OK", ["Transfer-Encoding: chunked"]),
        ("HEAD /x", "200 OK", []),
        ("GET /x", "204 No Content", []),
        ("GET /x", "204 No Content", ["Content-Length: 0"]),
        ("GET /x", "304 Not Modified", ["Content-Length: 1234"]),
        ("GET /x", "304 Not Modified", []),
    ],
)
@on_sockets
async def test_an_answer_without_a_body(
    wires: Wires, line: str, status: str, lines: list[str]
) -> None:
    port = wires.proxy()
    client = await wires.ask(port, line)
    asked = await wires.stack.asked()
    asked.peer.send("\r\n".join([f"HTTP/1.1 {status}", "ETag: e", *lines, "", ""]).encode())
    head, body = head_and_body(await client.end())
    assert head.startswith(f"HTTP/1.1 {status}\r\n".encode())
    assert (fields(head, "ETag"), body) == ([b"e"], b"")
    assert fields(head, "Transfer-Encoding") == []
    received = [b"1234"] if "Content-Length: 1234" in lines else []
    assert fields(head, "Content-Length") == received


@on_sockets
async def test_fields_arrive_as_they_were_and_none_is_added(wires: Wires) -> None:
    port = wires.proxy()
    client = await wires.ask(port, "GET /x")
    (await wires.stack.asked()).peer.send(
        OK + b"Content-Length: 4\r\nSet-Cookie: a\r\nX-Odd: \xff\xe9\r\nSet-Cookie: b\r\n"
        b"Content-Encoding: gzip\r\nDate: then\r\nServer: theirs\r\nConnection: x-mine\r\n"
        b"X-Mine: no\r\nKeep-Alive: timeout=5\r\nX-Request-Id: theirs\r\n\r\n\x1f\x8b\0\0"
    )
    answer = await client.end()
    head, body = head_and_body(answer)
    assert body == b"\x1f\x8b\0\0"
    for name, values in {
        "Set-Cookie": [b"a", b"b"],
        "X-Odd": [b"\xff\xe9"],
        "Content-Encoding": [b"gzip"],
        "Date": [b"then"],
        "Server": [b"theirs"],
        "X-Mine": [],
        "Keep-Alive": [],
        "Content-Type": [],
    }.items():
        assert fields(head, name) == values
    assert len(fields(head, "X-Request-Id")) == 1


@on_sockets
async def test_a_date_is_there_once_if_the_upstream_sent_none(wires: Wires) -> None:
    """RFC 9110 section 6.6.1."""
    port = wires.proxy()
    client = await wires.ask(port, "GET /x")
    (await wires.stack.asked()).answer(b"some")
    head, _ = head_and_body(await client.end())
    assert len(fields(head, "Date")) == len(fields(head, "Server")) == 1
    assert fields(head, "Content-Type") == []


# --- connecting


class NoAnswer:
    """Threads in which a look-up never comes back."""

    def callInThreadWithCallback(self, *look_up: object) -> None: ...


class Connecting:
    """A request for which a connection is still being made."""

    def __init__(self, host: str) -> None:
        clock: Any = MemoryReactorClock()
        clock.getThreadPool = NoAnswer
        url = DecodedURL.from_text(f"http://{host}:8321")
        agent = UpstreamAgent(clock, url, UpstreamPool(clock), connect_timeout=7)
        request = agent.request(b"GET", f"http://{host}:8321/x".encode())
        self.waiting = Deferred.fromCoroutine(response_within(request, clock, 600))
        self.clock = clock


connecting = pytest.mark.parametrize("host", ["name", "192.0.2.1"])


@connecting
def test_the_time_to_connect_is_limited_the_names_resolution_included(host: str) -> None:
    request = Connecting(host)
    request.clock.advance(6.9)
    assert not request.waiting.called
    request.clock.advance(0.2)
    with pytest.raises(UpstreamTimeout, match="accept a connection in time"):
        outcome(request.waiting)


@connecting
def test_one_who_leaves_meanwhile_is_no_failure_to_connect(host: str) -> None:
    request = Connecting(host)
    request.waiting.cancel()
    with pytest.raises(CancelledError):
        outcome(request.waiting)
    assert pending_calls(request.clock) == []
