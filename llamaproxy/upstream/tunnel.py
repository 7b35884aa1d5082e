"""Tunnels: WebSockets, which begin as HTTP and go on as bytes both ways (RFC 6455)."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.web.http import Request
from twisted.web.http_headers import Headers

from llamaproxy.upstream.relay import ResponseRelay

#: The fields of request and response that switch protocols (RFC 9110 section 7.8).
_SWITCH = {b"Connection": [b"Upgrade"], b"Upgrade": [b"websocket"]}


def wants_websocket(request: Request) -> bool:
    """Whether *request* opens a WebSocket (RFC 6455 section 4.1)."""
    fields = request.requestHeaders.getRawHeaders
    options = b",".join(fields(b"connection", [])).lower().split(b",")
    protocols = [value.strip().lower() for value in fields(b"upgrade", [])]
    return (
        request.method == b"GET"
        and request.clientproto == b"HTTP/1.1"
        and b"upgrade" in [option.strip() for option in options]
        and protocols == [b"websocket"]
    )


def ask_to_switch(fields: Headers) -> None:
    """Put the fields that open a WebSocket into those of a forwarded request."""
    for name, values in _SWITCH.items():
        fields.setRawHeaders(name, list(values))


class TunnelRelay(ResponseRelay):
    """Relays bytes both ways, neither side faster than the other reads, until one closes.

    ``finished`` fires as that of a body, whose bytes are the upstream's; silence is that of both.
    """

    def __init__(
        self, request: Request, response: Any, clock: IReactorTime, silence: float
    ) -> None:
        ResponseRelay.__init__(self, request, clock, silence)
        self._deliver = self._to_client
        self._upstream = response.tunnel
        self._response = response

    def start(self) -> None:
        """Send 101 to the client, and begin to relay."""
        request, response = self._request, self._response
        channel: Any = request.channel
        request.setResponseCode(101)
        request.startedWriting = 1
        fields = [
            *((name, value) for name, values in _SWITCH.items() for value in values),
            *(
                (name, value)
                for name, values in response.headers.getAllRawHeaders()
                if name not in _SWITCH
                for value in values
            ),
        ]
        lines = [b"HTTP/1.1 101 %b" % HTTPStatus(101).phrase.encode()]
        head = b"\r\n".join([*lines, *(b"%b: %b" % field for field in fields), b"", b""])
        self._upstream.hold_back(channel.transport)
        response.deliverBody(self)
        channel.switch(head, self._to_upstream)

    def _to_client(self, data: bytes) -> None:
        channel: Any = self._request.channel
        if channel is not None:
            self._request.sentLength += len(data)
            channel.transport.write(data)

    def _to_upstream(self, data: bytes) -> None:
        if not self.finished.called:
            self._silence.feed()
            self._upstream.send(data)
