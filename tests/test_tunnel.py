"""WebSockets: bytes both ways, for as long as both sides want."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
from twisted.internet.defer import Deferred
from twisted.logger import LogLevel, globalLogPublisher

from tests.server.test_listen import stop
from tests.test_sockets import (
    MEGABYTE,
    Asked,
    Flood,
    Peer,
    Wires,
    head_and_body,
    on_sockets,
    wires,
)

__all__ = ["wires"]

SWITCH = (
    b"GET /v1/responses?a=1 HTTP/1.1\r\nHost: proxy\r\nConnection: keep-alive, Upgrade\r\n"
    b"Upgrade: websocket\r\nSec-WebSocket-Key: abc\r\nOrigin: http://page\r\n"
    b"X-Llamastack-Client-Version: 1\r\n\r\n"
)
SWITCHED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: xyz\r\n\r\n"
)


async def tunnelled(wires: Wires, *arguments: str, early: bytes = b"") -> tuple[Peer, Asked]:
    """A client whose request to switch has been granted, and the upstream's side."""
    port = wires.proxy(*arguments)
    client = await wires.client(port)
    client.send(SWITCH + early)
    asked = await wires.stack.asked()
    asked.peer.send(SWITCHED)
    await client.reads(b"\r\n\r\n")
    return client, asked


@on_sockets
async def test_bytes_go_both_ways(wires: Wires) -> None:
    client, asked = await tunnelled(wires)
    head = client.received.partition(b"\r\n\r\n")[0].lower()
    assert head.startswith(b"http/1.1 101 ")
    for line in (b"upgrade: websocket", b"connection: upgrade", b"sec-websocket-accept: xyz"):
        assert line in head
    assert b"transfer-encoding" not in head and b"content-length" not in head
    assert asked.line == b"GET /v1/responses?a=1 HTTP/1.1"
    assert asked.fields("Upgrade") == [b"websocket"]
    assert asked.fields("Sec-WebSocket-Key") == [b"abc"]
    assert asked.fields("Origin") == [b"http://page"]
    assert not asked.fields("X-Llamastack-Client-Version")
    client.received = b""
    asked.peer.send(b"0\r\n\r\nHTTP/1.1 from upstream")
    await client.reads(b"from upstream")
    client.send(b"GET / HTTP/1.1\r\n\r\nfrom client")
    await asked.peer.reads(b"from client")
    assert client.received == b"0\r\n\r\nHTTP/1.1 from upstream"


@on_sockets
async def test_what_a_client_sends_at_once_is_not_lost(wires: Wires) -> None:
    _, asked = await tunnelled(wires, early=b"hello at once")
    received = await asked.peer.reads(b"hello at once")
    assert received.endswith(b"hello at once")


@pytest.mark.parametrize("first", ["client", "upstream"])
@on_sockets
async def test_whoever_closes_closes_both(wires: Wires, first: str) -> None:
    client, asked = await tunnelled(wires)
    if first == "client":
        client.send(b"last words")
        await asked.peer.reads(b"last words")
        client.leave()
        await asked.peer.end()
    else:
        asked.peer.send(b"last words")
        transport: Any = asked.peer.transport
        transport.loseConnection()
        assert (await client.end()).endswith(b"last words")


@pytest.mark.parametrize("leaves", ["leave", "close_side"])
@on_sockets
async def test_a_client_that_leaves_is_no_fault(wires: Wires, leaves: str) -> None:
    logged: list[Any] = []
    observe: Any = logged.append
    globalLogPublisher.addObserver(observe)
    try:
        client, asked = await tunnelled(wires)
        getattr(client, leaves)()
        await asked.peer.end()
    finally:
        globalLogPublisher.removeObserver(observe)
    assert [each for each in logged if each["log_level"] > LogLevel.info] == []
    [line] = [each for each in logged if "status" in each]
    assert line["status"] == 101 and "error" not in line


@on_sockets
async def test_an_answer_that_does_not_switch_is_an_ordinary_one(wires: Wires) -> None:
    port = wires.proxy()
    client = await wires.client(port)
    client.send(SWITCH)
    asked = await wires.stack.asked()
    asked.peer.send(b"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno")
    await client.reads(b"no")
    head, body = head_and_body(client.received)
    assert head.startswith(b"HTTP/1.1 403") and body == b"no"
    client.received = b""
    client.send(b"GET /health HTTP/1.1\r\nHost: proxy\r\n\r\n")
    await client.reads(b"healthy")


@pytest.mark.parametrize(
    "request_head",
    [
        SWITCH.replace(b"websocket", b"h2c"),
        SWITCH.replace(b"keep-alive, Upgrade", b"keep-alive"),
        SWITCH.replace(b"GET", b"OPTIONS"),
        SWITCH.replace(b"HTTP/1.1", b"HTTP/1.0"),
    ],
)
@on_sockets
async def test_nothing_else_is_switched(wires: Wires, request_head: bytes) -> None:
    client = await wires.client(wires.proxy())
    client.send(request_head)
    asked = await wires.stack.asked()
    assert not asked.fields("Upgrade")
    asked.peer.send(SWITCHED)
    await client.reads(b"HTTP/1.1 502" if b"1.0" not in request_head else b" 502 ")


@on_sockets
async def test_silence_of_both_ends_it(wires: Wires) -> None:
    client, asked = await tunnelled(wires, "--upstream-timeout", "0.5")
    head = client.received
    assert await client.end() == head
    await asked.peer.end()


@on_sockets
async def test_a_daemon_that_stops_ends_it(wires: Wires) -> None:
    client, asked = await tunnelled(wires)
    head = client.received
    ended: Deferred[None] = stop(wires)
    assert await client.end() == head
    await asked.peer.end()
    await ended


@on_sockets
async def test_a_key_is_needed_and_the_servers_takes_its_place(
    wires: Wires, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("mine\n")
    port = wires.proxy("--api-keys-file", str(keys))
    client = await wires.client(port)
    client.send(SWITCH)
    await client.reads(b" 401 ")
    client = await wires.client(port)
    client.send(SWITCH.replace(b"Origin", b"Authorization: Bearer mine\r\nOrigin"))
    asked = await wires.stack.asked()
    assert not asked.fields("Authorization")
    asked.peer.send(SWITCHED)
    await client.reads(b" 101 ")


@on_sockets
async def test_a_client_that_does_not_read_stops_the_upstream(wires: Wires) -> None:
    client, asked = await tunnelled(wires)
    transport: Any = client.transport
    transport.pauseProducing()
    flood = Flood(asked, bytes(65536))
    assert await flood.stalled() < 32 * MEGABYTE
    transport.resumeProducing()
    await client.until(lambda: len(client.received) > 40 * MEGABYTE)


@on_sockets
async def test_an_upstream_that_does_not_read_stops_the_client(wires: Wires) -> None:
    client, asked = await tunnelled(wires)
    transport: Any = asked.peer.transport
    transport.pauseProducing()
    flood = Flood(attrs.evolve(asked, peer=client), bytes(65536))
    assert await flood.stalled() < 32 * MEGABYTE
    transport.resumeProducing()
    await asked.peer.until(lambda: len(asked.peer.received) > 40 * MEGABYTE)
