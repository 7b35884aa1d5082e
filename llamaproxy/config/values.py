"""What the value of an option may be: text in, a value or a ValueError out. Pure.

The error says what the text must be; :mod:`llamaproxy.config.options` says whose it is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from ipaddress import ip_network
from typing import TYPE_CHECKING

from hyperlink import DecodedURL
from OpenSSL.SSL import Error as TLSError

from llamaproxy.config.cores import usable_cores
from llamaproxy.server.hosts import AllowedHosts
from llamaproxy.server.keys import ApiKeys, is_key
from llamaproxy.upstream.headers import TrustedProxies
from llamaproxy.upstream.tls import tls_context
from llamaproxy.upstream.urls import as_uri, read_url

if TYPE_CHECKING:
    from llamaproxy.config.mcpfile import McpConfig

#: More than any machine has use for.
MOST_WORKERS = 256


def integer(least: int, most: int) -> Callable[[str], int]:
    """A parser of whole numbers."""

    def parse(text: str) -> int:
        digits = text.lstrip("0") or text[:1]
        fits = text.isascii() and text.isdigit() and len(digits) <= len(str(most))
        if not fits or not least <= int(digits) <= most:
            raise ValueError(f"must be a whole number from {least} to {most}")
        return int(digits)

    return parse


def workers(text: str) -> int:
    """A number of processes, or ``auto`` for one on each core that this process may use."""
    if text == "auto":
        return usable_cores()
    try:
        return integer(1, MOST_WORKERS)(text)
    except ValueError as error:
        raise ValueError(f"{error}, or auto") from None


def seconds(least: float = 0.001, most: float = 7 * 86400) -> Callable[[str], float]:
    """A parser of times."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not least <= value <= most:
            raise ValueError(f"must be a number of seconds from {least:g} to {most:g}")
        return value

    return parse


def choice(*allowed: str) -> Callable[[str], str]:
    """A parser of words."""

    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return text

    return parse


def server_url(text: str) -> DecodedURL:
    """A URL of http or https, without the slash, or the ``/v1`` of clients, at its end."""
    rule = "must be a URL such as http://localhost:8321"
    try:
        url = read_url(text.strip())
        port = url.port
        encoded = as_uri(url).to_text()
    except ValueError:  # among them hyperlink's URLParseError and every UnicodeError
        raise ValueError(rule) from None
    if url.scheme not in ("http", "https") or not url.host or any(c.isspace() for c in encoded):
        raise ValueError(rule)
    if port is None or not 0 < port < 65536:
        raise ValueError(f"{rule}, with a port from 1 to 65535")
    if url.query or url.fragment or any(url.userinfo):
        raise ValueError(f"{rule}, with no user, query or fragment")
    path = tuple(segment for segment in url.path if segment)
    if url.scheme == "http" and path == ("openai", "v1"):
        # A client's URL for this proxy, or for a Llama Stack; hosted servers, which have such
        # paths themselves, are reached by https.
        path = ()
    return url.replace(path=_base_path(path))


def _base_path(path: tuple[str, ...]) -> tuple[str, ...]:
    """*path* without what clients' base URLs end in: everybody pastes those."""
    for end in _CLIENT_PATHS:
        if path[-len(end) :] == end:
            return path[: -len(end)]
    return path


#: Ends of clients' base URLs, the longest first.
_CLIENT_PATHS = (
    ("v1", "openai", "v1"),
    ("v1", "chat", "completions"),
    ("v1", "models"),
    ("v1",),
)


def mcp_server(text: str) -> tuple[str, str]:
    """A name and the URL of an MCP server, which may have a query."""
    rule = "must be NAME=URL, such as web=http://localhost:9000/mcp"
    name, _, address = (part.strip() for part in text.partition("="))
    if not re.fullmatch(r"[A-Za-z0-9_.:-]{1,64}", name):
        raise ValueError(rule)
    if " " in address or not address.isprintable():
        raise ValueError(f"{rule}, with no spaces or control characters")
    try:
        url = read_url(address)
        plain = url.replace(path=(), query=(), fragment="", rooted=True)
        server_url(plain.to_text())
        encoded: str = as_uri(url).to_text()
    except ValueError:
        raise ValueError(rule) from None
    if url.fragment:
        raise ValueError(f"{rule}, with no user or fragment")
    return name, encoded


def mcp_header(text: str) -> tuple[str, str, str]:
    """The name of an MCP server, and a header field that it gets: its name and value.

    The error does not repeat the value, which is a secret.
    """
    server, equals, line = text.partition("=")
    name, colon, value = (part.strip() for part in line.partition(":"))
    fit = re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}", name)
    if not (equals and colon and fit and value and value.isprintable() and server.strip()):
        raise ValueError("must be NAME=Field: value, such as web=Authorization: Bearer token")
    return server.strip(), name, value


def mcp_config(text: str) -> McpConfig:
    """The MCP servers in a file."""
    from llamaproxy.config.mcpfile import McpConfig  # few have one

    try:
        return McpConfig(text)
    except ValueError as error:
        raise ValueError(f"must name an mcpServers file (the file {error})") from None


def mcp_config_with(text: str, contents: str) -> McpConfig:
    """The MCP servers in a file of which another process has read these *contents*."""
    from llamaproxy.config.mcpfile import McpConfig

    return McpConfig(text, contents)


def api_keys_with(text: str, contents: list[str]) -> ApiKeys:
    """The keys in a file of which another process has read these *contents*."""
    keys = ApiKeys.at(text)
    keys.take(contents)
    return keys


def api_keys(text: str) -> ApiKeys:
    """The keys in a file."""
    try:
        return ApiKeys.read(text)
    except ValueError as error:
        raise ValueError(f"must name a file with one key a line ({error})") from None


def upstream_key(text: str) -> bytes:
    """One key; the error does not repeat it."""
    if not is_key(text):
        raise ValueError("must be one key of visible ASCII characters")
    return text.encode("ascii")


def flag(text: str) -> bool:
    """Yes or no."""
    words = {"1": True, "true": True, "yes": True, "on": True}
    words |= {"0": False, "false": False, "no": False, "off": False}
    if text.lower() not in words:
        raise ValueError("must be 1 or 0")
    return words[text.lower()]


def words(text: str) -> frozenset[str]:
    """Names, comma-separated."""
    return frozenset(name.strip() for name in text.split(",") if name.strip())


def field_names(text: str) -> tuple[bytes, ...]:
    """Names of header fields, comma-separated, in lower case."""
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    if not all(re.fullmatch(r"[!#$%&'*+.^_`|~0-9a-z-]+", name) for name in names):
        raise ValueError("must be names of header fields such as X-User-Id,X-Tenant")
    return tuple(dict.fromkeys(name.encode("ascii") for name in names))


def hosts(text: str) -> AllowedHosts:
    """Names of hosts, comma-separated."""
    names = [name.strip().lower().strip("[]") for name in text.split(",") if name.strip()]
    if "*" in names:
        return AllowedHosts()
    names = [name.removeprefix("*") if name.startswith("*.") else name for name in names]
    if not names or not all(re.fullmatch(r"[a-z0-9._:-]+", name) for name in names):
        raise ValueError("must be names such as proxy.example.com,.internal, or *")
    return AllowedHosts(names)


def authorities(path: str) -> str:
    """A PEM file with certificates of authorities, which is read now to see whether it is one."""
    try:
        tls_context(path, system=False)
    except TLSError:
        raise ValueError("must be a readable file with certificates in PEM format") from None
    return os.path.abspath(path)  # twistd leaves the directory that it was started in


def proxies(text: str) -> TrustedProxies:
    """Addresses and networks, comma-separated; ``unix`` for clients that have none."""
    rule = "must be addresses or networks such as 10.0.0.0/8,::1, or unix"
    names = [name.strip() for name in text.split(",") if name.strip()]
    try:
        networks = [ip_network(name) for name in names if name != "unix"]
    except ValueError:
        raise ValueError(rule) from None
    return TrustedProxies(networks, local="unix" in names)
