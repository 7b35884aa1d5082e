"""Options: command line over environment over default, and mistakes in one clear line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import trustme
from twisted.python.usage import UsageError

from llamaproxy.config.options import SETTINGS, Options

README = Path(__file__).parents[2] / "README.md"


def parsed(*arguments: str, **environment: str) -> Options:
    options = Options(environment)
    options.parseOptions(list(arguments))
    return options


def test_nothing_needs_to_be_configured() -> None:
    options = parsed()
    assert options["port"] == 8322
    assert options["listen"] == ["tcp:8322"]
    assert options["llamastack-url"].to_text() == "http://localhost:8321"
    assert options["max-iterations"] == 10
    assert options["tool-timeout"] == 60
    assert options["upstream-timeout"] == 600
    assert options["connect-timeout"] == 10
    assert options["upstream-ca"] is None
    assert None not in options["trusted-proxies"]
    assert "127.0.0.1" not in options["trusted-proxies"]
    assert options["tools-ttl"] == 60
    assert options["max-tool-result"] == 65536
    assert options["max-chat-body"] == 33554432
    assert options["max-body"] == 1073741824
    assert options["max-connections"] == 4096
    assert options["header-timeout"] == 30
    assert options["client-timeout"] == 75
    assert options["keep-alive"] == 15
    assert options["log-format"] == "text"
    assert options["demo"] is False


def test_the_environment_replaces_a_default() -> None:
    options = parsed(PROXY_PORT="9000", LLAMASTACK_URL="https://stack.example", LLAMAPROXY_DEMO="1")
    assert options["listen"] == ["tcp:9000"]
    assert options["llamastack-url"].to_text() == "https://stack.example"
    assert options["demo"] is True


def test_the_command_line_wins_over_the_environment() -> None:
    assert parsed("--port", "9001", PROXY_PORT="9000")["port"] == 9001


def test_what_was_given_is_told_from_a_default() -> None:
    assert parsed(PROXY_PORT=" ").explicit == set()
    assert parsed("--port", "8322", LLAMAPROXY_ADMIN="off").explicit == {"port", "admin"}


def test_an_empty_variable_is_one_that_is_not_set() -> None:
    assert parsed(PROXY_PORT="", LLAMASTACK_URL=" ")["port"] == 8322


def test_listen_replaces_the_port_and_can_be_repeated() -> None:
    options = parsed("--listen", "tcp:1:interface=127.0.0.1", "--listen", "unix:/run/x")
    assert options["listen"] == ["tcp:1:interface=127.0.0.1", "unix:/run/x"]
    assert parsed(LLAMAPROXY_LISTEN="tcp:2")["listen"] == ["tcp:2"]


def test_proxies_are_trusted_by_address_or_network() -> None:
    trusted = parsed("--trusted-proxies", "10.0.0.0/8, ::1,unix")["trusted-proxies"]
    assert all(client in trusted for client in ("10.1.2.3", "::1", None))
    assert "127.0.0.1" not in trusted
    for mistake in ("10.0.0.1/8", "proxy", "10.0.0.0/8;::1"):
        with pytest.raises(UsageError, match="--trusted-proxies must be addresses or networks"):
            parsed("--trusted-proxies", mistake)


def test_a_file_is_found_from_wherever_the_daemon_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trustme.CA().cert_pem.write_to_path("ca.pem")
    assert parsed("--upstream-ca", "ca.pem")["upstream-ca"] == str(tmp_path / "ca.pem")
    with pytest.raises(UsageError, match=r"^--upstream-ca must be a readable file"):
        parsed("--upstream-ca", ".")


def test_the_url_may_have_a_path_but_loses_its_last_slash() -> None:
    url = parsed("--llamastack-url", "http://stack:8321/base/")["llamastack-url"]
    assert url.to_text() == "http://stack:8321/base"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("port", "http"),
        ("port", "65536"),
        ("port", "-1"),
        ("max-iterations", "0"),
        ("max-iterations", "1.5"),
        ("tool-timeout", "soon"),
        ("tool-timeout", "0"),
        ("tool-timeout", "nan"),
        ("upstream-timeout", "-3"),
        ("keep-alive", ""),
        ("max-chat-body", "32M"),
        ("max-connections", "0"),
        ("header-timeout", "0"),
        ("log-format", "xml"),
        ("tool-source", "both"),
        ("mcp-server", "http://localhost:9000/mcp"),
        ("mcp-server", "web"),
        ("mcp-server", "web="),
        ("mcp-server", "=http://localhost:9000/mcp"),
        ("mcp-server", "a b=http://localhost:9000/mcp"),
        ("mcp-server", "web=ftp://localhost/mcp"),
        ("mcp-server", "web=http://user:secret@localhost/mcp"),
        ("mcp-server", "web=http://localhost/mcp#part"),
        ("llamastack-url", "localhost:8321"),
        ("llamastack-url", "ftp://stack"),
        ("llamastack-url", "http://"),
        ("llamastack-url", "http://stack:port"),
        ("llamastack-url", "http://stack:99999"),
        ("llamastack-url", "http://user:secret@stack"),
        ("llamastack-url", "http://stack/?a=b"),
    ],
)
def test_a_bad_value_is_refused_by_name(option: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"^--{option} must be "):
        parsed(f"--{option}={value}")


def test_a_bad_value_in_the_environment_is_refused_by_the_name_of_its_variable() -> None:
    with pytest.raises(UsageError, match=r"^PROXY_PORT must be a whole number"):
        parsed(PROXY_PORT="http")


def test_every_setting_says_in_the_help_how_else_it_can_be_set() -> None:
    text = str(Options({}))
    words = " ".join(text.split())
    for setting in SETTINGS:
        assert f"--{setting.name}=" in text
        assert setting.environment in words


def test_the_table_in_the_readme_has_every_option_its_variable_and_its_default() -> None:
    section = README.read_text("utf-8").partition("\n## Options\n")[2].partition("\n## ")[0]
    rows = [row.split("|")[1:4] for row in section.splitlines() if row.startswith("| `--")]
    table = {
        option.split("`")[1]: (variable.split("`")[1], default.strip("` "))
        for option, variable, default in rows
    }
    others = {
        "--listen": ("LLAMAPROXY_LISTEN", ""),
        "--mcp-server": ("LLAMAPROXY_MCP_SERVERS", ""),
        "--mcp-header": ("LLAMAPROXY_MCP_HEADERS", ""),
        "--demo": ("LLAMAPROXY_DEMO", "off"),
        "--inspect-contents": ("LLAMAPROXY_INSPECT_CONTENTS", "off"),
        "--mcp-instructions": ("LLAMAPROXY_MCP_INSTRUCTIONS", "off"),
    }
    settings = {f"--{each.name}": (each.environment, each.default or "") for each in SETTINGS}
    assert table == settings | others
    help_names = re.findall(r"^ +(--[a-z-]+)", str(Options({})), re.MULTILINE)
    assert set(help_names) == table.keys() | {"--help", "--version", "--check"}


def test_mcp_servers_are_named_on_the_command_line_or_in_the_environment() -> None:
    both = "web=http://localhost:9000/mcp, files=https://files.example/mcp/?key=1=2 ,"
    named = {"web": "http://localhost:9000/mcp", "files": "https://files.example/mcp/?key=1=2"}
    assert parsed()["mcp-server"] == {}
    assert parsed(LLAMAPROXY_MCP_SERVERS=both)["mcp-server"] == named
    arguments = [each for name, url in named.items() for each in ("--mcp-server", f"{name}={url}")]
    assert parsed(*arguments, LLAMAPROXY_MCP_SERVERS="other=http://other")["mcp-server"] == named


def test_two_mcp_servers_of_one_name_are_a_mistake() -> None:
    with pytest.raises(UsageError, match=r"^LLAMAPROXY_MCP_SERVERS names two servers 'a'"):
        parsed(LLAMAPROXY_MCP_SERVERS="a=http://one,a=http://two")


def test_a_bad_mcp_server_in_the_environment_is_refused_by_the_name_of_its_variable() -> None:
    with pytest.raises(UsageError, match=r"^LLAMAPROXY_MCP_SERVERS must be NAME=URL"):
        parsed(LLAMAPROXY_MCP_SERVERS="http://one")


def test_a_key_that_is_none_is_not_repeated() -> None:
    assert parsed(LLAMAPROXY_UPSTREAM_KEY=" sk-1 ")["upstream-key"] == b"sk-1"
    with pytest.raises(UsageError, match=r"^--upstream-key must be one key") as raised:
        parsed("--upstream-key", "sk secret")
    assert "secret" not in str(raised.value)


def test_the_tool_source_can_be_pinned() -> None:
    assert parsed()["tool-source"] == "auto"
    assert parsed("--tool-source", "mcp")["tool-source"] == "mcp"


@pytest.mark.parametrize(
    ("text", "url", "shortened"),
    [
        ("http://host:8321/v1", "http://host:8321", True),
        ("http://host:8321/v1/", "http://host:8321", True),
        ("http://host:8321/v1/openai/v1", "http://host:8321", True),
        ("http://host:8321/openai/v1", "http://host:8321", True),
        ("https://api.groq.com/openai/v1", "https://api.groq.com/openai", True),
        ("https://host/api/openai/v1", "https://host/api/openai", True),
        ("http://host/api/openai/v1/", "http://host/api/openai", True),
        ("https://host/api/openai", "https://host/api/openai", False),
        ("http://host:8321/v1/chat/completions", "http://host:8321", True),
        ("https://host/api/v1", "https://host/api", True),
        ("https://host/api/", "https://host/api", False),
        ("https://host/v1x", "https://host/v1x", False),
        ("HTTP://Host:8321", "http://host:8321", False),
        ("http://[::1]:8321", "http://[::1]:8321", False),
        ("http://llama_stack:8321", "http://llama_stack:8321", False),
        ("http://[::1]:8321/v1", "http://[::1]:8321", True),
    ],
)
def test_the_servers_url_is_read_as_people_write_it(text: str, url: str, shortened: bool) -> None:
    options = parsed("--llamastack-url", text)
    assert options["llamastack-url"].to_text() == url
    assert options.shortened_url is shortened


def test_mcp_servers_have_addresses_of_any_kind() -> None:
    options = parsed("--mcp-server", "x=HTTP://[::1]:9000/mcp", "--mcp-server", "y=http://H/mcp")
    assert options["mcp-server"] == {"x": "http://[::1]:9000/mcp", "y": "http://h/mcp"}


@pytest.mark.parametrize("option", ["--llamastack-url", "--mcp-server"])
def test_a_password_in_a_url_is_not_repeated(option: str) -> None:
    name = "x=" if option == "--mcp-server" else ""
    with pytest.raises(UsageError) as refused:
        parsed(option, f"{name}http://user:secret@host:8321")
    assert "secret" not in str(refused.value)
    assert "***@host" in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://host:99999/mcp?token=secret",
        "http://host/my mcp?token=secret",
        "http://host/m\x01cp?token=secret",
        "http://host/mcp?token=secret\n",
        "http://host/mcp\u2028?token=secret",
        "http://host/mcp\x7f?token=sec ret&more=secret",
        "http://host/mcp?ok=1 web=http://other/mcp?token=secret",
        "http://host/mcp#secret",
        "http://user:a/secret@host/mcp",
        "http://user:?secret@host/mcp",
        "user:secret@host/mcp",
        "secret",
    ],
)
@pytest.mark.parametrize("environment", [False, True])
def test_an_mcp_servers_url_is_refused_in_a_line_without_its_secrets(
    url: str, environment: bool
) -> None:
    with pytest.raises(UsageError, match="must be NAME=URL") as refused:
        if environment:
            parsed(LLAMAPROXY_MCP_SERVERS=f"ok=http://ok/mcp,web={url}x")
        else:
            parsed("--mcp-server", f"web={url}x")
    assert "secret" not in str(refused.value)
    assert str(refused.value).isprintable()


def test_the_rest_of_a_url_with_a_comma_is_not_repeated() -> None:
    with pytest.raises(UsageError, match="must be NAME=URL") as refused:
        parsed(LLAMAPROXY_MCP_SERVERS="web=http://host/mcp?token=half,secret")
    assert "secret" not in str(refused.value)


def test_an_mcp_server_gets_header_fields_of_its_own() -> None:
    lines = "web=Authorization: Bearer a=b:c\nweb=X-Tenant: 7\n\n"
    options = parsed("--mcp-server", "web=http://w/mcp", LLAMAPROXY_MCP_HEADERS=lines)
    assert options["mcp-header"] == {
        "http://w/mcp": (("Authorization", "Bearer a=b:c"), ("X-Tenant", "7"))
    }


@pytest.mark.parametrize("header", ["other=A: secret", "web", "web=secret", "web=A b: secret"])
def test_a_header_for_nobody_stops_the_start_and_is_not_repeated(header: str) -> None:
    with pytest.raises(UsageError, match="--mcp-header") as refused:
        parsed("--mcp-server", "web=http://w/mcp", "--mcp-header", header)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("name", ["max-iterations", "tools-ttl", "tool-source", "port"])
def test_a_value_of_any_length_is_told_of_in_one_short_line(name: str) -> None:
    with pytest.raises(UsageError) as raised:
        parsed(f"--{name}", "1" * 5000)
    line = str(raised.value)
    assert line.startswith(f"--{name} must be ") and "'1111" in line and len(line) < 200
    with pytest.raises(UsageError) as raised:
        parsed("--mcp-server", "a=" + "b" * 5000 + "://")
    assert len(str(raised.value)) < 250
    assert parsed("--max-iterations", "0" * 5000 + "7")["max-iterations"] == 7
