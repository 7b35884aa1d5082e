"""Where the body of an HTTP/1.1 request ends, and where it is stored."""

from __future__ import annotations

import re
from io import BytesIO
from tempfile import SpooledTemporaryFile, TemporaryFile
from typing import IO

from llamaproxy.errors import BodyTooLarge
from llamaproxy.server.framing import MALFORMED_FIELD, RequestRefused, field, is_token

#: Bytes of a chunk's size with its extensions, and of all trailers together.
MAX_CHUNK_LINE = 1024
MAX_TRAILERS = 8192

#: Bytes of a body that are kept in memory; more are stored in a temporary file.
MAX_IN_MEMORY = 65536

_VALUE = rb"[\t -~\x80-\xff]*"
_EXTENSIONS = rb"(?:[ \t]*;%b)?" % _VALUE
_FIRST_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})%b\r\n" % _EXTENSIONS)
_NEXT_SIZE = re.compile(rb"\r\n([0-9A-Fa-f]{1,16})%b\r\n" % _EXTENSIONS)
_FIRST_SIZE_BEGUN = re.compile(rb"(?:[0-9A-Fa-f]{1,16}(?:[ \t]*|%b)\r?)?" % _EXTENSIONS)
_NEXT_SIZE_BEGUN = re.compile(rb"\r(?:\n%b)?" % _FIRST_SIZE_BEGUN.pattern)


class StoredBody:
    """A body that is stored in a file as it comes.

    *length*: its bytes, None if it is chunked; *limit*: how many a chunked one may have.

    :raises OSError: if no file can be made.
    """

    def __init__(self, length: int | None, limit: int) -> None:
        self._decoder = ChunkedBody(limit) if length is None else CountedBody(length)
        self.file: IO[bytes]
        if length is None:
            self.file = SpooledTemporaryFile(MAX_IN_MEMORY)
        else:
            self.file = BytesIO() if length <= MAX_IN_MEMORY else TemporaryFile()

    def receive(self, data: bytes) -> bytes | None:
        """Store the part of *data* that is the body's; what follows it, None if more is to come.

        :raises ProxyError: as :meth:`ChunkedBody.feed`.

        :raises OSError: if it cannot be stored.
        """
        self.file.write(self._decoder.feed(data))
        if self._decoder.rest is not None:
            self.file.flush()
        return self._decoder.rest


class CountedBody:
    """A body of known length (RFC 9112 section 6.2)."""

    def __init__(self, length: int) -> None:
        self._left = length
        self.rest: bytes | None = None

    def feed(self, received: bytes) -> bytes:
        """The part of *received* that is the body's.

        After the last of it ``rest`` is what follows.
        """
        if len(received) < self._left:
            self._left -= len(received)
            return received
        self.rest = received[self._left :]
        return received[: self._left]


class ChunkedBody:
    """A chunked body (RFC 9112 section 7.1), of at most *limit* bytes; its trailers are dropped."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._room = limit
        #: Bytes of the current chunk that have not come yet; None once the last chunk has begun.
        self._left: int | None = 0
        self._size, self._size_begun = _FIRST_SIZE, _FIRST_SIZE_BEGUN
        self._held = b""
        self._trailers = 0
        self.rest: bytes | None = None

    def feed(self, received: bytes) -> bytes:
        """The part of *received* that is the body's.

        After the last of it ``rest`` is what follows.

        :raises RequestRefused: 400 if it is malformed, 431 for too many trailers.
        :raises BodyTooLarge: as soon as a chunk over the limit is announced.
        """
        buffer, self._held = self._held + received, b""
        parts: list[bytes] = []
        at = 0
        while self._left is not None:
            if self._left:
                part = buffer[at : at + self._left]
                parts.append(part)
                at += len(part)
                self._left -= len(part)
                if self._left:
                    return b"".join(parts)
            match = self._size.match(buffer, at)
            if match is None:
                self._held = self._begun(buffer[at:])
                return b"".join(parts)
            if match.end() - at > MAX_CHUNK_LINE:
                raise RequestRefused(400, "A chunk of the request body has too many extensions.")
            at = match.end()
            self._begin(int(match[1], 16))
        self._end(buffer, at)
        return b"".join(parts)

    def _begin(self, size: int) -> None:
        self._room -= size
        if self._room < 0:
            raise BodyTooLarge(f"The request body is larger than {self._limit} bytes.")
        self._left = size or None
        self._size, self._size_begun = _NEXT_SIZE, _NEXT_SIZE_BEGUN

    def _begun(self, line: bytes) -> bytes:
        """*line* again, if it can still become the size of a chunk."""
        if len(line) > MAX_CHUNK_LINE or (line and not self._size_begun.fullmatch(line)):
            raise RequestRefused(400, "The request body's chunks are not well-formed.")
        return line

    def _end(self, buffer: bytes, at: int) -> None:
        while (end := buffer.find(b"\r\n", at)) >= 0:
            if end == at:
                self.rest = buffer[end + 2 :]
                return
            if not is_token(field(buffer[at:end])[0]):
                raise RequestRefused(400, MALFORMED_FIELD)
            self._trailers += end + 2 - at
            at = end + 2
            self._bounded(0)
        self._held = buffer[at:]
        self._bounded(len(self._held))
        if b"\n" in self._held:
            raise RequestRefused(400, MALFORMED_FIELD)

    def _bounded(self, more: int) -> None:
        if self._trailers + more > MAX_TRAILERS:
            raise RequestRefused(
                431, f"The request's trailers are longer than {MAX_TRAILERS} bytes."
            )
