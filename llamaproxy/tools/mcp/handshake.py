"""Handshake: which transport and revision of MCP a server speaks, and what it can do."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import attrs
from twisted.logger import Logger

from llamaproxy.errors import McpBroke
from llamaproxy.jsontext import Json
from llamaproxy.tools.mcp import messages
from llamaproxy.tools.mcp.http import HttpRefused, McpHttp
from llamaproxy.tools.mcp.http_sse import HttpSse
from llamaproxy.tools.mcp.stateless import Stateless
from llamaproxy.tools.mcp.streamable import Streamable
from llamaproxy.tools.mcp.transport import OldTransport, Transport

#: Statuses of servers of the old transport for a POST (the official clients try it on any 4xx).
_TRY_OLD = (400, 403, 404, 405, 406, 410, 411, 415, 422, 426, 501)


@attrs.frozen(eq=False, repr=False)
class Handshake:
    """Opens a session with a server.

    *next_id* returns the id of the next request; *receive* is called with each message that the
    server sends outside of a response, and the transport on which it came.
    """

    _http: McpHttp
    _next_id: Callable[[], int]
    _receive: Callable[[Transport, Json], None]
    _log: ClassVar[Logger] = Logger()

    async def open(self) -> tuple[Transport, Json]:
        """A transport with an open session, and the server's capabilities.

        :raises McpBroke: if there is no transport that the server understands.
        """
        streamable = Streamable(self._http, lambda message: self._receive(streamable, message))
        try:
            return await self._initialize(streamable)
        except messages.RpcError as error:
            if error.rpc_code in messages.NO_HANDSHAKE:
                stateless = await self._discover()
                if stateless is not None:
                    return stateless
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
        old = HttpSse(self._http, lambda message: self._receive(old, message))
        try:
            await self._open_old(old, reason)
            return await self._initialize(old)
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

    async def _initialize(self, transport: Transport) -> tuple[Transport, Json]:
        result = await transport.ask(messages.initialize(self._next_id()))
        revision = result.get("protocolVersion")
        if not isinstance(revision, str) or not messages.REVISION.fullmatch(revision):
            raise McpBroke("The MCP server names no revision of MCP.")
        transport.revision = revision
        try:
            await transport.tell(messages.notification("notifications/initialized"))
        except McpBroke as error:  # the handshake is complete without it
            self._log.debug("a server refuses notifications: {reason}", reason=str(error))
        capabilities = result.get("capabilities")
        return transport, capabilities if isinstance(capabilities, dict) else {}

    async def _discover(self) -> tuple[Transport, Json] | None:
        """The same without a handshake, None if the server does not speak that revision."""
        transport = Stateless(self._http, lambda message: self._receive(transport, message))
        try:
            result = await transport.ask(messages.request(self._next_id(), "server/discover"))
        except McpBroke:
            return None
        revisions = result.get("supportedVersions")
        if not isinstance(revisions, list) or messages.STATELESS not in revisions:
            return None
        capabilities = result.get("capabilities")
        return transport, capabilities if isinstance(capabilities, dict) else {}
