"""CorsMemory: the upstream's CORS fields by origin, for answers of the proxy's own.

A page that may read the upstream's answers must be able to read the proxy's errors (Fetch standard,
"CORS protocol").
"""

from __future__ import annotations

from collections import OrderedDict

import attrs
from twisted.web.http_headers import Headers

#: The fields that let a page read an answer (Fetch standard, "HTTP responses").
_FIELDS = (
    b"Access-Control-Allow-Origin",
    b"Access-Control-Allow-Credentials",
    b"Access-Control-Expose-Headers",
)

#: What an answer of the proxy's own has of them.
_APPLIED = (*_FIELDS, b"Vary")

#: Origins that are remembered, and bytes of one.
_MAX_ORIGINS, _MAX_ORIGIN = 256, 512


@attrs.define(eq=False, repr=False)
class CorsMemory:
    """The CORS fields of the upstream's last answer to each origin that had something to say."""

    _by_origin: OrderedDict[bytes, dict[bytes, list[bytes]]] = attrs.Factory(OrderedDict)

    def __contains__(self, origin: bytes) -> bool:
        return origin in self._by_origin

    def learn_from_answer(
        self, origin: bytes, status: int, answer: Headers, response_fields: Headers
    ) -> None:
        """:meth:`learn` from an *answer* of the upstream's that is passed on to the client.

        The fields that :meth:`apply` has put into *response_fields* are taken out of them again,
        for those of the answer replace them. An error without any leaves all as it is: a server's
        500 is written outside of what adds them (Starlette), and a gateway's knows nothing of them.
        """
        for name in _APPLIED:
            response_fields.removeHeader(name)
        if 200 <= status < 300 or any(map(answer.hasHeader, _FIELDS)):
            self.learn(origin, answer)
        else:
            self.apply(origin, response_fields)

    def learn(self, origin: bytes, headers: Headers) -> None:
        """Remember the CORS fields in *headers*, of an answer of the upstream's to *origin*."""
        if len(origin) > _MAX_ORIGIN:
            return
        self._by_origin[origin] = {
            name: list(values) for name in _FIELDS if (values := headers.getRawHeaders(name))
        }
        self._by_origin.move_to_end(origin)
        while len(self._by_origin) > _MAX_ORIGINS:
            self._by_origin.popitem(last=False)

    def apply(self, origin: bytes | None, headers: Headers) -> None:
        """Put the fields remembered for *origin* into *headers*, of an answer of the proxy's."""
        fields = self._by_origin.get(origin) if origin is not None else None
        if fields and _FIELDS[0] in fields:
            for name, values in fields.items():
                headers.setRawHeaders(name, list(values))
            headers.setRawHeaders(b"Vary", [b"Origin"])
