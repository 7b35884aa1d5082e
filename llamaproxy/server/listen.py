"""ListenService: the ports that the daemon listens on, and how it leaves them."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.interfaces import IListeningPort, IReactorTime
from twisted.logger import Logger

from llamaproxy.server.ports import Ports
from llamaproxy.server.site import ProxySite
from llamaproxy.server.twistedparts import accept_before_closing

#: Seconds in which clients may read the last that is sent to them when time is up.
_FLUSH_SECONDS = 0.5

#: Seconds until connections that have been aborted are gone: those who watch hear of that.
_ABORT_SECONDS = 0.1


class ListenService(Service):
    """Listens while it runs; when stopped, lets the requests in flight end first."""

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        reactor: Any,
        endpoints: list[str],
        site: ProxySite,
        drain: float,
        optional: bool = False,
    ) -> None:
        """:param drain: seconds that requests in flight are given.

        :param optional: whether the daemon may do without, with a warning.

        :raises CannotListen: with one clear line, if an endpoint's description is wrong.
        """
        self._clock: IReactorTime = reactor
        self.site = site
        self._drain = drain
        self._optional = optional
        self._sockets = Ports(reactor, endpoints, site, optional)
        self.draining = False
        self._stops_now = False
        self._waiting: Deferred[None] | None = None

    @property
    def _ports(self) -> list[IListeningPort]:
        return self._sockets.open

    def privilegedStartService(self) -> None:
        """Listen on every endpoint.

        :raises CannotListen: with one clear line, if one is taken.
        """
        self._sockets.listen()

    def startService(self) -> None:
        Service.startService(self)
        if not self._ports and not self._optional:
            self.privilegedStartService()

    def stop_now(self) -> None:
        """Do not wait any longer for what is being served."""
        self._stops_now = True
        if self._waiting is not None:
            self._waiting.cancel()

    async def _stop(self) -> None:
        await self._sockets.close(lambda port: accept_before_closing(self._clock, port))
        connections = self.site.connections
        connections.drain()
        if connections.running:
            self._log.info("waiting for {count} requests", count=connections.running)
        if await self._wait(0 if self._stops_now else self._drain):
            return
        if connections.running:
            self._log.warn("{count} requests have been cut short", count=connections.running)
        connections.cut_short()
        if not await self._wait(_FLUSH_SECONDS):
            connections.abort()
            await self._wait(_ABORT_SECONDS)

    async def _wait(self, seconds: float) -> bool:
        """Whether all connections have been closed within so many *seconds*."""
        self._waiting = self.site.connections.when_closed()
        try:
            await self._waiting.addTimeout(seconds, self._clock)
        except (TimeoutError, CancelledError):
            return False
        finally:
            self._waiting = None
        return True

    def stopService(self) -> Deferred[None]:
        Service.stopService(self)
        self.draining = True
        return Deferred.fromCoroutine(self._stop())


def client_url(description: str) -> str:
    """The URL by which clients reach the Twisted endpoint of that *description*."""
    described = description.removeprefix("haproxy:")  # Twisted's word for PROXY protocol
    pieces = re.split(r"(?<!\\):", described)
    kind, *parts = (re.sub(r"\\(.)", r"\1", piece) for piece in pieces)
    named = dict(part.partition("=")[::2] for part in parts if "=" in part)
    plain = [part for part in parts if "=" not in part]
    if kind == "unix":
        return f"http+unix://{named.get('address') or ''.join(plain[:1])}"
    port = named.get("port") or "".join(plain[:1])
    host = named.get("interface") or "localhost"
    scheme = "https" if kind == "ssl" else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
