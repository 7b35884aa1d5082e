"""Generations between those of ``GENERATIONS``: less is asked of them, and seldom."""

from __future__ import annotations

import os

import pytest

from .conftest import StartProxy, StartServer
from .processes import free_port
from .programs import McpServer, spoken
from .servers import FURTHER
from .test_mcp_sources import token_for

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        "LLAMAPROXY_FURTHER" not in os.environ, reason="LLAMAPROXY_FURTHER is not set"
    ),
]


@pytest.mark.parametrize("version", list(FURTHER))
def test_tools_are_run_beside_a_dead_and_a_locked_group(
    version: str,
    start_server: StartServer,
    llamaproxy: StartProxy,
    mcp_server: McpServer,
    locked_mcp_server: McpServer,
) -> None:
    servers = {
        "main": mcp_server.url,
        "dead": f"http://127.0.0.1:{free_port()}/mcp",
        "locked": locked_mcp_server.url,
    }
    proxy = llamaproxy(start_server(version, mcp_servers=servers))
    reply = proxy.chat(f"further {version} [call ping {{}}]")
    assert spoken(reply.chunks) == "The tool said: pong"
    fields = token_for(locked_mcp_server)
    reply = proxy.chat(f"further unlocked {version} [call locked_headers {{}}]", fields)
    assert "Bearer sesame" in spoken(reply.chunks)
