"""Transport: what a session needs of each way of carrying MCP's messages."""

from __future__ import annotations

from typing import Protocol

from llamaproxy.errors import McpBroke
from llamaproxy.jsontext import Json
from llamaproxy.tools.mcp.http import Fields


class SessionLost(McpBroke):
    """The MCP server does not know the session any more."""


class OldTransport(McpBroke):
    """The MCP server speaks the old HTTP+SSE transport, and no other."""


class Transport(Protocol):
    """Carries the messages of one session.

    *alive* is false once the session has ended; *revision* is that of MCP, empty until it is
    agreed upon. *has_session* is false if the server keeps nothing between two requests, so that
    there is nothing that it may have lost; *is_process* is true if the server is a process of its
    own, beside which no other is started while it is at work.
    """

    has_session: bool
    is_process: bool
    alive: bool
    revision: str

    async def ask(self, message: Json, fields: Fields = ()) -> Json:
        """Send a request, with *fields* in its header, and return its result.

        :raises SessionLost: if the server has forgotten the session, and so not acted.

        :raises McpBroke: if there is no result.
        """

    async def tell(self, message: Json, fields: Fields = ()) -> None:
        """Send a notification or a response.

        :raises McpBroke: if the server refuses it.
        """

    async def abandon(self, message: Json) -> None:
        """Cancel the request *message* at the server."""

    async def listen(self) -> None:
        """Receive what the server sends outside of any response, for as long as it will."""

    async def close(self) -> None:
        """End the session."""
