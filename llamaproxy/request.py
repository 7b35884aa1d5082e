"""ProxyRequest: the life of one request, and all that is known of it on the way."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from contextvars import copy_context
from types import MappingProxyType
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.server import NOT_DONE_YET, Request

from llamaproxy.errors import ProxyError, ShuttingDown, error_response
from llamaproxy.events import request_id

_log = Logger()

#: Requests of one connection that may be served in one turn of the reactor: a client that sends
#: hundreds at once is not to keep the others waiting.
MAX_PIPELINED_PER_TURN = 8


class ProxyRequest(Request):
    """A request from its head on, until it has been answered or its client has left."""

    defaultContentType = None
    started_at: float = 0.0
    #: What tells the sender from those with other API keys: a digest, which is sent nowhere.
    key_id = b""
    #: Whether a client that has closed its side may still wait for the answer.
    half_closable = True
    #: None when the client has left, and when the answer has come to its end.
    channel: Any = None
    #: Whether the daemon does not wait any longer for the answer.
    stopping = False
    #: What is then cancelled.
    work: Deferred[Any] | None = None
    #: What its line in the log counts, as far as it has come.
    counts: Callable[[], Mapping[str, int]] = dict
    #: What the line says besides.
    log_fields: Mapping[str, str | int | float] = MappingProxyType({})

    def note(self, **fields: str | int | float) -> None:
        """Have the line in the log say *fields* too, which hold nothing that a peer wrote."""
        self.log_fields = {**self.log_fields, **fields}

    def respond(self, work: Coroutine[Any, Any, bytes | int | None]) -> int:
        """Let *work* answer; it is cancelled when the client leaves.

        It returns the body, or None if it has sent that itself, or ``NOT_DONE_YET`` if the
        connection ends in another way. What it raises becomes an error of OpenAI's shape, or, once
        the answer has begun, an abnormal end.
        """
        self.work = answering = Deferred.fromCoroutine(self._answer_with(work))
        # Nothing can fail in it any more but for an error of our own.
        answering.addErrback(lambda failure: _log.failure("a request failed", failure))
        self.notifyFinish().addErrback(lambda _: answering.cancel())
        return NOT_DONE_YET

    async def _answer_with(self, work: Coroutine[Any, Any, bytes | int | None]) -> None:
        body: bytes | int | None
        try:
            body = await work
        except Exception as failure:
            if self.channel is None:
                return  # the client has left
            body = self._fail(self.error_of(failure))
        if self.channel is None:
            return
        if isinstance(body, bytes):
            self.write(body)
        if body != NOT_DONE_YET:
            self.finish()

    def error_of(self, failure: Exception) -> ProxyError:
        """What a client who is still there is told of *failure*; a fault of the proxy is logged."""
        if isinstance(failure, ProxyError):
            return failure
        if isinstance(failure, CancelledError) and self.stopping:
            return ShuttingDown()
        _log.failure("a request failed", Failure(failure))
        return ProxyError()

    def _fail(self, error: ProxyError) -> bytes | int:
        """The body that tells of *error*.

        ``NOT_DONE_YET`` if the answer has begun: the status has been sent, so only an abnormal end
        can tell the client now, and the connection is closed.
        """
        if not self.startedWriting:
            return error_response(self, error)
        self.note(error=error.logged, kind=error.kind)
        _log.warn("an answer was cut short: {kind}", kind=error.kind)
        self.cut_off()
        return NOT_DONE_YET

    def cut_off(self) -> None:
        """End an answer that has begun so that it does not look whole."""
        framed = self.chunked or self.responseHeaders.hasHeader(b"content-length")
        channel = self.channel
        if framed or channel is None:
            self.loseConnection()
        else:
            # To a client of HTTP/1.0 the end of the connection is that of the answer: only a reset
            # tells it otherwise.
            channel.transport.abortConnection()

    def process(self) -> None:
        channel: Any = self.channel
        self.started_at = channel.site.began(self)
        channel.served += 1
        if channel.served <= MAX_PIPELINED_PER_TURN:
            self._process_now()
        else:
            channel.site.clock.callLater(0, self._process_now)

    def _process_now(self) -> None:
        if self.channel is not None:  # else: the client has gone
            # A context of its own, or else the next request would have this one's id.
            copy_context().run(self._process_as, self.id)

    def _process_as(self, id: str) -> None:
        request_id.set(id)
        Request.process(self)

    @property
    def id(self) -> str:
        """The id by which the client, the log and the upstream know the request."""
        values = self.requestHeaders.getRawHeaders(b"x-request-id", [b""])
        return values[0].decode("latin-1")

    def getRequestHostname(self) -> bytes:
        """Always the same: no route depends on it, and Klein fails over hosts that are no names."""
        return b"llamaproxy"
