"""Connections that are kept: whose request may travel on them, and what is sent a second time."""

from __future__ import annotations

import os
from typing import Any
from unittest.mock import Mock

import pytest
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.protocol import Factory
from twisted.internet.tcp import Connection
from twisted.python.failure import Failure

from llamaproxy.upstream.agent import TcpServer
from llamaproxy.upstream.connection import UpstreamConnection
from llamaproxy.upstream.resolver import Resolver
from tests.test_sockets import Asked, Peer, Wires, dechunked, error_of, on_sockets, status_of, wires

__all__ = ["wires"]

reactor: Any = _reactor


class Client:
    """A client that keeps its connection."""

    def __init__(self, wires: Wires, peer: Peer) -> None:
        self._wires = wires
        self._peer = peer

    def send(self, method: str, body: bytes | None = None) -> None:
        self._peer.received = b""
        head = f"{method} /x HTTP/1.1\r\nHost: proxy\r\n"
        if body is not None:
            head += f"Content-Length: {len(body)}\r\n"
        self._peer.send(f"{head}\r\n".encode(), body or b"")

    async def ask(self, method: str, body: bytes | None = None) -> Asked:
        """Send a request; what has reached the upstream is returned."""
        self.send(method, body)
        return await self._wires.stack.asked()

    async def status(self) -> int:
        """The status of an answer whose body ends with ``}`` or ``.``."""
        await self._peer.until(lambda: self._peer.received.endswith((b"}", b".")))
        return status_of(self._peer.received)

    async def warm(self) -> Asked:
        """Have an answer, after which there is a connection to use again."""
        asked = await self.ask("GET")
        asked.answer(b"done.")
        assert await self.status() == 200
        return asked


async def client_of(wires: Wires, *arguments: str) -> Client:
    return Client(wires, await wires.client(wires.proxy(*arguments)))


def close(asked: Asked) -> None:
    transport: Any = asked.peer.transport
    transport.loseConnection()


@on_sockets
async def test_no_post_is_lost_to_an_upstream_that_closes_after_each_answer(wires: Wires) -> None:
    client = await client_of(wires)
    for number in range(200):
        asked = await client.ask("POST", b"%d" % number)
        assert asked.body == b"%d" % number
        asked.answer(b"done.", "Connection: keep-alive")
        close(asked)
        assert await client.status() == 200
    assert len(wires.stack.peers) == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@on_sockets
async def test_what_comes_goes_to_the_connection_and_through_nothing_else(
    wires: Wires, host: str
) -> None:
    port = wires.listen(wires.stack)
    origin = f"http://{host}:{port}".encode()
    server = TcpServer(reactor, origin, host, port, 5, None, Resolver(reactor, 1))
    connection = await server.connect()
    transport: Any = connection.transport
    assert transport.protocol is connection
    gone: Deferred[object] = Deferred()
    connection.gone = gone.callback
    connection.close()
    assert await gone is connection


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("kept", [False, True])
@on_sockets
async def test_what_the_upstream_may_have_acted_on_is_not_sent_again(
    wires: Wires, method: str, kept: bool
) -> None:
    client = await client_of(wires)
    if kept:
        await client.warm()
    asked = await client.ask(method, None if method == "DELETE" else b"x")
    close(asked)
    assert await client.status() == 502
    assert len(wires.stack.peers) == 1


@pytest.mark.parametrize("method", ["GET", "OPTIONS"])
@on_sockets
async def test_a_repeatable_request_is_sent_once_more_on_a_connection_of_its_own(
    wires: Wires, method: str
) -> None:
    port = wires.proxy()
    client = Client(wires, await wires.client(port))
    first, second = await client.ask("GET"), await wires.ask(port, "GET /y")
    other = await wires.stack.asked()
    for asked in (first, other):
        asked.answer(b"done.")
    await second.end()
    assert await client.status() == 200
    close(await client.ask(method))
    again = await wires.stack.asked()
    assert again.line.startswith(method.encode())
    assert again.peer not in (first.peer, other.peer)
    again.answer(b"done.")
    assert await client.status() == 200


@on_sockets
async def test_it_is_sent_no_third_time(wires: Wires) -> None:
    client = await client_of(wires)
    await client.warm()
    close(await client.ask("GET"))
    close(await wires.stack.asked())
    assert await client.status() == 502
    assert len(wires.stack.peers) == 2


@on_sockets
async def test_a_request_on_a_new_connection_is_not_sent_again(wires: Wires) -> None:
    client = await client_of(wires)
    close(await client.ask("GET"))
    assert await client.status() == 502
    assert len(wires.stack.peers) == 1


@on_sockets
async def test_a_request_whose_answer_has_begun_is_not_sent_again(wires: Wires) -> None:
    client = await client_of(wires)
    await client.warm()
    asked = await client.ask("GET")
    asked.peer.send(b"HTTP/1.1 200")
    close(asked)
    assert await client.status() == 502
    assert len(wires.stack.peers) == 1


@on_sockets
async def test_a_request_with_a_body_is_not_sent_again(wires: Wires) -> None:
    client = await client_of(wires)
    await client.warm()
    close(await client.ask("GET", b"x"))
    assert await client.status() == 502
    assert len(wires.stack.peers) == 1


ANSWERS = {
    "more than its length": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\ndone.more",
    "more than its chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\ndone.\r\n0\r\n\r\nmore",
    "the beginning of another answer": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\ndone.\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n",
    "1.0": b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\ndone.",
    "close": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: Close\r\n\r\ndone.",
    "close and more": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: x, close\r\n\r\ndone.",
}


@pytest.mark.parametrize("name", ANSWERS)
@on_sockets
async def test_a_connection_in_doubt_is_not_used_again(wires: Wires, name: str) -> None:
    """What it still says would be the next caller's answer."""
    port = wires.proxy()
    first = await wires.ask(port, "GET /x")
    asked = await wires.stack.asked()
    asked.peer.send(ANSWERS[name])
    await first.end()
    await wires.ask(port, "POST /x", body=b"x")
    assert (await wires.stack.asked()).peer is not asked.peer
    await asked.peer.end()


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
@on_sockets
async def test_a_body_where_there_can_be_none_is_nobodys_answer(wires: Wires, status: str) -> None:
    port = wires.proxy()
    first = await wires.ask(port, "GET /x")
    asked = await wires.stack.asked()
    asked.peer.send(b"HTTP/1.1 %b\r\n\r\nHTTP/1.1 200 OK\r\n\r\n" % status.encode())
    assert (await first.end()).endswith(b"\r\n\r\n")
    await wires.ask(port, "GET /x")
    assert (await wires.stack.asked()).peer is not asked.peer


# --- answers that do not wait for the request


class Raw(Factory):
    """An upstream that reads no more than a test wants it to."""

    noisy = False

    def __init__(self, wires: Wires) -> None:
        self._wires = wires
        self._waiting: list[Deferred[Peer]] = []

    def buildProtocol(self, addr: object) -> Peer:
        peer = Peer()
        self._wires.peers.append(peer)
        for waiter in self._waiting:
            waiter.callback(peer)
        self._waiting = []
        return peer

    async def peer(self) -> Peer:
        """The next connection."""
        waiter: Deferred[Peer] = Deferred()
        self._waiting.append(waiter)
        return await waiter.addTimeout(10, reactor)


LARGE = 20 * 1024 * 1024


def deleted_files() -> int:
    """How many files are open that nobody else can open."""
    count = 0
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{descriptor}").endswith("(deleted)")
        except OSError:
            continue
    return count


async def with_a_large_upload(wires: Wires, *arguments: str) -> tuple[Raw, Peer, Peer]:
    """An upload of which the upstream has read no more than the head."""
    raw = Raw(wires)
    port = wires.proxy(*arguments, upstream=f"http://127.0.0.1:{wires.listen(raw)}")
    connected = Deferred.fromCoroutine(raw.peer())
    client = await wires.ask(port, "POST /x", body=b"x" * LARGE)
    peer = await connected
    await peer.reads(b"\r\n\r\n")
    transport: Any = peer.transport
    transport.pauseProducing()
    return raw, peer, client


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 5\r\n\r\nsorry",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nsorry\r\n0\r\n\r\n",
    ],
)
@on_sockets
async def test_an_answer_that_does_not_wait_for_the_upload_arrives(
    wires: Wires, framing: bytes, parts: int
) -> None:
    before = deleted_files()
    _, peer, client = await with_a_large_upload(wires)
    answer = b"HTTP/1.1 413 Content Too Large\r\n" + framing
    if parts == 1:
        peer.send(answer)
    else:
        peer.send(answer[:-2])
        await client.reads(b"\r\n\r\n")
        peer.send(answer[-2:])
    received = await client.end()
    assert status_of(received) == 413
    assert b"sorry" in received
    assert deleted_files() == before
    # The rest of the upload would be the next request.
    transport: Any = peer.transport
    transport.resumeProducing()
    await peer.end()
    assert len(peer.received) < LARGE


@on_sockets
async def test_an_answer_that_begins_while_the_server_reads_on_stops_no_upload(
    wires: Wires,
) -> None:
    before = deleted_files()
    _, peer, client = await with_a_large_upload(wires)
    peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nwait \r\n")
    await client.reads(b"wait ")
    transport: Any = peer.transport
    transport.resumeProducing()
    head = peer.received.partition(b"\r\n\r\n")[0]
    await peer.until(lambda: len(peer.received) == len(head) + 4 + LARGE)
    peer.send(b"3\r\nall\r\n0\r\n\r\n")
    received = await client.end()
    assert (
        status_of(received) == 200 and dechunked(received.partition(b"\r\n\r\n")[2]) == b"wait all"
    )
    assert deleted_files() == before
    assert not peer.closed  # it may be used again


@on_sockets
async def test_an_answer_that_ends_before_the_upload_ends_it(wires: Wires) -> None:
    before = deleted_files()
    _, peer, client = await with_a_large_upload(wires)
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine")
    assert (await client.end()).endswith(b"fine")
    assert deleted_files() == before
    transport: Any = peer.transport
    transport.resumeProducing()
    await peer.end()
    assert len(peer.received) < LARGE


@pytest.mark.parametrize("size", [5, 60_000])
@on_sockets
async def test_an_answer_arrives_though_the_upload_cannot_be_written_any_more(
    wires: Wires, size: int
) -> None:
    before = deleted_files()
    _, peer, client = await with_a_large_upload(wires)
    # The reactor learns by writing that the connection was reset, as it may on a busy machine.
    reading = [each for each in reactor.getReaders() if isinstance(each, Connection)]
    (upstream,) = (each for each in reading if isinstance(each.protocol, UpstreamConnection))
    upstream.stopReading()
    transport: Any = peer.transport
    head = b"HTTP/1.1 401 Unauthorized\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % size
    transport.getHandle().sendall(head + b"s" * size)
    peer.leave()
    received = await client.end()
    assert status_of(received) == 401
    assert received.endswith(b"\r\n\r\n" + b"s" * size)
    assert deleted_files() == before


class BrokenSocket:
    """One of which more could be read, but for who reads."""

    lost: Failure | None = None
    reads = 0

    def getHandle(self) -> Any:
        return Mock(recv=Mock(return_value=b"x"))

    def doRead(self) -> None:
        self.reads += 1
        raise ZeroDivisionError

    def connectionLost(self, reason: Failure) -> None:
        self.lost = reason

    def carries(self, connection: UpstreamConnection) -> None:
        connection._tcp = self
        connection._exchange = Mock(paused=False)
        self.connectionLost = connection._socket_lost  # type: ignore[method-assign]


def test_a_reader_that_breaks_while_the_rest_is_read_keeps_no_connection_open() -> None:
    socket, reason = BrokenSocket(), Failure(ConnectionLost())
    socket.carries(UpstreamConnection())
    with pytest.raises(ZeroDivisionError):
        socket.connectionLost(reason)
    assert socket.lost is reason and socket.reads == 1


@pytest.mark.parametrize("error", [ZeroDivisionError(), ConnectionAborted(), ConnectionDone()])
def test_nothing_more_is_read_where_it_was_not_the_peer_who_was_lost(error: Exception) -> None:
    socket, reason = BrokenSocket(), Failure(error)
    socket.carries(UpstreamConnection())
    socket.connectionLost(reason)
    assert socket.lost is reason and socket.reads == 0


@on_sockets
async def test_nonsense_that_does_not_wait_for_the_upload_is_a_502(wires: Wires) -> None:
    before = deleted_files()
    _, peer, client = await with_a_large_upload(wires)
    peer.send(b"nonsense\r\n\r\n")
    answer = await client.end()
    assert error_of(answer)["code"] == "upstream_broke"
    assert deleted_files() == before


@pytest.mark.parametrize(
    ("trouble", "code"),
    [("stalls", "upstream_timeout"), ("resets", "upstream_broke"), ("leaves", None)],
)
@on_sockets
async def test_an_upload_leaves_nothing_behind_whoever_fails(
    wires: Wires, trouble: str, code: str | None
) -> None:
    before = deleted_files()
    arguments = ("--upstream-timeout", "0.3") if trouble == "stalls" else ()
    _, peer, client = await with_a_large_upload(wires, *arguments)
    if trouble == "resets":
        peer.leave()
    if trouble == "leaves":
        client.leave()
        transport: Any = peer.transport
        transport.resumeProducing()
        await peer.end()
    answer = await client.end()
    if code is not None:
        assert error_of(answer)["code"] == code
    assert deleted_files() == before


@on_sockets
async def test_a_large_upload_arrives_whole(wires: Wires) -> None:
    before = deleted_files()
    _, peer, client = await with_a_large_upload(wires)
    transport: Any = peer.transport
    transport.resumeProducing()
    await peer.until(lambda: len(peer.received) > LARGE)
    head = peer.received.partition(b"\r\n\r\n")[0]
    await peer.until(lambda: len(peer.received) == len(head) + 4 + LARGE)
    assert b"\r\nContent-Length: %d\r\n" % LARGE in head + b"\r\n"
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    assert (await client.end()).endswith(b"ok")
    assert deleted_files() == before


@on_sockets
async def test_a_chat_that_is_refused_while_it_is_still_sent(wires: Wires) -> None:
    raw = Raw(wires)
    url = f"http://127.0.0.1:{wires.listen(raw)}"
    port = wires.proxy("--tool-source", "mcp", upstream=url)
    connected = Deferred.fromCoroutine(raw.peer())
    content = "x" * (LARGE // 2)
    client = await wires.chat(port, messages=[{"role": "user", "content": content}])
    peer = await connected
    refusal = b'{"error": {"message": "That is too much."}}'
    while True:
        await peer.reads(b"\r\n\r\n")
        if peer.received.startswith(b"POST"):
            break
        # A connection that has had an error is not used again.
        connected = Deferred.fromCoroutine(raw.peer())
        peer.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}")
        peer = await connected
    transport: Any = peer.transport
    transport.pauseProducing()
    peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: %d\r\n\r\n" % len(refusal), refusal)
    answer = await client.end()
    assert status_of(answer) == 413
    assert error_of(answer)["message"] == "That is too much."
    transport.resumeProducing()
    await peer.end()
