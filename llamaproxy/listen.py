"""ListenService: the ports that the daemon listens on, and how it leaves them."""

from __future__ import annotations

from typing import Any, ClassVar

from twisted.application.service import Service
from twisted.internet.defer import Deferred, TimeoutError, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaproxy.site import ProxySite


class CannotListen(SystemExit, Exception):
    """An endpoint is unusable or taken: the daemon does not start.

    In the foreground a SystemExit is one line and no traceback; in the background twistd tells its
    parent process of an Exception, and of nothing else.
    """


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
        self._site = site
        self._drain = drain
        self._optional = optional
        self.draining = False
        self._ports: list[IListeningPort] = []
        self._endpoints = []
        for description in endpoints:
            try:
                self._endpoints.append((description, serverFromString(reactor, description)))
            except Exception as error:  # each endpoint parser has exceptions of its own
                raise CannotListen(
                    f"twistd llamaproxy: cannot listen on {description!r}: {error}"
                ) from None

    def privilegedStartService(self) -> None:
        """Listen on every endpoint.

        :raises CannotListen: with one clear line, if one is taken.
        """
        for description, endpoint in self._endpoints:
            refused: list[Failure] = []
            endpoint.listen(self._site).addCallbacks(self._ports.append, refused.append)
            if refused:
                reason = refused[0].value
                said = getattr(reason, "socketError", reason)
                if self._optional:
                    self._log.warn(
                        "cannot listen on {endpoint}, going on without: {reason}",
                        endpoint=description,
                        reason=str(said),
                    )
                    continue
                raise CannotListen(f"twistd llamaproxy: cannot listen on {description!r}: {said}")

    def startService(self) -> None:
        Service.startService(self)
        if not self._ports and not self._optional:
            self.privilegedStartService()

    async def _stop(self) -> None:
        for port in self._ports:
            await maybeDeferred(port.stopListening)
        self._ports.clear()
        try:
            await self._site.when_idle().addTimeout(self._drain, self._clock)
        except TimeoutError:
            self._log.warn("requests were still running and have been cut off")
            self._site.cut_off()

    def stopService(self) -> Deferred[None]:
        Service.stopService(self)
        self.draining = True
        return Deferred.fromCoroutine(self._stop())
