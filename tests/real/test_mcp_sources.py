"""MCP servers behind every generation: dead, locked, restarted, and the server replaced by another.

A group is named ``main`` by a connector and ``mcp::main`` by a tool group; the tools are the same.
"""

from __future__ import annotations

import json
from functools import partial

import pytest

from .conftest import StartProxy, StartServer
from .processes import Process, free_port
from .programs import (
    OUR_TOOLS,
    McpServer,
    Proxy,
    ScriptedModel,
    Server,
    eventually,
    names,
    spoken,
    user,
)
from .servers import GENERATIONS

pytestmark = pytest.mark.real

LOCKED_TOOLS = [f"locked_{name}" for name in OUR_TOOLS]

STREAMABLE = [v for v, generation in GENERATIONS.items() if generation.speaks_streamable_http]


def token_for(server: McpServer, header: str = "X-LlamaStack-Provider-Data") -> dict[str, str]:
    """The one way in which a user's token for an MCP server travels."""
    fields = {server.url: {"Authorization": "Bearer sesame", "X-Team": "blue"}}
    return {header: json.dumps({"mcp_headers": fields})}


@pytest.fixture(scope="module", params=STREAMABLE)
def version(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture(scope="module")
def proxy(
    version: str,
    start_server: StartServer,
    llamaproxy: StartProxy,
    mcp_server: McpServer,
    locked_mcp_server: McpServer,
) -> Proxy:
    """In front of a server with three MCP servers: one lives, one is dead, one is locked."""
    servers = {
        "main": mcp_server.url,
        "dead": f"http://127.0.0.1:{free_port()}/mcp",
        "locked": locked_mcp_server.url,
    }
    return llamaproxy(start_server(version, mcp_servers=servers))


def test_a_dead_and_a_locked_group_do_not_cost_the_living(
    proxy: Proxy, version: str, scripted_model: ScriptedModel
) -> None:
    marker = f"beside the dead on {version}"
    reply = proxy.chat(f"{marker} [call ping {{}}]")
    assert spoken(reply.chunks) == "The tool said: pong"
    assert names(scripted_model.bodies(marker)[0]) == OUR_TOOLS


@pytest.mark.parametrize("header", ["X-LlamaStack-Provider-Data", "X-OGX-Provider-Data"])
def test_a_users_token_opens_the_locked_group(
    proxy: Proxy,
    version: str,
    header: str,
    scripted_model: ScriptedModel,
    locked_mcp_server: McpServer,
) -> None:
    marker = f"unlocked on {version} by {header}"
    fields = token_for(locked_mcp_server, header) | {"Authorization": "Bearer the-clients-own"}
    reply = proxy.chat(f"{marker} [call locked_headers {{}}]", fields)
    said = spoken(reply.chunks)
    assert "Bearer sesame" in said
    assert "the-clients-own" not in said
    assert "'x-team': 'blue'" in said
    assert names(scripted_model.bodies(marker)[0]) == LOCKED_TOOLS + OUR_TOOLS


def test_the_token_goes_to_no_other_server(
    proxy: Proxy, version: str, locked_mcp_server: McpServer
) -> None:
    reply = proxy.chat(f"other on {version} [call headers {{}}]", token_for(locked_mcp_server))
    assert "sesame" not in spoken(reply.chunks)
    assert "blue" not in spoken(reply.chunks)


def test_a_dead_group_does_not_cost_the_living_on_the_oldest(
    start_server: StartServer, llamaproxy: StartProxy, mcp_sse_server: McpServer
) -> None:
    """It answers 500 to the whole list then."""
    servers = {"main": mcp_sse_server.url, "dead": f"http://127.0.0.1:{free_port()}/sse"}
    proxy = llamaproxy(start_server("0.2.12", mcp_servers=servers))
    assert spoken(proxy.chat("the oldest [call ping {}]").chunks) == "The tool said: pong"


def test_an_mcp_server_of_the_old_transport(
    start_server: StartServer, llamaproxy: StartProxy, mcp_sse_server: McpServer
) -> None:
    proxy = llamaproxy(start_server("0.7.3", mcp_servers={"main": mcp_sse_server.url}))
    assert spoken(proxy.chat("over SSE [call ping {}]").chunks) == "The tool said: pong"


@pytest.mark.parametrize("transport", ["mcp_server", "mcp_sse_server"])
def test_servers_named_by_hand_work_with_a_plain_openai_server(
    request: pytest.FixtureRequest,
    llamaproxy: StartProxy,
    scripted_model: ScriptedModel,
    transport: str,
) -> None:
    mcp_server: McpServer = request.getfixturevalue(transport)
    plain = Server(scripted_model.process, "plain", "scripted-1")
    proxy = llamaproxy(plain, "--mcp-server", f"mine={mcp_server.url}")
    marker = f"plain over {transport}"
    reply = proxy.chat(f'{marker} [call get_text {{"city": "Oslo"}}]')
    assert spoken(reply.chunks) == "The tool said: Sunny in Oslo for 3 days"
    assert names(scripted_model.bodies(marker)[0]) == OUR_TOOLS


def test_a_client_that_leaves_cancels_the_tool_at_its_server(
    llamaproxy: StartProxy, scripted_model: ScriptedModel, mcp_server: McpServer
) -> None:
    plain = Server(scripted_model.process, "plain", "scripted-1")
    proxy = llamaproxy(plain, "--mcp-server", f"mine={mcp_server.url}")
    before = mcp_server.calls("slow", "cancelled")
    started = mcp_server.calls("slow", "started")
    connection = proxy.connect()
    asked = {"model": "scripted-1", "messages": user('[call slow {"seconds": 30}]')}
    body = json.dumps({**asked, "stream": True})
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    eventually(lambda: mcp_server.calls("slow", "started") > started)
    connection.close()
    eventually(lambda: mcp_server.calls("slow", "cancelled") > before)


def test_a_stateless_mcp_server(
    llamaproxy: StartProxy, scripted_model: ScriptedModel, stateless_mcp_server: Process
) -> None:
    plain = Server(scripted_model.process, "plain", "scripted-1")
    proxy = llamaproxy(plain, "--mcp-server", f"mine={stateless_mcp_server.url}/mcp")
    reply = proxy.chat('without a handshake [call add {"a": 2, "b": 3}]')
    assert spoken(reply.chunks) == "The tool said: 5"


# --- restarts and replacements


@pytest.mark.parametrize("version", ["0.6.1", "0.7.3"], scope="module")
def test_an_mcp_server_that_was_restarted_is_used_again(
    version: str,
    start_server: StartServer,
    llamaproxy: StartProxy,
    restartable_mcp_server: McpServer,
) -> None:
    servers = {"main": restartable_mcp_server.url}
    proxy = llamaproxy(start_server(version, mcp_servers=servers))
    for time in ("before", "after"):
        reply = proxy.chat(f"{time} the restart on {version} [call ping {{}}]")
        assert spoken(reply.chunks) == "The tool said: pong"
        restartable_mcp_server.process.restart()


def test_a_server_that_is_replaced_by_other_generations_on_its_port(
    start_server: StartServer, llamaproxy: StartProxy
) -> None:
    """A list of tools is fresh for a minute: what it says is then put right by the first call."""
    port = free_port()
    proxy: Proxy | None = None
    for version in ("0.6.1", "0.7.3", "ogx-1.5.0", "0.3.5"):
        server = start_server(version, port=port)
        proxy = proxy or llamaproxy(server)

        def pongs(through: Proxy, version: str = version) -> bool:
            reply = through.chat(f"replaced by {version} [call ping {{}}]")
            return reply.status == 200 and "pong" in spoken(reply.chunks)

        assert eventually(partial(pongs, proxy), 15.0)
        server.process.stop()
