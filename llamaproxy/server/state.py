"""ConnectionState: what a client's connection waits for, and until when. It does no I/O."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from llamaproxy.server.limits import Limits

#: Phases of a connection: between two requests; in the head of a request; in its body; the request
#: is being answered; no more is served and the connection is being closed; it has been switched to
#: another protocol. Numbers: members of an Enum take five times as long to name.
IDLE, HEAD, BODY, ANSWER, CLOSING, TUNNEL = range(6)


class ConnectionState:
    """The phase of one connection and its deadline.

    Every method is one transition, for something that has happened on the connection. Deadlines are
    seconds of the clock *now*; ``inf`` means that the client is not waited for. Whoever keeps the
    object looks at :attr:`deadline`, and ends the connection when it has passed.
    """

    __slots__ = (
        *("_now", "_limits", "_linger_end", "over_limit"),
        *("phase", "deadline", "received_any", "stalled", "half_closed"),
    )

    def __init__(self, now: Callable[[], float], limits: Limits, over_limit: bool = False) -> None:
        """:param over_limit: whether there are more connections than *limits* allow.

        The first head is awaited from now on.
        """
        self._now = now
        self._limits = limits
        self.over_limit = over_limit
        self.phase = HEAD
        #: Whether the client has sent anything.
        self.received_any = False
        #: Whether more waits to be sent than the client reads.
        self.stalled = False
        #: Whether the client has closed its side, and so sends nothing more.
        self.half_closed = False
        self._linger_end = 0.0
        first = limits.header_timeout
        self._wait(min(first, limits.over_limit_timeout) if over_limit else first)

    def _wait(self, seconds: float) -> None:
        self.deadline = self._now() + seconds

    @property
    def receiving(self) -> bool:
        """Whether a request has begun to come, and is not there yet."""
        return self.phase == BODY or (self.phase == HEAD and self.received_any)

    def head_begins(self) -> None:
        """Some of a head has come; the rest of it has one deadline, however it comes."""
        self.received_any = True
        if self.phase == IDLE:
            self.phase = HEAD
            self._wait(self._limits.header_timeout)

    def body_continues(self) -> None:
        """A head or part of a body has come, and more of the body is to come."""
        self.phase = BODY
        self._wait(self._limits.client_timeout)

    def answer_begins(self) -> None:
        """The request is there as a whole."""
        self.phase, self.deadline = ANSWER, inf

    def answer_ended(self) -> None:
        """Another request may come, once the client has read the answer."""
        self.phase = IDLE
        self._wait(self._limits.read_timeout if self.stalled else self._limits.client_timeout)

    def tunnel_begins(self) -> None:
        """The connection is the upstream's from now on."""
        self.phase, self.deadline = TUNNEL, inf

    def stall(self) -> None:
        """The client does not read what waits for it."""
        self.stalled = True
        if self.phase in (ANSWER, TUNNEL) and self.deadline == inf:
            self._wait(self._limits.read_timeout)

    def unstall(self) -> None:
        """The client has been sent all that waited for it."""
        self.stalled = False
        if self.phase in (ANSWER, TUNNEL):
            self.deadline = inf
        elif self.phase == IDLE:
            self._wait(self._limits.client_timeout)

    def close(self) -> None:
        """The connection is closed as soon as the client has read what waits for it."""
        self.phase = CLOSING
        self._wait(self._limits.read_timeout)

    def refuse(self) -> None:
        """The last answer has been written; what the client still sends is thrown away.

        If its connection were closed at once, what it still sends would make its system throw the
        answer away unread (RFC 9112 section 9.6).
        """
        self.phase = CLOSING
        self._linger_end = self._now() + self._limits.linger_timeout
        self._wait(self._limits.linger_silence)

    def linger(self) -> None:
        """A refused client goes on sending."""
        if self._linger_end:
            self.deadline = min(self._linger_end, self._now() + self._limits.linger_silence)
