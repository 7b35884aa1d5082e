"""ProgramPool: the sessions with the MCP servers that are programs of this machine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import ClassVar, Protocol
from urllib.parse import quote

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorProcess, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaproxy.deferreds import all_of
from llamaproxy.errors import McpBroke
from llamaproxy.tools.mcp.http import Fields
from llamaproxy.tools.mcp.pool import IDLE_TIMEOUT, SessionPool
from llamaproxy.tools.mcp.program import Command
from llamaproxy.tools.mcp.session import McpTools, Session
from llamaproxy.tools.mcp.stdio import StdioOpener
from llamaproxy.upstream.client_context import ClientContext

#: What the endpoint of a program begins with, in place of a URL's scheme.
_SCHEME = "stdio://"

#: The most processes of all programs.
MAX_PROGRAMS = 64

#: Seconds between two looks at programs that are no longer wanted, but still at work.
_LAST_CALLS = 1.0


@attrs.frozen
class ProgramServer:
    """A program that is an MCP server; *per_caller*: whether each caller has one of his own."""

    command: Command
    per_caller: bool = False

    @property
    def endpoint(self) -> str:
        """What stands for a URL; that of another command is another, though of the same name."""
        # Only its hash leaves this process: there may be secrets in it.
        digest = hashlib.blake2b(repr(attrs.astuple(self)).encode(), digest_size=8).hexdigest()
        return f"{_SCHEME}{quote(self.command.name, safe='')}#{digest}"


def is_program(endpoint: str) -> bool:
    """Whether *endpoint* is that of a program."""
    return endpoint.startswith(_SCHEME)


class Programs(Protocol):
    """Has sessions with programs, in this process or in another."""

    def configure(self, servers: list[ProgramServer]) -> None:
        """Have *servers* from now on; others end as soon as nothing runs in them any more."""

    def session(self, endpoint: str, caller: ClientContext) -> McpTools:
        """The session with the program of *endpoint* for *caller*; use it at once.

        :raises McpBroke: if there is no such program any more, or there are too many.
        """

    def figures(self) -> Mapping[str, int]:
        """How many sessions there are, for the status."""

    async def close(self) -> None:
        """End all programs."""


@attrs.define(eq=False, repr=False)
class ProgramPool:
    """Starts programs at their first use, and keeps them, one for all or one for each caller.

    Implements :class:`Programs`. *changed* is called when a server notifies that its tools have
    changed.
    """

    _reactor: IReactorProcess | None
    _clock: IReactorTime
    _changed: Callable[[], None] = lambda: None
    _servers: Mapping[str, ProgramServer] = attrs.field(init=False, factory=dict)
    #: By endpoint and owner, the latest last.
    _sessions: dict[tuple[str, object], Session] = attrs.field(init=False, factory=dict)
    _sweep: IDelayedCall | None = attrs.field(init=False, default=None)
    _ending: set[Deferred[None]] = attrs.field(init=False, factory=set)
    _log: ClassVar[Logger] = Logger()

    def configure(self, servers: list[ProgramServer]) -> None:
        """Have *servers* from now on; others end as soon as nothing runs in them any more."""
        self._servers = {server.endpoint: server for server in servers}
        if len(self._servers) > MAX_PROGRAMS:
            self._log.warn(
                "{count} MCP servers are programs, and {limit} run at a time: one that is not at "
                "work ends when another is needed",
                count=len(self._servers),
                limit=MAX_PROGRAMS,
            )
        self._look_around()

    def session(self, endpoint: str, caller: ClientContext) -> Session:
        """The session with the program of *endpoint* for *caller*; use it at once.

        :raises McpBroke: if there is no such program any more, or there are too many.
        """
        return self.session_of(endpoint, caller.credentials)

    def session_of(self, endpoint: str, owner: object) -> Session:
        """The same for what tells callers apart."""
        server = self._servers.get(endpoint)
        if server is None or self._reactor is None:
            raise McpBroke("The MCP server is not configured any more.")
        key = endpoint, owner if server.per_caller else None
        session = self._sessions.pop(key, None)
        if session is None:
            self._make_room()
            opener = StdioOpener(server.command, self._reactor, self._clock)
            session = Session(opener, self._changed)
            session.used_at = self._clock.seconds()
        self._sessions[key] = session
        self._look_later(IDLE_TIMEOUT)
        return session

    def figures(self) -> dict[str, int]:
        """How many sessions there are, for the status."""
        return {"programs": len(self._sessions), "max_programs": MAX_PROGRAMS}

    async def close(self) -> None:
        """End all programs."""
        self._servers = {}
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        sessions = list(self._sessions.values())
        self._sessions.clear()
        await all_of(session.close() for session in sessions)
        await all_of(map(_ended, list(self._ending)))

    def _make_room(self) -> None:
        """:raises McpBroke: if there are too many, and all of them in use."""
        if len(self._sessions) < MAX_PROGRAMS:
            return
        # Those that one caller alone has are the first to go: there may be any number of callers.
        for key in sorted(self._sessions, key=lambda key: key[1] is None):
            if not self._sessions[key].busy:
                self._end(key)
                return
        raise McpBroke(f"There are {MAX_PROGRAMS} MCP servers running already, and all at work.")

    def _look_later(self, seconds: float) -> None:
        if self._sweep is None:
            self._sweep = self._clock.callLater(seconds, self._look_around)

    def _look_around(self) -> None:
        """End what is not wanted any more, and what one caller alone had and has not used."""
        if self._sweep is not None and self._sweep.active():
            self._sweep.cancel()
        self._sweep = None
        now, seconds = self._clock.seconds(), IDLE_TIMEOUT
        for (endpoint, owner), session in list(self._sessions.items()):
            unwanted = endpoint not in self._servers
            idle = owner is not None and session.used_at + IDLE_TIMEOUT <= now
            if session.busy:
                seconds = _LAST_CALLS if unwanted else seconds
            elif unwanted or idle:
                self._end((endpoint, owner))
        if self._sessions:
            self._look_later(seconds)

    def _end(self, key: tuple[str, object]) -> None:
        ending = Deferred.fromCoroutine(self._sessions.pop(key).close())
        self._ending.add(ending)

        def ended(result: object) -> None:
            self._ending.discard(ending)
            if isinstance(result, Failure) and not result.check(CancelledError, McpBroke):
                self._log.failure("ending an MCP server broke", result)

        ending.addBoth(ended)


async def _ended(ending: Deferred[None]) -> None:
    over: Deferred[None] = Deferred()
    ending.addBoth(lambda _: over.callback(None))
    await over


@attrs.frozen(eq=False, repr=False)
class AllSessions:
    """Sessions over HTTP, and with programs.

    Implements :class:`llamaproxy.tools.mcp.source.Sessions`.
    """

    _over_http: SessionPool
    _programs: Programs

    def session(
        self, endpoint: str, fields: Fields, caller: ClientContext, chat: str = ""
    ) -> McpTools:
        if is_program(endpoint):
            return self._programs.session(endpoint, caller)
        return self._over_http.session(endpoint, fields, caller, chat)
