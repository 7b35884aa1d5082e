"""WholeAnswer: an answer that is kept until it is complete, within limits of size and time."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from llamaproxy.errors import ProxyError, UpstreamBroke, UpstreamTimeout
from llamaproxy.upstream.exchange import Exchange
from llamaproxy.upstream.failures import not_begun
from llamaproxy.upstream.relay import SILENT
from llamaproxy.upstream.response_head import ResponseHead
from llamaproxy.watchdog import Watchdog

#: The most bytes, and seconds of silence, of the body of an error.
MAX_ERROR_BYTES, ERROR_TIMEOUT = 1024 * 1024, 10.0


class WholeAnswer(Watchdog):
    """Collects an answer: ``collected`` fires with its head and its body, or fails.

    It is the watchdog of its silence. The body of an error is empty if it breaks off: the status is
    enough.
    """

    _exchange: Exchange | None = None
    _head: ResponseHead | None = None
    _size = 0

    def __init__(
        self,
        clock: IReactorTime,
        seconds: float,
        limit: int,
        on_head: Callable[[ResponseHead], None] = lambda _: None,
    ) -> None:
        """:param seconds: to the head, and of silence after it.

        :param limit: the most bytes of the body.

        :param on_head: is called with the head as soon as it is there.
        """
        Watchdog.__init__(self, clock, seconds)
        self.collected: Deferred[tuple[ResponseHead, bytes]] = Deferred(lambda _: self._leave())
        self._limit = limit
        self._on_head = on_head
        self._parts: list[bytes] = []

    def collect(self, exchange: Exchange) -> None:
        """Begin to count the seconds of *exchange*, which this is the taker of."""
        self._exchange = exchange
        if not self.collected.called:
            self.start()

    def answered(self, head: ResponseHead) -> None:
        self._head = head
        self.feed()
        if not 200 <= head.status < 300:
            self._limit = MAX_ERROR_BYTES
        if head.status >= 400:
            self._seconds = min(self.due - self._now(), ERROR_TIMEOUT)
            self.start()
        self._on_head(head)

    def received(self, data: bytes) -> None:
        self.feed()
        self._size += len(data)
        self._parts.append(data)
        if self._size > self._limit:
            self._leave()
            text = f"The upstream's answer is larger than {self._limit} bytes."
            self.failed(UpstreamBroke(text))

    def ended(self) -> None:
        self.stop()
        self._exchange = None
        assert self._head is not None
        self.collected.callback((self._head, b"".join(self._parts)))

    def failed(self, error: Exception) -> None:
        self.stop()
        self._exchange = None
        if self._head is not None and self._head.status >= 400 and isinstance(error, ProxyError):
            self.collected.callback((self._head, b""))
        else:
            self.collected.errback(error)

    def bark(self) -> None:
        self._leave()
        self.failed(not_begun(self._seconds) if self._head is None else self._late())

    def _late(self) -> ProxyError:
        """The error of an answer that has begun, and has not ended in time."""
        return UpstreamTimeout(SILENT)

    def _leave(self) -> None:
        self.stop()
        exchange, self._exchange = self._exchange, None  # which refers to this
        if exchange is not None:
            exchange.cancel()
