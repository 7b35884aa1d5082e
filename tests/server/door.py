"""The front door in memory: bytes in, answers out, and what got through in between."""

from __future__ import annotations

import re
from socket import socket
from typing import Any

import attrs
from twisted.internet.address import IPv4Address
from twisted.internet.protocol import connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from llamaproxy.server.channel import ProxyChannel
from llamaproxy.server.keys import ApiKeys
from llamaproxy.server.limits import Limits
from llamaproxy.server.site import ProxySite


@attrs.frozen
class Passed:
    """A request that got through."""

    method: bytes
    target: bytes
    body: bytes
    fields: dict[bytes, list[bytes]] = attrs.field(eq=False)


@attrs.frozen
class Answer:
    """A response, as the client reads it."""

    status: int
    fields: dict[str, list[str]]
    body: bytes


class Line(StringTransport):
    """A connection whose client reads at once; it can be half-closed like one of TCP."""

    half_closed = False
    #: Where it matters what a client does whose bytes are not read.
    socket: socket | None = None

    def fileno(self) -> int:
        return -1 if self.socket is None else self.socket.fileno()

    def loseWriteConnection(self) -> None:
        self.half_closed = True

    @property
    def ended(self) -> bool:
        """Whether the client sees an end of what it gets."""
        return self.half_closed or self.disconnecting or self.disconnected


class Inside(Resource):
    """Answers every request, at once or when told, and remembers it."""

    isLeaf = True

    def __init__(self, at_once: bool) -> None:
        Resource.__init__(self)
        self.passed: list[Passed] = []
        self.waiting: list[Request] = []
        self._at_once = at_once

    def render(self, request: Request) -> Any:
        assert request.content is not None
        fields = dict(request.requestHeaders.getAllRawHeaders())
        body = request.content.read()
        self.passed.append(Passed(request.method, request.uri, body, fields))  # type: ignore[arg-type]
        if self._at_once:
            return b"%d" % len(self.passed)
        self.waiting.append(request)
        return NOT_DONE_YET


class FrontDoor:
    """A site and the clients before it."""

    def __init__(self, at_once: bool = True, keys: ApiKeys | None = None, **limits: Any) -> None:
        self.clock = Clock()
        self.inside = Inside(at_once)
        self.site = ProxySite(self.inside, self.clock, Limits(**limits), keys)

    def client(self) -> Client:
        return Client(self)


class Client:
    """One connection."""

    def __init__(self, door: FrontDoor) -> None:
        line: Any = Line
        site: Any = door.site
        channel: Any = site.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
        self.channel: ProxyChannel = channel
        self.line: Any = line(peerAddress=IPv4Address("TCP", "127.0.0.1", 1))
        self.channel.makeConnection(self.line)

    def send(self, *parts: bytes) -> Client:
        for part in parts:
            self.channel.dataReceived(part)
        return self

    def leave(self) -> None:
        self.channel.connectionLost(Failure(connectionDone.value))

    def half_close(self) -> None:
        """Send no more, but go on reading; or leave: it looks the same."""
        self.channel.readConnectionLost()

    @property
    def ended(self) -> bool:
        ended: bool = self.line.ended
        return ended

    def answers(self, heads: int = 0) -> list[Answer]:
        """Everything that was answered; *heads*: how many of the answers have no body."""
        text: bytes = self.line.value()
        answers = []
        while text:
            head, _, text = text.partition(b"\r\n\r\n")
            status = int(head.split(b" ")[1])
            fields: dict[str, list[str]] = {}
            for name, value in re.findall(r"(?m)^([^\s:]+): (.*?)\r?$", head.decode("latin-1")):
                fields.setdefault(name.lower(), []).append(value)
            length = int(fields.get("content-length", ["0"])[0])
            if heads:
                length, heads = 0, heads - 1
            assert len(text) >= length
            answers.append(Answer(status, fields, text[:length]))
            text = text[length:]
        return answers

    def statuses(self) -> list[int]:
        return [answer.status for answer in self.answers()]
