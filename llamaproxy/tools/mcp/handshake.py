"""The handshake: which transport and revision of MCP a server speaks, and what it can do."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from llamaproxy.errors import McpBroke
from llamaproxy.jsontext import Json
from llamaproxy.tools.mcp import messages
from llamaproxy.tools.mcp.http import HttpRefused, McpHttp
from llamaproxy.tools.mcp.http_sse import HttpSse
from llamaproxy.tools.mcp.stateless import Stateless
from llamaproxy.tools.mcp.streamable import Streamable
from llamaproxy.tools.mcp.transport import OldTransport, Transport
from llamaproxy.upstream.urls import url_for_log

_log = Logger()

#: Statuses of servers of the old transport for a POST (the official clients try it on any 4xx).
_TRY_OLD = (400, 403, 404, 405, 406, 410, 411, 415, 422, 426, 501)


#: Seconds to open a session over HTTP.
OPEN_TIMEOUT = 10.0

NextId = Callable[[], int]

#: Is called with each message that a server sends outside of a response, and the transport on which
#: it came.
Receive = Callable[[Transport, Json], None]


class Opener(Protocol):
    """Opens sessions with one server.

    *place* is where it is, for the log; *seconds* is how long it may take to open one.
    """

    @property
    def clock(self) -> IReactorTime: ...

    @property
    def place(self) -> str: ...

    @property
    def seconds(self) -> float: ...

    async def open(self, next_id: NextId, receive: Receive) -> tuple[Transport, Json]:
        """A transport with an open session, and what the server says of itself.

        That is its ``capabilities`` and its ``instructions``, which may be missing or of any type.

        :param next_id: returns the id of the next request.

        :raises McpBroke: if there is no transport that the server understands.
        """


async def initialize(transport: Transport, next_id: NextId) -> Json:
    """Agree upon a revision (MCP 2025-11-25, "Lifecycle"); what the server says of itself.

    :raises McpBroke: if the server does not.
    """
    result = await transport.ask(messages.initialize(next_id()))
    revision = result.get("protocolVersion")
    if not isinstance(revision, str) or not messages.REVISION.fullmatch(revision):
        raise McpBroke("The MCP server names no revision of MCP.")
    transport.revision = revision
    try:
        await transport.tell(messages.notification("notifications/initialized"))
    except McpBroke as error:  # the handshake is complete without it
        _log.debug("a server refuses notifications: {reason}", reason=str(error))
    return result


async def discover(transport: Transport, next_id: NextId) -> Json | None:
    """What a server says of itself that knows no handshake, None if it is none of that kind."""
    try:
        result = await transport.ask(messages.request(next_id(), "server/discover"))
    except McpBroke:
        return None
    revisions = result.get("supportedVersions")
    if not isinstance(revisions, list) or messages.STATELESS not in revisions:
        return None
    return result


@attrs.frozen(eq=False, repr=False)
class HttpOpener:
    """Finds out which transport over HTTP a server speaks. Implements :class:`Opener`."""

    _http: McpHttp
    seconds: ClassVar[float] = OPEN_TIMEOUT

    @property
    def clock(self) -> IReactorTime:
        return self._http.clock

    @property
    def place(self) -> str:
        return url_for_log(self._http.url)

    async def open(self, next_id: NextId, receive: Receive) -> tuple[Transport, Json]:
        streamable = Streamable(self._http, lambda message: receive(streamable, message))
        try:
            return streamable, await initialize(streamable, next_id)
        except messages.RpcError as error:
            if error.rpc_code in messages.NO_HANDSHAKE:
                stateless = await self._discover(next_id, receive)
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
        old = HttpSse(self._http, lambda message: receive(old, message))
        try:
            await self._open_old(old, reason)
            return old, await initialize(old, next_id)
        finally:
            if not old.revision:
                await old.close()

    async def _open_old(self, old: HttpSse, reason: McpBroke) -> None:
        """:raises McpBroke: *reason*, if the server does not speak the old transport either."""
        try:
            await old.open()
        except McpBroke as error:
            _log.debug("nor does HTTP+SSE work: {reason}", reason=str(error))
            raise reason from None

    async def _discover(self, next_id: NextId, receive: Receive) -> tuple[Transport, Json] | None:
        """The same without a handshake, None if the server does not speak that revision."""
        transport = Stateless(self._http, lambda message: receive(transport, message))
        about = await discover(transport, next_id)
        return None if about is None else (transport, about)
