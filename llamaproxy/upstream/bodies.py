"""Bodies of requests, read no faster than the upstream takes them."""

from __future__ import annotations

import os
from collections.abc import Callable
from io import BytesIO
from typing import IO, Any

from twisted.internet.interfaces import IPushProducer
from twisted.web.iweb import IBodyProducer
from zope.interface import classImplements, implementer

#: Bytes read and written at a time: as much as Twisted sends in one turn of the reactor.
PIECE_BYTES = 128 * 1024

#: Bytes that a transport buffers before it asks for a pause: a body of so many is not paused.
_UNPAUSED_BYTES = 64 * 1024


@implementer(IPushProducer)
class Upload:
    """A body from a file, which is closed at the end, however the request ends.

    An answer may come while it is still sent: ``finished`` is when the socket has taken all.
    """

    #: Whether all has been sent, or nothing more will be.
    finished = False
    #: Called whenever the upstream has taken some of it.
    progressed: Callable[[], None] = staticmethod(lambda: None)

    _paused = _registered = False
    _transport: Any = None

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.length = self.bytes_left = file.seek(0, os.SEEK_END)
        file.seek(0)

    def open(self) -> int:
        """Its length in bytes, now that it is to be sent."""
        return self.length

    def send(self, transport: Any, head: bytes) -> None:
        """Write *head* and the body, with as few calls as there are pieces."""
        self._transport = transport
        if self.length > _UNPAUSED_BYTES:
            self._registered = True
            transport.registerProducer(self, True)
        self._produce(head)

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self.progressed()
        if not self.finished and self._transport is not None:
            self._produce()

    def stopProducing(self) -> None:
        self.finished = True
        self._file.close()
        if self._registered:
            self._registered = False
            self._transport.unregisterProducer()

    def _produce(self, head: bytes = b"") -> None:
        while head or (self.bytes_left and not (self._paused or self.finished)):
            try:
                piece = self._file.read(PIECE_BYTES)
                if not piece and self.bytes_left:
                    raise OSError("the file has become shorter")
            except (OSError, ValueError):
                self.stopProducing()
                self._transport.abortConnection()
                return
            self.bytes_left -= len(piece)
            self._transport.write(head + piece if head else piece)
            head = b""
        if not self._paused and not self.finished:
            self.stopProducing()


# treq hands on whatever says that it is one, and the agent needs no ``startProducing``.
classImplements(Upload, IBodyProducer)  # type: ignore[misc]


class BytesUpload(Upload):
    """A body from memory."""

    def __init__(self, body: bytes) -> None:
        Upload.__init__(self, BytesIO(body))


class LateUpload(BytesUpload):
    """A body that *make* returns once it is to be sent: none is held while a connection is made."""

    def __init__(self, make: Callable[[], bytes]) -> None:
        BytesUpload.__init__(self, b"")
        self._make = make

    def open(self) -> int:
        BytesUpload.__init__(self, self._make())
        return self.length
