"""How the daemon leaves: what is asked and answered while it stops, seen on real connections."""

from __future__ import annotations

import json
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from llamaproxy.server.listen import ListenService
from tests.support import chunk, event
from tests.test_sockets import (
    FLOODS,
    PATIENCE,
    Asked,
    Flood,
    Peer,
    Wires,
    dechunked,
    error_of,
    fields,
    head_and_body,
    on_sockets,
    reactor,
    status_of,
    wires,
)
from tests.test_twistd import PORT_LINE, Daemon, free_port, question

__all__ = ["wires"]

FOREVER = ("--drain-timeout", "60")
GET = b"GET /x HTTP/1.1\r\nHost: proxy\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"


def stop(wires: Wires) -> Deferred[None]:
    """Begin to stop the daemon; fires when it has stopped."""
    [services] = wires._services
    stopping: Any = services.stopService()
    ended: Deferred[None] = stopping.addTimeout(PATIENCE, reactor)
    return ended


async def streaming(wires: Wires, port: int) -> tuple[Peer, Asked]:
    """A streamed chat whose first word has arrived."""
    client = await wires.chat(port, stream=True)
    asked = await wires.stack.asked()
    asked.begin("Content-Type: text/event-stream")
    asked.piece(event(chunk({"content": "one"})))
    await client.reads(b"one")
    return client, asked


def events_of(answer: bytes) -> list[Any]:
    """The events of a stream that ended as HTTP wants it."""
    _, body = head_and_body(answer)
    *events, done = dechunked(body).split(b"\n\n")[:-1]
    assert done == b"data: [DONE]"
    return [json.loads(each.removeprefix(b"data: ")) for each in events]


# --- while it drains


@on_sockets
async def test_connections_are_refused_as_soon_as_it_stops(wires: Wires) -> None:
    port = wires.proxy(*FOREVER)
    client, asked = await streaming(wires, port)
    ended = stop(wires)
    await deferLater(reactor, 0)
    with pytest.raises(ConnectionRefusedError):
        await deferToThread(socket.create_connection, ("127.0.0.1", port), 5)
    assert not ended.called
    asked.piece(event(chunk({"content": "two"}, "stop")))
    asked.piece(b"")
    texts = [each["choices"][0]["delta"].get("content") for each in events_of(await client.end())]
    assert [text for text in texts if text] == ["one", "two"]
    await ended


@on_sockets
async def test_connections_that_nobody_has_accepted_yet_are_not_reset(wires: Wires) -> None:
    port = wires.proxy(*FOREVER)
    clients = [socket.create_connection(("127.0.0.1", port), PATIENCE) for _ in range(20)]
    ended = stop(wires)  # the reactor has not run since; Twisted closes the port when it does
    clients += [socket.create_connection(("127.0.0.1", port), PATIENCE) for _ in range(20)]
    for client in clients:
        client.sendall(GET)
        (await wires.stack.asked()).answer(b"here")
    for client in clients:
        answer = await deferToThread(read_all, client)
        assert answer.startswith(OK)
        assert fields(answer, "Connection") == [b"close"]
    await ended


def read_all(client: socket.socket) -> bytes:
    with client, client.makefile("rb") as stream:
        return stream.read()


@on_sockets
async def test_an_answer_that_begins_while_it_drains_says_close(wires: Wires) -> None:
    port = wires.proxy(*FOREVER)
    client = await wires.client(port)
    client.send(GET)
    asked = await wires.stack.asked()
    ended = stop(wires)
    asked.answer(b"late")
    answer = await client.end()
    assert answer.endswith(b"\r\n\r\nlate")
    assert fields(answer, "Connection") == [b"close"]
    await ended


@on_sockets
async def test_an_idle_connection_gets_one_more_answer(wires: Wires) -> None:
    port = wires.proxy(*FOREVER)
    client = await wires.client(port)
    client.send(GET)
    (await wires.stack.asked()).answer(b"first")
    before = await client.reads(b"first")
    assert not fields(before, "Connection")
    ended = stop(wires)
    client.send(GET)
    (await wires.stack.asked()).answer(b"second")
    answer = (await client.end()).removeprefix(before)
    assert answer.endswith(b"second")
    assert fields(answer, "Connection") == [b"close"]
    await ended


@on_sockets
async def test_a_connection_whose_stream_ends_while_it_drains_gets_one_more_answer(
    wires: Wires,
) -> None:
    port = wires.proxy(*FOREVER)
    client = await wires.client(port)
    client.send(GET)
    asked = await wires.stack.asked()
    asked.begin()
    asked.piece(b"one")
    await client.reads(b"one")
    ended = stop(wires)
    asked.piece(b"")
    before = await client.reads(b"\r\n0\r\n\r\n")
    client.send(GET)
    (await wires.stack.asked()).answer(b"second")
    answer = (await client.end()).removeprefix(before)
    assert fields(answer, "Connection") == [b"close"]
    await ended


@pytest.mark.parametrize("sent", [b"", b"GET /x HT"], ids=["silent", "half"])
@on_sockets
async def test_a_connection_that_stays_idle_is_closed(wires: Wires, sent: bytes) -> None:
    port = wires.proxy(*FOREVER, idle_grace=0.2)
    client = await wires.client(port)
    client.send(sent)
    ended = stop(wires)
    assert await client.end() == b""
    await ended


@on_sockets
async def test_a_request_that_is_still_being_sent_is_waited_for(
    wires: Wires,
) -> None:
    port = wires.proxy(*FOREVER, idle_grace=0.2)
    client = await wires.client(port)
    idle = await wires.client(port)
    client.send(b"PUT /x HTTP/1.1\r\nHost: proxy\r\nContent-Length: 5\r\n\r\nhe")
    client.send(b"l")
    ended = stop(wires)
    await idle.end()
    client.send(b"lo")
    asked = await wires.stack.asked()
    assert asked.body == b"hello"
    asked.answer(b"taken")
    assert (await client.end()).endswith(b"taken")
    await ended


@on_sockets
async def test_the_admin_port_says_that_it_drains(wires: Wires) -> None:
    anywhere = "tcp:0:interface=127.0.0.1"
    upstream = f"http://127.0.0.1:{wires.listen(wires.stack)}"
    services: Any = wires.start(
        *FOREVER, "--listen", anywhere, "--admin", anywhere, "--llamastack-url", upstream
    )
    listening = [each for each in services if isinstance(each, ListenService)]
    hosts: list[Any] = [each._ports[0].getHost() for each in listening]
    admin, port = [host.port for host in hosts]
    client, asked = await streaming(wires, port)
    assert status_of(await (await wires.ask(admin, "GET /ready")).end()) == 200
    ended = stop(wires)
    assert status_of(await (await wires.ask(admin, "GET /ready")).end()) == 503
    assert status_of(await (await wires.ask(admin, "GET /live")).end()) == 200
    counted = await (await wires.ask(admin, "GET /metrics")).end()
    assert b"\nllamaproxy_connections 1.0\n" in counted
    assert b"\nllamaproxy_requests_running 1.0\n" in counted
    status = await (await wires.ask(admin, "GET /status")).end()
    assert json.loads(dechunked(head_and_body(status)[1]))["draining"] is True
    asked.piece(event(chunk({}, "stop")))
    asked.piece(b"")
    await client.end()
    await ended


# --- when time is up

AT_ONCE = ("--drain-timeout", "0")


@on_sockets
async def test_a_stream_ends_with_an_error_that_a_client_understands(wires: Wires) -> None:
    port = wires.proxy(*AT_ONCE)
    client, asked = await streaming(wires, port)
    ended = stop(wires)
    *_, last = events_of(await client.end())
    assert last["error"]["code"] == "shutting_down"
    assert last["error"]["type"] == "server_error"
    assert "shutting down" in last["error"]["message"]
    await asked.peer.end()
    await ended


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@on_sockets
async def test_a_chat_that_has_not_begun_is_a_503(wires: Wires, stream: bool) -> None:
    port = wires.proxy(*AT_ONCE)
    client = await wires.chat(port, stream=stream)
    asked = await wires.stack.asked()
    ended = stop(wires)
    answer = await client.end()
    assert status_of(answer) == 503
    assert fields(answer, "Connection") == [b"close"]
    assert fields(answer, "Retry-After") == [b"1"]
    assert error_of(answer)["code"] == "shutting_down"
    await asked.peer.end()
    await ended


@on_sockets
async def test_a_forwarded_request_that_has_no_answer_yet_is_a_503(wires: Wires) -> None:
    port = wires.proxy(*AT_ONCE)
    client = await wires.client(port)
    client.send(GET)
    asked = await wires.stack.asked()
    ended = stop(wires)
    answer = await client.end()
    assert status_of(answer) == 503
    assert fields(answer, "Connection") == [b"close"]
    assert error_of(answer)["code"] == "shutting_down"
    await asked.peer.end()
    await ended


@on_sockets
async def test_a_request_that_is_still_being_sent_is_a_503(wires: Wires) -> None:
    port = wires.proxy("--drain-timeout", "0.3")
    client = await wires.client(port)
    client.send(b"PUT /x HTTP/1.1\r\nHost: proxy\r\nContent-Length: 5\r\n\r\nhe")
    ended = stop(wires)
    answer = await client.end()
    assert status_of(answer) == 503
    assert error_of(answer)["code"] == "shutting_down"
    await ended


@on_sockets
async def test_a_forwarded_answer_that_has_begun_does_not_look_whole(wires: Wires) -> None:
    port = wires.proxy(*AT_ONCE)
    client = await wires.client(port)
    client.send(GET)
    asked = await wires.stack.asked()
    asked.begin()
    asked.piece(b"first")
    await client.reads(b"first")
    ended = stop(wires)
    assert not (await client.end()).endswith(b"0\r\n\r\n")
    await asked.peer.end()
    await ended


@pytest.mark.parametrize("kind", FLOODS)
@on_sockets
async def test_a_client_that_reads_nothing_cannot_hold_it_up(wires: Wires, kind: str) -> None:
    line, body, content_type, piece = FLOODS[kind]
    port = wires.proxy(*AT_ONCE)
    client = await wires.client(port)
    transport: Any = client.transport
    transport.pauseProducing()
    head = f"{line} HTTP/1.1\r\nHost: proxy\r\nContent-Length: {len(body)}\r\n\r\n"
    client.send(head.encode(), body)
    asked = await wires.stack.asked()
    asked.begin(f"Content-Type: {content_type}")
    await Flood(asked, piece).stalled()
    await stop(wires)
    await asked.peer.end()


# --- signals


def begin_to_wait(daemon: Daemon) -> socket.socket:
    """A connection with a stream that would go on for a minute."""
    client = socket.create_connection(("127.0.0.1", daemon.port), 30)
    body = json.dumps(question("Wait 60 seconds", stream=True)).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: proxy\r\nContent-Length: %d\r\n\r\n"
    client.sendall(head % len(body) + body)
    client.recv(1)
    return client


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(tmp_path: Path, second: signal.Signals) -> None:
    admin = free_port()
    daemon = Daemon(tmp_path / "log", "--demo", "--admin", PORT_LINE.format(port=admin))
    client = begin_to_wait(daemon)
    daemon.process.send_signal(signal.SIGTERM)
    daemon.port = admin
    while daemon.get("/ready")[0] != 503:
        time.sleep(0.01)  # until the signal has arrived
    began = time.monotonic()
    daemon.process.send_signal(second)
    answer = read_all(client)
    assert daemon.process.wait(30) == -signal.SIGTERM
    assert time.monotonic() - began < 2, "one second, and some for a slow machine"
    assert b'"code":"shutting_down"' in answer
    assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    log = daemon.log.read_text()
    assert "Traceback" not in log
    assert "Unhandled" not in log


def test_a_hangup_that_means_nothing_else_is_an_orderly_end(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "log", "--demo", "--drain-timeout", "0.2")
    client = begin_to_wait(daemon)
    daemon.process.send_signal(signal.SIGHUP)
    assert b'"code":"shutting_down"' in read_all(client)
    daemon.process.wait(30)
    assert "Traceback" not in daemon.log.read_text()


def test_two_signals_at_once_are_two(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "log", "--demo")
    client = begin_to_wait(daemon)
    # Both are delivered before the reactor runs again.
    daemon.process.send_signal(signal.SIGSTOP)
    daemon.process.send_signal(signal.SIGTERM)
    daemon.process.send_signal(signal.SIGINT)
    daemon.process.send_signal(signal.SIGCONT)
    assert b'"code":"shutting_down"' in read_all(client)
    assert daemon.process.wait(30) in (-signal.SIGTERM, -signal.SIGINT)
    log = daemon.log.read_text()
    assert "Traceback" not in log
    assert "Unhandled" not in log


def test_time_that_is_up_ends_it_too(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "log", "--demo", "--drain-timeout", "0.2")
    client = begin_to_wait(daemon)
    assert daemon.stop() == -signal.SIGTERM
    assert b'"code":"shutting_down"' in read_all(client)
    log = daemon.log.read_text()
    assert "1 requests have been cut short" in log
    assert "Traceback" not in log
    assert "Unhandled" not in log
