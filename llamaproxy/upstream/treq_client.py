"""The HTTP client: treq without what it does like a browser, and the operator's key."""

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
@attrs.frozen(eq=False, repr=False)
class AuthorizedAgent:
    """Sends requests by the agent within, with the operator's key in all but OPTIONS.

    Those may be preflights of any page. *headers* are changed by it.
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
    """A treq client without cookies, which one caller could get of another.

    Answers are inflated within limits, which treq itself does not have.
    """
    inflating: Any = InflatingAgent(agent, clock)
    return HTTPClient(inflating, cookiejar=_NoCookies())


class _NoCookies(IndexableCookieJar):
    """A jar that stays empty, and parses nothing."""

    def add_cookie_header(self, request: Any) -> None:
        pass

    def extract_cookies(self, response: Any, request: Any) -> None:
        pass
