"""Options: command line over environment over default, every value checked in one place."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from ipaddress import ip_network
from typing import Any

import attrs
from hyperlink import DecodedURL
from OpenSSL.SSL import Error as TLSError
from twisted.python.usage import Options as UsageOptions
from twisted.python.usage import UsageError

from llamaproxy import __version__, logs
from llamaproxy.access import ApiKeys, is_key
from llamaproxy.upstream.headers import TrustedProxies
from llamaproxy.upstream.tls import trusting


def _integer(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
            raise ValueError(f"must be a whole number from {least} to {most}")
        return int(text)

    return parse


def _seconds(least: float = 0.001, most: float = 7 * 86400) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not least <= value <= most:
            raise ValueError(f"must be a number of seconds from {least:g} to {most:g}")
        return value

    return parse


def _choice(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return text

    return parse


def _url(text: str) -> DecodedURL:
    wanted = "must be a URL such as http://localhost:8321"
    try:
        url = DecodedURL.from_text(text.strip())
        port = url.port
        encoded = url.to_uri().to_text()
    except ValueError:  # among them hyperlink's URLParseError and every UnicodeError
        raise ValueError(wanted) from None
    if url.scheme not in ("http", "https") or not url.host or any(c.isspace() for c in encoded):
        raise ValueError(wanted)
    if port is None or not 0 < port < 65536:
        raise ValueError(f"{wanted}, with a port from 1 to 65535")
    if url.query or url.fragment or any(url.userinfo):
        raise ValueError(f"{wanted}, with no user, query or fragment")
    return url.replace(path=tuple(segment for segment in url.path if segment))


def _mcp_server(text: str) -> tuple[str, str]:
    """A name and the URL of an MCP server, which may have a query."""
    wanted = "must be NAME=URL, such as web=http://localhost:9000/mcp"
    name, _, said = (part.strip() for part in text.partition("="))
    if not re.fullmatch(r"[A-Za-z0-9_.:-]{1,64}", name):
        raise ValueError(wanted)
    try:
        url = DecodedURL.from_text(said)
        plain = url.replace(path=(), query=(), fragment="", rooted=True)
        _url(plain.to_text())
        encoded: str = url.to_uri().to_text()
    except ValueError:
        raise ValueError(wanted) from None
    if url.fragment or any(c.isspace() for c in encoded):
        raise ValueError(f"{wanted}, with no user or fragment")
    return name, encoded


def _api_keys(text: str) -> ApiKeys:
    try:
        return ApiKeys.read(text)
    except ValueError as error:
        raise ValueError(f"must name a file with one key a line ({error})") from None


def _flag(text: str) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True}
    words |= {"0": False, "false": False, "no": False, "off": False}
    if text.lower() not in words:
        raise ValueError("must be 1 or 0")
    return words[text.lower()]


def _authorities(path: str) -> str:
    """A PEM file with certificates of authorities, which is read now to see whether it is one."""
    try:
        trusting(path, system=False)
    except TLSError:
        raise ValueError("must be a readable file with certificates in PEM format") from None
    return path


def _proxies(text: str) -> TrustedProxies:
    wanted = "must be addresses or networks such as 10.0.0.0/8,::1, or unix"
    names = [name.strip() for name in text.split(",") if name.strip()]
    try:
        networks = [ip_network(name) for name in names if name != "unix"]
    except ValueError:
        raise ValueError(wanted) from None
    return TrustedProxies(networks, local="unix" in names)


@attrs.frozen
class Setting:
    """One option: its name, its environment variable, its default as text, and its meaning."""

    name: str
    environment: str
    default: str | None
    parse: Callable[[str], Any]
    doc: str


#: Where an operator asks unless told otherwise; if it is taken, the daemon does without.
ADMIN = "tcp:8323:interface=127.0.0.1"

_BYTES = _integer(1, 2**40)

#: The key that the server gets if clients must have keys: no option, which others could see.
_SERVER_KEY = "LLAMASTACK_API_KEY"

#: Every option that takes one value (DESIGN: 8).
SETTINGS = (
    Setting("port", "PROXY_PORT", "8322", _integer(0, 65535), "TCP port to listen on."),
    Setting(
        "llamastack-url",
        "LLAMASTACK_URL",
        "http://localhost:8321",
        _url,
        "URL of the Llama Stack server.",
    ),
    Setting(
        "admin",
        "LLAMAPROXY_ADMIN",
        ADMIN,
        str.strip,
        "Twisted endpoint for /live, /ready, /metrics and /status, or off.",
    ),
    Setting(
        "api-keys-file",
        "LLAMAPROXY_API_KEYS_FILE",
        None,
        _api_keys,
        "File with the keys that clients may use, one a line; read again on SIGHUP. The server "
        f"then gets the key in the variable {_SERVER_KEY}, or none.",
    ),
    Setting(
        "max-iterations",
        "LLAMAPROXY_MAX_ITERATIONS",
        "10",
        _integer(1, 1000),
        "Most rounds with tools in one answer.",
    ),
    Setting(
        "tool-timeout",
        "LLAMAPROXY_TOOL_TIMEOUT",
        "60",
        _seconds(),
        "Seconds that one tool call may take.",
    ),
    Setting(
        "upstream-timeout",
        "LLAMAPROXY_UPSTREAM_TIMEOUT",
        "600",
        _seconds(),
        "Seconds to the first byte of the server's answer, and of silence after it.",
    ),
    Setting(
        "connect-timeout",
        "LLAMAPROXY_CONNECT_TIMEOUT",
        "10",
        _seconds(),
        "Seconds to reach the server: to resolve its name, to connect, and for the TLS handshake.",
    ),
    Setting(
        "upstream-ca",
        "LLAMAPROXY_UPSTREAM_CA",
        None,
        _authorities,
        "PEM file with the authorities of the server's certificate, instead of the system's.",
    ),
    Setting(
        "trusted-proxies",
        "LLAMAPROXY_TRUSTED_PROXIES",
        "",
        _proxies,
        "Addresses or networks, comma-separated, of proxies whose X-Forwarded-* are believed; "
        "unix for those that come over a Unix socket.",
    ),
    Setting(
        "tools-ttl",
        "LLAMAPROXY_TOOLS_TTL",
        "60",
        _seconds(least=0),
        "Seconds for which a list of tools is fresh.",
    ),
    Setting(
        "tool-source",
        "LLAMAPROXY_TOOL_SOURCE",
        "auto",
        _choice("auto", "tool-runtime", "mcp"),
        "Where the server's tools are run: by itself (tool-runtime), by calling the MCP servers "
        "that it names (mcp), or as it can (auto).",
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
        _integer(1, 10**6),
        "Connections of clients; further ones are answered with 503.",
    ),
    Setting(
        "header-timeout",
        "LLAMAPROXY_HEADER_TIMEOUT",
        "30",
        _seconds(),
        "Seconds in which the head of a request must have come, and TLS been agreed on.",
    ),
    Setting(
        "client-timeout",
        "LLAMAPROXY_CLIENT_TIMEOUT",
        "60",
        _seconds(),
        "Seconds that a client may be silent in the body of a request, or between two requests.",
    ),
    Setting(
        "memory-entries",
        "LLAMAPROXY_MEMORY_ENTRIES",
        "1000",
        _integer(0, 10**6),
        "Turns with calls of server and client remembered for the client's return.",
    ),
    Setting(
        "memory-bytes",
        "LLAMAPROXY_MEMORY_BYTES",
        "67108864",
        _integer(0, 2**40),
        "Bytes of all remembered turns together.",
    ),
    Setting(
        "memory-age",
        "LLAMAPROXY_MEMORY_AGE",
        "3600",
        _seconds(),
        "Seconds after which a turn that nobody came back to is forgotten.",
    ),
    Setting(
        "keep-alive",
        "LLAMAPROXY_KEEP_ALIVE",
        "15",
        _seconds(),
        "Seconds of silence after which a stream gets a comment.",
    ),
    Setting(
        "drain-timeout",
        "LLAMAPROXY_DRAIN_TIMEOUT",
        "30",
        _seconds(least=0),
        "Seconds that running requests are given when the daemon stops.",
    ),
    Setting(
        "log-format",
        "LLAMAPROXY_LOG_FORMAT",
        "text",
        _choice("text", "json"),
        "Format of the log: text or json.",
    ),
)

_LISTEN_ENVIRONMENT = "LLAMAPROXY_LISTEN"
_MCP_SERVERS = "LLAMAPROXY_MCP_SERVERS"
_DEMO = Setting("demo", "LLAMAPROXY_DEMO", None, _flag, "")


class Options(UsageOptions):
    """What ``twistd llamaproxy`` was told.

    After parsing, every setting is there under its name, of its type: ``listen`` is a list of
    endpoint strings, ``mcp-server`` a dict of URLs by name, ``demo`` a bool,
    ``llamastack-api-key`` bytes, which may be empty.
    """

    synopsis = "[llamaproxy options]"
    longdesc = (
        "Stands between OpenAI clients and a Llama Stack server: gives the model the server's "
        "tools, runs the calls that it makes, and answers when the model does. Every option can "
        "also be set by the environment variable in brackets; the command line wins."
    )
    optFlags = (
        (
            "demo",
            None,
            "Run against an embedded stand-in for Llama Stack, with a scripted model and a few "
            "real tools. [LLAMAPROXY_DEMO]",
        ),
    )
    optParameters = tuple(
        (s.name, None, None, f"{s.doc} [{s.environment}, default: {s.default or 'none'}]")
        for s in SETTINGS
    )

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        UsageOptions.__init__(self)
        self._environment = environment
        self["listen"] = []
        self["mcp-server"] = []

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

    def opt_version(self) -> None:
        """Show the version of llamaproxy and exit."""
        print(f"llamaproxy {__version__}")
        raise SystemExit(0)

    def parseOptions(self, options: Any = None) -> None:
        """Parse; under twistd, which would print pages of help, a mistake is one line.

        :raises UsageError: for a mistake, when not run by twistd.
        """
        try:
            UsageOptions.parseOptions(self, options)
        except UsageError as error:
            if getattr(self, "parent", None) is None:
                raise
            raise SystemExit(f"twistd llamaproxy: {error}") from None

    def parseArgs(self, *args: str) -> None:
        if args:
            raise UsageError(f"unexpected argument: {args[0]}")

    def postOptions(self) -> None:
        for setting in SETTINGS:
            self[setting.name] = self._value(setting, self[setting.name])
        if not self["demo"]:
            self["demo"] = self._value(_DEMO, None) or False
        if not self["listen"]:
            self["listen"] = [
                endpoint
                for endpoint in [self._environment.get(_LISTEN_ENVIRONMENT, "").strip()]
                if endpoint
            ] or [f"tcp:{self['port']}"]
        self["mcp-server"] = self._mcp_servers(self["mcp-server"])
        key = self._environment.get(_SERVER_KEY, "").strip()
        if key and not is_key(key):
            raise UsageError(f"{_SERVER_KEY} must be one key of visible ASCII characters")
        self["llamastack-api-key"] = key.encode("ascii")
        parent = getattr(self, "parent", None)
        if self["log-format"] == "json" and parent is not None and not parent["logger"]:
            # twistd has its own option for this, read after ours.
            parent["logger"] = "llamaproxy.logs.twistd_observer"
            logs.path = parent["logfile"] or (None if parent["nodaemon"] else "twistd.log")

    def _mcp_servers(self, given: list[str]) -> dict[str, str]:
        """URLs of MCP servers by name."""
        where = "--mcp-server" if given else _MCP_SERVERS
        said = given or self._environment.get(_MCP_SERVERS, "").split(",")
        servers: dict[str, str] = {}
        for text in said:
            if not text.strip() and not given:
                continue
            try:
                name, url = _mcp_server(text)
            except ValueError as error:
                raise UsageError(f"{where} {error}, not {text!r}") from None
            if name in servers:
                raise UsageError(f"{where} names two servers {name!r}")
            servers[name] = url
        return servers

    def _value(self, setting: Setting, given: str | None) -> Any:
        said, where = given, f"--{setting.name}"
        if said is None:
            said = (self._environment.get(setting.environment) or "").strip()
            where = setting.environment
        if not said and given is None:
            said = setting.default
        if said is None:
            return None
        try:
            return setting.parse(said)
        except ValueError as error:
            raise UsageError(f"{where} {error}, not {said!r}") from None
