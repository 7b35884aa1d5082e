"""Server-sent events (WHATWG HTML, "Server-sent events", 9.2.6), both ways, without I/O."""

from __future__ import annotations

from typing import NamedTuple

#: A comment: keeps proxies and clients from giving up on a silent stream.
KEEP_ALIVE = b": keep-alive\n\n"

#: Digits of a number of milliseconds; more is no time that anybody would wait.
_MAX_DIGITS = 10

#: The end of every OpenAI stream.
DONE = b"data: [DONE]\n\n"


class EventTooLarge(ValueError):
    """One event is larger than the decoder may hold."""


class Event(NamedTuple):
    """One dispatched event; the lines of *data* are joined by LF."""

    data: bytes
    event: bytes = b""
    id: bytes | None = None
    retry: int | None = None


def encode_event(data: bytes) -> bytes:
    """*data*, which must hold no line end, as one event."""
    return b"data: " + data + b"\n\n"


class EventDecoder:
    """Turns bytes, split anywhere, into events.

    Line ends may be LF, CR LF or CR, also mixed; comments are dropped; an event that the end of
    the stream cuts off before its blank line is given out by :meth:`finish` (WHATWG would drop
    it, but model servers do end like that).
    """

    def __init__(self, limit: int = 16 * 1024 * 1024) -> None:
        """:param limit: the most bytes that one event may have."""
        self._limit = limit
        #: The id of the last event, and the reconnection time in milliseconds, None if there was
        #: none; events without data have them too.
        self.last_id: bytes | None = None
        self.retry: int | None = None
        self._line: list[bytes] = []
        self._size = 0
        self._after_cr = False
        self._first = True
        self._clear()

    def _clear(self) -> None:
        self._data: list[bytes] = []
        self._event = b""
        self._id: bytes | None = None
        self._retry: int | None = None
        self._size = 0

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that *chunk* completes.

        :raises EventTooLarge: if an event grows beyond the limit.
        """
        if not chunk:
            return []
        if lines := self.plain(chunk):
            return list(map(Event, lines))
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
            if not chunk:
                self._after_cr = False
                return []
        self._after_cr = chunk.endswith(b"\r")
        if b"\r" in chunk:
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, incomplete = chunk.split(b"\n")
        events: list[Event] = []
        for line in lines:
            self._grow(len(line))
            if self._line:
                line = b"".join([*self._line, line])
                self._line.clear()
            self._read(line, events)
        if incomplete:
            self._grow(len(incomplete))
            self._line.append(incomplete)
        return events

    def finish(self) -> list[Event]:
        """The event that the end of the stream leaves unterminated, if any."""
        events: list[Event] = []
        if self._line:
            line = b"".join(self._line)
            self._line.clear()
            self._read(line, events)
        self._read(b"", events)
        return events

    def plain(self, chunk: bytes) -> list[bytes]:
        """The data of whole events of one line each, which nearly all are that model servers send.

        There are none if there is anything else in *chunk*, which is then left to :meth:`feed`.
        """
        if self._size or len(chunk) > self._limit:
            return []
        if chunk.startswith(b"data: ") and chunk.endswith(b"\n\n"):
            lines = chunk[6:-2].split(b"\n\ndata: ")
            # To join them and look into that takes a quarter of the time of counting line ends.
            if b"\n" not in b"".join(lines) and b"\r" not in chunk:
                self._first = self._after_cr = False
                return lines
        return []

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > self._limit:
            raise EventTooLarge(f"an event of more than {self._limit} bytes")

    def _read(self, line: bytes, events: list[Event]) -> None:
        if self._first:
            self._first = False
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line:
            if self._id is not None:
                self.last_id = self._id
            if self._retry is not None:
                self.retry = self._retry
            if self._data:
                events.append(Event(b"\n".join(self._data), self._event, self._id, self._retry))
            self._clear()
            return
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._event = value
        elif name == b"error":
            # No field of the standard's: llama.cpp until the autumn of 2025 sent its errors so.
            self._event = name
            self._data.append(value)
        elif name == b"id":
            if b"\0" not in value:
                self._id = value
        elif name == b"retry" and value.isdigit() and len(value) < _MAX_DIGITS:
            self._retry = int(value)
