"""The mcpServers file, in the forms that clients write."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaproxy.config.mcpfile import McpFile, mcp_file
from llamaproxy.config.mcpfile import read_mcp_file as read
from llamaproxy.tools.mcp.configured import ConfiguredServer
from llamaproxy.tools.mcp.program import Command
from llamaproxy.tools.mcp.programs import ProgramServer

FOLDER = Path("/etc/mcp")
ROOT = Path(__file__).parent.parent.parent
SCHEMA = jsonschema.Draft202012Validator(
    json.loads((ROOT / "llamaproxy" / "config" / "mcp.schema.json").read_text("utf-8"))
)
ENVIRONMENT = {"TOKEN": "sk-secret", "EMPTY": ""}


def parsed(text: str | bytes) -> McpFile:
    data = text.encode() if isinstance(text, str) else text
    return mcp_file(data, ENVIRONMENT, FOLDER)


def entry(**values: Any) -> McpFile:
    return parsed(json.dumps({"mcpServers": {"it": values}}))


Named = tuple[str, ConfiguredServer]


def http(name: str, url: str, fields: Any = (), **more: Any) -> Named:
    return name, ConfiguredServer(url, fields, **more)


def stdio(
    name: str, command: str, *args: str, env: Any = (), cwd: str = str(FOLDER), **more: Any
) -> Named:
    program = ProgramServer(Command(name, command, args, env, cwd))
    return name, ConfiguredServer(program.endpoint, (), program, **more)


#: A name, a file as that client writes it, and what is in it.
FILES: dict[str, tuple[str, list[Named]]] = {
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
        [http("api", "https://api.example/mcp", (("Authorization", "Bearer sk-secret"),))],
    ),
    "Cursor": (
        """{"mcpServers": {"remote": {"url": "http://localhost:3000/mcp",
        "headers": {"API_KEY": "${env:TOKEN}"}}}}""",
        [http("remote", "http://localhost:3000/mcp", (("API_KEY", "sk-secret"),))],
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
            http("docs", "https://learn.example/api/mcp"),
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
                denied=("convert_time",),
            ),
            http(
                "mcp_sse",
                "http://127.0.0.1:8001/sse",
                (("Authorization", "Bearer token"),),
            ),
            http("mcp_streamable_http", "http://127.0.0.1:8002/mcp"),
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
        [http("figma", "https://mcp.example/mcp/")],
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
                allowed=("safe_*",),
                denied=("safe_not",),
            ),
            http("http", "http://localhost:3000/mcp"),
        ],
    ),
    "opencode's command": (
        """{"mcpServers": {"x": {"type": "local", "command": ["bun", "x", "it"],
        "environment": {"A": "b"}, "enabled": true}, "y": {"enabled": false, "url": 1}}}""",
        [stdio("x", "bun", "x", "it", env=(("A", "b"),))],
    ),
    "VS Code's settings": (
        """{"mcp": {"inputs": [], "servers": {"a": {"type": "stdio", "command": "a",
        "args": ["${workspaceFolder}/x"], "env": {"A": null, "B": "b"}, "sandboxEnabled": false,
        "dev": {"watch": "x"}}}}}""",
        [stdio("a", "a", "/etc/mcp/x", env=(("B", "b"),))],
    ),
    "opencode": (
        """{"mcp": {"x": {"type": "remote", "url": "http://h/m", "enabled": true}}}""",
        [http("x", "http://h/m")],
    ),
    "Copilot": (
        """{"mcpServers": {"a": {"type": "local", "command": "a", "tools": ["*"]},
        "b": {"type": "http", "url": "http://h/m", "tools": ["get_x"]},
        "c": {"command": "c", "tools": {"get_x": {}}}}}""",
        [
            stdio("a", "a", allowed=("*",)),
            http("b", "http://h/m", allowed=("get_x",)),
            stdio("c", "c"),
        ],
    ),
    "Gemini CLI's variables": (
        """{"mcpServers": {"a": {"command": "a", "env": {"A": "$TOKEN", "B": "$NONE",
        "C": "x$TOKEN"}}}}""",
        [stdio("a", "a", env=(("A", "sk-secret"), ("B", "$NONE"), ("C", "x$TOKEN")))],
    ),
    "Zed's command": (
        """{"context_servers": {"z": {"source": "custom", "command": {"path": "z-mcp",
        "args": ["a"], "env": {"A": "b"}}, "settings": {}}, "off": {"enabled": false}}}""",
        [stdio("z", "z-mcp", "a", env=(("A", "b"),))],
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
            http("@scope/server", "http://h/m?key=sk-secret"),
        ],
    ),
}


@pytest.mark.parametrize("client", FILES)
def test_files_of_clients(client: str) -> None:
    text, servers = FILES[client]
    found = parsed(text)
    assert list(found.servers.items()) == servers
    assert found.problems == {}
    SCHEMA.validate(json.loads(strict(text)))


def strict(text: str) -> str:
    """*text* without what JSON has not."""
    return (
        text.removeprefix("\ufeff")
        .replace("// Servers of this workspace", "")
        .replace("/* one */", "")
        .replace(",}", "}")
        .replace("},\n          }", "}}")
        .replace("},\n        }", "}}")
    )


def test_the_example_in_the_documents_is_a_file() -> None:
    page = (ROOT / "docs" / "mcp-config.md").read_text("utf-8")
    examples = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    assert examples
    for example in examples:
        SCHEMA.validate(json.loads(example))
        found = mcp_file(example.encode(), {"GITHUB_TOKEN": "x"}, FOLDER)
        assert found.servers and not found.problems


def test_the_example_of_the_readme_is_a_file() -> None:
    page = (ROOT / "README.md").read_text("utf-8")
    [example] = re.findall(r"^echo '(\{.*\})' > mcp\.json$", page, re.MULTILINE)
    SCHEMA.validate(json.loads(example))
    found = mcp_file(example.encode(), {}, FOLDER)
    assert list(found.servers) == ["time"] and not found.problems


@pytest.mark.parametrize(
    "server",
    [{}, {"command": "a", "url": "b"}, {"url": 5}, {"command": "a", "args": "b"}, {"command": []}],
)
def test_the_schema_knows_what_is_wrong(server: Any) -> None:
    assert not SCHEMA.is_valid({"mcpServers": {"it": server}})


def test_tools_are_allowed_and_denied_by_patterns() -> None:
    narrowed = entry(url="http://h", allowedTools=["get_*", "x"], disabledTools=["get_b"])
    [server] = narrowed.servers.values()
    offered = [name for name in ("get_a", "get_b", "x", "xy", "Get_a") if server.offers(name)]
    assert offered == ["get_a", "x"]
    [nothing] = entry(url="http://h", allowedTools=[]).servers.values()
    assert not nothing.offers("a")


def test_a_program_of_another_command_is_another_server() -> None:
    [one], [two], [same] = (
        entry(command="a", args=[arg]).servers.values() for arg in ("b", "c", "b")
    )
    assert one.endpoint == same.endpoint != two.endpoint
    assert one.endpoint.startswith("stdio://it#") and "b" not in one.endpoint.partition("#")[0]


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
        ({"command": "a", "env": {"A": []}}, "env has something that is not text"),
        ({"command": "a", "env": {"A": "\ud800"}}, "env has half a character"),
        ({"command": "\ud800"}, "command and args has half a character"),
        ({"command": {"args": []}}, "command and args has something that is not text"),
        ({"command": "a", "envFile": "missing"}, "its envFile cannot be read (No such file"),
        ({"command": "a", "sandboxEnabled": True}, "it is to run in a sandbox"),
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
        ('{"mcpServers": {}, "mcpServers": {}}', "has mcpServers twice"),
        ('{"mcpServers": {}, /* \n\n */ oops}', "is not JSON .*line 3"),
        ('{"mcpServers": {"a": {"timeout": ' + "9" * 5000 + "}}}", "a number of too many digits"),
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
    assert ("it", found.servers["it"]) == stdio("it", "a", "", "", "", "$TOKEN", "{TOKEN}")


def test_what_stands_twice_is_a_mistake_of_its_own_server() -> None:
    found = parsed(
        """{"theme": 1, "theme": 2, "mcpServers": {"env": {"command": "a", "env": {"A": "1",
        "A": "2"}}, "args": {"command": "a", "args": [], "args": []}, "two": {"command": "a"},
        "two": {"command": "b"}, "nested": {"command": {"path": "a", "path": "b"}},
        "good": {"command": "a"}}}"""
    )
    assert list(found.servers) == ["good"]
    assert found.problems == {
        "env": "it has 'A' twice",
        "args": "it has 'args' twice",
        "two": "it stands there twice",
        "nested": "it has 'path' twice",
    }


def test_a_project_s_folder_is_that_of_the_editor_s_folder() -> None:
    data = b'{"servers": {"a": {"command": "${workspaceFolder}/a"}}}'
    [server] = mcp_file(data, {}, Path("/srv/it/.vscode")).servers.values()
    assert server.program is not None and server.program.command.command == "/srv/it/a"


def test_variables_of_a_file_are_those_of_the_program(tmp_path: Path) -> None:
    (tmp_path / "it.env").write_text("A=1\nB=2\n")
    path = tmp_path / "mcp.json"
    path.write_text(
        '{"mcpServers": {"it": {"command": "a", "envFile": "${workspaceFolder}/it.env",'
        '"env": {"B": "3"}}}}'
    )
    server = read(str(path), {}).servers["it"]
    assert server.program is not None
    assert dict(server.program.command.env) == {"A": "1", "B": "3"}


@pytest.mark.parametrize("start", ['"' + '\\"' * 100_000, "/*" * 200_000, "//" * 200_000])
def test_a_file_without_an_end_is_looked_at_once(start: str) -> None:
    """What takes the square of its length would take hours here."""
    with pytest.raises(ValueError, match="is not JSON"):
        parsed(start)


def test_what_stands_in_texts_is_no_comment() -> None:
    found = entry(command="a", args=["http://h//x", "/* y */", ",]", '\\"// z', "a,}"])
    assert ("it", found.servers["it"]) == stdio(
        "it", "a", "http://h//x", "/* y */", ",]", '\\"// z', "a,}"
    )


def test_secrets_are_not_shown_by_accident() -> None:
    found = entry(command="a", args=["${TOKEN}"], env={"A": "${TOKEN}"})
    assert "sk-secret" not in repr(found)
    assert "sk-secret" not in repr(entry(url="http://h", headers={"A": "${TOKEN}"}))


def test_a_program_s_words_do_not_show_what_its_command_has_from_a_variable() -> None:
    data = b'{"mcpServers": {"it": {"command": "a", "args": ["${HOME}", "--key=${TOKEN}"]}}}'
    environment = {**ENVIRONMENT, "HOME": "/home/me"}
    [server] = mcp_file(data, environment, FOLDER).servers.values()
    assert server.program is not None
    command = server.program.command
    assert command.cleaned(b"no /home/me/x for sk-secret") == "no /home/me/x for ***"
    assert "sk-secret" not in repr(command)


def test_of_two_secrets_the_longer_is_hidden_as_a_whole() -> None:
    [server] = entry(command="a", env={"A": "sk-secret", "B": "sk-secret-2"}).servers.values()
    assert server.program is not None
    assert server.program.command.cleaned(b"sk-secret-2 sk-secret") == "*** ***"


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mcp.json"
    with pytest.raises(ValueError, match="cannot be read"):
        read(str(path))
    path.write_text('{"mcpServers": {"it": {"command": "./it"}}}')
    server = read(str(path), {}).servers["it"]
    assert server.program is not None and server.program.command.cwd == str(tmp_path)
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
