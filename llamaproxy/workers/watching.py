"""Watching: what an operator is shown of several processes, put together at both ends of links."""

from __future__ import annotations

from typing import Any

from twisted.application.service import MultiService
from twisted.internet.interfaces import IReactorTime
from twisted.protocols import amp

from llamaproxy.admin.looplag import LoopLag
from llamaproxy.admin.reachability import Reachability
from llamaproxy.admin.serving import ThisProcess
from llamaproxy.admin.shown import OwnAnswers
from llamaproxy.events import Observers
from llamaproxy.jsontext import Json
from llamaproxy.workers.asking import Crew, LastRows, ServerHeard
from llamaproxy.workers.link import Link
from llamaproxy.workers.pages import WorkersShown
from llamaproxy.workers.serving import WorkersServing
from llamaproxy.workers.watched import LastRowsTold, NewsTold, WatchedWorker


class Watching(amp.CommandLocator):
    """The parent's end: those who serve clients, the answers that they give, and what they hear of
    the server.
    """

    def __init__(self, crew: Crew, own: ThisProcess, tell: Observers, clock: IReactorTime) -> None:
        """:param own: the parent, whose events *tell* tells."""
        amp.CommandLocator.__init__(self)
        self.serving = WorkersServing(crew, own, clock)
        self.shown = WorkersShown(crew, self.serving, tell, clock)
        self._clock = clock
        #: Is told what workers hear of the server.
        self.reachability: Reachability | None = None

    @ServerHeard.responder
    def server_heard(self, news: list[tuple[float, str, str]]) -> Json:
        if self.reachability is not None:
            now = self._clock.seconds()
            for at, kind, error in news:
                if kind:
                    self.reachability.failed(min(at, now), kind, error)
                else:
                    self.reachability.answered(min(at, now))
        return {}

    @LastRows.responder
    def last_rows(self, number: int, **rows: Any) -> Json:
        self.shown.take_last(number, rows)
        return {}


def watch_worker(
    services: MultiService,
    number: int,
    own: ThisProcess,
    shown: OwnAnswers,
    tell: Observers,
    link: Link,
    clock: Any,
) -> None:
    """The worker's end: have the worker *number* answer what the parent asks by *link*.

    :param services: stop what serves clients before they stop these.
    """
    lag = LoopLag(clock)
    services.addService(lag)
    news = NewsTold(link, clock)
    news.listen(tell)
    services.addService(news)
    watched = WatchedWorker(number, own, shown, lag, clock)
    services.addService(LastRowsTold(watched, link, clock))
    link.answer_with(watched)
