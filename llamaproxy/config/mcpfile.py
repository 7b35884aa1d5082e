"""The ``mcpServers`` file: which MCP servers there are, as many MCP clients have it.

The form is that of Claude Desktop, Cursor, llama.cpp and mcpo; what VS Code, Gemini CLI and others
write in its place is understood too. Keys that are not known are another client's, and ignored.
Pure, but for :func:`read_mcp_file` and the ``envFile`` of an entry.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import attrs

from llamaproxy.config.jsonc import Object, loads
from llamaproxy.config.mcpentry import MAX_NAME, Entry, Unusable, read_bounded
from llamaproxy.tools.mcp.configured import ConfiguredServer

#: The most servers in it.
_MAX_SERVERS = 500

#: Where the servers stand: by the original, VS Code, Zed, and opencode; the last holds VS Code's
#: "servers" in its settings.
_SECTIONS = ("mcpServers", "servers", "context_servers", "mcp")


@attrs.frozen
class McpFile:
    """The servers of a file by name, and what is wrong with each of the others."""

    servers: Mapping[str, ConfiguredServer] = attrs.Factory(dict)
    problems: Mapping[str, str] = attrs.Factory(dict)


class McpConfig:
    """The file at *path*, as it was read the last time that it could be."""

    def __init__(self, path: str, contents: str | None = None) -> None:
        """:param contents: what another process has read of it.

        :raises ValueError: as :meth:`reread` does.
        """
        self.path = os.path.abspath(path)  # twistd leaves the directory that it was started in
        if contents is None:
            self.reread()
        else:
            self.take(contents)

    def reread(self) -> None:
        """Read it again.

        :raises ValueError: if it cannot be used; all is as it was then.
        """
        self._take(read_bounded(self.path))

    def take(self, contents: str) -> None:
        """Take what another process has read, which could use it.

        :raises ValueError: as :meth:`reread` does.
        """
        self._take(contents.encode())

    def _take(self, data: bytes) -> None:
        self.file = mcp_file(data, os.environ, Path(self.path).parent)
        #: The text that it was read from.
        self.contents = data.decode()


def read_mcp_file(path: str, environment: Mapping[str, str] = os.environ) -> McpFile:
    """The servers in the file at *path*.

    :raises ValueError: with a text that says why the file as a whole cannot be used.
    """
    return mcp_file(read_bounded(path), environment, Path(path).absolute().parent)


def mcp_file(data: bytes, environment: Mapping[str, str], folder: Path) -> McpFile:
    """The servers in a file with these bytes in *folder*.

    :raises ValueError: with a text that says why the file as a whole cannot be used.
    """
    entries = _entries(loads(data))
    servers: dict[str, ConfiguredServer] = {}
    problems: dict[str, str] = {}
    for name, entry in entries.items():
        try:
            if not 0 < len(name) <= MAX_NAME or not name.isprintable() or name != name.strip():
                raise Unusable(f"its name must have 1 to {MAX_NAME} printable characters")
            if name in entries.doubles:
                raise Unusable("it stands there twice")
            if not isinstance(entry, Object):
                raise Unusable("it is not an object")
            if entry.get("disabled") is True or entry.get("enabled") is False:
                continue
            servers[name] = Entry(entry, environment, folder).server(name)
        except Unusable as problem:
            problems[name] = str(problem)
    return McpFile(servers, problems)


def _entries(value: object) -> Object:
    if not isinstance(value, Object):
        raise ValueError("must be a JSON object with mcpServers")
    section = next((name for name in _SECTIONS if value.get(name) is not None), "mcpServers")
    if section in value.doubles:
        raise ValueError(f"has {section} twice")
    entries = value.get(section)
    if entries is None:
        raise ValueError("must be a JSON object with mcpServers")
    if not isinstance(entries, Object):
        raise ValueError(f"must have an object under {section}")
    if section == "mcp" and "servers" in entries:
        return _entries(entries)
    if len(entries) > _MAX_SERVERS:
        raise ValueError(f"has more than {_MAX_SERVERS} servers")
    return entries
