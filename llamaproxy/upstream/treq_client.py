"""The HTTP client: treq without what it does like a browser, and the operator's key."""

from __future__ import annotations

from typing import Any

import attrs
from treq.client import HTTPClient
from treq.cookies import IndexableCookieJar
from twisted.web.iweb import IAgent

from llamaproxy.heads import Fields
from llamaproxy.upstream.bodies import Upload
from llamaproxy.upstream.exchange import AnswerTaker, Exchange, Sender
from llamaproxy.upstream.responses import SendingAgent


@attrs.frozen(eq=False, repr=False)
class AuthorizedAgent(SendingAgent):
    """Sends requests by the agent within, with the operator's key in all but OPTIONS.

    Those may be preflights of any page.
    """

    _within: Sender
    _key: bytes = attrs.field(repr=False)

    def send(
        self, method: bytes, target: bytes, fields: Fields, body: Upload | None, taker: AnswerTaker
    ) -> Exchange:
        if method != b"OPTIONS":
            fields = [field for field in fields if field[0].lower() != b"authorization"]
            fields.append((b"Authorization", b"Bearer " + self._key))
        return self._within.send(method, target, fields, body, taker)


def treq_client(agent: IAgent) -> HTTPClient:
    """A treq client of *agent* without cookies, which one caller could get of another."""
    within: Any = agent
    return HTTPClient(within, cookiejar=_NoCookies())


class _NoCookies(IndexableCookieJar):
    """A jar that stays empty, and parses nothing."""

    def add_cookie_header(self, request: Any) -> None:
        pass

    def extract_cookies(self, response: Any, request: Any) -> None:
        pass
