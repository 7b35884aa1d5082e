"""What the server relies on that Twisted does not promise: a Twisted that changed fails here."""

from __future__ import annotations

import inspect
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
import pytest_twisted  # type: ignore[import-untyped]
from twisted.internet.base import ReactorBase
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.protocol import Factory, Protocol
from twisted.web.server import Request

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


# --- requests


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (Request.render, "resrc"),
        (Request.processingFailed, "reason"),
        (Request.isSecure, ""),
        (Request.finish, ""),
        (Request.write, "data"),
        (Request.process, ""),
        (Request.connectionLost, "reason"),
        (Request.getRequestHostname, ""),
        (Request.notifyFinish, ""),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_what_is_overridden_or_called_out_of_turn_has_its_parameters(
    function: Callable[..., object], parameters: str
) -> None:
    assert list(inspect.signature(function).parameters) == ["self", *parameters.split()]
