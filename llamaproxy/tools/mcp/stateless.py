"""Stateless: MCP without handshake and sessions (revision 2026-07-28)."""

from __future__ import annotations

from twisted.web.iweb import IResponse

from llamaproxy.errors import McpBroke
from llamaproxy.jsontext import Json
from llamaproxy.tools.mcp import messages
from llamaproxy.tools.mcp.http import NO_LIMIT, Fields
from llamaproxy.tools.mcp.streamable import Streamable


class Stateless(Streamable):
    """Requests that have all that a server must know in themselves."""

    has_session = False
    revision = messages.STATELESS

    async def tell(self, message: Json, fields: Fields = ()) -> None:
        """Send nothing: this revision has no notifications of a client's."""

    async def abandon(self, message: Json) -> None:
        """Send nothing: closing the connection has cancelled the request."""

    async def listen(self) -> None:
        """Subscribe to changes of the tools."""
        params = {"notifications": {"toolsListChanged": True}}
        try:
            await self.ask(messages.request(-1, "subscriptions/listen", params))
        except McpBroke:
            pass

    def _fields(self, message: Json | None = None) -> Fields:
        fields = Streamable._fields(self)
        if message is None:
            return fields
        fields += (("Mcp-Method", message["method"]),)
        if message["method"] == "tools/call":
            fields += (("Mcp-Name", messages.field_value(message["params"]["name"])),)
        return fields

    async def _post(self, message: Json, fields: Fields, seconds: float = NO_LIMIT) -> IResponse:
        return await Streamable._post(self, messages.self_contained(message), fields, seconds)
