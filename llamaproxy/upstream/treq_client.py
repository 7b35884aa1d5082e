"""The HTTP client: treq, as no browser would ask, and with the operator's key."""

from __future__ import annotations

from typing import Any

import attrs
from treq.client import HTTPClient
from treq.cookies import IndexableCookieJar
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from llamaproxy.upstream.inflate import InflatingAgent


@implementer(IAgent)
@attrs.frozen
class AuthorizedAgent:
    """Asks as the agent within, with one key for every request but OPTIONS.

    Those may be the preflight of anybody. The key is put into the fields that it is given.
    """

    _within: IAgent
    _key: bytes = attrs.field(repr=False)

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        fields = Headers() if headers is None else headers
        if method != b"OPTIONS":
            fields.setRawHeaders(b"Authorization", [b"Bearer " + self._key])
        return self._within.request(method, uri, fields, bodyProducer)


def treq_client(agent: IAgent, clock: IReactorTime) -> HTTPClient:
    """A treq client that is no browser: it keeps no cookie that one caller could get of another.

    Nor does it ask for anything compressed: treq would inflate it without any limit.
    """
    inflating: Any = InflatingAgent(agent, clock)
    return HTTPClient(inflating, cookiejar=_NoCookies())


class _NoCookies(IndexableCookieJar):
    """A jar that nothing is put into: a policy that allows no domain would still read them all."""

    def add_cookie_header(self, request: Any) -> None:
        pass

    def extract_cookies(self, response: Any, request: Any) -> None:
        pass
