"""What the server relies on that Twisted does not promise: a Twisted that changed fails here."""

from __future__ import annotations

import inspect
import socket
import time
from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
import pytest_twisted  # type: ignore[import-untyped]
from twisted.internet.base import ReactorBase
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import StringTransport
from twisted.web.http import HTTPChannel, HTTPFactory, Request
from twisted.web.server import Site

from llamaproxy.server.twistedparts import accept_waiting, use_monotonic_time


def on_sockets(test: Any) -> Any:
    return pytest_twisted.ensureDeferred(test)


# --- the time


class Timers(ReactorBase):
    """What every reactor has of timers."""

    def installWaker(self) -> None:
        """There are no threads."""


def test_a_reactor_counts_by_the_clock_that_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    reactor: Any = Timers()
    use_monotonic_time(reactor)
    fired: list[int] = []
    call = reactor.callLater(5, fired.append, 1)
    assert call.getTime() == 1005
    assert reactor.timeout() == 5
    now = 1004.0
    reactor.runUntilCurrent()
    assert fired == []
    call.reset(2)
    assert call.getTime() == 1006
    now = 1006.0
    reactor.runUntilCurrent()
    assert fired == [1]


def test_a_reactor_that_has_timers_already_keeps_its_clock() -> None:
    reactor: Any = Timers()
    reactor.callLater(5, lambda: None)
    before = reactor.seconds
    use_monotonic_time(reactor)
    assert reactor.seconds is before


# --- ports


class Counting(Factory):
    """Counts the connections that were accepted."""

    def __init__(self) -> None:
        self.protocols: list[Protocol] = []

    def buildProtocol(self, addr: object) -> Protocol:
        self.protocols.append(Protocol())
        return self.protocols[-1]


@on_sockets
async def test_a_port_accepts_all_who_wait_and_is_closed_a_turn_later() -> None:
    from twisted.internet import reactor

    factory = Counting()
    network: Any = reactor
    port: Any = network.listenTCP(0, factory, backlog=400, interface="127.0.0.1")
    is_descriptor: bool = IReadDescriptor.providedBy(port)
    assert is_descriptor
    address = ("127.0.0.1", port.getHost().port)
    # More than Twisted accepts at once, and no turn of the reactor since they have connected.
    clients = [socket.create_connection(address, 10) for _ in range(150)]
    stopped = port.stopListening()
    clients += [socket.create_connection(address, 10) for _ in range(150)]
    accept_waiting(port)
    assert len(factory.protocols) == 300
    await stopped
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, 10)
    for client in clients:
        client.close()
    for protocol in factory.protocols:
        transport: Any = protocol.transport
        transport.abortConnection()


# --- the channel


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (HTTPChannel.lineReceived, "line"),
        (HTTPChannel.lineLengthExceeded, "line"),
        (HTTPChannel.rawDataReceived, "data"),
        (HTTPChannel.clearLineBuffer, ""),
        (HTTPChannel.setRawMode, ""),
        (HTTPChannel.allContentReceived, ""),
        (HTTPChannel.writeHeaders, "version code reason headers"),
        (HTTPChannel.requestDone, "request"),
        (HTTPChannel.pauseProducing, ""),
        (HTTPChannel.resumeProducing, ""),
        (HTTPChannel.loseConnection, ""),
        (Request.process, ""),
        (Request.getRequestHostname, ""),
        (Request.notifyFinish, ""),
        (HTTPFactory.log, "request"),
        (Site.acceptableProtocols, ""),
        (Site.log, "request"),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_what_is_overridden_or_called_out_of_turn_has_its_parameters(
    function: Callable[..., object], parameters: str
) -> None:
    assert list(inspect.signature(function).parameters) == ["self", *parameters.split()]


class Recorded(Request):
    """A request that is not answered yet."""

    def process(self) -> None:
        """It is there."""


class Stock(HTTPChannel):
    """Twisted's channel, whose requests are not answered yet."""

    requestFactory = Recorded


def stock_channel() -> tuple[Any, Any]:
    """A channel and its transport, with a request whose head has come, called as ours calls it."""
    make: Any = Stock
    channel = make()
    transport: Any = StringTransport()
    channel.site = channel.factory = HTTPFactory()
    channel.timeOut = None
    channel.makeConnection(transport)
    channel.lineReceived(b"POST /a?b HTTP/1.1")
    [request] = channel.requests
    channel.persistent = True
    request.content = BytesIO()
    request.content.write(b"ab")
    return channel, transport


def test_a_request_is_made_of_its_line_and_served_when_its_content_is_there() -> None:
    channel, _ = stock_channel()
    [request] = channel.requests
    channel.allContentReceived()
    assert (request.method, request.uri, request.clientproto) == (b"POST", b"/a?b", b"HTTP/1.1")
    assert request.content.read() == b"ab"
    assert not channel.line_mode, "what follows is raw data until the answer has ended"


def test_the_answer_counts_its_bytes_and_is_followed_by_lines() -> None:
    channel, transport = stock_channel()
    [request] = channel.requests
    channel.allContentReceived()
    assert not request.startedWriting
    request.write(b"abc")
    assert request.startedWriting
    assert request.chunked
    assert request.sentLength == 3
    request.finish()
    assert channel.requests == []
    assert channel.line_mode
    assert not transport.disconnecting


def test_the_answer_of_a_channel_that_does_not_persist_ends_it() -> None:
    channel, transport = stock_channel()
    [request] = channel.requests
    channel.allContentReceived()
    channel.persistent = False
    request.finish()
    assert transport.disconnecting


def test_a_channel_is_the_producer_of_its_transport_and_pauses_the_answer() -> None:
    channel, transport = stock_channel()
    assert transport.producer is channel
    channel.allContentReceived()
    [request] = channel.requests
    paused: list[str] = []

    class Producer:
        def pauseProducing(self) -> None:
            paused.append("pause")

        def resumeProducing(self) -> None:
            paused.append("resume")

    request.registerProducer(Producer(), True)
    channel.pauseProducing()
    channel.resumeProducing()
    assert paused == ["pause", "resume"]
