"""OrderedServices: what starts in order and stops in reverse order."""

from __future__ import annotations

from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred, maybeDeferred


class OrderedServices(MultiService):
    """Stops its services one after the other, the last first.

    MultiService stops all at once, and with the demo's server what is still being answered.
    """

    def stopService(self) -> Deferred[None]:
        Service.stopService(self)
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        for service in reversed(list(self)):
            await maybeDeferred(service.stopService)
