"""Our MCP client as a program, for tests that bring their own server.

Run as ``python -m tests.real.mcp_client URL [TOOL...]``: it lists the server's tools, calls each of
those named, or else all of them, with made-up arguments, and prints one line of JSON for each.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from twisted.internet.task import react

from llamaproxy.tools.definitions import ToolDefinition
from llamaproxy.tools.mcp.configured import ConfiguredServer, ConfiguredServers
from llamaproxy.tools.mcp.pool import SessionPool
from llamaproxy.tools.mcp.source import McpSource
from llamaproxy.tools.source import CONFIGURED
from llamaproxy.upstream.agent import AgentForAnywhere
from llamaproxy.upstream.client_context import ClientContext
from llamaproxy.upstream.pool import UpstreamPool

MADE_UP: dict[str, Any] = {
    **{"string": "x", "integer": 2, "number": 2, "boolean": False},
    **{"array": [], "object": {}},
}


def arguments(tool: ToolDefinition) -> dict[str, Any]:
    """Something for everything that the tool requires."""
    properties = tool.parameters.get("properties", {})
    made: dict[str, Any] = {}
    for name in tool.parameters.get("required", []):
        schema = properties.get(name, {})
        made[name] = schema["enum"][0] if "enum" in schema else MADE_UP.get(schema.get("type"), "x")
    return made


async def talk(reactor: Any, url: str, *wanted: str) -> None:
    connections: Any = UpstreamPool(reactor)
    sessions = SessionPool(AgentForAnywhere(reactor, connections), reactor)
    source = McpSource(
        ConfiguredServers({"it": ConfiguredServer(url)}), sessions, reactor, CONFIGURED
    )
    listing = await source.list_tools(ClientContext())
    for group, reason in listing.failures.items():
        print(json.dumps({"failed": group, "reason": reason}))
    for tool in listing.groups.get("it", []):
        if not wanted or tool.name in wanted:
            try:
                result = await source.invoke(tool, arguments(tool), ClientContext())
                said = {"text": result.text[:500], "is_error": result.is_error}
            except Exception as error:
                said = {"error": str(error)}
            print(json.dumps({"tool": tool.name, **said}), flush=True)
    await sessions.close()
    connections.close()
    if listing.failures:
        raise SystemExit(1)


if __name__ == "__main__":
    url, *wanted = sys.argv[1:]
    react(talk, (url, *wanted))
