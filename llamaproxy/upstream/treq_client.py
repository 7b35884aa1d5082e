"""The HTTP client: treq without what it does like a browser, and the operator's key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import attrs
from hyperlink import EncodedURL
from treq.client import HTTPClient
from treq.cookies import IndexableCookieJar
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer
from zope.interface import implementer

from llamaproxy.errors import ProxyError, UpstreamTimeout
from llamaproxy.heads import Fields, SomeFields, without
from llamaproxy.upstream.bodies import Upload
from llamaproxy.upstream.exchange import AnswerTaker, Exchange, Sender
from llamaproxy.upstream.response_head import ResponseHead
from llamaproxy.upstream.responses import SendingAgent
from llamaproxy.upstream.whole import WholeAnswer
from llamaproxy.watchdog import Watchdog


@attrs.frozen(eq=False, repr=False)
class AuthorizedAgent(SendingAgent):
    """Sends requests by the agent within, with the operator's key in all but OPTIONS.

    Those may be preflights of any page.
    """

    _within: Sender
    _key: bytes = attrs.field(repr=False)

    def send(
        self,
        method: bytes,
        target: bytes,
        fields: SomeFields,
        body: Upload | None,
        taker: AnswerTaker,
    ) -> Exchange:
        if method != b"OPTIONS":
            own = (b"Authorization", b"Bearer " + self._key)
            fields = [*without(fields, (b"authorization",)), own]
        return self._within.send(method, target, fields, body, taker)


@implementer(IAgent)
class AgentForTreq(WholeAnswer):
    """Has treq wait for the whole of an answer, within limits: the body is in :attr:`answer`.

    So that reading it is no second thing to wait for, and to limit. For one request alone.
    """

    def __init__(
        self, agent: Sender, fields: Fields, clock: IReactorTime, seconds: float, limit: int
    ) -> None:
        """:param fields: of the request, all of them: treq copies its own twice.

        :param seconds: for all of it; *limit*: bytes of the body.
        """
        WholeAnswer.__init__(self, clock, seconds, limit)
        self._in_all = seconds
        Watchdog.feed(self)
        self._agent = agent
        self._fields = fields
        #: The head and the body, once treq has been answered.
        self.answer: tuple[ResponseHead, bytes]

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[Any]:
        """See :class:`llamaproxy.upstream.responses.SendingAgent`."""
        body = cast("Upload | None", bodyProducer)
        self.collect(self._agent.send(method, uri, self._fields, body, self))
        return self.collected.addCallback(self._collected)

    def feed(self) -> None:
        """What trickles has no more time."""

    def _late(self) -> ProxyError:
        return UpstreamTimeout(
            f"Llama Stack did not end its answer within {round(self._in_all, 1):g} s."
        )

    def _collected(self, answer: tuple[ResponseHead, bytes]) -> _Answered:
        self.answer = answer
        return _Answered(answer[0].status)


class _NoHeaders(Headers):
    """Fields as treq has them, of requests and of answers: none, whatever is noted in it.

    Those that are sent and come go past treq, which would copy and look through them several times.
    """

    def copy(self) -> Headers:
        return self

    def hasHeader(self, name: Any) -> bool:
        return True  # or it would look for cookies

    def getRawHeaders(self, name: Any, default: Any = None) -> Any:
        return default

    def addRawHeader(self, name: Any, value: Any) -> None:
        pass

    def setRawHeaders(self, name: Any, values: Any) -> None:
        pass


_NO_HEADERS = _NoHeaders()


@attrs.frozen(eq=False, repr=False)
class _Answered:
    """What treq is answered: it looks for content codings and cookies, and is shown none."""

    code: int
    headers: Headers = _NO_HEADERS


def treq_request(agent: IAgent, method: str, url: EncodedURL, body: Upload | None) -> Deferred[Any]:
    """What *agent* answers a request of treq's without redirects.

    Nor are there cookies, which one caller could get of another.
    """
    within: Any = agent
    client = HTTPClient(within, cookiejar=_NO_COOKIES)
    return client.request(
        method,
        url,
        headers=_NO_HEADERS,
        data=body,
        cookies=_NO_COOKIES,
        allow_redirects=False,
        unbuffered=True,
    )


class _NoCookies(IndexableCookieJar):
    """A jar that stays empty, and parses nothing."""

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def add_cookie_header(self, request: Any) -> None:
        pass

    def extract_cookies(self, response: Any, request: Any) -> None:
        pass


_NO_COOKIES = _NoCookies()
