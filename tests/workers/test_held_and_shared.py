"""What is relied on of Twisted's ports, on sockets, without a reactor that runs."""

from __future__ import annotations

import os
import select
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock

from llamaproxy.server.twistedparts import accept_waiting
from llamaproxy.workers.balance import Balance, Board
from llamaproxy.workers.sockets import HeldSockets, SharedSockets


class Accepted(Protocol):
    """A client's connection, which is closed with its socket."""

    def connectionMade(self) -> None:
        transport: Any = self.transport
        _sockets.append(transport.socket)


class Clients(Factory):
    """Counts those that are accepted, and keeps where they come from."""

    noisy = False

    def __init__(self) -> None:
        self.accepted: list[Any] = []

    def buildProtocol(self, addr: Any) -> Protocol:
        self.accepted.append(addr)
        return Accepted()


#: Those that Twisted's transports and ports have, and no reactor closes here.
_sockets: list[socket.socket] = []


@pytest.fixture
def open_() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack
    while _sockets:
        _sockets.pop().close()


def waiting(sock: socket.socket) -> bool:
    return bool(select.select([sock], [], [], 0)[0])


def held(**more: Any) -> tuple[Any, Any]:
    """A port of the parent's, and its reactor."""
    reactor: Any = MemoryReactorClock()
    arguments = {"interface": "127.0.0.1", **more}
    return HeldSockets(reactor).listenTCP(0, Clients(), **arguments), reactor


def worker(descriptor: int, reactor: Any = None) -> tuple[Any, Clients]:
    """A port of a worker's on a socket that it was started with, and who comes to it."""
    shared = SharedSockets(reactor or MemoryReactorClock())
    shared._next = os.dup(descriptor)
    clients = Clients()
    port = shared.listenTCP(0, clients)
    _sockets.append(port.socket)
    return port, clients


def close(port: Any, reactor: Any) -> None:
    port.stopListening()
    reactor.advance(0)


def test_a_held_socket_listens_and_accepts_nobody(open_: ExitStack) -> None:
    port, reactor = held()
    open_.enter_context(socket.create_connection(port.socket.getsockname(), 10))
    assert waiting(port.socket) and not reactor.getReaders()
    close(port, reactor)


@pytest.mark.parametrize("interface", ["127.0.0.1", "::1"])
def test_workers_accept_one_client_a_turn(open_: ExitStack, interface: str) -> None:
    port, reactor = held(interface=interface)
    address = port.socket.getsockname()[:2]
    for _ in range(5):
        open_.enter_context(socket.create_connection(address, 10))
    (first, hers), (second, his) = worker(port.fileno()), worker(port.fileno())
    first.doRead()
    assert (len(hers.accepted), len(his.accepted)) == (1, 0)
    first.doRead()
    second.doRead()
    assert (len(hers.accepted), len(his.accepted)) == (2, 1)
    kind = IPv6Address if interface == "::1" else IPv4Address
    assert all(isinstance(each, kind) for each in hers.accepted)
    accept_waiting(first)
    assert len(hers.accepted) == 4 and not waiting(port.socket)
    first.doRead()
    assert len(hers.accepted) == 4, "nobody is there"
    close(port, reactor)


def test_who_has_more_lets_others_go_first(open_: ExitStack) -> None:
    port, reactor = held()
    address = port.socket.getsockname()
    board = Board(2)
    worker_reactor: Any = MemoryReactorClock()
    (many, left), (few, taken) = worker(port.fileno(), worker_reactor), worker(port.fileno())
    many.reactor.balance = Balance(board, 1, lambda: 5, 100)
    few.reactor.balance = Balance(board, 2, lambda: len(taken.accepted), 100)
    few.reactor.balance.note()
    for _ in range(3):
        open_.enter_context(socket.create_connection(address, 10))
    many.doRead()
    assert not left.accepted and many not in worker_reactor.getReaders()
    few.doRead()
    worker_reactor.advance(0.02)
    many.doRead()
    assert (len(taken.accepted), len(left.accepted)) == (1, 0), "it has taken one"
    worker_reactor.advance(0.02)
    many.doRead()
    assert len(left.accepted) == 1, "it has taken none"
    many.doRead()
    many.stopListening()
    accept_waiting(many)
    assert len(left.accepted) == 2, "nobody is waited for by who is closed"
    worker_reactor.advance(1)
    assert many not in worker_reactor.getReaders()
    close(port, reactor)


def test_a_port_of_one_is_closed_without_the_others(open_: ExitStack) -> None:
    port, reactor = held()
    address = port.socket.getsockname()
    first_reactor: Any = MemoryReactorClock()
    first, _ = worker(port.fileno(), first_reactor)
    second, clients = worker(port.fileno())
    close(first, first_reactor)
    close(port, reactor)
    assert not first_reactor.getReaders()
    open_.enter_context(socket.create_connection(address, 10))
    second.doRead()
    assert len(clients.accepted) == 1


def test_a_unix_socket_is_as_its_maker_wants_it(open_: ExitStack, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    reactor: Any = MemoryReactorClock()
    port = HeldSockets(reactor).listenUNIX(str(path), Clients(), 100, 0o640, True)
    worker_reactor: Any = MemoryReactorClock()
    shared, clients = worker(port.fileno(), worker_reactor)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    client = open_.enter_context(socket.socket(socket.AF_UNIX))
    client.connect(str(path))
    shared.doRead()
    assert isinstance(clients.accepted[0], UNIXAddress)
    close(shared, worker_reactor)
    assert path.exists() and os.path.lexists(f"{path}.lock")
    close(port, reactor)
    assert not path.exists() and not os.path.lexists(f"{path}.lock")


@pytest.mark.parametrize(
    ("family", "place", "kind"),
    [
        (socket.AF_INET, ("127.0.0.1", 0), IPv4Address),
        (socket.AF_INET6, ("::1", 0), IPv6Address),
        (socket.AF_UNIX, "socket", UNIXAddress),
    ],
)
def test_of_a_socket_of_somebody_elses_it_is_known_where_it_is(
    family: socket.AddressFamily,
    place: Any,
    kind: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    reactor: Any = MemoryReactorClock()
    with socket.socket(family) as made:
        made.bind(place)
        port = HeldSockets(reactor).adoptStreamPort(made.fileno(), family, Clients())
        host: Any = port.getHost()
        name = made.getsockname()
        close(port, reactor)
    assert isinstance(host, kind)
    if isinstance(host, UNIXAddress):
        assert host.name == b"socket"
    else:
        assert (host.host, host.port) == name[:2]


def test_a_socket_of_somebody_elses_stays_open(open_: ExitStack) -> None:
    made = open_.enter_context(socket.create_server(("127.0.0.1", 0)))
    reactor: Any = MemoryReactorClock()
    port = HeldSockets(reactor).adoptStreamPort(made.fileno(), socket.AF_INET, Clients())
    assert port.fileno() != made.fileno()
    close(port, reactor)
    open_.enter_context(socket.create_connection(made.getsockname(), 10))
    assert waiting(made)
