"""SessionPool: the sessions with MCP servers, one for each server, caller and chat."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import ClassVar

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IAgent

from llamaproxy.deferreds import all_of
from llamaproxy.errors import McpBroke
from llamaproxy.tools.mcp.handshake import HttpOpener
from llamaproxy.tools.mcp.http import Fields, McpHttp
from llamaproxy.tools.mcp.session import Session
from llamaproxy.upstream.client_context import ClientContext

#: Seconds after which a session that nobody uses is closed.
IDLE_TIMEOUT = 300.0

#: One caller may have an eighth of all sessions, and at least eight.
_SHARE = 8


@attrs.frozen
class _Key:
    """Whose a session is: servers keep state in them, so no two callers or chats share one.

    *owner* are the caller's credentials; *chat* is empty for listings.
    """

    url: str
    owner: object
    chat: str
    fields: Fields


@attrs.define(eq=False, repr=False)
class SessionPool:
    """Keeps sessions for their next use: one for each server and caller, and each of his chats.

    *changed* is called when a server notifies that its tools have changed; *max_sessions* is the
    most that there are.
    """

    _agent: IAgent
    _clock: IReactorTime
    _changed: Callable[[], None] = lambda: None
    _max_sessions: int = 1024
    _sessions: OrderedDict[_Key, Session] = attrs.field(init=False, factory=OrderedDict)
    #: Sessions by owner.
    _counts: Counter[object] = attrs.field(init=False, factory=Counter)
    _sweep: IDelayedCall | None = attrs.field(init=False, default=None)
    _log: ClassVar[Logger] = Logger()

    def session(self, url: str, fields: Fields, caller: ClientContext, chat: str = "") -> Session:
        """The session with the server at *url* of *caller*, in one *chat* of his; use it at once.

        :param fields: the header fields to send, which hold his credentials.

        :raises McpBroke: if there are too many, and all of them in use.
        """
        key = _Key(url, caller.credentials, chat, fields)
        session = self._sessions.get(key)
        if session is None:
            self._make_room(key.owner)
            opener = HttpOpener(McpHttp(self._agent, self._clock, url, fields))
            session = self._sessions[key] = Session(opener, self._changed, listens=not chat)
            session.used_at = self._clock.seconds()
            self._counts[key.owner] += 1
        self._sessions.move_to_end(key)
        if self._sweep is None:
            self._sweep = self._clock.callLater(IDLE_TIMEOUT, self._close_idle)
        return session

    def figures(self) -> dict[str, int]:
        """How many sessions there are, for the status."""
        return {
            "sessions": len(self._sessions),
            "in_use": sum(bool(session.busy) for session in self._sessions.values()),
            "max_sessions": self._max_sessions,
        }

    async def close(self) -> None:
        """End all sessions."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        sessions = list(self._sessions.values())
        self._sessions.clear()
        self._counts.clear()
        await all_of(session.close() for session in sessions)

    def _make_room(self, owner: object) -> None:
        """Close the least used idle session: of *owner*'s, if he has his share, or of the largest.

        :raises McpBroke: if there is none.
        """
        share = max(_SHARE, self._max_sessions // _SHARE)
        if self._counts[owner] >= share:
            self._drop_idle([key for key in self._sessions if key.owner == owner])
        elif len(self._sessions) >= self._max_sessions:
            [(largest, _)] = self._counts.most_common(1)
            keys = sorted(self._sessions, key=lambda key: key.owner != largest)
            self._drop_idle(keys)

    def _drop_idle(self, keys: list[_Key]) -> None:
        for key in keys:
            if not self._sessions[key].busy:
                self._drop(key)
                return
        raise McpBroke("Too many sessions with MCP servers are in use (--max-mcp-sessions).")

    def _drop(self, key: _Key) -> None:
        session = self._sessions.pop(key)
        self._counts[key.owner] -= 1
        if not self._counts[key.owner]:
            del self._counts[key.owner]
        self._end(session)

    def _close_idle(self) -> None:
        self._sweep = None
        now = self._clock.seconds()
        for key, session in list(self._sessions.items()):
            if not session.busy and session.used_at + IDLE_TIMEOUT <= now:
                self._drop(key)
        if self._sessions:
            self._sweep = self._clock.callLater(IDLE_TIMEOUT, self._close_idle)

    def _end(self, session: Session) -> None:
        def log_failure(failure: Failure) -> None:
            if not failure.check(CancelledError, McpBroke):
                self._log.failure("closing an MCP session broke", failure)

        Deferred.fromCoroutine(session.close()).addErrback(log_failure)
