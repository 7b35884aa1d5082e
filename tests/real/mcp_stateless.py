"""A real MCP server of revision 2026-07-28 alone, made with the official SDK.

Run as ``python mcp_stateless.py PORT``; it serves MCP at ``/mcp``. The SDK would still shake hands;
here a handshake is refused in the words of the specification.
"""

# The SDK is installed where this program runs, not where it is type-checked.
# mypy: disable-error-code="import-not-found, untyped-decorator, unused-ignore"

from __future__ import annotations

import json
import sys
from typing import Any

import uvicorn
from mcp.server.mcpserver import MCPServer
from starlette.responses import JSONResponse

mcp = MCPServer("stateless")


@mcp.tool()
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


def without_handshake(app: Any) -> Any:
    """The ASGI app, for requests that stand for themselves."""

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await app(scope, receive, send)
            return
        first = await receive()
        message = json.loads(first["body"])
        if message.get("method") == "initialize":
            said = {"supported": ["2026-07-28"], "requested": message["params"]["protocolVersion"]}
            error = {"code": -32022, "message": "Unsupported protocol version", "data": said}
            refusal = JSONResponse({"jsonrpc": "2.0", "id": message["id"], "error": error}, 400)
            await refusal(scope, receive, send)
            return
        parts = [first]

        async def again() -> Any:
            return parts.pop() if parts else await receive()

        await app(scope, again, send)

    return guarded


if __name__ == "__main__":
    if sys.argv[1] == "stdio":
        mcp.run("stdio")
        sys.exit()
    uvicorn.run(without_handshake(mcp.streamable_http_app()), port=int(sys.argv[1]))
