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
from twisted.internet.protocol import Factory
from twisted.internet.tcp import Connection
from twisted.web.client import URI

from llamaproxy.errors import BadRequest
from llamaproxy.heads import TOKEN, SomeFields
from llamaproxy.upstream.bodies import Upload
from llamaproxy.upstream.connection import UpstreamConnection
from llamaproxy.upstream.exchange import AnswerTaker, Exchange
from llamaproxy.upstream.pool import Server, UpstreamPool
from llamaproxy.upstream.resolver import Resolved, Resolver
from llamaproxy.upstream.responses import SendingAgent
from llamaproxy.upstream.tls import Verifier, handshake_failure, tls_context
from llamaproxy.upstream.urls import as_uri, origin_of

#: Seconds to connect: to resolve the name, to connect, and to shake hands.
CONNECT_TIMEOUT = 10.0

#: Seconds until the next address of a name is tried: Twisted's 0.3 would be added to every
#: connection to a "localhost" that listens on IPv4 alone.
ATTEMPT_DELAY_SECONDS = 0.02

#: Names that are looked up at a time for :class:`AgentForAnywhere`. The reactor has ten threads
#: for that, of which some must be left for the name of Llama Stack.
MAX_LOOK_UPS = 4

_REQUEST = re.compile(rb"%b /[\x21-\x7e]*" % TOKEN)

#: What stands in the field ``Host``, without brackets.
_HOST = re.compile(rb"[\x21-\x7e]+")

#: Ports that are not named (RFC 9110 sections 4.2.1 and 4.2.2).
_DEFAULT_PORTS = {b"http": 80, b"https": 443}


class TcpServer:
    """Connects to one server within *timeout* seconds, over TLS if *trust* is given.

    A numeric address is not looked up, which would take a thread.
    """

    def __init__(
        self,
        reactor: Any,
        origin: bytes,
        host: str,
        port: int,
        timeout: float,
        trust: Context | None,
        resolver: Resolver,
    ) -> None:
        self.origin = origin
        # A connection that is trusted by one may not be by another.
        self.kept_by = origin, trust
        self.host = origin.partition(b"://")[2]
        self._reactor = reactor
        self._address = host, port
        self._timeout = timeout
        self._resolver = resolver
        self._verifier: Any = None if trust is None else Verifier(trust, host)

    def connect(self) -> Deferred[UpstreamConnection]:
        """A new connection.

        Fails with :class:`UpstreamTls` if the certificate of the server is not valid for it.
        """
        connecting = Deferred.fromCoroutine(self._connect())
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

    async def _connect(self) -> UpstreamConnection:
        endpoint = await self._endpoint()
        if self._verifier is not None:
            endpoint = wrapClientTLS(self._verifier, endpoint)
        factory = Factory.forProtocol(UpstreamConnection)
        connection: UpstreamConnection = await endpoint.connect(factory)
        if isinstance(connection.transport, Connection):
            # What comes need not go through what endpoints wait for the connection with.
            connection.transport.protocol = connection
        if self._verifier is not None:
            try:
                await connection.secured()
            except CancelledError:
                raise
            except Exception as error:
                raise handshake_failure(error, connection.certificate_error) from None
            try:
                self._verifier.check(connection.handle)
            except BaseException:
                connection.abort()
                raise
        return connection


def _raise_timeout(result: object, seconds: float) -> Any:
    raise ConnectTimeout


class UpstreamAgent(SendingAgent):
    """Sends requests to one server, over TLS where its URL says https, with targets verbatim."""

    def __init__(
        self,
        reactor: Any,
        url: DecodedURL,
        pool: UpstreamPool,
        connect_timeout: float = CONNECT_TIMEOUT,
        authorities: str | None = None,
    ) -> None:
        """:param authorities: a PEM file with those to trust, instead of the system's."""
        origin = origin_of(url)
        secure = url.scheme == "https"
        trust = tls_context(authorities, system=authorities is None) if secure else None
        host, port = as_uri(url).host, url.port or 80
        resolver = Resolver(reactor, max_running=1)
        self._server = TcpServer(reactor, origin, host, port, connect_timeout, trust, resolver)
        self._pool = pool

    def send(
        self,
        method: bytes,
        target: bytes,
        fields: SomeFields,
        body: Upload | None,
        taker: AnswerTaker,
    ) -> Exchange:
        """Send a request for *target*, which may be a URL of this server.

        :raises BadRequest: if it is another's, or this could not be sent as it is.
        """
        target = checked(method, target.removeprefix(self._server.origin))
        return self._pool.send(self._server, method, target, fields, body, taker)


class AgentForAnywhere(SendingAgent):
    """Sends requests to any server, without cookies, redirects or compression."""

    def __init__(
        self,
        reactor: Any,
        pool: UpstreamPool,
        connect_timeout: float = CONNECT_TIMEOUT,
        authorities: str | None = None,
    ) -> None:
        """:param authorities: a PEM file with those to trust, besides the system's."""
        self._reactor = reactor
        self._pool = pool
        self._timeout = connect_timeout
        self._resolver = Resolver(reactor, MAX_LOOK_UPS)
        # Read once: the system's are many.
        self._trust = lru_cache(maxsize=1)(lambda: tls_context(authorities, system=True))

    def send(
        self,
        method: bytes,
        target: bytes,
        fields: SomeFields,
        body: Upload | None,
        taker: AnswerTaker,
    ) -> Exchange:
        """Send a request for *target*, which is a URL.

        :raises BadRequest: if it is none, or this could not be sent as it is.
        """
        url = URI.fromBytes(target)
        if url.scheme not in _DEFAULT_PORTS or not _HOST.fullmatch(url.host):
            raise BadRequest("The URL is not valid.")
        target = checked(method, url.originForm)
        return self._pool.send(self._server(url), method, target, fields, body, taker)

    def _server(self, url: URI) -> Server:
        authority = b"[%b]" % url.host if b":" in url.host else url.host
        if url.port != _DEFAULT_PORTS[url.scheme]:
            authority += b":%d" % url.port
        trust = self._trust() if url.scheme == b"https" else None
        return TcpServer(
            self._reactor,
            b"%b://%b" % (url.scheme, authority),
            url.host.decode("ascii"),
            url.port,
            self._timeout,
            trust,
            self._resolver,
        )


def checked(method: bytes, target: bytes) -> bytes:
    """*target*, a path and query to request with *method*.

    :raises BadRequest: if a server could read the two as something else.
    """
    if not _REQUEST.fullmatch(b"%b %b" % (method, target)):
        raise BadRequest("The request target is not valid.")
    return target
