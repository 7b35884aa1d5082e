"""EventStream: the client's side of a streamed answer."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.web.http import Request
from zope.interface import implementer

from llamaproxy import jsontext
from llamaproxy.jsontext import Json
from llamaproxy.upstream.relay import Watchdog
from llamaproxy.upstream.sse import DONE, KEEP_ALIVE, encode_event


@implementer(IPushProducer)
class EventStream:
    """Writes events to a client, no faster than it reads, and comments while there are none.

    Nothing is sent before the first event or comment, so that a failure until then can be an
    ordinary HTTP error (DESIGN: S6).
    """

    def __init__(
        self,
        request: Request,
        clock: IReactorTime,
        keep_alive: float,
        on_start: Callable[[], None] = lambda: None,
    ) -> None:
        """:param keep_alive: seconds of silence after which a comment is sent.

        :param on_start: is called when the first byte is sent.
        """
        self._on_start = on_start
        self.started = False
        self._request = request
        self._full = False
        # One for each who waits: whoever is cancelled must not take the others along.
        self._waiting: list[Deferred[None]] = []
        self._quiet = Watchdog(clock, keep_alive, self._comment)
        self._quiet.start()

    def start(self) -> None:
        """Send the status and the fields, once."""
        if not self.started:
            self.started = True
            fields = self._request.responseHeaders
            fields.setRawHeaders(b"Content-Type", [b"text/event-stream"])
            fields.setRawHeaders(b"Cache-Control", [b"no-cache"])
            # nginx would buffer the stream otherwise.
            fields.setRawHeaders(b"X-Accel-Buffering", [b"no"])
            self._request.registerProducer(self, True)
            self._request.write(b"")
            self._on_start()

    def write(self, payload: Json) -> Deferred[None] | None:
        """Send one event; None, or until when the client should be sent no more."""
        self.start()
        self._quiet.feed()
        self._request.write(encode_event(jsontext.dumps(payload)))
        if not self._full:
            return None
        waiter: Deferred[None] = Deferred()
        self._waiting.append(waiter)
        return waiter

    async def send(self, payload: Json) -> None:
        """Send one event, and wait while the client does not read."""
        full = self.write(payload)
        if full is not None:
            await full

    def finish(self) -> None:
        """Mark the end of the answer."""
        self.start()
        self._request.write(DONE)

    def close(self) -> None:
        """Let go of the client, who may have gone already."""
        self._quiet.stop()
        if self.started and self._request.channel is not None:
            self._request.unregisterProducer()

    def pauseProducing(self) -> None:
        self._full = True

    def resumeProducing(self) -> None:
        self._full = False
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.called:  # cancelled
                waiter.callback(None)

    def stopProducing(self) -> None:
        """The client has gone; the request's handler is cancelled for it."""

    def _comment(self) -> None:
        if not self._full:
            self.start()
            self._request.write(KEEP_ALIVE)
        self._quiet.start()
