"""Agents: requests over pooled connections, to one server with its targets verbatim, or to any."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from hyperlink import DecodedURL
from OpenSSL.SSL import Context
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
    wrapClientTLS,
)
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.web.client import URI, Agent, HTTPConnectionPool
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from llamaproxy.deferreds import cancelled_as_such
from llamaproxy.errors import BadRequest
from llamaproxy.upstream.connection import UpstreamConnection, UpstreamConnectionFactory
from llamaproxy.upstream.resolver import Resolved, Resolver
from llamaproxy.upstream.tls import Verifier, handshake_failure, tls_context
from llamaproxy.upstream.twisted_client import TargetAgent
from llamaproxy.upstream.urls import as_uri, origin_of

#: Seconds to connect: to resolve the name, to connect, and to shake hands.
CONNECT_TIMEOUT = 10.0

#: Seconds until the next address of a name is tried: Twisted's 0.3 would be added to every
#: connection to a "localhost" that listens on IPv4 alone.
ATTEMPT_DELAY_SECONDS = 0.02

#: Seconds an idle connection is kept: uvicorn closes its side after five, and a request that is
#: sent while it does would be lost.
IDLE_TIMEOUT = 2

#: Idle connections kept; more are closed once their request is done.
MAX_IDLE = 256

#: Names that are looked up at a time for :func:`agent_for_anywhere`. The reactor has ten threads
#: for that, of which some must be left for the name of Llama Stack.
MAX_LOOK_UPS = 4

_TARGET = re.compile(rb"[\x21-\x7e]+")


class UpstreamPool(HTTPConnectionPool):
    """The idle connections to upstreams, without those that their servers have closed.

    Requests are repeated by :class:`UpstreamConnection`: Twisted's pool would repeat a DELETE too,
    and could do it on another connection that is closed.
    """

    retryAutomatically = False
    cachedConnectionTimeout = IDLE_TIMEOUT
    maxPersistentPerHost = MAX_IDLE

    def getConnection(self, key: Any, endpoint: IStreamClientEndpoint) -> Deferred[Any]:
        return Deferred.fromCoroutine(self._connection(key, endpoint))

    async def _connection(
        self, key: Any, endpoint: IStreamClientEndpoint, new: bool = False
    ) -> UpstreamConnection:
        while True:
            client: Any = await HTTPConnectionPool.getConnection(self, key, endpoint)
            connection: UpstreamConnection = client.transport
            if not connection.used:
                return connection
            if not new and not connection.is_stale():
                connection.reconnect = lambda: Deferred.fromCoroutine(
                    self._connection(key, endpoint, new=True)
                )
                return connection
            connection.abortConnection()


def connection_pool(reactor: Any) -> UpstreamPool:
    """The idle connections to upstreams."""
    pool: Any = UpstreamPool
    return pool(reactor)  # type: ignore[no-any-return]


@implementer(IStreamClientEndpoint)
class _ServerEndpoint:
    """Connects to one server within *timeout* seconds, over TLS if *trust* is given.

    The connection is wrapped in an :class:`UpstreamConnection`.

    A numeric address is not looked up, which would take a thread.
    """

    def __init__(
        self,
        reactor: Any,
        host: str,
        port: int,
        timeout: float,
        trust: Context | None,
        resolver: Resolver,
    ) -> None:
        self._reactor = reactor
        self._address = host, port
        self._timeout = timeout
        self._resolver = resolver
        self._verifier: Any = None if trust is None else Verifier(trust, host)

    def connect(self, factory: IProtocolFactory) -> Deferred[Any]:
        """:raises UpstreamTls: if the certificate of the server is not valid for it."""
        connecting = Deferred.fromCoroutine(self._connect(factory))
        return connecting.addTimeout(self._timeout, self._reactor, _raise_timeout)

    async def _endpoint(self) -> Any:
        host, port = self._address
        if isIPAddress(host):
            return TCP4ClientEndpoint(self._reactor, host, port, timeout=self._timeout)
        if isIPv6Address(host):
            return TCP6ClientEndpoint(self._reactor, host, port, timeout=self._timeout)
        reactor = Resolved(self._reactor, await self._resolver.addresses(host))
        # Not the name itself: it may have an underscore, which IDNA does not allow.
        return HostnameEndpoint(
            reactor, "name", port, timeout=self._timeout, attemptDelay=ATTEMPT_DELAY_SECONDS
        )

    async def _connect(self, factory: IProtocolFactory) -> Any:
        wrapping: Any = UpstreamConnectionFactory
        endpoint = await self._endpoint()
        if self._verifier is not None:
            endpoint = wrapClientTLS(self._verifier, endpoint)
        # HostnameEndpoint fails with DNSLookupError when it is cancelled.
        connecting = cancelled_as_such(endpoint.connect(wrapping(factory)))
        connection: UpstreamConnection = await connecting
        if self._verifier is not None:
            try:
                await connection.secured()
            except CancelledError:
                raise
            except Exception as error:
                raise handshake_failure(error, connection.certificate_error) from None
            try:
                self._verifier.check(connection.getHandle())
            except BaseException:
                connection.abortConnection()
                raise
        return connection.wrappedProtocol


def _raise_timeout(result: object, seconds: float) -> object:
    raise ConnectTimeout


@implementer(IAgent)
class UpstreamAgent:
    """Sends requests to one server, over TLS where its URL says https, with targets verbatim."""

    def __init__(
        self,
        reactor: Any,
        url: DecodedURL,
        pool: HTTPConnectionPool,
        connect_timeout: float = CONNECT_TIMEOUT,
        authorities: str | None = None,
    ) -> None:
        """:param authorities: a PEM file with those to trust, instead of the system's."""
        self._origin = origin_of(url)
        secure = url.scheme == "https"
        trust = tls_context(authorities, system=authorities is None) if secure else None
        host, port = as_uri(url).host, url.port or 80
        resolver = Resolver(reactor, max_running=1)
        endpoint = _ServerEndpoint(reactor, host, port, connect_timeout, trust, resolver)
        self._host = self._origin.partition(b"://")[2]
        self._agent = TargetAgent(endpoint, reactor, pool)

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        """Send a request for *uri*, of this server or only its target; *headers* are changed.

        :raises BadRequest: if *uri* is not of this server, or could not be sent as it is.
        """
        target = uri.removeprefix(self._origin)
        if not target.startswith(b"/") or not _TARGET.fullmatch(target):
            raise BadRequest("The request target is not valid.")
        fields = headers if headers is not None else Headers()
        fields.setRawHeaders(b"Host", [self._host])
        return self._agent.request(method, target, fields, bodyProducer)


@implementer(IAgentEndpointFactory)
class _ServerEndpoints:
    """Makes endpoints for the servers of any URLs, with TLS for https."""

    def __init__(self, reactor: Any, timeout: float, authorities: str | None) -> None:
        self._reactor = reactor
        self._timeout = timeout
        self._resolver = Resolver(reactor, MAX_LOOK_UPS)
        # Read once: the system's are many.
        self._trust = lru_cache(maxsize=1)(lambda: tls_context(authorities, system=True))

    def endpointForURI(self, uri: URI) -> Any:
        host = uri.host.decode("ascii").strip("[]")
        trust = self._trust() if uri.scheme == b"https" else None
        return _ServerEndpoint(self._reactor, host, uri.port, self._timeout, trust, self._resolver)


def agent_for_anywhere(
    reactor: Any,
    pool: HTTPConnectionPool,
    connect_timeout: float = CONNECT_TIMEOUT,
    authorities: str | None = None,
) -> IAgent:
    """An agent for any server, without cookies, redirects or compression.

    :param authorities: a PEM file with those to trust, besides the system's.
    """
    endpoints = _ServerEndpoints(reactor, connect_timeout, authorities)
    agent: IAgent = Agent.usingEndpointFactory(reactor, endpoints, pool)
    return agent
