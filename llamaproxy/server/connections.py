"""Connections: who is connected, what is being served, and how both end in good order."""

from __future__ import annotations

import select
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from llamaproxy.errors import ShuttingDown, Stopped
from llamaproxy.records import RequestRecord
from llamaproxy.request import ProxyRequest
from llamaproxy.server.channel import ProxyChannel

#: Seconds between two looks at which deadlines have passed; and, while draining, at which
#: connections are idle.
_SWEEP_SECONDS = 1.0
_IDLE_SWEEP_SECONDS = 0.25

#: What poll(2) says of a connection whose other side has been closed: on Linux alone.
_SIDE_CLOSED: int | None = getattr(select, "POLLRDHUP", None)


class Connections:
    """Keeps count of the connections and requests of a site.

    Draining, once begun, leads every connection to its end without the loss of a request: answers
    that begin from then on close their connection, and connections without a request are closed
    when none has come for a grace.
    """

    def __init__(self, clock: IReactorTime, idle_grace: float) -> None:
        """:param idle_grace: that grace, in seconds."""
        self._clock = clock
        self._idle_grace = idle_grace
        self._open: set[ProxyChannel] = set()
        #: Those of which nothing is read for now.
        self._unread: set[ProxyChannel] = set()
        #: In the order in which they began.
        self._running: dict[ProxyRequest, None] = {}
        self._idle_since: dict[ProxyChannel, float] = {}
        self._waiters: list[Deferred[None]] = []
        self._idle_sweep: IDelayedCall | None = None
        self._deadline_sweep: IDelayedCall | None = None
        self.draining = False

    @property
    def connected(self) -> int:
        """How many connections are open."""
        return len(self._open)

    @property
    def running(self) -> int:
        """How many requests are being served."""
        return len(self._running)

    def served(self) -> list[RequestRecord]:
        """The records of those requests, in the order in which they began."""
        return [request.record for request in self._running]

    @property
    def streams(self) -> int:
        """How many streamed chats are being answered."""
        chats = [record.chat for record in self.served()]
        return sum(chat is not None and chat.streamed for chat in chats)

    def opened(self, channel: ProxyChannel) -> None:
        """A client has connected."""
        self._open.add(channel)
        if self._deadline_sweep is None:
            self._deadline_sweep = self._clock.callLater(_SWEEP_SECONDS, self._expire)

    def unread(self, channel: ProxyChannel, unread: bool) -> None:
        """Whether nothing is read of *channel* for now."""
        (self._unread.add if unread else self._unread.discard)(channel)

    def closed(self, channel: ProxyChannel) -> None:
        """A connection has been lost."""
        self._open.discard(channel)
        self._unread.discard(channel)
        self._fire_if_closed()

    def began(self, request: ProxyRequest) -> None:
        """*request* is being served from now on."""
        self._running[request] = None
        if self.draining:
            _close_after(request)

    def ended(self, request: ProxyRequest) -> None:
        """*request* has been answered, or its client has gone."""
        self._running.pop(request, None)

    def when_closed(self) -> Deferred[None]:
        """Fires when no connection is open."""
        waiter: Deferred[None] = Deferred(self._waiters.remove)
        self._waiters.append(waiter)
        self._fire_if_closed()
        return waiter

    def drain(self) -> None:
        """Let what is being served end, and nothing follow."""
        self.draining = True
        for request in self._running:
            if not request.startedWriting:
                _close_after(request)
        self._close_idle()

    def cut_short(self) -> None:
        """End everything now: answers that have begun with an error, the others with a 503."""
        busy = {request.channel for request in self._running}
        for channel in self._open - busy:
            channel.end(ShuttingDown())
        for request in self._running:
            _close_after(request)
            # Of all, before one's end is another's.
            request.stopped = ShuttingDown()
        for request in list(self._running):
            request.stop(ShuttingDown())

    def stop(self, record: RequestRecord) -> bool:
        """End the request of *record* now; whether it was still being served."""
        for request in self._running:
            if request.record is record:
                request.stop(Stopped())
                return True
        return False

    def abort(self) -> None:
        """Close every connection, whatever its client has not read yet."""
        for channel in list(self._open):
            channel.transport.abortConnection()

    def _close_idle(self) -> None:
        """Close the connections that have had no request for the grace."""
        self._idle_sweep = None
        if not self._open:
            return
        now = self._clock.seconds()
        idle = [channel for channel in self._open if channel.is_idle]
        self._idle_since = {channel: self._idle_since.get(channel, now) for channel in idle}
        for channel, since in self._idle_since.items():
            if now - since >= self._idle_grace:
                # Not before what has arrived in the meantime is read.
                self._clock.callLater(0, self._close_if_idle, channel)
        self._idle_sweep = self._clock.callLater(_IDLE_SWEEP_SECONDS, self._close_idle)

    def _expire(self) -> None:
        """End the connections whose deadlines have passed."""
        # One look at all of them costs less than a timer for each, set anew by every request.
        self._deadline_sweep = None
        if self._open:
            self._deadline_sweep = self._clock.callLater(_SWEEP_SECONDS, self._expire)
        now = self._clock.seconds()
        for channel in [channel for channel in self._open if channel.state.deadline <= now]:
            channel.expire()
        if self._unread and _SIDE_CLOSED is not None:
            self._tell_unread(_SIDE_CLOSED)

    def _tell_unread(self, side_closed: int) -> None:
        """Tell the channels of which nothing is read that their clients have left."""
        # The reactor does not watch them: what waits to be read would wake it all the time.
        channels = {channel.transport.fileno(): channel for channel in self._unread}
        channels.pop(-1, None)  # one that is being closed
        poll = select.poll()
        for descriptor in channels:
            poll.register(descriptor, side_closed)
        for descriptor, happened in poll.poll(0):
            channels[descriptor].client_closed(whole=happened != side_closed)

    def _close_if_idle(self, channel: ProxyChannel) -> None:
        if channel.is_idle and channel in self._open:
            channel.loseConnection()

    def _fire_if_closed(self) -> None:
        if not self._open:
            if self._idle_sweep is not None:
                self._idle_sweep.cancel()
                self._idle_sweep = None
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                waiter.callback(None)


def _close_after(request: ProxyRequest) -> None:
    """Let *request* be the last of its connection; its answer says so unless it has begun."""
    channel: Any = request.channel
    channel.persistent = False
