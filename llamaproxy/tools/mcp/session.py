"""Session: requests to one MCP server, for one caller, in one session of MCP."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any, Protocol

import attrs
from twisted.internet.defer import CancelledError, Deferred, TimeoutError

from llamaproxy.deferreds import SharedCall, all_of
from llamaproxy.errors import McpBroke, McpTimeout
from llamaproxy.jsontext import Json
from llamaproxy.tools.mcp import messages
from llamaproxy.tools.mcp.handshake import Opener
from llamaproxy.tools.mcp.http import CLEANUP_SECONDS, Fields, HttpRefused
from llamaproxy.tools.mcp.pages import ToolPages
from llamaproxy.tools.mcp.transport import SessionLost, Transport
from llamaproxy.tracecontext import current_span

#: Seconds after which a request that is cancelled makes the session doubtful: the server may hang.
_LONG_SILENCE = 1.0

#: The most messages that are sent at a time to a server without waiting; more are not sent.
_MAX_BACKGROUND = 16


class McpTools(Protocol):
    """The tools of an MCP server, for one caller.

    *instructions* are the server's, as it said them when its tools were listed.
    """

    @property
    def instructions(self) -> object: ...

    async def tools(self, fields: Fields = ()) -> list[Json]:
        """Every tool, as the server describes it; as many as it will list.

        :raises McpBroke: if there is no list at all.
        """

    async def call(self, name: str, arguments: Json, schema: Json, fields: Fields = ()) -> Json:
        """The result of a call, as the server sends it.

        :raises McpBroke: if there is none.
        """


@attrs.define(eq=False, repr=False)
class Session:
    """Lists and calls the tools of an MCP server. Implements :class:`McpTools`.

    The session is opened for the first request, and opened again when the server has forgotten it.
    What runs in the one before goes on there to its end.
    """

    _opener: Opener
    _changed: Callable[[], None]
    #: Whether to receive notifications of changes; that takes a connection of its own.
    _listens: bool = True
    #: How many requests are under way, and when the last one ended, in clock seconds.
    busy: int = 0
    used_at: float = 0.0
    #: Those of them that the server has, by what carries them; the others wait for the session.
    _in_flight: Counter[Transport] = attrs.Factory(Counter)
    #: What carries the next request.
    _transport: Transport | None = None
    #: Whether the server may have forgotten the session, which a call does not find out.
    _maybe_lost: bool = False
    #: Whether that is to be found out once nothing runs in it any more.
    _unsure: bool = False
    _opening: SharedCall[Transport] = attrs.Factory(SharedCall)
    _ids: count[int] = attrs.Factory(lambda: count(1))
    _background: set[Deferred[None]] = attrs.Factory(set)
    _listening: dict[Transport, Deferred[None]] = attrs.Factory(dict)
    #: Whether tools are among the server's capabilities.
    _has_tools: bool = True
    #: What the server said of how its tools are to be used.
    instructions: object = None
    _pages: ToolPages = attrs.field(init=False)

    @_pages.default
    def _no_pages(self) -> ToolPages:
        return ToolPages(self._opener.place)

    async def tools(self, fields: Fields = ()) -> list[Json]:
        """Every tool, as the server describes it; as many as it will list.

        To list changes nothing at the server, so a list that fails is requested once more, in a new
        session; but not while anything else runs in this one, which is checked with a ping then.

        :raises McpBroke: if there is no list at all.
        """
        previous = self._transport
        try:
            return await self._list(fields)
        except McpBroke as error:
            # A server that was restarted reports an unknown session in many ways.
            if previous is None or self._transport is not previous:
                raise
            if self._in_flight[previous]:
                self._doubt(error)
                raise
            self._forget(previous)
            return await self._list(fields)

    async def _list(self, fields: Fields) -> list[Json]:
        await self._opened()
        if not self._has_tools:
            return []
        return await self._pages.read(lambda params: self._ask("tools/list", params, fields))

    def _doubt(self, error: McpBroke) -> None:
        """Check the session before its next use, for *error* may mean that it is lost."""
        self._maybe_lost = self._maybe_lost or not _is_passing(error)

    def _forget(self, transport: Transport) -> None:
        """Begin nothing more in a session that its server may not know any more."""
        self._transport = None
        if not self._in_flight[transport]:
            self._end(transport)

    def _end(self, transport: Transport) -> None:
        """End a session in which nothing runs any more."""
        self._stop_listening(transport)
        if transport.alive:
            transport.alive = False
            self._run(transport.close(), needed=True)

    def _stop_listening(self, transport: Transport) -> None:
        listening = self._listening.pop(transport, None)
        if listening is not None:
            listening.cancel()

    async def call(self, name: str, arguments: Json, schema: Json, fields: Fields = ()) -> Json:
        """The result of a call, as the server sends it.

        A call that fails is not repeated, since the server may have acted on it; but the session is
        checked with a ping before it is used again.

        :raises McpBroke: if there is none.
        """
        params = {"name": name, "arguments": arguments}
        try:
            return await self._ask("tools/call", params, fields, schema)
        except McpBroke as error:
            self._doubt(error)
            raise

    async def close(self) -> None:
        """End the session, at the server too if it was opened; background work is cancelled."""
        self._opening.cancel()
        transport, self._transport = self._transport, None
        for running in list(self._background):
            running.cancel()
        for listened in list(self._listening):
            self._stop_listening(listened)
        transports = dict.fromkeys([*self._in_flight, *([transport] if transport else [])])
        await all_of(self._close(each) for each in transports if each.alive)

    async def _close(self, transport: Transport) -> None:
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
            self.used_at = self._opener.clock.seconds()

    async def _exchange(
        self, transport: Transport, method: str, params: Json, fields: Fields, schema: Json | None
    ) -> Json:
        message = messages.with_trace(messages.request(next(self._ids), method, params), fields)
        if schema is not None and (span := current_span.get()) is not None:
            span.asks_mcp(method, message["id"], transport.revision)
        if schema is not None and transport.revision == messages.STATELESS:
            fields += messages.parameter_fields(schema, params["arguments"])
        self._in_flight[transport] += 1
        began = self._opener.clock.seconds()
        try:
            return await transport.ask(message, fields)
        except CancelledError:
            if self._opener.clock.seconds() - began >= _LONG_SILENCE:
                self._maybe_lost = True
            self._run(transport.abandon(message))
            raise
        finally:
            self._in_flight[transport] -= 1
            if not self._in_flight[transport]:
                self._idle(transport)

    def _idle(self, transport: Transport) -> None:
        """Nothing runs any more in the session of *transport*."""
        del self._in_flight[transport]
        if transport is not self._transport:
            self._end(transport)
        elif self._unsure:
            self._maybe_lost = True

    async def _opened(self) -> Transport:
        if self._transport is not None and self._transport.alive and not self._maybe_lost:
            return self._transport
        return await self._opening.result(self._open)

    async def _open(self) -> Transport:
        previous = self._transport
        if previous is not None and previous.alive:  # it is in doubt
            still_known = await self._still_known(previous)
            self._unsure = still_known is None
            self._maybe_lost = False
            if still_known or (still_known is None and self._in_flight[previous]):
                return previous
        if previous is not None:
            self._forget(previous)
        self._maybe_lost = self._unsure = False
        opening = self._opener.open(lambda: next(self._ids), self._receive)
        opened: tuple[Transport, Json] = await self._limited(opening, self._opener.seconds)
        transport, about = opened
        self._transport = transport
        self.instructions = about.get("instructions")
        capabilities = about.get("capabilities")
        if not isinstance(capabilities, dict):
            capabilities = {}
        tools = capabilities.get("tools")
        # A server without any capabilities may have tools all the same.
        self._has_tools = tools is not None or not capabilities
        if isinstance(tools, dict) and tools.get("listChanged") and self._listens:
            listening = self._listening[transport] = Deferred.fromCoroutine(transport.listen())
            listening.addErrback(self._listening_ended)
        return transport

    async def _still_known(self, transport: Transport) -> bool | None:
        """Whether the server knows the session of *transport*; None if it does not say.

        A server may serve one request of a session at a time, and a program has forgotten nothing
        as long as it runs: what runs there is not to be lost for it.
        """
        if not transport.has_session:
            return True
        ping = messages.request(next(self._ids), "ping")
        try:
            await self._limited(transport.ask(ping), CLEANUP_SECONDS)
        except McpTimeout:
            return None
        except McpBroke as error:
            is_unknown_method = (
                isinstance(error, messages.RpcError) and error.rpc_code == messages.METHOD_NOT_FOUND
            )
            if is_unknown_method or _is_passing(error):
                return True
            return None if transport.is_process and transport.alive else False
        return transport.alive

    def _receive(self, transport: Transport, message: Json) -> None:
        """Take a *message* that is no response: a request of the server's, or a notification."""
        if message.get("method") == "notifications/tools/list_changed":
            self._changed()
        reply = messages.reply_to(message)
        if reply is not None:
            self._run(transport.tell(reply))

    def _run(self, work: Coroutine[Any, Any, None], needed: bool = False) -> None:
        """Do *work* without waiting for it.

        It is left out, unless it is *needed*, if the server has caused too much of it already.
        """
        if len(self._background) >= _MAX_BACKGROUND and not needed:
            work.close()
            return
        running = Deferred.fromCoroutine(self._limited(work, CLEANUP_SECONDS))
        self._background.add(running)
        running.addErrback(lambda failure: failure.trap(McpBroke, CancelledError) and None)
        running.addBoth(lambda _: self._background.discard(running))

    def _listening_ended(self, failure: Any) -> None:
        failure.trap(McpBroke, CancelledError)

    async def _limited(self, work: Coroutine[Any, Any, Any], seconds: float) -> Any:
        running = Deferred.fromCoroutine(work)
        running.addTimeout(seconds, self._opener.clock)
        try:
            return await running
        except TimeoutError:
            raise McpTimeout(f"The MCP server did not answer within {seconds:g} s.") from None


def _is_passing(error: McpBroke) -> bool:
    """Whether *error* is only that there are too many requests (RFC 6585 section 4)."""
    return isinstance(error, HttpRefused | messages.RpcError) and error.http_status == 429
