"""The whole way with nothing scripted: a real language model, a real server, a real tool.

What so small a model says is of no interest; that it called, and that it spoke after the tool
answered, is.
"""

from __future__ import annotations

import pytest

from .conftest import StartProxy
from .programs import McpServer, Proxy, Server, deltas, spoken, user

pytestmark = pytest.mark.real

# The model chooses poorly among several tools.
ONE_TOOL = {"X-Llamaproxy-Tools": "get_text"}
QUESTION = "What is the weather in Paris?"


@pytest.fixture(scope="module")
def small_proxy(llamaproxy: StartProxy, small_stack: Server) -> Proxy:
    return llamaproxy(small_stack)


def test_unary(small_proxy: Proxy, mcp_server: McpServer) -> None:
    before = mcp_server.calls("get_text")
    completion = small_proxy.create(messages=user(QUESTION), extra_headers=ONE_TOOL)
    assert mcp_server.calls("get_text") == before + 1
    assert completion.choices[0].finish_reason in ("stop", "length")
    assert completion.choices[0].message.content
    assert not completion.choices[0].message.tool_calls


def test_streaming(small_proxy: Proxy, mcp_server: McpServer) -> None:
    before = mcp_server.calls("get_text")
    reply = small_proxy.chat(QUESTION, ONE_TOOL)
    assert mcp_server.calls("get_text") == before + 1
    assert spoken(reply.chunks)
    assert not any(delta.get("tool_calls") for delta in deltas(reply.chunks))


def test_a_named_choice(small_proxy: Proxy, mcp_server: McpServer) -> None:
    """Of all tools, the named one is called, once."""
    before = mcp_server.calls("ping")
    reply = small_proxy.chat(
        "Ping, please.", tool_choice={"type": "function", "function": {"name": "ping"}}
    )
    assert mcp_server.calls("ping") == before + 1
    assert spoken(reply.chunks)
