"""The yardstick of the streams: Twisted copying bytes from one TCP connection to another.

Run as ``python -m tests.benchmarks.relay PORT UPSTREAM``. It parses nothing, so no proxy in Twisted
can relay an event for less.
"""

import sys
from typing import Any

from twisted.internet import reactor
from twisted.internet.protocol import ClientFactory, Factory, Protocol, connectionDone
from twisted.python.failure import Failure


class Half(Protocol):
    """One of two connections, which writes what the other reads."""

    def __init__(self) -> None:
        self.other: Half | None = None
        self.early = b""

    def dataReceived(self, data: bytes) -> None:
        if self.other is None:
            self.early += data
            return
        transport: Any = self.other.transport
        transport.write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.other is not None:
            transport: Any = self.other.transport
            transport.loseConnection()


class Upstream(Half):
    """The half that the relay itself has opened."""

    def connectionMade(self) -> None:
        factory: Any = self.factory
        self.other = factory.client
        factory.client.other = self
        transport: Any = self.transport
        transport.setTcpNoDelay(True)
        transport.write(factory.client.early)


def serve(port: int, upstream: int, reactor: Any) -> None:
    """Relay on 127.0.0.1 until the process is ended; `Any` where Twisted has no types."""
    Factory.noisy = False

    class Client(Half):
        def connectionMade(self) -> None:
            transport: Any = self.transport
            transport.setTcpNoDelay(True)
            factory: Any = ClientFactory.forProtocol(Upstream)
            factory.client = self
            reactor.connectTCP("127.0.0.1", upstream, factory)

    reactor.listenTCP(port, Factory.forProtocol(Client), backlog=1024, interface="127.0.0.1")
    reactor.run()


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]), reactor)
