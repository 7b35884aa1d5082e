"""Listening sockets of several processes: held by the parent, accepted from by the workers.

Not promised by Twisted, as in :mod:`llamaproxy.server.twistedparts`: what its ports do between
``startListening`` and ``connectionLost``, and that they ask for ``numberAccepts`` at each turn.
"""

from __future__ import annotations

import re
import socket
from typing import Any

from twisted.internet import tcp, unix
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IListeningPort
from zope.interface import implementer

from llamaproxy.server.prompt_writes import PromptWrites
from llamaproxy.workers.balance import Balance
from llamaproxy.workers.process import FIRST_PORT_FD

#: Seconds that other workers have to take a client that is left to them.
_OTHERS_FIRST = 0.02


class _Held:
    """A port that nobody is accepted at, in a process that keeps it for others."""

    #: The others have the same socket, and some must accept who waits before it is closed.
    _shouldShutdown = False

    def startReading(self) -> None:
        """Others accept."""


class _HeldTCP(_Held, tcp.Port):
    """One of the internet."""


class _HeldUNIX(_Held, unix.Port):
    """One with a path, which goes when it is closed."""


@implementer(IListeningPort)
class _HeldDescriptor:
    """A socket that somebody else has made and listens on, such as systemd."""

    def __init__(self, made: socket.socket) -> None:
        self._socket = made
        self.fileno = made.fileno

    def startListening(self) -> None:
        """It does already."""

    def stopListening(self) -> Deferred[None]:
        self._socket.close()
        return succeed(None)

    def getHost(self) -> IAddress:
        name = self._socket.getsockname()
        if self._socket.family == socket.AF_UNIX:
            return UNIXAddress(name)
        kind = IPv6Address if self._socket.family == socket.AF_INET6 else IPv4Address
        return kind("TCP", *name[:2])


class HeldSockets:
    """A reactor whose ports listen, and leave it to other processes to accept."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        return _listening(_HeldTCP(port, factory, backlog, interface, self._reactor))

    def listenSSL(
        self, port: int, factory: Any, contextFactory: Any, backlog: int = 50, interface: str = ""
    ) -> Any:
        return self.listenTCP(port, factory, backlog, interface)

    def listenUNIX(
        self,
        address: str,
        factory: Any,
        backlog: int = 50,
        mode: int = 0o666,
        wantPID: bool = False,
    ) -> Any:
        port: Any = _HeldUNIX  # annotated as if addresses were bytes alone
        return _listening(port(address, factory, backlog, mode, self._reactor, wantPID))

    def adoptStreamPort(self, fileDescriptor: int, addressFamily: int, factory: Any) -> Any:
        return _HeldDescriptor(socket.fromfd(fileDescriptor, addressFamily, socket.SOCK_STREAM))


def _listening(port: Any) -> Any:
    port.startListening()
    return port


def _take(port: Any) -> None:
    """Have *port* accept from the socket that it was given, as it is."""
    tcp._reservedFD.reserve()
    port.factory.doStart()
    port.socket = port._preexistingSocket
    port.fileno = port.socket.fileno
    port.connected = True
    port.startReading()
    if port.reactor.balance is not None:
        port.reactor.balance.note()


def _accept(port: Any) -> None:
    """Accept a client, unless others should have the first go."""
    balance: Balance | None = port.reactor.balance
    if balance is None or port.disconnecting:
        tcp.Port.doRead(port)
    elif balance.leaves():
        port.stopReading()
        port.reactor.callLater(_OTHERS_FIRST, _go_on, port, balance)
    else:
        tcp.Port.doRead(port)
        balance.note()


def _go_on(port: Any, balance: Balance) -> None:
    """Others had it."""
    balance.went()
    if port.connected and not port.disconnecting:
        port.startReading()


def _nothing(port: Any) -> None:
    """The parent says in the log that the port is closed."""


#: One client a turn of the reactor, so that one process does not take all who come at once.
_ONE: Any = property(lambda port: 1, lambda port, number: None)


class _SharedTCP(tcp.Port):
    """One of the internet, which other processes accept from too."""

    _shouldShutdown = False
    numberAccepts = _ONE
    startListening = _take
    doRead = _accept
    _logConnectionLostMsg = _nothing


class _SharedUNIX(unix.Port):
    """One with a path, which is for whoever made it to remove."""

    _shouldShutdown = False
    numberAccepts = _ONE
    startListening = _take
    doRead = _accept
    _logConnectionLostMsg = _nothing
    connectionLost = tcp.Port.connectionLost


class SharedSockets(PromptWrites):
    """A reactor with prompt writes, whose ports are those of sockets that it was started with.

    Whatever it is asked to listen on, it takes the next of them.
    """

    def __init__(self, reactor: Any) -> None:
        PromptWrites.__init__(self, reactor)
        self._next = FIRST_PORT_FD
        #: Who takes the next client; None: whoever comes first.
        self.balance: Balance | None = None

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        inherited = socket.socket(fileno=self._next)
        self._next += 1
        inherited.set_inheritable(False)
        inherited.setblocking(False)
        made: Any
        if inherited.family == socket.AF_UNIX:
            made = _SharedUNIX(inherited.getsockname(), factory, reactor=self)
        else:
            made = _SharedTCP(0, factory, interface=inherited.getsockname()[0], reactor=self)
        made._preexistingSocket = inherited
        return _listening(made)

    def listenUNIX(
        self,
        address: str,
        factory: Any,
        backlog: int = 50,
        mode: int = 0o666,
        wantPID: bool = False,
    ) -> Any:
        return self.listenTCP(0, factory)


def shared(description: str) -> str:
    """The endpoint by which a worker takes the socket of the endpoint of that *description*."""
    # The descriptors of systemd were for the parent alone, which has handed them on like the rest.
    return re.sub(r"^((?:haproxy:)*)systemd:.*", r"\1tcp:0", description, flags=re.DOTALL)
