"""ProxyRequest: the life of one request, and all that is known of it on the way."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import copy_context
from types import MappingProxyType
from typing import Any

from twisted.internet.defer import Deferred
from twisted.web.server import Request

from llamaproxy.events import request_id

#: Requests of one connection that may be served in one turn of the reactor: a client that sends
#: hundreds at once is not to keep the others waiting.
MAX_PIPELINED_PER_TURN = 8


class ProxyRequest(Request):
    """A request from its head on, until it has been answered or its client has left."""

    defaultContentType = None
    started_at: float = 0.0
    #: What tells the sender from those with other API keys: a digest, which is sent nowhere.
    identity = b""
    #: Whether a client that has closed its side may still wait for the answer.
    half_closable = True
    #: What is to be cancelled when the daemon cannot wait any longer for the answer.
    work: Deferred[Any] | None = None
    #: What its line in the log says besides.
    log_fields: Mapping[str, str | int | float] = MappingProxyType({})

    def note(self, **fields: str | int | float) -> None:
        """Have the line in the log say *fields* too, which hold nothing that a peer wrote."""
        self.log_fields = {**self.log_fields, **fields}

    def process(self) -> None:
        channel: Any = self.channel
        self.started_at = channel.site.began(self)
        channel.served += 1
        if channel.served <= MAX_PIPELINED_PER_TURN:
            self._process_now()
        else:
            channel.site.reactor.callLater(0, self._process_now)

    def _process_now(self) -> None:
        if self.channel is not None:  # else: the client has gone
            # A context of its own, or else the next request would have this one's id.
            copy_context().run(self._process_as, self.id)

    def _process_as(self, whose: str) -> None:
        request_id.set(whose)
        Request.process(self)

    @property
    def id(self) -> str:
        """The id by which the client, the log and the upstream know the request."""
        values = self.requestHeaders.getRawHeaders(b"x-request-id", [b""])
        return values[0].decode("latin-1")

    def getRequestHostname(self) -> bytes:
        """Always the same: no route depends on it, and Klein fails over hosts that are no names."""
        return b"llamaproxy"
