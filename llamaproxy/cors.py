"""CorsMemory: which pages the upstream lets read its answers, for the proxy's own errors.

A page that may read the answers must be able to read why there is none (Fetch standard, "CORS
protocol"). Whether it may is the upstream's to say, and nobody else's.
"""

from __future__ import annotations

from collections import OrderedDict

import attrs
from twisted.web.http_headers import Headers

#: What an answer says to a browser about the page that asked.
_FIELDS = (
    b"Access-Control-Allow-Origin",
    b"Access-Control-Allow-Credentials",
    b"Access-Control-Expose-Headers",
)

#: Origins that are remembered, and bytes of one.
_MAX_ORIGINS, _MAX_ORIGIN = 256, 512


@attrs.define
class CorsMemory:
    """Remembers, by origin, what the upstream last answered to it."""

    _known: OrderedDict[bytes, dict[bytes, list[bytes]]] = attrs.Factory(OrderedDict)

    def __contains__(self, origin: bytes) -> bool:
        return origin in self._known

    def answered(self, origin: bytes | None, answer: Headers, ours: Headers) -> None:
        """Note what the *answer* of the upstream says to the page of *origin*.

        What :meth:`apply` has put into *ours* is taken out again: the answer's word counts.
        """
        if origin is None:
            return
        for name in _FIELDS:
            ours.removeHeader(name)
        self.learn(origin, answer)

    def learn(self, origin: bytes, headers: Headers) -> None:
        """Note what *headers*, of an answer of the upstream's, say to the page of *origin*."""
        if len(origin) > _MAX_ORIGIN:
            return
        self._known[origin] = {
            name: list(values) for name in _FIELDS if (values := headers.getRawHeaders(name))
        }
        self._known.move_to_end(origin)
        while len(self._known) > _MAX_ORIGINS:
            self._known.popitem(last=False)

    def apply(self, origin: bytes | None, headers: Headers) -> None:
        """Let the page of *origin* read an answer of the proxy's own, if it may read others."""
        fields = self._known.get(origin) if origin is not None else None
        if fields and _FIELDS[0] in fields:
            for name, values in fields.items():
                headers.setRawHeaders(name, list(values))
            headers.setRawHeaders(b"Vary", [b"Origin"])


def origin_in(headers: Headers) -> bytes | None:
    """The origin of the page that sent a request, if it was one."""
    values = headers.getRawHeaders(b"origin")
    return values[0] if values and len(values) == 1 else None
