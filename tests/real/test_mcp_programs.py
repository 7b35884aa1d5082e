"""MCP servers that are programs of others', named by an mcpServers file: they work, and are gone.

In front of a plain OpenAI server, as whoever has Ollama or vLLM.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import HERE, StartProxy
from .programs import McpServer, Proxy, ScriptedModel, Server, eventually, names, spoken
from .servers import MCP_SERVER, STATELESS_MCP_SERVER
from .test_mcp_client import node

__all__ = ["node"]

pytestmark = pytest.mark.real

PROGRAM = HERE.parent / "tools" / "program.py"


def children(pid: int) -> set[int]:
    """The processes that *pid* has started, and those that these have."""
    found: set[int] = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text("ascii", "replace").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found |= {int(stat.parent.name), *children(int(stat.parent.name))}
    return found


def are_gone(pids: set[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.fixture(scope="module")
def config(
    node: Path,
    python312: str,
    locked_mcp_server: McpServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Path]:
    """A file with a server of each official SDK, one that ends at once, and one that cannot be."""
    everything = node / "@modelcontextprotocol" / "server-everything" / "dist" / "index.js"
    servers: dict[str, Any] = {
        "everything": {
            "command": str(node / ".bin" / "node"),
            "args": [str(everything), "stdio"],
            "allowedTools": ["echo", "get-sum"],
        },
        "one": {
            "command": str(MCP_SERVER.python()),
            "args": [str(HERE / "mcp_tools.py"), "stdio"],
            "disabledTools": ["big", "slow"],
        },
        "two": {
            "command": str(STATELESS_MCP_SERVER.python()),
            "args": [str(HERE / "mcp_stateless.py"), "stdio"],
        },
        "ends": {"command": sys.executable, "args": [str(PROGRAM), "dead"]},
        "over http": {
            "url": locked_mcp_server.url,
            "headers": {"Authorization": "Bearer ${NO_SUCH_VARIABLE:-sesame}"},
            "allowedTools": ["locked_get_*"],
        },
        "bad": {"command": "${NO_SUCH_VARIABLE}"},
    }
    path = tmp_path_factory.mktemp("mcp") / "mcp.json"
    path.write_text(json.dumps({"mcpServers": servers}))
    yield path


@pytest.fixture(scope="module")
def proxy(scripted_model: ScriptedModel, llamaproxy: StartProxy, config: Path) -> Proxy:
    plain = Server(scripted_model.process, "", "scripted-1")
    proxy = llamaproxy(plain, "--mcp-config", str(config))

    def offered() -> Any:
        proxy.chat("warm up [plain]")
        return {"add", "echo", "ping"} <= set(names(scripted_model.bodies("warm up")[-1]))

    eventually(offered, 60)
    return proxy


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        ('[call echo {"message": "hello"}]', "hello"),
        ('[call get-sum {"a": 2, "b": 3}]', "5"),
        ("[call ping {}]", "pong"),
        ('[call add {"a": 2, "b": 40}]', "42"),
        ('[call locked_get_text {"city": "Rome"}]', "Sunny in Rome"),
    ],
)
def test_tools_of_programs_run_in_a_chat(proxy: Proxy, call: str, answer: str) -> None:
    assert answer in spoken(proxy.chat(call).chunks)


def test_what_is_offered_is_what_the_file_allows(
    proxy: Proxy, scripted_model: ScriptedModel
) -> None:
    proxy.chat("what is there [plain]")
    offered = set(names(scripted_model.bodies("what is there")[0]))
    assert offered >= {"echo", "get-sum", "ping", "add"}
    assert not offered & {"big", "slow", "get-env", "print-env"}


def test_what_is_wrong_is_in_the_log(proxy: Proxy) -> None:
    log = proxy.process.log.read_text("utf-8")
    assert "the MCP server bad of" in log and "names the variable NO_SUCH_VARIABLE" in log
    assert "MCP server ends writes: I cannot" in log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_of_them(
    scripted_model: ScriptedModel, llamaproxy: StartProxy, config: Path, number: signal.Signals
) -> None:
    plain = Server(scripted_model.process, "", "scripted-1")
    proxy = llamaproxy(plain, "--mcp-config", str(config), "--tools-ttl", str(50 + number))
    assert eventually(lambda: "42" in spoken(proxy.chat('[call add {"a": 2, "b": 40}]').chunks), 60)
    started = children(proxy.process.pid)
    assert len(started) >= 3
    os.kill(proxy.process.pid, number)
    eventually(lambda: are_gone(started), 20)
