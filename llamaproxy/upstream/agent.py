"""UpstreamAgent: pooled connections to one server, asked for targets exactly as given."""

from __future__ import annotations

import re
from typing import Any

import attrs
from hyperlink import DecodedURL
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
    wrapClientTLS,
)
from twisted.internet.interfaces import (
    IConsumer,
    IProtocolFactory,
    IStreamClientEndpoint,
)
from twisted.internet.ssl import optionsForClientTLS
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.web.client import URI, Agent, HTTPConnectionPool, ProxyAgent
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from llamaproxy.errors import BadRequest

#: Seconds to connect.
CONNECT_TIMEOUT = 10.0

#: Seconds until the next address of a name is tried: Twisted's 0.3 would be added to every
#: connection to a "localhost" that listens on IPv4 alone.
ATTEMPT_DELAY = 0.02

#: Seconds an idle connection is kept: uvicorn closes its side after five, and a request that
#: crosses with that would be lost.
IDLE_TIMEOUT = 2

#: Idle connections kept; more are closed once their request is done.
MAX_IDLE = 256

_TARGET = re.compile(rb"[\x21-\x7e]+")


def connection_pool(reactor: Any) -> HTTPConnectionPool:
    """The idle connections to upstreams."""
    pool = HTTPConnectionPool(reactor)
    pool.cachedConnectionTimeout = IDLE_TIMEOUT
    pool.maxPersistentPerHost = MAX_IDLE
    return pool


def origin_of(url: DecodedURL) -> bytes:
    """Scheme and authority of *url*, without a path: ``http://localhost:8321``."""
    return url.replace(path=(), query=(), fragment="").to_uri().to_text().encode("ascii")


class _Closing(ProtocolWrapper):
    """A connection that hears nothing more once it has been told to close.

    What has arrived in the same turn of the reactor would else complete the answer, and a
    connection that is about to close would go back into the pool, to fail another's request.
    """

    def dataReceived(self, data: bytes) -> None:
        if not self.disconnecting:
            ProtocolWrapper.dataReceived(self, data)


class _ClosingFactory(WrappingFactory):
    protocol = _Closing


@implementer(IStreamClientEndpoint)
@attrs.frozen
class _ClosingEndpoint:
    """Connects as the endpoint within, through :class:`_Closing`."""

    _within: Any

    def connect(self, factory: IProtocolFactory) -> Deferred[Any]:
        wrapping: Any = _ClosingFactory
        connected: Deferred[Any] = self._within.connect(wrapping(factory))
        return connected.addCallback(lambda wrapper: wrapper.wrappedProtocol)


def _endpoint(reactor: Any, host: str, port: int, tls: bool) -> Any:
    """Where to connect to; a numeric address needs no resolver, which works in threads."""
    endpoint: Any
    if isIPAddress(host):
        endpoint = TCP4ClientEndpoint(reactor, host, port, timeout=CONNECT_TIMEOUT)
    elif isIPv6Address(host):
        endpoint = TCP6ClientEndpoint(reactor, host, port, timeout=CONNECT_TIMEOUT)
    else:
        endpoint = HostnameEndpoint(
            reactor, host, port, timeout=CONNECT_TIMEOUT, attemptDelay=ATTEMPT_DELAY
        )
    if tls:
        endpoint = wrapClientTLS(optionsForClientTLS(host), endpoint)
    return _ClosingEndpoint(endpoint)


@implementer(IBodyProducer)
class WholeBody:
    """A request body that is in memory, handed over in one piece.

    FileBodyProducer, which treq would use, takes three turns of the reactor for it.
    """

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.length = len(body)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        # Not kept: an answer to it may stream for an hour.
        body, self._body = self._body, b""
        consumer.write(body)
        return succeed(None)

    def pauseProducing(self) -> None:
        pass

    def resumeProducing(self) -> None:
        pass

    def stopProducing(self) -> None:
        pass


@implementer(IAgent)
class UpstreamAgent:
    """Sends requests to one server, over TLS where its URL says https.

    Agent takes a URL apart and writes another one; ProxyAgent sends what it is given. So that a
    target reaches the server as the client wrote it, this is a ProxyAgent that sends no origin.
    """

    def __init__(self, reactor: Any, url: DecodedURL, pool: HTTPConnectionPool) -> None:
        self._origin = origin_of(url)
        host, port = url.host, url.port or 80
        endpoint = _endpoint(reactor, host, port, url.scheme == "https")
        self._host = self._origin.partition(b"://")[2]
        self._agent = ProxyAgent(endpoint, reactor=reactor, pool=pool)

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        """:raises BadRequest: if *uri* is not of this server, or could not be sent as it is."""
        target = uri.removeprefix(self._origin)
        if not target.startswith(b"/") or not _TARGET.fullmatch(target):
            raise BadRequest("The request target is not valid.")
        fields = headers.copy() if headers is not None else Headers()
        fields.setRawHeaders(b"Host", [self._host])
        answer: Deferred[IResponse] = self._agent.request(method, target, fields, bodyProducer)
        return answer


@implementer(IAgentEndpointFactory)
class _Endpoints:
    """Connects to whatever server a URL names, over TLS where it says https."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def endpointForURI(self, uri: URI) -> Any:
        host = uri.host.decode("ascii").strip("[]")
        return _endpoint(self._reactor, host, uri.port, uri.scheme == b"https")


def agent_for_anywhere(reactor: Any, pool: HTTPConnectionPool) -> IAgent:
    """An agent that asks any server, with no cookies, redirects or compression."""
    agent: IAgent = Agent.usingEndpointFactory(reactor, _Endpoints(reactor), pool)
    return agent
