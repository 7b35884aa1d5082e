"""InflatingAgent: inflates the answers of servers that compress them without being asked to.

A few kilobytes may become gigabytes, so they are inflated in steps. Each is delivered before the
next, and there is one in a turn of the reactor: a step may write nothing to a client, who then
cannot slow it down.
"""

from __future__ import annotations

import zlib
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IProtocol, IPushProducer, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.components import proxyForInterface
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from llamaproxy.errors import UpstreamBroke

#: The most bytes that one step inflates to.
STEP = 64 * 1024

#: What a gzip member begins with; several may follow each other (RFC 1952 sections 2.2, 2.3.1).
_GZIP_MAGIC = b"\x1f\x8b"

#: Content codings (RFC 9110 section 8.4.1) with zlib's window bits: 15, and 32 to detect gzip's and
#: zlib's head. "deflate" is sent without zlib's head too.
_CODINGS = {b"gzip": 47, b"x-gzip": 47, b"deflate": 47}


@implementer(IAgent)
class InflatingAgent:
    """Sends requests by the agent within, for uncompressed answers, and inflates those that are."""

    def __init__(self, within: IAgent, clock: IReactorTime) -> None:
        self._within = within
        self._clock = clock

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        """:raises UpstreamBroke: if the answer is compressed in an unknown way."""
        fields = Headers() if headers is None else headers
        fields.setRawHeaders(b"Accept-Encoding", [b"identity"])
        answer = self._within.request(method, uri, fields, bodyProducer)
        return answer.addCallback(_inflated, self._clock)


def _inflated(response: IResponse, clock: IReactorTime) -> IResponse:
    values = b",".join(response.headers.getRawHeaders(b"content-encoding", []))
    codings = [coding.strip().lower() for coding in values.split(b",")]
    codings = [coding for coding in codings if coding not in (b"", b"identity")]
    if not codings or response.length == 0:
        return response
    if len(codings) > 1 or codings[0] not in _CODINGS:
        response.deliverBody(_Unwanted())
        raise UpstreamBroke("The answer is compressed in a way that nobody has asked for.")
    response.headers.removeHeader(b"content-encoding")
    return _InflatedResponse(response, _CODINGS[codings[0]], clock)


class _Unwanted(Protocol):
    """Closes the connection of an answer that cannot be read."""

    def connectionMade(self) -> None:
        cast(Any, self.transport).loseConnection()


class _InflatedResponse(proxyForInterface(IResponse)):  # type: ignore[misc]
    """The response within, its body inflated."""

    length = UNKNOWN_LENGTH

    def __init__(self, original: IResponse, window_bits: int, clock: IReactorTime) -> None:
        super().__init__(original)
        self._window_bits = window_bits
        self._clock = clock

    def deliverBody(self, protocol: IProtocol) -> None:
        self.original.deliverBody(Inflater(protocol, self._clock, self._window_bits))


@implementer(IPushProducer)
class Inflater(Protocol):
    """Delivers an inflated body to the protocol within, no faster than that takes it."""

    def __init__(self, within: IProtocol, clock: IReactorTime, window_bits: int = 47) -> None:
        self._within = within
        self._clock = clock
        #: The call of the next step.
        self._next: IDelayedCall | None = None
        self._zlib = zlib.decompressobj(window_bits)
        self._raw_allowed = True
        self._compressed = b""
        self._paused = self._busy = False
        #: Whether anything has come; and whether what comes belongs to no gzip member any more.
        self._begun = self._finished = False
        self._end: Failure | None = None
        self._ended = self._told = False

    def connectionMade(self) -> None:
        self._within.makeConnection(cast(Any, self))

    def dataReceived(self, data: bytes) -> None:
        self._begun = True
        if not (self._finished or self._ended):
            self._compressed += data
            self._go_on()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._end = reason
        if self._ended:
            self._tell_end(reason)
        self._inflate()

    # --- the transport of the protocol within

    def pauseProducing(self) -> None:
        self._paused = True
        if self._end is None:
            cast(Any, self.transport).pauseProducing()

    def resumeProducing(self) -> None:
        self._paused = False
        self._go_on()

    def stopProducing(self) -> None:
        self.loseConnection()

    def loseConnection(self) -> None:
        self._compressed = b""
        self._ended = True
        if self._next is not None:
            self._next.cancel()
            self._next = None
        cast(Any, self.transport).loseConnection()
        if self._end is not None:
            self._tell_end(self._end)

    # --- within

    def _tell_end(self, reason: Failure) -> None:
        """Tell the protocol within of the end, once."""
        self._ended = True
        if not self._told:
            self._told = True
            self._within.connectionLost(reason)

    def _go_on(self) -> None:
        """Inflate what has come, and let more come if that is all."""
        self._inflate()
        if self._end is None and not (self._paused or self._ended or self._next or self._busy):
            cast(Any, self.transport).resumeProducing()

    def _step_later(self) -> None:
        self._next = None
        self._go_on()

    def _inflate(self) -> None:
        if self._busy or self._next is not None:  # resumed by what it is being given; or waiting
            return
        undecided = self._raw_allowed or self._zlib.eof
        if undecided and len(self._compressed) < 2 and self._end is None:
            return  # two bytes tell what it is
        self._busy = True
        try:
            if self._compressed and not self._paused and not self._ended:
                self._step()
        except zlib.error:
            error = UpstreamBroke("The answer is not compressed as it says.")
            cast(Any, self.transport).loseConnection()
            self._tell_end(Failure(error))
        finally:
            self._busy = False
        if self._compressed and not self._paused and not self._ended:
            self._next = self._clock.callLater(0, self._step_later)
            if self._end is None:
                cast(Any, self.transport).pauseProducing()
        if self._end is not None and not self._ended and not self._compressed:
            complete = self._zlib.eof or not self._begun
            complete = complete or not self._end.check(ResponseDone, PotentialDataLoss)
            self._tell_end(self._end if complete else Failure(UpstreamBroke()))

    def _step(self) -> None:
        if self._zlib.eof:
            if not self._compressed.startswith(_GZIP_MAGIC):
                self._finished, self._compressed = True, b""
                return
            self._zlib = zlib.decompressobj(47)
        try:
            data = self._zlib.decompress(self._compressed, STEP)
        except zlib.error:
            if not self._raw_allowed:
                raise
            # RFC 9110 section 8.4.1.2: some send "deflate" without zlib's head.
            self._zlib = zlib.decompressobj(-15)
            data = self._zlib.decompress(self._compressed, STEP)
        self._raw_allowed = False
        eof = self._zlib.eof
        self._compressed = self._zlib.unused_data if eof else self._zlib.unconsumed_tail
        if data:
            self._within.dataReceived(data)
