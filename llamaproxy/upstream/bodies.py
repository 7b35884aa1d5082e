"""Bodies of requests, read no faster than the upstream takes them."""

from __future__ import annotations

import os
from collections.abc import Callable
from io import BytesIO
from typing import IO

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

#: Bytes read and written at a time: as much as Twisted sends in one turn of the reactor.
PIECE_BYTES = 128 * 1024


@implementer(IBodyProducer)
class Upload:
    """A body from a file, which is closed at the end, however the request ends.

    FileBodyProducer, which treq would use, takes at least three turns of the reactor, and holds
    an answer back that comes while it still sends. This has ended when the socket has taken all.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.length = self.bytes_left = file.seek(0, os.SEEK_END)
        file.seek(0)
        self._paused = False
        self._completed: Deferred[None] = Deferred(lambda _: self.stopProducing())
        self.consumer: IConsumer | None = None
        #: Called whenever the upstream has taken some of it.
        self.progressed: Callable[[], None] = lambda: None

    @property
    def finished(self) -> bool:
        """Whether the request is complete, or has failed."""
        return self._completed.called

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        self.consumer = consumer
        self._produce(consumer)
        return self._completed

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self.progressed()
        if self.consumer is not None:
            self._produce(self.consumer)

    def stopProducing(self) -> None:
        self.consumer = None
        self._file.close()

    def write(self, consumer: IConsumer, piece: bytes) -> None:
        """Write the next *piece* of the body."""
        self.bytes_left -= len(piece)
        consumer.write(piece)

    def complete(self) -> None:
        """Report that the body has been sent."""
        if not self._completed.called:
            self._completed.callback(None)

    def _produce(self, consumer: IConsumer) -> None:
        while self.bytes_left and not self._paused:
            try:
                piece = self._file.read(PIECE_BYTES)
                if not piece:
                    raise OSError("the file has become shorter")
            except (OSError, ValueError):
                self.stopProducing()
                self._completed.errback()
                return
            self.write(consumer, piece)
        if not self._paused and not self.finished:
            self.stopProducing()
            self.complete()


class BytesUpload(Upload):
    """A body from memory."""

    def __init__(self, body: bytes) -> None:
        Upload.__init__(self, BytesIO(body))
