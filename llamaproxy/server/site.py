"""ProxySite: the front door: bounded requests, and one line in the log for each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextvars import copy_context
from io import BytesIO
from tempfile import SpooledTemporaryFile, TemporaryFile
from types import MappingProxyType
from typing import IO, Any, ClassVar

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.web.resource import IResource
from twisted.web.server import Request, Site

from llamaproxy.cors import CorsMemory
from llamaproxy.logs import request_id
from llamaproxy.server.channel import ProxyChannel
from llamaproxy.server.connections import Connections
from llamaproxy.server.hosts import AllowedHosts
from llamaproxy.server.keys import ApiKeys, GuardedResource
from llamaproxy.server.limits import Limits

#: Logged as the status of an answer that did not come to its end, as nginx does it.
CUT_OFF = 499

#: Bytes of a request body that are kept in memory; more are stored in a temporary file.
IN_MEMORY = 65536

#: Requests of one connection that may be served in one turn of the reactor: a client that sends
#: hundreds at once is not to keep the others waiting.
TOGETHER = 8

_DEFAULT_LIMITS = Limits()

#: What a request may not write into the log.
_UNPRINTABLE = re.compile("[^!-~]")


class ProxyRequest(Request):
    """A request that the log will have a line about."""

    defaultContentType = None
    started_at: float = 0.0
    #: Whether a client that has closed its side may still wait for the answer.
    half_closable = True
    #: What its line in the log says besides (see :func:`llamaproxy.logs.note`).
    log_fields: Mapping[str, str | int | float] = MappingProxyType({})

    def process(self) -> None:
        channel: Any = self.channel
        self.started_at = channel.site.began(self)
        channel.served += 1
        if channel.served <= TOGETHER:
            self._process_now()
        else:
            channel.site.reactor.callLater(0, self._process_now)

    def _process_now(self) -> None:
        if self.channel is not None:  # else: the client has gone
            # A context of its own, or else the next request would have this one's id.
            copy_context().run(self._process_as, self.id)

    def _process_as(self, whose: str) -> None:
        request_id.set(whose)
        Request.process(self)

    @property
    def id(self) -> str:
        """The id by which the client, the log and the upstream know the request."""
        values = self.requestHeaders.getRawHeaders(b"x-request-id", [b""])
        return values[0].decode("latin-1")

    def getRequestHostname(self) -> bytes:
        """Always the same: no route depends on it, and Klein fails over hosts that are no names."""
        return b"llamaproxy"


class ProxySite(Site):
    """Serves requests, logs them, and knows its connections."""

    # Not the stock factory, which would speak HTTP/2 as well where the library for it is there.
    protocol: Any = ProxyChannel
    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        resource: IResource,
        clock: IReactorTime,
        limits: Limits = _DEFAULT_LIMITS,
        keys: ApiKeys | None = None,
        cors: CorsMemory | None = None,
        hosts: AllowedHosts | None = None,
    ) -> None:
        """:param keys: those that clients must have; with None, none is asked for.

        :param cors: what the upstream lets pages do, for requests that are refused here.

        :param hosts: the names that may be asked for; with None, any.
        """
        self.cors = CorsMemory() if cors is None else cors
        self.hosts = AllowedHosts() if hosts is None else hosts
        Site.__init__(
            self,
            resource if keys is None else GuardedResource(resource, keys, self.cors),
            requestFactory=ProxyRequest,
            parsePOSTFormSubmission=False,
            timeout=None,  # the channels look after their time themselves
            reactor=clock,
        )
        self.limits = limits
        self.keys = keys
        self.now = clock.seconds
        self.connections = Connections(clock)
        self.displayTracebacks = False

    def acceptableProtocols(self) -> list[bytes]:
        """What is spoken over TLS (RFC 7301)."""
        return [b"http/1.1"]

    def getContentFile(self, length: int | None) -> IO[bytes]:
        """Where a body of *length* bytes, None if that is not known, waits for its last byte."""
        if length is not None and length <= IN_MEMORY:
            return BytesIO()
        return SpooledTemporaryFile(IN_MEMORY) if length is None else TemporaryFile()

    def began(self, request: Request) -> float:
        """*request* is being served from now on; the time is returned."""
        self.connections.began(request)
        finished = request.notifyFinish()
        finished.addErrback(
            lambda _: self._log_access(request, 101 if request.code == 101 else CUT_OFF)
        )
        finished.addBoth(lambda _: self.connections.ended(request))
        return self.now()

    def log(self, request: Any) -> None:
        """Called by Twisted for a request that was answered to the end."""
        self._log_access(request, request.code)

    def _log_access(self, request: Any, status: int) -> None:
        self.log_line(
            request.getClientAddress(),
            request.method,
            request.path,
            status,
            request.sentLength,
            self.now() - request.started_at,
            {**request.log_fields, "request": request.id},
        )

    def log_line(
        self,
        client: object,
        method: bytes,
        path: bytes,
        status: int,
        sent: int,
        seconds: float,
        fields: Mapping[str, str | int | float],
    ) -> None:
        """One line for each request; nothing of a query, a body or a credential is in it."""
        # A client of a Unix socket has no host.
        host = getattr(client, "host", "-")
        verb = _UNPRINTABLE.sub("?", method.decode("latin-1"))
        target = _UNPRINTABLE.sub("?", path.decode("latin-1"))
        besides = "".join(
            f", {name}: {value}" for name, value in fields.items() if name != "request"
        )
        self._log.info(
            # Formatted here: Twisted's way takes three times as long, for every request.
            "{message}",
            message=f"{host} {verb} {target} {status} {sent} bytes {seconds:.3f} s{besides}",
            client=host,
            method=verb,
            path=target,
            status=status,
            sent=sent,
            seconds=seconds,
            **fields,
        )
