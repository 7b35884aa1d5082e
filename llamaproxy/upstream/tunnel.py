"""Tunnels: WebSockets, which begin as HTTP and go on as bytes both ways (RFC 6455)."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from llamaproxy.heads import Fields, RequestHead, answer_head, members, without
from llamaproxy.request import ProxyRequest
from llamaproxy.upstream.exchange import WEBSOCKET
from llamaproxy.upstream.response_head import ResponseHead
from llamaproxy.watchdog import Watchdog

#: The fields of request and response that switch protocols (RFC 9110 section 7.8).
SWITCH: Fields = [(b"Connection", b"Upgrade"), WEBSOCKET]

_SWITCH_NAMES = frozenset(name.lower() for name, _ in SWITCH)


def wants_websocket(head: RequestHead) -> bool:
    """Whether the request with that *head* opens a WebSocket (RFC 6455 section 4.1)."""
    if b"upgrade" not in head.by_name:
        return False
    protocols = [value.strip().lower() for value in head.by_name[b"upgrade"]]
    if protocols != [b"websocket"] or head.line.method != b"GET" or head.line.minor == 0:
        return False
    return head.body_length == 0 and b"upgrade" in members(head.by_name.get(b"connection", ()))


class Tunnel:
    """Bytes both ways between the client of *request* and the upstream, until one closes.

    Neither side is read faster than the other reads; silence is that of both.
    """

    def __init__(self, request: ProxyRequest, upstream: Any, silence: Watchdog) -> None:
        """:param upstream: sends bytes to the upstream (:attr:`ResponseHead.tunnel`)."""
        self._request = request
        self._upstream = upstream
        self._silence = silence
        self._closed = False

    def open(self, answer: ResponseHead) -> None:
        """Send 101 to the client, with the fields of the upstream's *answer*."""
        request = self._request
        channel = request.channel
        request.setResponseCode(101)
        request.startedWriting = 1
        fields = without(answer.fields, _SWITCH_NAMES)
        self._upstream.hold_back(channel.transport)
        phrase = HTTPStatus(101).phrase.encode()
        channel.switch(answer_head(1, 101, phrase, [*SWITCH, *fields]), self._to_upstream)

    def to_client(self, data: bytes) -> None:
        """Send bytes of the upstream's."""
        channel = self._request.channel
        if channel is not None:
            self._request.sentLength += len(data)
            channel.transport.write(data)

    def close(self) -> None:
        """Send nothing more to the upstream, and close the client's connection."""
        self._closed = True
        if self._request.channel is not None:
            self._request.channel.loseConnection()

    def _to_upstream(self, data: bytes) -> None:
        if not self._closed:
            self._silence.feed()
            self._upstream.send(data)
