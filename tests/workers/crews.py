"""Several assembled applications in memory, one of which is the parent of the others."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.test.iosim import FakeTransport, connect

from llamaproxy.admin.looplag import LoopLag
from llamaproxy.adminport import figures_of_clients, own_answers, this_process
from llamaproxy.jsontext import Json
from llamaproxy.upstream.client_context import ClientContext
from llamaproxy.upstream.pool import UpstreamPool
from llamaproxy.workers.link import Link
from llamaproxy.workers.watched import LastRowsTold, NewsTold, WatchedWorker, worker_keys
from llamaproxy.workers.watching import Watching
from tests.admin.inspected import CLIENTS, Inspected
from tests.support import CHAT, INVOKE, FakeStack, answer, calling, saying, tool, tool_result


def stack() -> FakeStack:
    """A server whose model calls a tool once in each chat."""
    made = FakeStack()
    made.on("GET /v1/tools", answer({"data": [tool("clock"), tool("web", "mcp::web")]}))
    made.on(CHAT, calling("clock"), saying("It is noon."))
    made.on(INVOKE, tool_result("12:00"))
    return made


class MemoryWorker(Inspected):
    """A worker, and its parent's end of the link to it."""

    def __init__(self, number: int, crew: MemoryCrew, contents: bool) -> None:
        self.number, self.pid, self.since = number, 1000 + number, crew.unix()
        self.ready, self.restarts = True, 0
        self._crew = crew
        Inspected.__init__(self, stack(), contents, clock=crew.clock)
        #: Commands that it has been asked, by their names.
        self.asked: list[str] = []
        #: Whether it does nothing at all at the moment.
        self.is_stuck = False

    def _watched(self) -> tuple[Any, Any]:
        crew = self._crew
        clients = figures_of_clients(self.options, self.app, self.front)
        clock: Any = self.clock
        own = this_process(self.app, UpstreamPool(clock), clients)
        keys = worker_keys(self.number, crew.count, crew.unix)
        shown = own_answers(
            self.options, self.app, clock, self.front.connections, lambda: [CLIENTS], keys
        )
        shown.answers.unix = crew.unix
        there = Link()
        self.link = Link(crew.parent)
        watched = WatchedWorker(self.number, own, shown, LoopLag(clock), clock)
        there.answer_with(watched)
        self.last_rows = LastRowsTold(watched, there, clock)
        NewsTold(there, clock).listen(self.app.tell)
        self.pump: Any = connect(
            self.link, FakeTransport(self.link, True), there, FakeTransport(there, False)
        )
        return own, shown

    def settle(self) -> None:
        Inspected.settle(self)
        self._crew.settle()

    def answers(self, *answers: Any) -> None:
        self.stack.on(CHAT, *answers)


class MemoryCrew:
    """Workers by their numbers, as a supervisor keeps them."""

    def __init__(self, clock: Clock, count: int) -> None:
        self.clock = clock
        self.count = count
        self.draining = False
        self.by_number: dict[int, MemoryWorker] = {}
        self._ended: Counter[int] = Counter()
        self.on_ready: list[Callable[[Any], object]] = []
        self.on_gone: list[Callable[[Any], object]] = []
        self.parent: Any = None
        #: The names of all that workers were asked.
        self.asked: list[str] = []

    @property
    def workers(self) -> list[MemoryWorker]:
        return list(self.by_number.values())

    def unix(self) -> float:
        return 1_700_000_000 + self.clock.seconds()

    async def ask(
        self, worker: MemoryWorker, command: Any, seconds: float, **values: Any
    ) -> Json | None:
        self.asked.append(command.__name__)
        try:
            return await worker.link.ask(self.clock, seconds, command, **values)
        except Exception:
            return None

    def start(self, number: int, contents: bool = False) -> MemoryWorker:
        worker = self.by_number[number] = MemoryWorker(number, self, contents)
        worker.restarts = self._ended[number]
        for hear in self.on_ready:
            hear(worker)
        self.settle()
        return worker

    def kill(self, worker: MemoryWorker) -> None:
        worker.ready, worker.is_stuck = False, True
        lost: Any = worker.link
        lost.connectionLost(Failure(ConnectionDone()))
        del self.by_number[worker.number]
        self._ended[worker.number] += 1
        for hear in self.on_gone:
            hear(worker)

    def settle(self) -> None:
        for _ in range(5):
            for worker in self.workers:
                if not worker.is_stuck:
                    worker.pump.flush()


class Parent(Inspected):
    """The parent of some workers, and its admin port."""

    def __init__(self, count: int = 2, contents: bool = False) -> None:
        clock = Clock()
        self.crew = MemoryCrew(clock, count)
        Inspected.__init__(self, stack(), contents, clock=clock)
        self.crew.parent = self.watching
        self.watching.reachability = self.reachability
        self.workers = [self.crew.start(number, contents) for number in range(1, count + 1)]
        self.result(self.catalogue.offer(ClientContext()))

    def _watched(self) -> tuple[Any, Any]:
        clock: Any = self.clock
        own = this_process(self.app, UpstreamPool(clock), {})
        self.watching = Watching(self.crew, own, self.app.tell, clock)
        self.watching.shown._unix = self.crew.unix
        return self.watching.serving, self.watching.shown

    def settle(self) -> None:
        for _ in range(3):
            Inspected.settle(self)
            self.crew.settle()

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.settle()
        for worker in self.crew.workers:
            Inspected.settle(worker)
        self.settle()

    def counted(self) -> dict[str, float]:
        """All that is exported, by name and labels as they are written."""
        text = self.get("/metrics").body.decode()
        found = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = ",".join(
                    f"{name}={value}" for name, value in sorted(sample.labels.items())
                )
                found[f"{sample.name}{{{labels}}}"] = sample.value
        return found

    def status(self) -> Any:
        return json.loads(self.get("/status").body)
