"""ConfiguredServers: the MCP servers that the operator names, which may change while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase

import attrs

from llamaproxy.tools.mcp.http import Fields
from llamaproxy.tools.mcp.programs import ProgramServer
from llamaproxy.tools.source import BACKGROUND, ListLimits
from llamaproxy.upstream.client_context import ClientContext


@attrs.frozen
class ConfiguredServer:
    """One of them: at the URL *endpoint*, which gets the header fields *fields*, or a *program*.

    Only its tools are offered that match a pattern of *allowed*, if that is not None, and none of
    *denied*.
    """

    endpoint: str
    fields: Fields = attrs.field(default=(), repr=False)
    program: ProgramServer | None = None
    allowed: tuple[str, ...] | None = None
    denied: tuple[str, ...] = ()

    def offers(self, tool: str) -> bool:
        """Whether the tool of that name may be offered and called."""
        if self.allowed is not None and not _matches(tool, self.allowed):
            return False
        return not _matches(tool, self.denied)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


class ConfiguredServers:
    """The MCP servers by name. Implements :class:`llamaproxy.tools.mcp.source.McpServers`."""

    def __init__(
        self,
        servers: Mapping[str, ConfiguredServer],
        on_programs: Callable[[list[ProgramServer]], None] = lambda programs: None,
    ) -> None:
        """:param on_programs: is called with the programs among the servers, now and at changes."""
        self._on_programs = on_programs
        self.configure(servers)

    def configure(self, servers: Mapping[str, ConfiguredServer]) -> None:
        """Have *servers* from now on."""
        self._servers = servers
        self._on_programs([each.program for each in servers.values() if each.program is not None])

    def endpoints(self) -> dict[str, str]:
        """Those of the servers, by name."""
        return {name: server.endpoint for name, server in self._servers.items()}

    async def named(
        self, caller: ClientContext, limits: ListLimits = BACKGROUND
    ) -> Mapping[str, str]:
        return self.endpoints()

    def fields(self, name: str, endpoint: str) -> Fields:
        server = self._servers.get(name)
        # What was for one server is not sent to another that has taken its name.
        return () if server is None or server.endpoint != endpoint else server.fields

    def offers(self, name: str, tool: str, endpoint: str = "") -> bool:
        server = self._servers.get(name)
        if server is None or not server.offers(tool):
            return False
        # A program that is started in another way now has ended, or does when its last call has.
        return server.program is None or endpoint in ("", server.endpoint)
