"""Options: command line over environment over default; what each value may be is in values.py."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

import attrs
from twisted.python.usage import Options as UsageOptions
from twisted.python.usage import UsageError

from llamaproxy import __version__
from llamaproxy.config import logformat, values
from llamaproxy.config.storeaddress import store_address
from llamaproxy.server.keys import is_key


@attrs.frozen(eq=False, repr=False)
class Setting:
    """One option: its name, its environment variable, its default as text, and its meaning.

    *secret*: a text that was refused is not repeated.
    """

    name: str
    environment: str
    default: str | None
    parse: Callable[[str], Any]
    doc: str
    secret: bool = False


_BYTES = values.integer(1, 2**40)

#: The key that the server gets if clients must have keys: no option, which others could see.
_SERVER_KEY = "LLAMASTACK_API_KEY"

_SECRET = "memory-secret"

#: Characters of it, at least: who reads the store may try secrets without end.
_SECRET_LENGTH = 16

#: Every option that takes one value (DESIGN: 8).
SETTINGS = (
    Setting("port", "PROXY_PORT", "8322", values.integer(0, 65535), "TCP port to listen on."),
    Setting(
        "workers",
        "LLAMAPROXY_WORKERS",
        "1",
        values.workers,
        "Processes that serve clients, each with a core of its own; auto for as many as there are "
        "cores.",
    ),
    Setting(
        "allowed-hosts",
        "LLAMAPROXY_ALLOWED_HOSTS",
        None,
        values.hosts,
        "Names, comma-separated, that clients may ask for, on the admin port too; .example.com for "
        "all below it, * for any. By default any, but loopback's own where only this machine can "
        "connect.",
    ),
    Setting(
        "llamastack-url",
        "LLAMASTACK_URL",
        "http://localhost:8321",
        values.server_url,
        "URL of the Llama Stack server.",
    ),
    Setting(
        "admin",
        "LLAMAPROXY_ADMIN",
        "tcp:8323:interface=127.0.0.1",
        str.strip,
        "Twisted endpoint for /live, /ready, /status, /metrics and /log-level, or off.",
    ),
    Setting(
        "api-keys-file",
        "LLAMAPROXY_API_KEYS_FILE",
        None,
        values.api_keys,
        "File with the keys that clients may use, one a line; read again on SIGHUP. The server "
        f"then gets the key in the variable {_SERVER_KEY}, or none.",
    ),
    Setting(
        "upstream-key",
        "LLAMAPROXY_UPSTREAM_KEY",
        None,
        values.upstream_key,
        "Key that the server gets as Authorization, whatever the client sends. Others see command "
        "lines: better is the variable. Whoever reaches the proxy uses it.",
        secret=True,
    ),
    Setting(
        "max-iterations",
        "LLAMAPROXY_MAX_ITERATIONS",
        "10",
        values.integer(1, 1000),
        "Most rounds with tools in one answer.",
    ),
    Setting(
        "tool-timeout",
        "LLAMAPROXY_TOOL_TIMEOUT",
        "60",
        values.seconds(),
        "Seconds that one tool call may take.",
    ),
    Setting(
        "upstream-timeout",
        "LLAMAPROXY_UPSTREAM_TIMEOUT",
        "600",
        values.seconds(),
        "Seconds to the first byte of the server's answer, and of silence after it.",
    ),
    Setting(
        "connect-timeout",
        "LLAMAPROXY_CONNECT_TIMEOUT",
        "10",
        values.seconds(),
        "Seconds to reach the server: to resolve its name, to connect, and for the TLS handshake.",
    ),
    Setting(
        "upstream-ca",
        "LLAMAPROXY_UPSTREAM_CA",
        None,
        values.authorities,
        "PEM file with the authorities of the server's certificate, instead of the system's.",
    ),
    Setting(
        "trusted-proxies",
        "LLAMAPROXY_TRUSTED_PROXIES",
        "",
        values.proxies,
        "Addresses or networks, comma-separated, of proxies whose X-Forwarded-For, -Proto and "
        "-Host are believed; unix for those that come over a Unix socket.",
    ),
    Setting(
        "identity-headers",
        "LLAMAPROXY_IDENTITY_HEADERS",
        "",
        values.field_names,
        "Header fields, comma-separated, that tell callers apart besides Authorization, Api-Key, "
        "X-API-Key, Cookie and the provider data; they are sent along when tools are listed.",
    ),
    Setting(
        "tools-ttl",
        "LLAMAPROXY_TOOLS_TTL",
        "60",
        values.seconds(least=0),
        "Seconds for which a list of tools is fresh.",
    ),
    Setting(
        "tool-source",
        "LLAMAPROXY_TOOL_SOURCE",
        "auto",
        values.choice("auto", "tool-runtime", "mcp"),
        "Where the server's tools are run: by itself (tool-runtime), by calling the MCP servers "
        "that it names (mcp), or as it can (auto).",
    ),
    Setting(
        "builtin-tools",
        "LLAMAPROXY_BUILTIN_TOOLS",
        "",
        values.words,
        "Names, comma-separated, of llama-server's own tools that are offered too, such as "
        "read_file; by default only those of its MCP servers are.",
    ),
    Setting(
        "mcp-config",
        "LLAMAPROXY_MCP_CONFIG",
        None,
        values.mcp_config,
        "File with MCP servers whose tools are offered too, in the form of mcpServers; programs "
        "that it names are started. Read again on SIGHUP.",
    ),
    Setting(
        "max-tools",
        "LLAMAPROXY_MAX_TOOLS",
        "1000",
        values.integer(1, 10**6),
        "Tools of the server that are offered in one chat.",
    ),
    Setting(
        "max-tool-list",
        "LLAMAPROXY_MAX_TOOL_LIST",
        "4194304",
        _BYTES,
        "Bytes of their definitions, which are sent with every chat.",
    ),
    Setting(
        "max-callers",
        "LLAMAPROXY_MAX_CALLERS",
        "10000",
        values.integer(1, 10**7),
        "Callers, told apart by their credentials, whose lists of tools are kept.",
    ),
    Setting(
        "max-mcp-sessions",
        "LLAMAPROXY_MAX_MCP_SESSIONS",
        "1024",
        values.integer(8, 10**6),
        "Sessions with MCP servers, one for each caller and chat.",
    ),
    Setting(
        "max-tool-result",
        "LLAMAPROXY_MAX_TOOL_RESULT",
        "65536",
        _BYTES,
        "Bytes of a tool's result that the model is shown.",
    ),
    Setting(
        "max-chat-body",
        "LLAMAPROXY_MAX_CHAT_BODY",
        "33554432",
        _BYTES,
        "Bytes of a chat completion request.",
    ),
    Setting(
        "max-chat-bodies",
        "LLAMAPROXY_MAX_CHAT_BODIES",
        "268435456",
        _BYTES,
        "Bytes of all chat completion requests that are being answered; over it, 503.",
    ),
    Setting(
        "max-calls-per-chat",
        "LLAMAPROXY_MAX_CALLS_PER_CHAT",
        "16",
        values.integer(1, 10**6),
        "Calls of the server's tools that one chat may have under way; more wait.",
    ),
    Setting(
        "max-calls",
        "LLAMAPROXY_MAX_CALLS",
        "256",
        values.integer(1, 10**6),
        "Calls of the server's tools that all chats may have under way; more wait.",
    ),
    Setting(
        "max-body",
        "LLAMAPROXY_MAX_BODY",
        "1073741824",
        _BYTES,
        "Bytes of any other request's body.",
    ),
    Setting(
        "max-connections",
        "LLAMAPROXY_MAX_CONNECTIONS",
        "4096",
        values.integer(1, 10**6),
        "Connections of clients; further ones are answered with 503.",
    ),
    Setting(
        "header-timeout",
        "LLAMAPROXY_HEADER_TIMEOUT",
        "30",
        values.seconds(),
        "Seconds in which the head of a request must have come, and TLS been agreed on.",
    ),
    Setting(
        "client-timeout",
        "LLAMAPROXY_CLIENT_TIMEOUT",
        "75",
        values.seconds(),
        "Seconds that a client may be silent in the body of a request, or between two requests: "
        "more than a balancer in front keeps its connections.",
    ),
    Setting(
        "memory-entries",
        "LLAMAPROXY_MEMORY_ENTRIES",
        "1000",
        values.integer(0, 10**6),
        "Turns with calls of server and client remembered for the client's return.",
    ),
    Setting(
        "memory-bytes",
        "LLAMAPROXY_MEMORY_BYTES",
        "67108864",
        values.integer(0, 2**40),
        "Bytes of all remembered turns together.",
    ),
    Setting(
        "memory-age",
        "LLAMAPROXY_MEMORY_AGE",
        "3600",
        values.seconds(),
        "Seconds after which a turn that nobody came back to is forgotten.",
    ),
    Setting(
        "memory",
        "LLAMAPROXY_MEMORY",
        None,
        store_address,
        "Redis or Valkey where several machines remember these turns together, such as "
        "redis://user:password@host:6379/0, rediss://host, redis+unix:///run/redis.sock or "
        "redis+sentinel://host:26379,host:26379/name. It needs --memory-secret.",
        secret=True,
    ),
    Setting(
        _SECRET,
        "LLAMAPROXY_MEMORY_SECRET",
        None,
        str.strip,
        f"What turns are encrypted with there, the same on all machines, {_SECRET_LENGTH} "
        "characters or more. Others see command lines: better is the variable.",
    ),
    Setting(
        "memory-ca",
        "LLAMAPROXY_MEMORY_CA",
        None,
        values.authorities,
        "PEM file with the authorities of its certificate, instead of the system's.",
    ),
    Setting(
        "keep-alive",
        "LLAMAPROXY_KEEP_ALIVE",
        "15",
        values.seconds(),
        "Seconds of silence after which a stream gets a comment.",
    ),
    Setting(
        "drain-timeout",
        "LLAMAPROXY_DRAIN_TIMEOUT",
        "30",
        values.seconds(least=0),
        "Seconds that running requests are given when the daemon stops.",
    ),
    Setting(
        "log-format",
        "LLAMAPROXY_LOG_FORMAT",
        "text",
        values.choice("text", "json"),
        "Format of the log: text or json.",
    ),
    Setting(
        "log-level",
        "LLAMAPROXY_LOG_LEVEL",
        "info",
        values.choice(*logformat.LEVELS),
        "Least level of what is logged: debug, info, warn or error; POST /log-level on the admin "
        "port changes it.",
    ),
)

#: Set by the Dockerfile: the admin port that it asks for is reached by nobody but who publishes it.
_IN_CONTAINER = "LLAMAPROXY_IN_CONTAINER"

#: Characters of a wrong value that the line about it repeats.
_MAX_SHOWN = 100

_LISTEN_ENVIRONMENT = "LLAMAPROXY_LISTEN"
_MCP_SERVERS = "LLAMAPROXY_MCP_SERVERS"
_MCP_HEADERS = "LLAMAPROXY_MCP_HEADERS"
_DEMO = Setting("demo", "LLAMAPROXY_DEMO", None, values.flag, "")
_CONTENTS = Setting("inspect-contents", "LLAMAPROXY_INSPECT_CONTENTS", None, values.flag, "")
_INSTRUCTIONS = Setting("mcp-instructions", "LLAMAPROXY_MCP_INSTRUCTIONS", None, values.flag, "")

#: Settings that name a file that is read again on SIGHUP, and how they are made of what was read.
_READ_AGAIN: dict[str, Callable[[str, Any], Any]] = {
    "api-keys-file": values.api_keys_with,
    "mcp-config": values.mcp_config_with,
}


class Options(UsageOptions):
    """What ``twistd llamaproxy`` was told.

    After parsing, every setting is there under its name, of its type: ``listen`` is a list of
    endpoint strings, ``mcp-server`` a dict of URLs by name, ``demo``, ``inspect-contents`` and
    ``mcp-instructions`` are bools, ``llamastack-api-key`` bytes, which may be empty,
    ``in-container`` whether the image's environment is there.
    """

    synopsis = "[llamaproxy options]"
    longdesc = (
        "Stands between OpenAI clients and a Llama Stack server: gives the model the server's "
        "tools, runs the calls that it makes, and answers when the model does. Every option can "
        "also be set by the environment variable in brackets; the command line wins."
    )
    optFlags = (
        (
            "check",
            None,
            "Ask the server once, say which tools there are and what is wrong, and exit: with "
            "status 0 if all is well, 1 if something is wrong, 2 if that cannot be told.",
        ),
        (
            "demo",
            None,
            "Run against an embedded stand-in for Llama Stack, with a scripted model and a few "
            "real tools. [LLAMAPROXY_DEMO]",
        ),
        (
            "inspect-contents",
            None,
            "Keep the latest messages, arguments and results in memory, and show them on the page "
            "of the admin port to whoever reaches it. [LLAMAPROXY_INSPECT_CONTENTS]",
        ),
        (
            "mcp-instructions",
            None,
            "Give the model, in the system message, what MCP servers say of using their tools. "
            "[LLAMAPROXY_MCP_INSTRUCTIONS]",
        ),
    )
    optParameters = tuple(
        (s.name, None, None, f"{s.doc} [{s.environment}, default: {s.default or 'none'}]")
        for s in SETTINGS
    )

    def __init__(
        self, environment: Mapping[str, str] = os.environ, files: Mapping[str, Any] | None = None
    ) -> None:
        """:param files: what another process has read of files that are read again on SIGHUP."""
        UsageOptions.__init__(self)
        self._environment = environment
        self._files = {} if files is None else files
        #: Names of the settings that are on the command line or in the environment.
        self.explicit: set[str] = set()
        #: The command line that was parsed, and where paths in it begin: twistd leaves that.
        self.arguments: list[str] = []
        self.directory = "."
        #: Whether the server's URL was given with more than is its own.
        self.shortened_url = False
        self._texts: dict[str, str] = {}
        self["listen"] = []
        self["mcp-server"] = []
        self["mcp-header"] = []

    def opt_listen(self, endpoint: str) -> None:
        self["listen"].append(endpoint)

    opt_listen.__doc__ = (
        "Twisted endpoint to listen on instead of --port, such as tcp:8322:interface=127.0.0.1; "
        "can be given again. [LLAMAPROXY_LISTEN]"
    )

    def opt_mcp_server(self, server: str) -> None:
        self["mcp-server"].append(server)

    opt_mcp_server.__doc__ = (
        "An MCP server whose tools are offered too, as NAME=URL; can be given again. "
        "[LLAMAPROXY_MCP_SERVERS, comma-separated]"
    )

    def opt_mcp_header(self, header: str) -> None:
        self["mcp-header"].append(header)

    opt_mcp_header.__doc__ = (
        "A header field for an MCP server of --mcp-server, as 'NAME=Field: value'; can be given "
        "again. Others see command lines: better is the variable. [LLAMAPROXY_MCP_HEADERS, one a "
        "line]"
    )

    def opt_version(self) -> None:
        """Show the version of llamaproxy and exit."""
        print(f"llamaproxy {__version__}")
        raise SystemExit(0)

    def parseOptions(self, options: Any = None) -> None:
        """Parse; under twistd, which would print pages of help, a mistake is one line.

        :raises UsageError: for a mistake, when not run by twistd.
        """
        self.arguments = list(sys.argv[1:] if options is None else options)
        with suppress(FileNotFoundError):  # it has been removed
            self.directory = os.getcwd()
        try:
            UsageOptions.parseOptions(self, options)
        except UsageError as error:
            if getattr(self, "parent", None) is None:
                raise
            raise SystemExit(f"twistd llamaproxy: {error}") from None

    def files_read(self) -> dict[str, Any]:
        """What was read last of files that are read again on SIGHUP, as JSON."""
        return {name: self[name].contents for name in _READ_AGAIN if self[name] is not None}

    def parseArgs(self, *args: str) -> None:
        if args:
            raise UsageError(f"unexpected argument: {args[0]}")

    def postOptions(self) -> None:
        for setting in SETTINGS:
            self[setting.name] = self._value(setting, self[setting.name])
        written = self._texts["llamastack-url"].rstrip("/")
        self.shortened_url = len(written) > len(self["llamastack-url"].to_text().rstrip("/"))
        for flag in (_DEMO, _CONTENTS, _INSTRUCTIONS):
            if not self[flag.name]:
                self[flag.name] = self._value(flag, None) or False
        if not self["listen"]:
            self["listen"] = [
                endpoint
                for endpoint in [self._environment.get(_LISTEN_ENVIRONMENT, "").strip()]
                if endpoint
            ] or [f"tcp:{self['port']}"]
        self["mcp-server"] = self._mcp_servers(self["mcp-server"])
        self["mcp-header"] = self._mcp_headers(self["mcp-header"])
        key = self._environment.get(_SERVER_KEY, "").strip()
        if key and not is_key(key):
            raise UsageError(f"{_SERVER_KEY} must be one key of visible ASCII characters")
        self["llamastack-api-key"] = key.encode("ascii")
        if self["memory"] is not None:
            self._check_memory()
        self["in-container"] = bool(self._environment.get(_IN_CONTAINER, "").strip())
        parent = getattr(self, "parent", None)
        if parent is not None and self["check"]:
            parent["pidfile"] = ""  # that of a daemon that runs here is no obstacle
        if parent is not None and not parent["logger"] and not parent.get("syslog"):
            # twistd has its own option for this, read after ours.
            parent["logger"] = "llamaproxy.config.logformat.twistd_observer"
            logformat.as_json = self["log-format"] == "json"
            logformat.threshold.level = self["log-level"]
            logformat.path = parent["logfile"] or (None if parent["nodaemon"] else "twistd.log")

    def _check_memory(self) -> None:
        if len(self[_SECRET] or "") < _SECRET_LENGTH:
            raise UsageError(
                "--memory needs a secret in LLAMAPROXY_MEMORY_SECRET (or --memory-secret) of "
                f"{_SECRET_LENGTH} characters or more, the same on all machines"
            )
        if find_spec("txredisapi") is None:
            raise UsageError("--memory needs txredisapi: pip install 'llamaproxy[redis]'")

    def _mcp_servers(self, arguments: list[str]) -> dict[str, str]:
        """URLs of MCP servers by name."""
        origin = "--mcp-server" if arguments else _MCP_SERVERS
        servers: dict[str, str] = {}
        for text in arguments or self._environment.get(_MCP_SERVERS, "").split(","):
            if not text.strip() and not arguments:
                continue
            try:
                name, url = values.mcp_server(text)
            except ValueError as error:
                # What is no URL may be anything, such as the rest of one that has a comma.
                what = f", not {_shown(text)!r}" if "://" in text else ""
                raise UsageError(f"{origin} {error}{what}") from None
            if name in servers:
                raise UsageError(f"{origin} names two servers {name!r}")
            servers[name] = url
        return servers

    def _mcp_headers(self, arguments: list[str]) -> dict[str, tuple[tuple[str, str], ...]]:
        """Header fields by the URL of the MCP server that gets them."""
        origin = "--mcp-header" if arguments else _MCP_HEADERS
        fields: dict[str, tuple[tuple[str, str], ...]] = {}
        for text in arguments or self._environment.get(_MCP_HEADERS, "").splitlines():
            if not text.strip() and not arguments:
                continue
            try:
                server, name, value = values.mcp_header(text)
            except ValueError as error:
                raise UsageError(f"{origin} {error}") from None
            url = self["mcp-server"].get(server)
            if url is None:
                raise UsageError(f"{origin} is for {server!r}, which no --mcp-server names")
            fields[url] = (*fields.get(url, ()), (name, value))
        return fields

    def _value(self, setting: Setting, argument: str | None) -> Any:
        """What *setting* is, by its *argument* on the command line or else by the environment."""
        text, origin = argument, f"--{setting.name}"
        if text is None:
            text = (self._environment.get(setting.environment) or "").strip()
            origin = setting.environment
        if text or argument is not None:
            self.explicit.add(setting.name)
        else:
            text = setting.default
        if text is None:
            return None
        self._texts[setting.name] = text
        try:
            if setting.name in self._files:
                return _READ_AGAIN[setting.name](text, self._files[setting.name])
            return setting.parse(text)
        except ValueError as error:
            what = "" if setting.secret else f", not {_shown(text)!r}"
            raise UsageError(f"{origin} {error}{what}") from None


def _shown(text: str) -> str:
    """*text* without what may be a password or a token in a URL, and not too long."""
    place = re.sub(r"//.*@", "//***@", text, flags=re.DOTALL)
    shown = re.sub(r"[?#].*", "?***", place, flags=re.DOTALL)
    return shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}..."
