"""A parent and its workers, whole but for sockets and processes, in front of one server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.task import Clock
from twisted.test.iosim import FakeTransport, connect

from llamaproxy.events import ListsStale
from llamaproxy.workers.changes import ChangesHeard, ChangeTellers
from llamaproxy.workers.link import Link
from llamaproxy.workers.listing import SharedLists, ToolsOfParent
from tests.support import CHAT, Exchange, FakeStack, Proxy, answer, saying, tool

#: Times that data is moved everywhere: more than any exchange needs.
_ENOUGH = 6

TOOLS = "GET /v1/tools"


class Worker(Proxy):
    """One of several workers, which are settled together."""

    def __init__(self, stack: FakeStack, several: Several, link: Link, **options: Any) -> None:
        elsewhere = ToolsOfParent(link, several.clock)
        Proxy.__init__(self, stack, several.clock, elsewhere=elsewhere, **options)
        self.link = link


class Several:
    """*parent* and *workers*; of their links each can be cut or left as it is."""

    def __init__(
        self,
        workers: int = 4,
        stack: FakeStack | None = None,
        max_offered: int = 10**6,
        mcp: Any = None,
        **options: Any,
    ) -> None:
        """:param mcp: makes the agent of each process that finds MCP servers."""
        self.clock = Clock()
        self.stack = stack or FakeStack()
        if stack is None:
            self.stack.on(TOOLS, answer({"data": [tool("ping")]}))
            self.stack.on(CHAT, saying("Hello."))

        def agents() -> dict[str, Any]:
            return {} if mcp is None else {"mcp": mcp()}

        self.parent = Proxy(self.stack, self.clock, **agents(), **options)
        catalogue = self.parent.catalogue
        shared = SharedLists(catalogue, self.parent.detector, max_offered)
        tellers = ChangeTellers(self.clock)
        self.parent.app.tell.listen(tellers, ListsStale)
        self.workers: list[Worker] = []
        self.pumps: list[Any] = []
        #: Whether the links carry anything just now.
        self.carrying = True
        for number in range(workers):

            def changed(number: int = number) -> None:
                self.workers[number].catalogue.changed()

            here, there = Link(ChangesHeard(changed)), Link(shared, ChangesHeard(catalogue.changed))
            there_transport = FakeTransport(there, True)
            self.pumps.append(
                connect(there, there_transport, here, FakeTransport(here, False), False, self.clock)
            )
            tellers.joined(there)
            there.lost.addCallback(self._lost(tellers, there))
            self.workers.append(Worker(self.stack, self, here, **agents(), **options))

    @staticmethod
    def _lost(tellers: ChangeTellers, link: Link) -> Callable[[None], None]:
        return lambda _: tellers.left(link)

    def settle(self) -> None:
        """Let everything happen that is under way."""
        for _ in range(_ENOUGH):
            for proxy in (self.parent, *self.workers):
                proxy.settle()
            if self.carrying:
                for pump in self.pumps:
                    pump.flush()

    def advance(self, seconds: float) -> None:
        """Let time pass, and everything happen that is then due."""
        self.clock.advance(seconds)
        self.settle()

    def chat(self, worker: int, token: str = "") -> Exchange:
        """A chat that this *worker* serves, of the caller with *token*."""
        exchange = self.workers[worker].chat(
            fields={"Authorization": f"Bearer {token}"} if token else None
        )
        self.settle()
        return exchange

    def offered(self, worker: int, token: str = "") -> list[str]:
        """What the model is offered in a chat that this *worker* serves."""
        before = len(self.stack.asked_for(CHAT))
        assert self.chat(worker, token).status == 200
        [asked] = self.stack.asked_for(CHAT)[before:]
        return [each["function"]["name"] for each in asked.json().get("tools", [])]

    def listings(self) -> int:
        """How often the server has been asked for its tools."""
        return len(self.stack.asked_for(TOOLS))

    def cut(self, worker: int) -> None:
        """The parent of this *worker* is gone, as it finds."""
        self.pumps[worker].server.transport.loseConnection()
        self.settle()
