"""Session: one conversation with an MCP server, in the transport and revision that it speaks."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any, ClassVar, Protocol

import attrs
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.logger import Logger

from llamaproxy.deferreds import SharedCall
from llamaproxy.errors import McpBroke, McpTimeout
from llamaproxy.jsontext import Json
from llamaproxy.tools.mcp import messages
from llamaproxy.tools.mcp.http import CLEANUP_SECONDS, Fields, HttpRefused, McpHttp
from llamaproxy.tools.mcp.http_sse import HttpSse
from llamaproxy.tools.mcp.streamable import (
    OldTransport,
    SessionLost,
    Stateless,
    Streamable,
)
from llamaproxy.upstream.urls import bare

#: What servers of the old transport say to a POST (the official clients try it on any 4xx).
_TRY_OLD = (400, 403, 404, 405, 406, 410, 411, 415, 422, 426, 501)

#: Seconds to begin a conversation.
OPEN_TIMEOUT = 10.0

#: The most tools of one server, and the most pages of its list.
MAX_TOOLS, MAX_PAGES = 10_000, 1000

#: The most things done at a time for a server that nobody waits for; more are left undone.
_MAX_ERRANDS = 16


class Transport(Protocol):
    """One way of carrying messages; all are in the two modules of that name."""

    alive: bool
    revision: str

    async def ask(self, message: Json, fields: Fields = ()) -> Json: ...
    async def tell(self, message: Json, fields: Fields = ()) -> None: ...
    async def abandon(self, message: Json) -> None: ...
    async def listen(self) -> None: ...
    async def close(self) -> None: ...


@attrs.define(eq=False)
class Session:
    """Asks an MCP server; begins, and begins again when the server has forgotten, by itself."""

    _http: McpHttp
    _changed: Callable[[], None]
    #: Whether to hear of changes; that takes a connection of its own.
    _listens: bool = True
    #: How many requests are under way, and when the last one ended.
    busy: int = 0
    used_at: float = 0.0
    _transport: Transport | None = None
    #: Whether the server may not know the session any more, which a call does not find out.
    _doubtful: bool = False
    _opening: SharedCall[Transport] = attrs.Factory(SharedCall)
    _numbers: count[int] = attrs.Factory(lambda: count(1))
    _errands: set[Deferred[None]] = attrs.Factory(set)
    _listening: Deferred[None] | None = None
    #: Whether the server says that it has tools.
    _has_tools: bool = True
    _log: ClassVar[Logger] = Logger()

    async def tools(self, fields: Fields = ()) -> list[Json]:
        """Every tool, as the server describes it; as many as it will list.

        A list changes nothing, so one that fails in an old session is asked for in a new one.

        :raises McpBroke: if there is no list at all.
        """
        old = self._transport
        try:
            return await self._listed(fields)
        except McpBroke:
            # A server that was restarted refuses what it does not know in many ways.
            if old is None or self._transport is not old:
                raise
            await self._forget(old)
            return await self._listed(fields)

    async def _listed(self, fields: Fields) -> list[Json]:
        found: list[Json] = []
        cursors: set[str] = set()
        params: Json = {}
        await self._opened()
        if not self._has_tools:
            return []
        for _ in range(MAX_PAGES):
            try:
                page = await self._ask("tools/list", params, fields)
            except McpBroke as error:
                if not found:
                    raise
                self._incomplete(str(error))
                return found
            listed = page.get("tools")
            if not isinstance(listed, list):
                if found:
                    return found
                raise McpBroke("The MCP server sent a list without tools.")
            found += [tool for tool in listed if isinstance(tool, dict)]
            cursor = page.get("nextCursor")
            if len(found) > MAX_TOOLS:
                break
            if not isinstance(cursor, str) or not cursor:
                return found
            if cursor in cursors:
                self._incomplete("its list goes round in circles")
                return found
            cursors.add(cursor)
            params = {"cursor": cursor}
        self._incomplete(f"it lists more than {MAX_TOOLS}")
        return found[:MAX_TOOLS]

    def _incomplete(self, reason: str) -> None:
        self._log.warn(
            "not all tools of {url} are known: {reason}", url=bare(self._http.url), reason=reason
        )

    async def _forget(self, transport: Transport) -> None:
        """End a session that its server may not know any more."""
        self._transport = None
        transport.alive = False
        self._run(transport.close())

    async def call(self, name: str, arguments: Json, schema: Json, fields: Fields = ()) -> Json:
        """The result of a call, as the server sends it.

        One that fails is not made again, since the server may have acted on it; but whether it
        still knows the session is made sure of before the next use.

        :raises McpBroke: if there is none.
        """
        params = {"name": name, "arguments": arguments}
        try:
            return await self._ask("tools/call", params, fields, schema)
        except McpBroke as error:
            self._doubtful = self._doubtful or not _is_passing(error)
            raise

    async def close(self) -> None:
        """Say goodbye, to a server that has been spoken to."""
        self._opening.cancel()
        transport, self._transport = self._transport, None
        for errand in list(self._errands):
            errand.cancel()
        if self._listening is not None:
            self._listening.cancel()
        if transport is not None and transport.alive:
            try:
                await self._limited(transport.close(), CLEANUP_SECONDS)
            except McpBroke:
                pass

    async def _ask(
        self, method: str, params: Json, fields: Fields, schema: Json | None = None
    ) -> Json:
        self.busy += 1
        try:
            transport = await self._opened()
            try:
                return await self._exchange(transport, method, params, fields, schema)
            except SessionLost:
                # It has not acted on the request.
                transport = await self._opened()
                return await self._exchange(transport, method, params, fields, schema)
        finally:
            self.busy -= 1
            self.used_at = self._http.clock.seconds()

    async def _exchange(
        self, transport: Transport, method: str, params: Json, fields: Fields, schema: Json | None
    ) -> Json:
        message = messages.traced(messages.request(next(self._numbers), method, params), fields)
        if schema is not None and transport.revision == messages.STATELESS:
            fields += messages.parameter_fields(schema, params["arguments"])
        try:
            return await transport.ask(message, fields)
        except CancelledError:
            self._run(transport.abandon(message))
            raise

    async def _opened(self) -> Transport:
        if self._transport is not None and self._transport.alive and not self._doubtful:
            return self._transport
        return await self._opening.result(self._open)

    async def _open(self) -> Transport:
        old = self._transport
        if old is not None and old.alive:  # it is in doubt
            kept = await self._still_known(old)
            self._doubtful = False
            if kept:
                return old
            await self._forget(old)
        self._doubtful = False
        if self._listening is not None:
            self._listening.cancel()
        greeted: tuple[Transport, Json] = await self._limited(self._greet(), OPEN_TIMEOUT)
        transport, capabilities = greeted
        self._transport = transport
        tools = capabilities.get("tools")
        # One that says nothing of what it can do may have them all the same.
        self._has_tools = tools is not None or not capabilities
        if isinstance(tools, dict) and tools.get("listChanged") and self._listens:
            self._listening = Deferred.fromCoroutine(transport.listen())
            self._listening.addErrback(self._deaf)
        return transport

    async def _still_known(self, transport: Transport) -> bool:
        """Whether the server knows the session of *transport*."""
        if transport.revision == messages.STATELESS:
            return True
        ping = messages.request(next(self._numbers), "ping")
        try:
            await self._limited(transport.ask(ping), CLEANUP_SECONDS)
        except messages.RpcError as error:
            return error.rpc_code == messages.METHOD_NOT_FOUND or _is_passing(error)
        except McpTimeout:
            return self.busy > 1  # a server may do one thing at a time, in this very session
        except McpBroke as error:
            return _is_passing(error)
        return transport.alive

    async def _greet(self) -> tuple[Transport, Json]:
        """A transport that the server understands, and what the server can do."""
        streamable = Streamable(self._http, lambda message: self._hear(streamable, message))
        try:
            return await self._initialized(streamable)
        except messages.RpcError as error:
            if error.rpc_code in messages.NO_HANDSHAKE:
                discovered = await self._discovered()
                if discovered is not None:
                    return discovered
            status = error.http_status
            reason: McpBroke = error
        except HttpRefused as error:
            status = error.http_status
            reason = error
        except OldTransport as error:
            status, reason = 405, error
        finally:
            if not streamable.revision:
                streamable.stop()
        if status not in _TRY_OLD:
            raise reason
        old = HttpSse(self._http, lambda message: self._hear(old, message))
        try:
            await self._open_old(old, reason)
            return await self._initialized(old)
        finally:
            if not old.revision:
                await old.close()

    async def _open_old(self, old: HttpSse, reason: McpBroke) -> None:
        """:raises McpBroke: *reason*, if the server does not speak the old transport either."""
        try:
            await old.open()
        except McpBroke as error:
            self._log.debug("nor does HTTP+SSE work: {reason}", reason=str(error))
            raise reason from None

    async def _initialized(self, transport: Transport) -> tuple[Transport, Json]:
        result = await transport.ask(messages.initialize(next(self._numbers)))
        revision = result.get("protocolVersion")
        if not isinstance(revision, str) or not messages.REVISION.fullmatch(revision):
            raise McpBroke("The MCP server names no revision of MCP.")
        transport.revision = revision
        try:
            await transport.tell(messages.notification("notifications/initialized"))
        except McpBroke as error:  # it has said all that it has to say before
            self._log.debug("a server will not be told: {reason}", reason=str(error))
        capabilities = result.get("capabilities")
        return transport, capabilities if isinstance(capabilities, dict) else {}

    async def _discovered(self) -> tuple[Transport, Json] | None:
        """The same without a handshake, None if the server does not speak that revision."""
        transport = Stateless(self._http, lambda message: self._hear(transport, message))
        try:
            result = await transport.ask(messages.request(next(self._numbers), "server/discover"))
        except McpBroke:
            return None
        revisions = result.get("supportedVersions")
        if not isinstance(revisions, list) or messages.STATELESS not in revisions:
            return None
        capabilities = result.get("capabilities")
        return transport, capabilities if isinstance(capabilities, dict) else {}

    def _hear(self, transport: Transport, message: Json) -> None:
        """What the server says of its own accord: requests are answered, the rest is noted."""
        if message.get("method") == "notifications/tools/list_changed":
            self._changed()
        reply = messages.reply_to(message)
        if reply is not None:
            self._run(transport.tell(reply))

    def _run(self, errand: Coroutine[Any, Any, None]) -> None:
        """Do what nobody waits for; a server that causes too much of it is its own loss."""
        if len(self._errands) >= _MAX_ERRANDS:
            errand.close()
            return
        running = Deferred.fromCoroutine(self._limited(errand, CLEANUP_SECONDS))
        self._errands.add(running)
        running.addErrback(lambda failure: failure.trap(McpBroke, CancelledError) and None)
        running.addBoth(lambda _: self._errands.discard(running))

    def _deaf(self, failure: Any) -> None:
        failure.trap(McpBroke, CancelledError)

    async def _limited(self, work: Coroutine[Any, Any, Any], seconds: float) -> Any:
        waiting = Deferred.fromCoroutine(work)
        waiting.addTimeout(seconds, self._http.clock)
        try:
            return await waiting
        except TimeoutError:
            raise McpTimeout(f"The MCP server did not answer within {seconds:g} s.") from None


def _is_passing(error: McpBroke) -> bool:
    """Whether *error* says no more than that the server is asked too often."""
    return isinstance(error, HttpRefused | messages.RpcError) and error.http_status == 429
