"""Connections over epoll without a library: the least that the load and its upstream can cost."""

import select
import socket
from contextlib import suppress
from typing import Final

from .http1 import wanted, whole

_READ: Final = 256 * 1024


class Connection:
    """A connection from which whole messages are read, and to which more is sent than it takes."""

    __slots__ = ("_epoll", "_held", "_missing", "_pending", "closed", "socket")

    def __init__(self, connected: socket.socket, epoll: select.epoll) -> None:
        connected.setblocking(False)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connected
        self.closed = False
        self._epoll = epoll
        self._held: list[bytes] = []
        self._missing = 0
        self._pending: list[memoryview] = []
        epoll.register(connected, select.EPOLLIN)

    def messages(self) -> list[bytes] | None:
        """The messages that are whole by now; none is an empty list, the end is `None`."""
        try:
            received = self.socket.recv(_READ)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not received:
            return None
        self._missing -= len(received)
        if self._held:
            self._held.append(received)
            if self._missing > 0:
                return []
            received = b"".join(self._held)
            self._held = []
        found = []
        while length := whole(received):
            found.append(received[:length])
            received = received[length:]
        if received:
            self._held = [received]
            # Only a length that is told saves looking at a long message again and again.
            self._missing = wanted(received) - len(received)
        return found

    def send(self, message: bytes | memoryview) -> None:
        """Send at once what the socket takes, the rest when it takes more."""
        if not self._pending:
            with suppress(BlockingIOError):
                try:
                    sent = self.socket.send(message)
                except (BrokenPipeError, ConnectionResetError):
                    return
                if sent == len(message):
                    return
                message = memoryview(message)[sent:]
            self._epoll.modify(self.socket, select.EPOLLIN | select.EPOLLOUT)
        self._pending.append(memoryview(message))

    def flush(self) -> None:
        """Send more of what the socket did not take."""
        pending, self._pending = self._pending, []
        self._epoll.modify(self.socket, select.EPOLLIN)
        for message in pending:
            self.send(message)

    def close(self) -> None:
        self.closed = True
        self.socket.close()


class Loop:
    """A server: what it answers is told by a subclass."""

    def __init__(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", port), backlog=4096)
        self._listener.setblocking(False)
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)
        self._connections: dict[int, Connection] = {}

    def wait(self) -> float:
        """Seconds until there is something to do, or -1."""
        return -1

    def answer(self, connection: Connection, asked: bytes) -> None:
        """Answer a request."""
        raise NotImplementedError

    def lost(self, connection: Connection) -> None:
        """A connection has ended."""

    def run(self) -> None:
        """Serve until the process is ended."""
        listener = self._listener.fileno()
        while True:
            for descriptor, event in self._epoll.poll(self.wait()):
                if descriptor == listener:
                    self._accept()
                    continue
                connection = self._connections[descriptor]
                if event & select.EPOLLOUT:
                    connection.flush()
                if event & ~select.EPOLLOUT:
                    self._read(descriptor, connection)

    def _accept(self) -> None:
        with suppress(BlockingIOError):
            while True:
                accepted, _ = self._listener.accept()
                self._connections[accepted.fileno()] = Connection(accepted, self._epoll)

    def _read(self, descriptor: int, connection: Connection) -> None:
        asked = connection.messages()
        if asked is None:
            connection.close()
            del self._connections[descriptor]
            self.lost(connection)
            return
        for message in asked:
            self.answer(connection, message)
