"""GreetingService: logs what the upstream is, and which tools it has, after the start."""

from __future__ import annotations

from typing import Any, ClassVar

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from llamaproxy.errors import ProxyError
from llamaproxy.tools.catalogue import Catalogue
from llamaproxy.upstream.client_context import ClientContext
from llamaproxy.upstream.dialect import Detector

#: Seconds between two requests to a server that does not answer yet, and between two warnings.
_RETRY, _WARN_INTERVAL = 5.0, 60.0


class GreetingService(Service):
    """Detects the server, lists its tools, and logs both once.

    Until it answers, it is asked again every :data:`_RETRY` seconds: it may be starting too.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self, url: str, detector: Detector, catalogue: Catalogue, clock: IReactorTime
    ) -> None:
        self._url = url
        self._detector = detector
        self._catalogue = catalogue
        self._clock: Any = clock
        self._greeting: Deferred[None] | None = None

    def startService(self) -> None:
        Service.startService(self)
        self._greeting = Deferred.fromCoroutine(self._greet())
        self._greeting.addErrback(lambda failure: failure.trap(CancelledError) and None)

    def stopService(self) -> None:
        Service.stopService(self)
        if self._greeting is not None:
            self._greeting.cancel()

    async def _greet(self) -> None:
        warned_at = -_WARN_INTERVAL
        while True:
            await deferLater(self._clock, 0)  # when all is started
            try:
                await self._detector.generation()
                if self._detector.detected is not None:
                    break
                reason = "it does not say what it is"
            except ProxyError as error:
                reason = error.logged
            if self._clock.seconds() - warned_at >= _WARN_INTERVAL:
                warned_at = self._clock.seconds()
                self._log.warn(
                    "the server at {url} does not answer yet: {reason}",
                    url=self._url,
                    reason=reason,
                )
            await deferLater(self._clock, _RETRY)
        offer = await self._catalogue.offer(ClientContext())
        groups = {tool.group for tool in offer.tools.values()}
        self._log.info(
            "the server at {url} is {name}; it has {tools} tools in {groups} groups{hint}",
            url=self._url,
            name=self._detector.detected.name,
            tools=len(offer.tools),
            groups=len(groups),
            hint="" if offer.tools else ", for whoever comes without credentials",
        )
