"""Responses: answers as Twisted's ``IAgent`` and ``IResponse`` have them, for treq and others."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol, IPushProducer
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from llamaproxy.heads import Fields, SomeFields, fields_of, headers_of
from llamaproxy.upstream.bodies import Upload
from llamaproxy.upstream.exchange import AnswerTaker, Exchange
from llamaproxy.upstream.response_head import ResponseHead


@implementer(IResponse, IPushProducer)
class Response:
    """Takes an answer: ``begun`` fires with this itself when the head is there.

    The body waits for :meth:`deliverBody`, and is then paused, resumed and closed by the
    protocol's transport, which this is. One that has closed it is told nothing any more.
    """

    version = (b"HTTP", 1, 1)
    request = None
    previousResponse = None

    def __init__(self) -> None:
        self.begun: Deferred[Any] = Deferred(lambda _: self.loseConnection())
        self.code = 0
        self.phrase = b""
        #: The fields of the answer, in the server's order and spelling.
        self.fields: Fields = []
        self.length: Any = 0
        #: What sends the bytes of another protocol, after 101.
        self.tunnel: Any = None
        #: The exchange whose answer this is.
        self.exchange: Exchange | None = None
        self._body: Any = None
        self._waiting: list[bytes] = []
        self._end: Failure | None = None
        #: Whether the reader wants no more.
        self._closed = self._bodiless = False

    # --- for the exchange

    def answered(self, head: ResponseHead) -> None:
        self.code, self.phrase, self.tunnel = head.status, head.phrase, head.tunnel
        self.length = UNKNOWN_LENGTH if head.length is None else head.length
        self._bodiless = head.bodiless
        # The head is kept by the connection: a stream that has begun does without the fields.
        self.fields, head.fields = head.fields, []
        self.begun.callback(self)
        if self._body is None:
            self.pauseProducing()

    def received(self, data: bytes) -> None:
        if self._body is None:
            self._waiting.append(data)
        else:
            self._body.dataReceived(data)

    def ended(self) -> None:
        self._close(Failure(ResponseDone()))

    def failed(self, error: Exception) -> None:
        if self.begun.called:
            self._close(Failure(error))
        else:
            self.exchange = None
            self.begun.errback(error)

    # --- for the reader

    @cached_property
    def headers(self) -> Headers:
        headers = headers_of(self.fields)
        if not self._bodiless:
            headers.removeHeader(b"content-length")
        return headers

    def deliverBody(self, protocol: IProtocol) -> None:
        body: Any = protocol
        self.resumeProducing()
        body.makeConnection(self)
        self._body = body
        waiting, self._waiting = self._waiting, []
        for data in waiting:
            if not self._closed:
                body.dataReceived(data)
        if self._end is not None:
            self._close(self._end)

    def setPreviousResponse(self, response: IResponse) -> None:
        raise NotImplementedError("redirects are not followed")

    def pauseProducing(self) -> None:
        if self.exchange is not None:
            self.exchange.pause()

    def resumeProducing(self) -> None:
        if self.exchange is not None:
            self.exchange.resume()

    def stopProducing(self) -> None:
        self.loseConnection()

    def loseConnection(self) -> None:
        self._closed = True
        self._body = None
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.cancel()

    # --- within

    def _close(self, reason: Failure) -> None:
        self.exchange = None
        self._end = reason
        # Each has the other: the garbage collector is left nothing to find.
        body, self._body = self._body, None
        if body is not None and not self._closed:
            body.connectionLost(reason)


@implementer(IAgent)
class SendingAgent:
    """The base of agents: requests and responses by way of :meth:`send`."""

    def send(
        self,
        method: bytes,
        target: bytes,
        fields: SomeFields,
        body: Upload | None,
        taker: AnswerTaker,
    ) -> Exchange:
        """See :class:`llamaproxy.upstream.exchange.Sender`."""
        raise NotImplementedError

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[Any]:
        """A :class:`Response`; *bodyProducer* must be an :class:`Upload`.

        :raises BadRequest: if this could not be sent as it is.
        """
        body: Any = bodyProducer
        response = Response()
        response.exchange = self.send(method, uri, fields_of(headers), body, response)
        return response.begun
