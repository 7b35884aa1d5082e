"""Which header fields travel on, and which belong to one connection. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import attrs
from twisted.web.http_headers import Headers

#: RFC 9110 section 7.6.1, plus the obsolete ones that peers still send.
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)

#: A mismatch of these is refused by the server (426): they speak of the client's own SDK.
_NEVER_FORWARDED = frozenset({b"x-llamastack-client-version", b"x-ogx-client-version"})

#: The next request's framing and target are written by the HTTP client itself.
_REWRITTEN = frozenset({b"host", b"content-length", b"expect"})

_NOT_FORWARDED = HOP_BY_HOP | _NEVER_FORWARDED | _REWRITTEN

#: Credentials: what one caller's lists and memories are kept apart by (DESIGN: T4).
_CREDENTIALS = (b"authorization", b"x-llamastack-provider-data", b"x-ogx-provider-data")

#: Tracing fields, which travel with everything done for a request but identify nobody.
_TRACING = (b"traceparent", b"tracestate", b"x-request-id")


def end_to_end(headers: Headers) -> Headers:
    """A copy without the hop-by-hop fields and those that ``Connection`` nominates."""
    return _without(headers, HOP_BY_HOP)


def forwarded(headers: Headers) -> Headers:
    """The fields of a client's request that go to the upstream."""
    return _without(headers, _NOT_FORWARDED)


def _without(headers: Headers, dropped: frozenset[bytes]) -> Headers:
    kept = Headers()
    nominations = headers.getRawHeaders(b"connection")
    if nominations:
        tokens = b",".join(nominations).split(b",")
        dropped = dropped.union(token.strip().lower() for token in tokens)
    for name, values in headers.getAllRawHeaders():
        if name.lower() not in dropped:
            kept.setRawHeaders(name, values)
    return kept


@attrs.frozen
class Caller:
    """On whose behalf something is asked: the fields of DESIGN T4 of one client request."""

    credentials: tuple[tuple[bytes, tuple[bytes, ...]], ...] = ()
    _tracing: tuple[tuple[bytes, tuple[bytes, ...]], ...] = ()

    @classmethod
    def of(cls, headers: Headers) -> Caller:
        """The caller who sent *headers*."""

        def pick(names: Iterable[bytes]) -> tuple[tuple[bytes, tuple[bytes, ...]], ...]:
            return tuple(
                (name, tuple(values)) for name in names if (values := headers.getRawHeaders(name))
            )

        return cls(pick(_CREDENTIALS), pick(_TRACING))

    def headers(self) -> Headers:
        """The fields to send along, and nothing else of the client's."""
        return Headers({name: list(values) for name, values in self.credentials + self._tracing})
