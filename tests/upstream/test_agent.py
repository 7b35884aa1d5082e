"""Connections to the upstream: what must never happen to the next caller."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import succeed
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import StringTransport

from llamaproxy.upstream.agent import _ClosingEndpoint


class Heard(Protocol):
    """Remembers what it was sent."""

    def __init__(self) -> None:
        self.data = b""

    def dataReceived(self, data: bytes) -> None:
        self.data += data


class Within:
    """An endpoint that connects at once."""

    def connect(self, factory: Any) -> Any:
        self.protocol = factory.buildProtocol(None)
        self.protocol.makeConnection(StringTransport())
        return succeed(self.protocol)


def test_a_connection_that_was_told_to_close_hears_nothing_more() -> None:
    """Else the rest of an answer that nobody wants would bring it back into the pool."""
    within = Within()
    connected: list[Any] = []
    _ClosingEndpoint(within).connect(Factory.forProtocol(Heard)).addCallback(connected.append)
    (heard,) = connected
    assert isinstance(heard, Heard)
    within.protocol.dataReceived(b"first")
    assert heard.transport is not None
    heard.transport.loseConnection()
    within.protocol.dataReceived(b"second")
    assert heard.data == b"first"
