"""SessionPool: the conversations with MCP servers, one for each server and credentials."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import ClassVar

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IAgent

from llamaproxy.concurrent import all_of
from llamaproxy.errors import McpBroke
from llamaproxy.tools.mcp.http import Fields, McpHttp
from llamaproxy.tools.mcp.session import Session

#: The most sessions; the one not used for the longest is closed for a new one.
MAX_SESSIONS = 256

#: Seconds after which a session that nobody uses is closed.
IDLE_TIMEOUT = 300.0


def _nothing() -> None:
    """Nobody wants to know."""


@attrs.define(eq=False)
class SessionPool:
    """Keeps sessions for their next use; two callers share one only with equal credentials.

    *changed* is told when a server says that its tools have changed.
    """

    _agent: IAgent
    _clock: IReactorTime
    _changed: Callable[[], None] = _nothing
    _sessions: OrderedDict[tuple[str, Fields], Session] = attrs.Factory(OrderedDict)
    _sweep: IDelayedCall | None = None
    _log: ClassVar[Logger] = Logger()

    def session(self, url: str, credentials: Fields) -> Session:
        """The session with the server at *url* for those *credentials*; use it at once.

        :raises McpBroke: if there are too many, and all of them in use.
        """
        key = (url, credentials)
        session = self._sessions.get(key)
        if session is None:
            if len(self._sessions) >= MAX_SESSIONS:
                self._make_room()
            http = McpHttp(self._agent, self._clock, url, credentials)
            session = self._sessions[key] = Session(http, self._changed)
            session.used_at = self._clock.seconds()
        self._sessions.move_to_end(key)
        if self._sweep is None:
            self._sweep = self._clock.callLater(IDLE_TIMEOUT, self._close_idle)
        return session

    async def close(self) -> None:
        """End all sessions."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        sessions = list(self._sessions.values())
        self._sessions.clear()
        await all_of(session.close() for session in sessions)

    def _make_room(self) -> None:
        for key, session in self._sessions.items():
            if not session.busy:
                del self._sessions[key]
                self._end(session)
                return
        raise McpBroke("Too many sessions with MCP servers are in use.")

    def _close_idle(self) -> None:
        self._sweep = None
        now = self._clock.seconds()
        for key, session in list(self._sessions.items()):
            if not session.busy and session.used_at + IDLE_TIMEOUT <= now:
                del self._sessions[key]
                self._end(session)
        if self._sessions:
            self._sweep = self._clock.callLater(IDLE_TIMEOUT, self._close_idle)

    def _end(self, session: Session) -> None:
        def broken(failure: Failure) -> None:
            if not failure.check(CancelledError, McpBroke):
                self._log.failure("closing an MCP session broke", failure)

        Deferred.fromCoroutine(session.close()).addErrback(broken)
