"""InflatingAgent: inflates the answers of servers that compress them without being asked to.

A few kilobytes may become gigabytes, so they are inflated in steps. Each is delivered before the
next, and there is one in a turn of the reactor: a step may write nothing to a client, who then
cannot slow it down.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from llamaproxy.errors import UpstreamBroke
from llamaproxy.heads import SomeFields, members, without
from llamaproxy.upstream.bodies import Upload
from llamaproxy.upstream.exchange import AnswerTaker, Exchange, Sender
from llamaproxy.upstream.headers import UNCOMPRESSED
from llamaproxy.upstream.relay import drop
from llamaproxy.upstream.response_head import ResponseHead
from llamaproxy.upstream.responses import SendingAgent

#: The most bytes that one step inflates to.
STEP = 64 * 1024

#: What a gzip member begins with; several may follow each other (RFC 1952 sections 2.2, 2.3.1).
_GZIP_MAGIC = b"\x1f\x8b"

#: Content codings (RFC 9110 section 8.4.1) with zlib's window bits: 15, and 32 to detect gzip's and
#: zlib's head. "deflate" is sent without zlib's head too.
_CODINGS = {b"gzip": 47, b"x-gzip": 47, b"deflate": 47}

#: Fields that an inflated answer has not.
_COMPRESSED = (b"content-encoding", b"content-length")


class InflatingAgent(SendingAgent):
    """Sends requests by the agent within, for uncompressed answers, and inflates those that are.

    No other ``Accept-Encoding`` may be among their fields.
    """

    def __init__(self, within: Sender, clock: IReactorTime) -> None:
        self._within = within
        self._clock = clock

    def send(
        self,
        method: bytes,
        target: bytes,
        fields: SomeFields,
        body: Upload | None,
        taker: AnswerTaker,
    ) -> Exchange:
        inflater = Inflater(taker, self._clock)
        those = [*fields, UNCOMPRESSED]
        inflater.exchange = self._within.send(method, target, those, body, inflater)
        return inflater


class Inflater:
    """Hands an answer on to the taker within, inflated and no faster than that takes it.

    An answer that is not compressed goes straight to it.
    """

    #: What the answer comes by, from when it has been sent until the end.
    exchange: Exchange | None = None
    #: The call of the next step.
    _next: IDelayedCall | None = None
    #: There once the answer is known to be compressed: it takes seven kilobytes.
    _zlib: Any = None
    _raw_allowed = True
    _compressed = b""
    #: Whether the last step was full, so that more may come of what has been taken already.
    _full = False
    _paused = _busy = False
    #: Whether anything has come; and whether what comes belongs to no gzip member any more.
    _begun = _finished = False
    #: Whether all has come; and whether nothing is to be told any more.
    _complete = _over = False
    #: Why it has come to no orderly end.
    _error: Exception | None = None

    def __init__(self, within: AnswerTaker, clock: IReactorTime) -> None:
        self._within = within
        self._clock = clock
        self.received: Callable[[bytes], None] = within.received

    def answered(self, head: ResponseHead) -> None:
        """Look at how the answer is compressed."""
        values = head.values(_COMPRESSED[0])
        codings = (
            [each for each in members(values) if each not in (b"", b"identity")] if values else []
        )
        if not codings or head.length == 0:
            self._within.answered(head)
        elif len(codings) == 1 and codings[0] in _CODINGS:
            self._zlib = zlib.decompressobj(_CODINGS[codings[0]])
            self.received = self._received
            self._within.answered(_inflated(head))
        elif head.status >= 400:
            self.received = drop  # its status is enough
            self._within.answered(_inflated(head))
        else:
            self._fail("The answer is compressed in a way that nobody has asked for.")

    def ended(self) -> None:
        if self._zlib is None:
            self.exchange = None
            self._within.ended()
        else:
            self._complete = True
            self._inflate()

    def failed(self, error: Exception) -> None:
        if self._zlib is None:
            self.exchange = None
            self._within.failed(error)
        else:
            self._error = error
            self.ended()

    # --- the exchange of the taker within

    def pause(self) -> None:
        self._paused = True
        if self.exchange is not None:
            self.exchange.pause()

    def resume(self) -> None:
        self._paused = False
        self._go_on()

    def cancel(self) -> None:
        exchange = self.exchange
        self._end()
        if exchange is not None:
            exchange.cancel()

    # --- within

    def _end(self) -> None:
        """Tell nothing any more, and let go of what refers to this."""
        self._over = True
        self._compressed = b""
        if self._next is not None:
            self._next.cancel()
            self._next = None
        self.exchange = None
        self.received = drop

    def _received(self, data: bytes) -> None:
        self._begun = True
        if not (self._finished or self._over):
            self._compressed += data
            self._go_on()

    def _fail(self, why: str) -> None:
        self.cancel()
        self._within.failed(UpstreamBroke(why))

    def _go_on(self) -> None:
        """Inflate what has come, and let more come if that is all."""
        self._inflate()
        if not (self._paused or self._over or self._next or self._busy or self.exchange is None):
            self.exchange.resume()

    def _step_later(self) -> None:
        self._next = None
        self._go_on()

    def _inflate(self) -> None:
        if self._busy or self._next is not None:  # resumed by what it is being given; or waiting
            return
        undecided = self._raw_allowed or self._zlib.eof
        if undecided and len(self._compressed) < 2 and not self._complete:
            return  # two bytes tell what it is
        self._busy = True
        try:
            if self._more and not self._paused and not self._over:
                self._step()
        except zlib.error:
            self._fail("The answer is not compressed as it says.")
        finally:
            self._busy = False
        if self._more and not self._paused and not self._over:
            self._next = self._clock.callLater(0, self._step_later)
            if self.exchange is not None:
                self.exchange.pause()
        if self._complete and not self._over and not self._more:
            self._end()
            whole = self._zlib.eof or not self._begun
            if self._error is None and whole:
                self._within.ended()
            else:
                self._within.failed(self._error or UpstreamBroke())

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
        self._full = len(data) == STEP and not eof
        if data:
            self._within.received(data)

    @property
    def _more(self) -> bool:
        """Whether there is something for a step."""
        return bool(self._compressed) or self._full


def _inflated(head: ResponseHead) -> ResponseHead:
    """*head* as it is of the inflated answer.

    A copy: the connection finds the end of the body by the one that it has read.
    """
    fields, names = without(head.fields, _COMPRESSED), head.names.difference(_COMPRESSED)
    return attrs.evolve(head, length=None, body_follows=False, fields=fields, names=names)
