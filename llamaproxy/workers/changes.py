"""Changes of tools: a server tells one process, and all of them list anew.

A worker that hears of one tells the parent alone, and is told by it like all others: so the
parent's lists are stale before anybody asks for them again.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.protocols import amp

from llamaproxy.events import Event
from llamaproxy.jsontext import Json
from llamaproxy.workers.link import Link

#: Seconds for an answer, before the next change is told of.
_SECONDS = 10.0


class ToolsChanged(amp.Command):
    """The tools of a server have changed."""


class ChangesHeard(amp.CommandLocator):
    """Answers :class:`ToolsChanged`: *changed* is called."""

    def __init__(self, changed: Callable[[], None]) -> None:
        amp.CommandLocator.__init__(self)
        self._changed = changed

    @ToolsChanged.responder
    def tools_changed(self) -> Json:
        self._changed()
        return {}


class ChangeTeller:
    """Tells the other end of a link of changes, of one at a time.

    However many there are while it has not answered, it is told of one more: a server may tell of
    a thousand in a second.
    """

    def __init__(self, link: Link, clock: IReactorTime) -> None:
        self._link = link
        self._clock = clock
        self._pending = False
        self._telling = False

    def changed(self) -> None:
        """Something has changed."""
        self._pending = True
        if not self._telling:
            self._telling = True
            Deferred.fromCoroutine(self._tell())

    async def _tell(self) -> None:
        try:
            while self._pending:
                self._pending = False
                try:
                    await self._link.ask(self._clock, _SECONDS, ToolsChanged)
                except TimeoutError:
                    pass  # it will hear of it when it reads again
        except CancelledError:
            raise
        except Exception:
            pass  # the other end is gone, or will be, for AMP ends a link that has failed
        finally:
            self._telling = False


class ChangeTellers:
    """A listener of the parent's that tells all workers of a change."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._tellers: dict[Link, ChangeTeller] = {}

    def joined(self, link: Link) -> None:
        """A worker has come, which is told by *link*."""
        self._tellers[link] = ChangeTeller(link, self._clock)

    def left(self, link: Link) -> None:
        """It is gone, or has never come."""
        self._tellers.pop(link, None)

    def __call__(self, event: Event) -> None:
        for teller in list(self._tellers.values()):
            teller.changed()
