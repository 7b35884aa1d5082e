"""ListenService: the ports that the daemon listens on, and how it leaves them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.interfaces import IAddress, IListeningPort, IReactorTime
from twisted.logger import Logger

from llamaproxy.server.ports import Ports
from llamaproxy.server.site import ProxySite
from llamaproxy.server.twistedparts import accept_before_closing

#: Seconds in which clients may read the last that is sent to them when time is up.
_FLUSH_SECONDS = 0.5

#: Seconds until connections that have been aborted are gone: those who watch hear of that.
_ABORT_SECONDS = 0.1


def _nothing(addresses: Sequence[IAddress]) -> None:
    """Nobody needs to know where it listens."""


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
        listening: Callable[[Sequence[IAddress]], object] = _nothing,
    ) -> None:
        """:param drain: seconds that requests in flight are given.

        :param optional: whether the daemon may do without, with a warning.

        :param listening: called with the addresses where it listens, before anybody is served.

        :raises CannotListen: with one clear line, if an endpoint's description is wrong.
        """
        self._clock: IReactorTime = reactor
        self.site = site
        self._drain = drain
        self._optional = optional
        self._listening = listening
        self._sockets = Ports(reactor, endpoints, site, optional)
        self.draining = False
        self._stops_now = False
        self._waiting: Deferred[None] | None = None

    @property
    def _ports(self) -> list[IListeningPort]:
        return self._sockets.open

    def urls(self) -> list[str]:
        """Those of the endpoints, by which clients reach them."""
        return self._sockets.urls()

    def privilegedStartService(self) -> None:
        """Listen on every endpoint.

        :raises CannotListen: with one clear line, if one is taken.
        """
        self._sockets.listen()
        self._listening(self._sockets.addresses)

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
