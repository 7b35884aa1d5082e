"""EventStream: server-sent events to a client (WHATWG HTML standard, section 9.2)."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.web.http import Request
from zope.interface import implementer

from llamaproxy import jsontext
from llamaproxy.jsontext import Json
from llamaproxy.records import ChatRecord
from llamaproxy.upstream.relay import HIGH_WATER_BYTES
from llamaproxy.upstream.sse import DONE, KEEP_ALIVE, encode_event
from llamaproxy.watchdog import Watchdog


@implementer(IPushProducer)
class EventStream:
    """Writes events to a client no faster than it reads, and comments in silences.

    Not even the status is sent before the first event or comment, so that a failure until then can
    be an ordinary HTTP error (DESIGN: S6).
    """

    def __init__(
        self,
        request: Request,
        clock: IReactorTime,
        keep_alive: float,
        record: ChatRecord | None = None,
    ) -> None:
        """:param keep_alive: seconds of silence after which a comment is sent.

        :param record: is told for how long the client was waited for.
        """
        self._record = ChatRecord() if record is None else record
        self.started = False
        self._request = request
        self._paused = False
        #: Whether there has been any event: a head and comments alone are none of the answer.
        self._has_event = False
        self._is_noted = False
        #: What is to be sent by the next write.
        self._parts: list[bytes] = []
        # One for each sender: cancelling one must not cancel others.
        self._waiters: list[Deferred[None]] = []
        self._silence = Watchdog(clock, keep_alive, self._comment)
        self._silence.start()

    def start(self) -> None:
        """Have the status and the fields sent, with what is sent next."""
        if not self.started:
            self.started = True
            fields = self._request.responseHeaders
            fields.setRawHeaders(b"Content-Type", [b"text/event-stream"])
            fields.setRawHeaders(b"Cache-Control", [b"no-cache"])
            # nginx would buffer the stream otherwise.
            fields.setRawHeaders(b"X-Accel-Buffering", [b"no"])
            self._request.registerProducer(self, True)
            self._parts.append(b"")

    def add(self, event: bytes) -> None:
        """Have *event* sent by :meth:`flush`."""
        if not self.started:
            self.start()
        self._parts.append(event)
        self._has_event = True

    def flush(self) -> None:
        """Send what has been added, in one write."""
        if self._parts:
            self._silence.feed()
            data = b"".join(self._parts)
            self._parts.clear()
            self._request.write(data)
            if not self._is_noted:
                self._note_first_byte()

    def writable(self) -> Deferred[None] | None:
        """None, or what fires when the client has read enough to be sent more."""
        if not self._paused:
            return None
        waiter: Deferred[None] = Deferred()
        self._waiters.append(waiter)
        return waiter

    async def wait(self) -> None:
        """Wait until the client can be sent more."""
        writable = self.writable()
        if writable is None:
            return
        record = self._record
        if record.stalled_since is None:
            record.stalled_since = record.now()
        try:
            await writable
        finally:
            if record.stalled_since is not None:  # else: another who waited has seen to it
                record.stalled, record.stalled_since = record.stalled_for(record.now()), None

    async def send(self, payload: Json) -> None:
        """Send one event, and wait until the client can be sent more."""
        self.add(encode_event(jsontext.dumps(payload)))
        self.flush()
        await self.wait()

    async def put(self, event: bytes) -> None:
        """Have *event* sent by the next write; it is sent now if there is enough for one."""
        self.add(event)
        if sum(map(len, self._parts)) > HIGH_WATER_BYTES:
            self.flush()
            await self.wait()

    def finish(self) -> None:
        """Send what has been added, and the end mark ``[DONE]``."""
        self.add(DONE)
        self.flush()

    def close(self) -> None:
        """Stop the comments and the back-pressure; nothing is sent after this."""
        self._silence.end()
        if self.started and self._request.channel is not None:
            self._request.unregisterProducer()

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.called:  # cancelled
                waiter.callback(None)

    def stopProducing(self) -> None:
        """The client has disconnected: the request's handler is cancelled elsewhere."""

    def _note_first_byte(self) -> None:
        """Note when the first event is sent."""
        self._is_noted = self._has_event
        if (request := self._record.request) is not None:
            request.first_byte = self._record.now() if self._has_event else None

    def _comment(self) -> None:
        if not self._paused:
            self.start()
            self._parts.append(KEEP_ALIVE)
            self.flush()
        self._silence.start()
