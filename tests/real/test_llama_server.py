"""A real llama-server with a real small model, and an MCP server that it has started itself.

The model's completions are helped to call tools (see ``small_model.py``); the list of tools and
their calls are llama-server's own. At the end it is llama-server alone (``native_llama.py``), and
the MCP server is the proxy's.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from .conftest import HERE, Launch, StartProxy
from .processes import Process
from .programs import Proxy, Server, deltas, spoken
from .servers import MCP_SERVER, SMALL_MODEL

pytestmark = pytest.mark.real

#: The one tool that the model is offered.
ONE_TOOL = {"X-Llamaproxy-Tools": "main_get_text"}


@pytest.fixture(scope="module")
def llama_server(
    launch: Launch, python312: str, tmp_path_factory: pytest.TempPathFactory
) -> Process:
    folder = tmp_path_factory.mktemp("llama-server")
    command = [str(MCP_SERVER.python()), str(HERE / "mcp_tools.py"), "stdio"]
    main = {"command": command[0], "args": command[1:]}
    config = folder / "mcp.json"
    config.write_text(json.dumps({"mcpServers": {"main": main}}))
    argv = [str(SMALL_MODEL.python()), str(HERE / "small_model.py")]
    return launch("llama-server", lambda port: [*argv, str(port), str(config)], "/health")


@pytest.fixture(scope="module")
def proxy(llama_server: Process, llamaproxy: StartProxy) -> Proxy:
    return llamaproxy(Server(llama_server, "", "smollm2"))


def test_it_is_recognised_and_its_mcp_servers_tools_are_run(proxy: Proxy) -> None:
    reply = proxy.chat("What is the weather in Paris?", ONE_TOOL)
    assert reply.status == 200 and spoken(reply.chunks)
    assert not any(delta.get("tool_calls") for delta in deltas(reply.chunks))
    log = proxy.process.log.read_text("utf-8")
    assert "the upstream is a plain OpenAI server" in log
    assert "tool main_get_text of llama-server answered" in log


def test_its_own_tools_are_not_offered_unless_they_are_named(
    proxy: Proxy, llamaproxy: StartProxy
) -> None:
    named = llamaproxy(proxy.server, "--builtin-tools", "get_info")
    one = {"X-Llamaproxy-Tools": "get_info,exec_shell_command"}
    for each, runs in ((proxy, False), (named, True)):
        each.chat("What runs here?", one)
        log = each.process.log.read_text("utf-8")
        assert ("tool get_info of llama-server answered" in log) is runs
        assert "exec_shell_command" not in log


@pytest.fixture(scope="module")
def native(
    launch: Launch, python312: str, llamaproxy: StartProxy, tmp_path_factory: pytest.TempPathFactory
) -> Proxy:
    argv = [str(SMALL_MODEL.python()), str(HERE / "native_llama.py")]
    server = launch("native-llama", lambda port: [*argv, str(port)], "/health")
    config = tmp_path_factory.mktemp("native") / "mcp.json"
    odd = {"command": sys.executable, "args": [str(HERE / "odd_tools.py")]}
    config.write_text(json.dumps({"mcpServers": {"odd": odd}}))
    return llamaproxy(Server(server, "", "smollm2"), "--mcp-config", str(config))


def shown_how() -> list[dict[str, Any]]:
    """A conversation in which the tool was called a few times."""
    messages: list[dict[str, Any]] = []
    for number, city in enumerate(["Paris", "London", "Berlin", "Oslo"]):
        function = {"name": "get_time", "arguments": json.dumps({"city": city})}
        call = {"id": f"c{number}", "type": "function", "function": function}
        messages += [
            {"role": "user", "content": f"What time is it in {city}?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call["id"], "content": "12:00"},
            {"role": "assistant", "content": f"It is 12:00 in {city}."},
        ]
    return [*messages, {"role": "user", "content": "What time is it in Rome?"}]


@pytest.mark.parametrize(
    ("room", "came_of_it"),
    [(60, "tool get_time of odd answered"), (16, "ran: get_time refused")],
    ids=["whole", "cut-off"],
)
def test_its_own_calls_are_run_whatever_the_schema_and_one_that_is_cut_off_ends_no_chat(
    native: Proxy, room: int, came_of_it: str
) -> None:
    reply = native.chat("", messages=shown_how(), max_tokens=room, temperature=0, seed=1)
    assert reply.status == 200 and spoken(reply.chunks)
    assert not any(delta.get("tool_calls") for delta in deltas(reply.chunks))
    assert came_of_it in native.process.log.read_text("utf-8")
