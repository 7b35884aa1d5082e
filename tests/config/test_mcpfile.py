"""The mcpServers file, in the forms that clients write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaproxy.config.mcpfile import HttpServer, McpFile, Narrowed, StdioServer, mcp_file
from llamaproxy.config.mcpfile import read_mcp_file as read

FOLDER = Path("/etc/mcp")
ENVIRONMENT = {"TOKEN": "sk-secret", "EMPTY": ""}


def parsed(text: str | bytes) -> McpFile:
    data = text.encode() if isinstance(text, str) else text
    return mcp_file(data, ENVIRONMENT, FOLDER)


def entry(**values: Any) -> McpFile:
    return parsed(json.dumps({"mcpServers": {"it": values}}))


def stdio(name: str, command: str, *args: str, **more: Any) -> StdioServer:
    return StdioServer(name, command, args, **{"cwd": str(FOLDER), **more})


#: A name, a file as that client writes it, and what is in it.
FILES: dict[str, tuple[str, list[HttpServer | StdioServer]]] = {
    "Claude Desktop": (
        """{"mcpServers": {"filesystem": {"command": "npx", "args":
        ["-y", "@modelcontextprotocol/server-filesystem", "/Users/me/Desktop"]},
        "github": {"command": "docker", "args": ["run", "-i", "--rm", "-e", "GITHUB_TOKEN",
        "ghcr.io/github/github-mcp-server"], "env": {"GITHUB_TOKEN": "${TOKEN}"}}}}""",
        [
            stdio(
                "filesystem",
                "npx",
                *("-y", "@modelcontextprotocol/server-filesystem", "/Users/me/Desktop"),
            ),
            stdio(
                "github",
                "docker",
                *("run", "-i", "--rm", "-e", "GITHUB_TOKEN", "ghcr.io/github/github-mcp-server"),
                env=(("GITHUB_TOKEN", "sk-secret"),),
            ),
        ],
    ),
    "Claude Code": (
        """{"mcpServers": {"api": {"type": "http", "url": "${BASE:-https://api.example}/mcp",
        "headers": {"Authorization": "Bearer ${TOKEN}"}}}}""",
        [HttpServer("api", "https://api.example/mcp", (("Authorization", "Bearer sk-secret"),))],
    ),
    "Cursor": (
        """{"mcpServers": {"remote": {"url": "http://localhost:3000/mcp",
        "headers": {"API_KEY": "${env:TOKEN}"}}}}""",
        [HttpServer("remote", "http://localhost:3000/mcp", (("API_KEY", "sk-secret"),))],
    ),
    "VS Code": (
        """{
          // Servers of this workspace
          "inputs": [],
          "servers": {
            "fetch": {"type": "stdio", "command": "uvx", "args": ["mcp-server-fetch"],}, /* one */
            "docs": {"type": "http", "url": "https://learn.example/api/mcp"},
          },
        }""",
        [
            stdio("fetch", "uvx", "mcp-server-fetch"),
            HttpServer("docs", "https://learn.example/api/mcp"),
        ],
    ),
    "mcpo": (
        """{"mcpServers": {"time": {"command": "uvx", "args": ["mcp-server-time",
        "--local-timezone=America/New_York"], "disabledTools": ["convert_time"]},
        "mcp_sse": {"type": "sse", "url": "http://127.0.0.1:8001/sse", "headers":
        {"Authorization": "Bearer token"}}, "mcp_streamable_http": {"type": "streamable-http",
        "url": "http://127.0.0.1:8002/mcp"}}}""",
        [
            stdio(
                "time",
                "uvx",
                *("mcp-server-time", "--local-timezone=America/New_York"),
                tools=Narrowed(denied=("convert_time",)),
            ),
            HttpServer(
                "mcp_sse",
                "http://127.0.0.1:8001/sse",
                (("Authorization", "Bearer token"),),
                old=True,
            ),
            HttpServer("mcp_streamable_http", "http://127.0.0.1:8002/mcp"),
        ],
    ),
    "Cline": (
        """{"mcpServers": {"off": {"disabled": true, "command": 5}, "on": {"disabled": false,
        "command": "node", "args": ["/srv/it.js"], "env": {"PORT": 9, "DEBUG": true},
        "autoApprove": ["a"], "timeout": 60}}}""",
        [stdio("on", "node", "/srv/it.js", env=(("PORT", "9"), ("DEBUG", "true")))],
    ),
    "Windsurf": (
        """{"mcpServers": {"figma": {"serverUrl": "https://mcp.example/mcp/"}}}""",
        [HttpServer("figma", "https://mcp.example/mcp/")],
    ),
    "Gemini CLI": (
        """{"mcpServers": {"py": {"command": "python", "args": ["-m", "srv"], "cwd": "./tools",
        "includeTools": ["safe_*"], "excludeTools": ["safe_not"], "trust": false},
        "http": {"httpUrl": "http://localhost:3000/mcp", "timeout": 5000}}}""",
        [
            stdio(
                "py",
                *("python", "-m", "srv"),
                cwd="/etc/mcp/tools",
                tools=Narrowed(("safe_*",), ("safe_not",)),
            ),
            HttpServer("http", "http://localhost:3000/mcp"),
        ],
    ),
    "opencode's command": (
        """{"mcpServers": {"x": {"type": "local", "command": ["bun", "x", "it"],
        "environment": {"A": "b"}, "enabled": true}, "y": {"enabled": false, "url": 1}}}""",
        [stdio("x", "bun", "x", "it", env=(("A", "b"),))],
    ),
    "Zed": (
        """{"context_servers": {"z": {"command": "z-mcp", "args": [], "env": {}}}}""",
        [stdio("z", "z-mcp")],
    ),
    "llama.cpp": (
        """\ufeff{"mcpServers": {"calc": {"command": "/usr/bin/calc-mcp"}}}""",
        [stdio("calc", "/usr/bin/calc-mcp")],
    ),
    "names of all kinds": (
        """{"mcpServers": {"Sequential Thinking": {"command": "a"}, "@scope/server": {"url":
        "http://h/m?key=${TOKEN}"}}}""",
        [
            stdio("Sequential Thinking", "a"),
            HttpServer("@scope/server", "http://h/m?key=sk-secret"),
        ],
    ),
}


@pytest.mark.parametrize("client", FILES)
def test_files_of_clients(client: str) -> None:
    text, servers = FILES[client]
    found = parsed(text)
    assert list(found.servers.values()) == servers
    assert found.problems == {}


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({}, "neither a url nor a command"),
        ({"command": "a", "url": "http://h/m"}, "both a command and a url"),
        ({"url": "ftp://h/m"}, "its url is no URL of http or https"),
        ({"url": "http://user:sk-secret@h/m"}, "its url is no URL of http or https"),
        ({"url": 5.5}, "its url is no URL of http or https"),
        ({"command": "a", "args": "b"}, "args is not a list"),
        ({"command": "a", "args": [{}]}, "command and args has something that is not text"),
        ({"command": "a", "env": ["A"]}, "env is not an object"),
        ({"command": "a", "env": {"A=": "b"}}, "env has a name that no variable can have"),
        ({"command": "a", "env": {"A": None}}, "env has something that is not text"),
        ({"command": "a\0"}, "command and args has a NUL character"),
        ({"command": "a", "cwd": []}, "cwd has something that is not text"),
        ({"command": "${MISSING}"}, "names the variable MISSING, which is not set"),
        ({"command": "a", "env": {"A": "${input:key}"}}, "${input:key}, which is not known here"),
        ({"url": "http://h", "headers": {"A b": "c"}}, "headers has a field that cannot be sent"),
        ({"url": "http://h", "headers": {"A": "sk\r\nX: y"}}, "headers has a field that cannot"),
        ({"url": "http://h", "allowedTools": "all"}, "allowedTools is not a list"),
    ],
)
def test_an_entry_that_cannot_be_used_names_itself_and_the_rest_works(
    values: dict[str, Any], problem: str
) -> None:
    servers = {"bad": values, "good": {"url": "http://h/m"}}
    found = parsed(json.dumps({"mcpServers": servers}))
    assert list(found.servers) == ["good"]
    assert problem in found.problems["bad"]
    assert "sk-secret" not in found.problems["bad"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is not JSON"),
        ("[]", "must be a JSON object with mcpServers"),
        ("{}", "must be a JSON object with mcpServers"),
        ('{"mcpServers": []}', "must have an object under mcpServers"),
        ('{"mcpServers": {"a": {}, "a": {}}}', "has 'a' twice"),
        (b"\xff\xfe{}", "is not text in UTF-8"),
        ("[" * 100_000, "is nested too deeply"),
        (json.dumps({"mcpServers": {str(n): {} for n in range(501)}}), "more than 500 servers"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(text: str | bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parsed(text)


def test_an_empty_variable_is_one() -> None:
    assert entry(command="a", args=["${EMPTY}", "${EMPTY:-b}", "$TOKEN", "${}x"]).problems
    found = entry(command="a", args=["${EMPTY}", "${EMPTY:-b}", "${NONE:-}", "$TOKEN", "{TOKEN}"])
    assert found.servers["it"] == stdio("it", "a", "", "", "", "$TOKEN", "{TOKEN}")


def test_what_stands_in_texts_is_no_comment() -> None:
    found = entry(command="a", args=["http://h//x", "/* y */", ",]", '\\"// z', "a,}"])
    assert found.servers["it"] == stdio("it", "a", "http://h//x", "/* y */", ",]", '\\"// z', "a,}")


def test_secrets_are_not_shown_by_accident() -> None:
    found = entry(command="a", args=["${TOKEN}"], env={"A": "${TOKEN}"})
    assert "sk-secret" not in repr(found)
    assert "sk-secret" not in repr(entry(url="http://h", headers={"A": "${TOKEN}"}))


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mcp.json"
    with pytest.raises(ValueError, match="cannot be read"):
        read(str(path))
    path.write_text('{"mcpServers": {"it": {"command": "./it"}}}')
    server = read(str(path), {}).servers["it"]
    assert isinstance(server, StdioServer) and server.cwd == str(tmp_path)
    path.write_bytes(b" " * (1024 * 1024 + 1))
    with pytest.raises(ValueError, match="larger"):
        read(str(path))


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
KEYS = st.sampled_from(
    ["url", "command", "args", "env", "headers", "cwd", "type", "disabled", "allowedTools"]
)


@given(st.dictionaries(st.text(max_size=9), st.dictionaries(KEYS, JSON) | JSON, max_size=4))
def test_whatever_stands_in_it_is_a_server_or_a_problem(servers: dict[str, Any]) -> None:
    found = parsed(json.dumps({"mcpServers": servers}))
    assert not found.servers.keys() & found.problems.keys()
    assert found.servers.keys() | found.problems.keys() <= servers.keys()
