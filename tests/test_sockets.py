"""The whole daemon between real connections, whose every byte the tests see."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import attrs
import pytest
import pytest_twisted  # type: ignore[import-untyped]
from twisted.application.service import IService
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, connectProtocol
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IListeningPort, IPullProducer
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import deferLater
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from llamaproxy.config import logformat
from llamaproxy.config.logformat import LineLog
from llamaproxy.config.options import Options
from llamaproxy.jsontext import Json
from llamaproxy.server.listen import ListenService
from llamaproxy.tap import makeService
from tests.support import chunk, event, tool
from tests.test_twistd import Daemon

reactor: Any = _reactor

#: Seconds after which a test has failed: for what nothing but a bug can delay.
PATIENCE = 10


class Peer(Protocol):
    """One end of a connection: what has been received, and whether it is closed."""

    def __init__(self) -> None:
        self.received = b""
        self.closed = False
        #: Whether the other side has not closed but reset the connection.
        self.reset = False
        self._waiting: list[Deferred[None]] = []

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        self._changed()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.closed = True
        self.reset = reason.check(ConnectionDone) is None
        self._changed()

    def send(self, *parts: bytes) -> None:
        assert self.transport is not None
        self.transport.write(b"".join(parts))

    def close_side(self) -> None:
        """Send nothing more, but go on reading."""
        transport: Any = self.transport
        transport.loseWriteConnection()

    def leave(self) -> None:
        transport: Any = self.transport
        transport.abortConnection()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until *condition* is true of what was received."""
        while not condition():
            waiter: Deferred[None] = Deferred()
            self._waiting.append(waiter)
            waiter.addTimeout(PATIENCE, reactor)
            await waiter

    async def reads(self, text: bytes) -> bytes:
        """Wait until *text* has been received; all that has been is returned."""
        await self.until(lambda: text in self.received)
        return self.received

    async def end(self) -> bytes:
        """Wait until the other side has closed the connection."""
        await self.until(lambda: self.closed)
        return self.received

    def _changed(self) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.called:
                waiter.callback(None)


@attrs.frozen
class Asked:
    """A request that reached the upstream, and the connection that it came over."""

    line: bytes
    head: bytes
    body: bytes
    peer: Peer

    def fields(self, name: str) -> list[bytes]:
        return fields(self.head, name)

    def answer(self, body: bytes, *lines: str, status: str = "200 OK") -> None:
        self.peer.send(response(body, *lines, status=status))

    def begin(self, *lines: str, status: str = "200 OK") -> None:
        """Send the head of a chunked answer."""
        head = [f"HTTP/1.1 {status}", "Transfer-Encoding: chunked", *lines, "", ""]
        self.peer.send("\r\n".join(head).encode())

    def piece(self, data: bytes) -> None:
        self.peer.send(b"%x\r\n%b\r\n" % (len(data), data))


def fields(head: bytes, name: str) -> list[bytes]:
    """The values of a field in a message's head, in their order."""
    found = re.findall(rb"(?im)^" + name.encode() + rb":[ ]*(.*?)\r?$", head)
    return list(found)


def response(body: bytes, *lines: str, status: str = "200 OK") -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *lines, "", ""]
    return "\r\n".join(head).encode() + body


def dechunked(body: bytes) -> bytes:
    """What a chunked body says; it must be whole."""
    said = b""
    while True:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        said, body = said + body[:length], body[length + 2 :]
        if not length:
            return said


#: What the upstream answers by itself, so that a test need not.
ANSWERS: dict[bytes, Json] = {
    b"GET /v1/version ": {"version": "0.6.1"},
    b"GET /v1/tools ": {"data": [tool("clock")]},
    b"GET /v1/toolgroups ": {"data": []},
}


class UpstreamPeer(Peer):
    """A connection at the upstream: hands over the requests that come."""

    def __init__(self, stack: Stack) -> None:
        Peer.__init__(self)
        self._stack = stack
        self._taken = 0

    def connectionMade(self) -> None:
        # Over TLS, no connection is made unless both sides shake hands.
        self._stack.peers.append(self)

    def dataReceived(self, data: bytes) -> None:
        Peer.dataReceived(self, data)
        while (end := self.received.find(b"\r\n\r\n", self._taken)) >= 0:
            head = self.received[self._taken : end]
            length = int((fields(head, "Content-Length") or [b"0"])[0])
            body = self.received[end + 4 : end + 4 + length]
            if len(body) < length:
                return
            self._taken = end + 4 + length
            self._stack.came(Asked(head.partition(b"\r\n")[0], head, body, self))


class Stack(Factory):
    """An upstream whose answers the test writes."""

    noisy = False

    def __init__(self) -> None:
        self.peers: list[UpstreamPeer] = []
        self._requests: list[Asked] = []
        self._waiting: list[Deferred[None]] = []

    def buildProtocol(self, addr: object) -> UpstreamPeer:
        return UpstreamPeer(self)

    def came(self, asked: Asked) -> None:
        for start, body in ANSWERS.items():
            if asked.line.startswith(start):
                asked.answer(json.dumps(body).encode(), "Content-Type: application/json")
                return
        self._requests.append(asked)
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.callback(None)

    async def asked(self) -> Asked:
        """The next request that the upstream does not answer by itself."""
        while not self._requests:
            waiter: Deferred[None] = Deferred()
            self._waiting.append(waiter)
            await waiter.addTimeout(PATIENCE, reactor)
        return self._requests.pop(0)


class Wires:
    """All that a test has opened."""

    def __init__(self) -> None:
        self.stack = Stack()
        self._ports: list[IListeningPort] = []
        self._services: list[IService] = []
        #: Every end of a connection that is the test's.
        self.peers: list[Peer] = []

    def listen(
        self, factory: Factory, tls: CertificateOptions | None = None, interface: str = "127.0.0.1"
    ) -> int:
        """Listen with *factory*; the port is returned."""
        if tls is None:
            port = reactor.listenTCP(0, factory, interface=interface)
        else:
            port = reactor.listenSSL(0, factory, tls, interface=interface)
        self._ports.append(port)
        number: int = port.getHost().port
        return number

    def proxy(self, *arguments: str, upstream: str | None = None, **fixed_limits: float) -> int:
        """Start the daemon, before ``stack`` unless told otherwise; its port is returned."""
        url = upstream or f"http://127.0.0.1:{self.listen(self.stack)}"
        listen = "tcp:0:interface=127.0.0.1"
        services: Any = self.start(
            "--listen", listen, "--llamastack-url", url, *arguments, **fixed_limits
        )
        [listening] = [each for each in services if isinstance(each, ListenService)]
        port: Any = listening._ports[0]
        number: int = port.getHost().port
        return number

    def start(self, *arguments: str, **fixed_limits: float) -> IService:
        """Start the daemon."""
        options = Options({"LLAMAPROXY_ADMIN": "off", "LLAMAPROXY_ALLOWED_HOSTS": "*"})
        options.parseOptions(["--drain-timeout", "0", *arguments])
        services: Any = makeService(options, reactor, **fixed_limits)
        self._services.append(services)
        services.startService()
        started: IService = services
        return started

    async def client(self, port: int | Path, host: str = "127.0.0.1") -> Peer:
        """A connection to a port, or to a Unix socket."""
        endpoint: Any = (
            UNIXClientEndpoint(reactor, str(port))
            if isinstance(port, Path)
            else HostnameEndpoint(reactor, host, port)
        )
        peer: Peer = await connectProtocol(endpoint, Peer())
        self.peers.append(peer)
        return peer

    async def ask(self, port: int | Path, line: str, *lines: str, body: bytes = b"") -> Peer:
        """Send one request, after whose answer the connection is closed."""
        peer = await self.client(port)
        head = [f"{line} HTTP/1.1", "Host: proxy", "Connection: close", *lines]
        if body:
            head.append(f"Content-Length: {len(body)}")
        peer.send("\r\n".join([*head, "", ""]).encode("latin-1"), body)
        return peer

    async def chat(self, port: int, **more: Any) -> Peer:
        body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], **more}
        line = "POST /v1/chat/completions"
        return await self.ask(port, line, body=json.dumps(body).encode())

    async def close(self) -> None:
        for peer in [*self.peers, *self.stack.peers]:
            if not peer.closed:
                peer.leave()
        for service in self._services:
            stopping: Any = service.stopService()
            await stopping
        for port in self._ports:
            stopped: Any = port.stopListening()
            await stopped
        for peer in [*self.peers, *self.stack.peers]:
            await peer.end()


@pytest_twisted.async_yield_fixture  # type: ignore[untyped-decorator]
async def wires() -> AsyncIterator[Wires]:
    opened = Wires()
    yield opened
    await opened.close()


def on_sockets(test: Any) -> Any:
    return pytest_twisted.ensureDeferred(test)


def head_and_body(message: bytes) -> tuple[bytes, bytes]:
    head, _, body = message.partition(b"\r\n\r\n")
    return head, body


def status_of(message: bytes) -> int:
    return int(message.split(b" ")[1])


def error_of(message: bytes) -> Any:
    head, body = head_and_body(message)
    assert fields(head, "Content-Type") == [b"application/json"]
    return json.loads(body)["error"]


# --- pass-through: what is sent is what arrives


@pytest.mark.parametrize(
    "target",
    [
        "/x",
        "/v1/x//y?",
        "/v1/x//y?a=b&&c",
        "//x",
        "/v1/a%2Fb%2e",
        "/v1/models/vllm%2Fa:b",
        "/x:y;z=1,2'(!)*",
        "/%ff?%ff=%00",
        "/a/../b/./c",
        "/x?url=http://elsewhere/?a=b",
        "/health/",
        "/v1/chat/completions/",
    ],
)
@on_sockets
async def test_a_target_arrives_as_the_client_wrote_it(wires: Wires, target: str) -> None:
    port = wires.proxy()
    client = await wires.ask(port, f"DELETE {target}")
    asked = await wires.stack.asked()
    assert asked.line == f"DELETE {target} HTTP/1.1".encode()
    asked.answer(b"done")
    assert (await client.end()).endswith(b"\r\n\r\ndone")


@pytest.mark.parametrize(
    ("base", "sent"),
    [("", ""), ("/", ""), ("/base", "/base"), ("/a b/%2F/", "/a%20b/%2F")],
)
@on_sockets
async def test_an_upstream_may_live_below_a_path(wires: Wires, base: str, sent: str) -> None:
    upstream = f"http://LOCALHOST:{wires.listen(wires.stack)}{base}"
    port = wires.proxy(upstream=upstream)
    await wires.ask(port, "GET /x?a")
    assert (await wires.stack.asked()).line == f"GET {sent}/x?a HTTP/1.1".encode()


@on_sockets
async def test_the_proxys_own_requests_go_below_the_upstreams_path(wires: Wires) -> None:
    port = wires.proxy(upstream=f"http://127.0.0.1:{wires.listen(wires.stack)}/base")
    await wires.chat(port)
    asked = await wires.stack.asked()
    assert asked.line == b"GET /base/v1/version HTTP/1.1"
    asked.answer(b'{"version": "0.6.1"}')
    assert (await wires.stack.asked()).line == b"GET /base/v1/tools HTTP/1.1"


@pytest.mark.parametrize("target", ["http://elsewhere/x", "@elsewhere/x", "x"])
@on_sockets
async def test_a_target_that_is_no_path_is_refused(wires: Wires, target: str) -> None:
    port = wires.proxy()
    answer = await (await wires.ask(port, f"GET {target}")).end()
    assert status_of(answer) == 400
    assert error_of(answer)["type"] == "invalid_request_error"
    assert wires.stack.peers == []


@on_sockets
async def test_fields_travel_repeated_and_hop_by_hop_fields_stay_behind(wires: Wires) -> None:
    port = wires.proxy()
    client = await wires.client(port)
    client.send(
        b"GET /x HTTP/1.1\r\nHost: proxy\r\nX-Many: 1\r\nX-Many: 2\r\nAccept-Encoding: br\r\n"
        b"Connection: keep-alive, X-Private\r\nX-Private: no\r\nKeep-Alive: timeout=5\r\n"
        b"Proxy-Authorization: no\r\nTE: trailers\r\nUpgrade: h2c\r\nCookie: a=b\r\n\r\n"
    )
    asked = await wires.stack.asked()
    assert asked.fields("X-Many") == [b"1", b"2"]
    assert asked.fields("Accept-Encoding") == [b"br"]
    assert asked.fields("Cookie") == [b"a=b"]
    assert asked.fields("Host")[0].startswith(b"127.0.0.1:")
    for name in ("X-Private", "Keep-Alive", "Proxy-Authorization", "TE", "Upgrade"):
        assert asked.fields(name) == []
    asked.answer(
        b"ok",
        "Set-Cookie: a=1",
        "Set-Cookie: b=2",
        "Server: uvicorn",
        "Connection: keep-alive",
        "Keep-Alive: timeout=5",
        "Proxy-Authenticate: no",
        "Upgrade: h2c",
        "Content-Encoding: odd",
    )
    head, _ = head_and_body(await client.reads(b"\r\n\r\nok"))
    assert fields(head, "Set-Cookie") == [b"a=1", b"b=2"]
    assert fields(head, "Server") == [b"uvicorn"]
    assert fields(head, "Content-Encoding") == [b"odd"]
    assert fields(head, "Content-Length") == [b"2"]
    for name in ("Keep-Alive", "Proxy-Authenticate", "Upgrade", "Content-Type"):
        assert fields(head, name) == []


@pytest.mark.parametrize("line", ["GET /health", "POST /v1/chat/completions"])
@pytest.mark.parametrize("host", [".", "a..b", "a" * 64])
@on_sockets
async def test_a_host_that_could_not_be_resolved_is_no_obstacle(
    wires: Wires, host: str, line: str
) -> None:
    client = await wires.client(wires.proxy())
    client.send(f"{line} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    # Without a body it is no chat: that it is told so in JSON tells that it was routed.
    assert status_of(answer := await client.end()) == (200 if line == "GET /health" else 400)
    assert b"application/json" in answer


@on_sockets
async def test_a_head_answer_keeps_its_length(wires: Wires) -> None:
    port = wires.proxy()
    client = await wires.ask(port, "HEAD /x")
    asked = await wires.stack.asked()
    assert asked.line.startswith(b"HEAD /x ")
    asked.peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\nETag: e\r\n\r\n")
    head, body = head_and_body(await client.end())
    assert (fields(head, "Content-Length"), fields(head, "ETag"), body) == ([b"1234"], [b"e"], b"")


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
@on_sockets
async def test_an_answer_without_a_body_stays_without(wires: Wires, status: str) -> None:
    port = wires.proxy()
    client = await wires.ask(port, "GET /x")
    (await wires.stack.asked()).peer.send(f"HTTP/1.1 {status}\r\nETag: e\r\n\r\n".encode())
    head, body = head_and_body(await client.end())
    assert head.startswith(f"HTTP/1.1 {status}\r\n".encode())
    assert fields(head, "Content-Length") == fields(head, "Transfer-Encoding") == []
    assert (fields(head, "ETag"), body) == ([b"e"], b"")


@on_sockets
async def test_an_empty_answer_is_empty(wires: Wires) -> None:
    port = wires.proxy()
    client = await wires.ask(port, "GET /x")
    (await wires.stack.asked()).answer(b"", status="201 Made")
    head, body = head_and_body(await client.end())
    assert head.startswith(b"HTTP/1.1 201 Made\r\n")
    assert (fields(head, "Content-Length"), body) == ([b"0"], b"")


@pytest.mark.parametrize("size", [3, 300_000])
@on_sockets
async def test_a_chunked_upload_arrives_whole(wires: Wires, size: int) -> None:
    port = wires.proxy()
    client = await wires.ask(port, "POST /x", "Transfer-Encoding: chunked", "X-A: b")
    piece = b"x" * (size // 3)
    for _ in range(3):
        client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
    client.send(b"0\r\n\r\n")
    asked = await wires.stack.asked()
    assert asked.body == piece * 3
    assert asked.fields("Transfer-Encoding") == []
    asked.answer(b"done")
    assert (await client.end()).endswith(b"done")


@on_sockets
async def test_an_empty_upload_and_no_upload_are_not_the_same(wires: Wires) -> None:
    port = wires.proxy()
    await wires.ask(port, "PUT /x", "Content-Length: 0")
    assert (await wires.stack.asked()).fields("Content-Length") == [b"0"]
    await wires.ask(port, "GET /x")
    assert (await wires.stack.asked()).fields("Content-Length") == []


@pytest.mark.parametrize("chunked", [False, True])
@on_sockets
async def test_an_upload_over_the_limit_is_refused(wires: Wires, chunked: bool) -> None:
    port = wires.proxy("--max-body", "1000")
    if chunked:
        client = await wires.ask(port, "POST /x", "Transfer-Encoding: chunked")
        client.send(b"3e9\r\n", b"x" * 1001)
    else:
        client = await wires.ask(port, "POST /x", "Content-Length: 1001")
    answer = await client.end()
    assert status_of(answer) == 413
    assert error_of(answer)["code"] == "body_too_large"
    assert wires.stack.peers == []


@on_sockets
async def test_a_kept_connection_is_used_again(wires: Wires) -> None:
    port = wires.proxy()
    client = await wires.client(port)
    for number in range(3):
        client.send(b"GET /x HTTP/1.1\r\nHost: proxy\r\n\r\n")
        (await wires.stack.asked()).answer(b"answer %d" % number)
        await client.reads(b"answer %d" % number)
    assert len(wires.stack.peers) == 1


@on_sockets
async def test_clients_may_come_over_a_unix_socket(wires: Wires, tmp_path: Path) -> None:
    socket = tmp_path / "socket"
    wires.start("--listen", f"unix:{socket}")
    answer = await (await wires.ask(socket, "GET /health")).end()
    assert status_of(answer) == 200
    assert b'{"status": "healthy"}' in answer


# --- nothing is held back


@on_sockets
async def test_events_pass_through_while_the_upstream_still_holds_the_next(wires: Wires) -> None:
    port = wires.proxy()
    client = await wires.ask(port, "POST /v1/responses", body=b"{}")
    asked = await wires.stack.asked()
    asked.begin("Content-Type: text/event-stream")
    head = await client.reads(b"\r\n\r\n")
    assert fields(head, "Content-Type") == [b"text/event-stream"]
    for number in range(3):
        asked.piece(b"data: %d\n\n" % number)
        await client.reads(b"data: %d\n\n" % number)
    asked.piece(b"")
    _, body = head_and_body(await client.end())
    assert dechunked(body) == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"


@on_sockets
async def test_a_streamed_chat_shows_each_word_while_the_next_is_held(wires: Wires) -> None:
    port = wires.proxy()
    client = await wires.chat(port, stream=True)
    asked = await wires.stack.asked()
    assert [each["function"]["name"] for each in json.loads(asked.body)["tools"]] == ["clock"]
    asked.begin("Content-Type: text/event-stream")
    for word in ("one", "two", "three"):
        asked.piece(event(chunk({"content": word})))
        await client.reads(word.encode())
    asked.piece(event(chunk({}, "stop")))
    asked.piece(b"")
    _, body = head_and_body(await client.end())
    assert dechunked(body).endswith(b"data: [DONE]\n\n")


# --- somebody leaves

#: Requests behind another, of which nothing more is read until that has been answered.
MORE_THAN_IS_READ = b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2000


@pytest.mark.parametrize("begun", [False, True], ids=["waiting", "reading"])
@on_sockets
async def test_a_client_that_leaves_takes_the_forwarded_request_along(
    wires: Wires, begun: bool
) -> None:
    port = wires.proxy()
    client = await wires.ask(port, "GET /x")
    asked = await wires.stack.asked()
    if begun:
        asked.begin()
        asked.piece(b"first")
        await client.reads(b"first")
    client.leave()
    await asked.peer.end()


@pytest.mark.parametrize("leave", [Peer.leave, Peer.close_side], ids=["resets", "closes"])
@pytest.mark.parametrize("begun", [False, True], ids=["waiting", "reading"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@on_sockets
async def test_a_client_that_leaves_stops_the_model(
    wires: Wires,
    stream: bool,
    begun: bool,
    leave: Callable[[Peer], None],
) -> None:
    port = wires.proxy(half_closed_timeout=3600)
    client = await wires.chat(port, stream=stream)
    asked = await wires.stack.asked()
    if begun and stream:
        asked.begin("Content-Type: text/event-stream")
        asked.piece(event(chunk({"content": "first"})))
        await client.reads(b"first")
    elif begun:
        asked.begin("Content-Type: application/json")
        asked.piece(b'{"choices": [')
    leave(client)
    await asked.peer.end()


@pytest.mark.parametrize("leave", [Peer.leave, Peer.close_side], ids=["resets", "closes"])
@on_sockets
async def test_so_does_one_that_leaves_behind_more_than_is_read(
    wires: Wires, leave: Callable[[Peer], None]
) -> None:
    port = wires.proxy(half_closed_timeout=3600)
    client = await wires.chat(port)
    asked = await wires.stack.asked()
    client.send(MORE_THAN_IS_READ)
    await (await wires.ask(port, "GET /health")).end()  # by then it has come
    leave(client)
    await asked.peer.end()


CALL = {"id": "c", "type": "function", "function": {"name": "clock", "arguments": "{}"}}


async def with_a_running_tool(wires: Wires, port: int, stream: bool) -> tuple[Peer, Asked]:
    client = await wires.chat(port, stream=stream)
    asked = await wires.stack.asked()
    if stream:
        asked.begin("Content-Type: text/event-stream")
        asked.piece(event(chunk({"tool_calls": [{"index": 0, **CALL}]}, "tool_calls")))
        asked.piece(b"")
    else:
        message = {"role": "assistant", "content": None, "tool_calls": [CALL]}
        choices = [{"index": 0, "message": message, "finish_reason": "tool_calls"}]
        asked.answer(json.dumps({"choices": choices}).encode(), "Content-Type: application/json")
    invoked = await wires.stack.asked()
    assert invoked.line.startswith(b"POST /v1/tool-runtime/invoke ")
    return client, invoked


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@on_sockets
async def test_a_client_that_leaves_stops_a_running_tool(wires: Wires, stream: bool) -> None:
    port = wires.proxy()
    client, invoked = await with_a_running_tool(wires, port, stream)
    client.leave()
    await invoked.peer.end()


@on_sockets
async def test_a_client_that_closes_only_its_side_gets_its_answers(wires: Wires) -> None:
    port = wires.proxy()
    client = await wires.client(port)
    client.send(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n")
    client.close_side()
    (await wires.stack.asked()).answer(b"first")
    asked = await wires.stack.asked()
    large = bytes(5_000_000)
    asked.answer(large)
    assert (await client.end()).endswith(large)
    assert client.received.count(b"HTTP/1.1 200 ") == 2
    assert not client.reset


@on_sockets
async def test_a_client_that_closes_politely_has_left_too(wires: Wires) -> None:
    port = wires.proxy()
    client, invoked = await with_a_running_tool(wires, port, stream=True)
    assert client.transport is not None
    client.transport.loseConnection()
    await invoked.peer.end()


# --- the upstream fails


@pytest.mark.parametrize("length", [None, 100])
@on_sockets
async def test_an_answer_that_is_cut_short_does_not_look_whole(
    wires: Wires, length: int | None
) -> None:
    port = wires.proxy()
    client = await wires.ask(port, "GET /x")
    asked = await wires.stack.asked()
    if length is None:
        asked.begin()
        asked.piece(b"some")
    else:
        asked.peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\nsome" % length)
    await client.reads(b"some")
    asked.peer.leave()
    _, body = head_and_body(await client.end())
    assert body == (b"some" if length else b"4\r\nsome\r\n")


@on_sockets
async def test_a_streamed_chat_that_breaks_off_says_so(wires: Wires) -> None:
    port = wires.proxy()
    client = await wires.chat(port, stream=True)
    asked = await wires.stack.asked()
    asked.begin("Content-Type: text/event-stream")
    asked.piece(event(chunk({"content": "some"})))
    await client.reads(b"some")
    asked.peer.leave()
    _, body = head_and_body(await client.end())
    *_, error, done, _ = dechunked(body).split(b"\n\n")
    assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "upstream_broke"
    assert done == b"data: [DONE]"


def closed_port() -> int:
    port = reactor.listenTCP(0, Factory(), interface="127.0.0.1")
    number: int = port.getHost().port
    port.stopListening()
    return number


@pytest.mark.parametrize("line", ["GET /x", "GET /v1/models", "POST /v1/chat/completions"])
@on_sockets
async def test_an_upstream_that_is_not_there_is_a_502(wires: Wires, line: str) -> None:
    port = wires.proxy(upstream=f"http://127.0.0.1:{closed_port()}")
    body = b'{"messages": []}' if line.startswith("POST") else b""
    answer = await (await wires.ask(port, line, body=body)).end()
    assert status_of(answer) == 502
    error = error_of(answer)
    assert error["code"] == "upstream_unavailable"
    assert "refused" in error["message"]


@pytest.mark.parametrize("line", ["GET /x", "POST /v1/chat/completions"])
@on_sockets
async def test_an_upstream_that_stalls_is_a_504(wires: Wires, line: str) -> None:
    port = wires.proxy("--upstream-timeout", "0.3")
    body = b'{"messages": []}' if line.startswith("POST") else b""
    client = await wires.ask(port, line, body=body)
    asked = await wires.stack.asked()
    answer = await client.end()
    assert status_of(answer) == 504
    assert error_of(answer)["code"] == "upstream_timeout"
    await asked.peer.end()


@on_sockets
async def test_an_answer_that_stalls_in_the_middle_is_cut_off(wires: Wires) -> None:
    port = wires.proxy("--upstream-timeout", "0.3")
    client = await wires.ask(port, "GET /x")
    asked = await wires.stack.asked()
    asked.begin()
    asked.piece(b"some")
    _, body = head_and_body(await client.end())
    assert body == b"4\r\nsome\r\n"
    await asked.peer.end()


#: Twisted hands pyOpenSSL the certificates that it itself has read.
twisteds_own_warning = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")


# --- memory


MEGABYTE = 1024 * 1024
PLENTY = 200 * MEGABYTE


@implementer(IPullProducer)
class Flood:
    """Sends an answer of 200 MB as fast as it is taken."""

    def __init__(self, asked: Asked, piece: bytes) -> None:
        self._asked = asked
        self._piece = piece
        self.sent = 0
        asked.peer.transport.registerProducer(self, False)  # type: ignore[union-attr]

    def resumeProducing(self) -> None:
        self._asked.piece(self._piece)
        self.sent += len(self._piece)
        if self.sent >= PLENTY:
            transport: Any = self._asked.peer.transport
            transport.unregisterProducer()
            self._asked.piece(b"")

    def stopProducing(self) -> None:
        pass

    async def stalled(self) -> int:
        """Wait until nothing more is taken; the bytes taken are returned."""
        before = -1
        for _ in range(100):
            if before == self.sent:
                return self.sent
            before = self.sent
            await deferLater(reactor, 0.4)
        raise AssertionError("the flood is never held up")


class Counted(Peer):
    """A client that counts what it reads."""

    def __init__(self) -> None:
        Peer.__init__(self)
        self.count = 0

    def dataReceived(self, data: bytes) -> None:
        self.count += len(data)
        self._changed()


def memory(process: int, name: str = "VmRSS") -> int:
    """Bytes of resident memory that a process has, or had at most (``VmHWM``)."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


LONG_EVENT = event(chunk({"content": "word " * 40})) * 64

FLOODS = {
    "passed through": ("GET /x", b"", "application/octet-stream", b"x" * 65536),
    "chat": (
        "POST /v1/chat/completions",
        b'{"messages": [], "stream": true}',
        "text/event-stream",
        LONG_EVENT,
    ),
}


@pytest.mark.parametrize("kind", FLOODS)
@on_sockets
async def test_a_client_that_does_not_read_stops_the_upstream_and_memory_stays_flat(
    wires: Wires, kind: str, tmp_path: Path
) -> None:
    line, body, content_type, piece = FLOODS[kind]
    upstream = f"http://127.0.0.1:{wires.listen(wires.stack)}"
    daemon = Daemon(tmp_path / "log", "--llamastack-url", upstream)
    try:
        process = daemon.process.pid
        before = memory(process)
        client: Counted = await connectProtocol(
            HostnameEndpoint(reactor, "127.0.0.1", daemon.port), Counted()
        )
        transport: Any = client.transport
        transport.pauseProducing()
        head = f"{line} HTTP/1.1\r\nHost: p\r\nContent-Length: {len(body)}\r\n\r\n"
        client.send(head.encode(), body)
        asked = await wires.stack.asked()
        asked.begin(f"Content-Type: {content_type}")
        flood = Flood(asked, piece)
        assert await flood.stalled() < 32 * MEGABYTE
        assert memory(process) - before < 32 * MEGABYTE
        transport.resumeProducing()
        await client.until(lambda: client.count > 40 * MEGABYTE)
        transport.pauseProducing()
        assert await flood.stalled() < PLENTY
        assert memory(process, "VmHWM") - before < 32 * MEGABYTE
        client.leave()
        await asked.peer.end()
        await client.end()
    finally:
        daemon.process.kill()
        daemon.process.wait()


# --- the log


@on_sockets
async def test_the_lines_of_a_turn_are_written_before_its_answers_are_sent(
    wires: Wires, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    stream = Mock(write=written.append)
    log = LineLog(stream, lambda event: f"{event['message']}\n" if "message" in event else None)
    monkeypatch.setattr(logformat, "current", log)
    globalLogPublisher.addObserver(log)
    try:
        client = await wires.client(wires.proxy())
        ask = b"GET /health HTTP/1.1\r\nHost: a\r\n"
        client.send((ask + b"\r\n") * 4 + ask + b"Connection: close\r\n\r\n")
        await client.end()
    finally:
        globalLogPublisher.removeObserver(log)
    [lines] = [each for each in written if "GET" in each]
    assert lines.count("GET /health 200") == lines.count("\n") == 5
