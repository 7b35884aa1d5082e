"""The ``mcpServers`` file: which MCP servers there are, as many MCP clients have it.

The form is that of Claude Desktop, Cursor, llama.cpp and mcpo; what VS Code, Gemini CLI and others
write in its place is understood too. Keys that are not known are another client's, and ignored.
Pure, but for :func:`read_mcp_file`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from llamaproxy.config import values
from llamaproxy.jsontext import Json
from llamaproxy.tools.mcp.configured import ConfiguredServer
from llamaproxy.tools.mcp.program import Command
from llamaproxy.tools.mcp.programs import ProgramServer

#: Bytes of the file, servers in it, and characters of a server's name.
_MAX_FILE, _MAX_SERVERS, _MAX_NAME = 1024 * 1024, 500, 100

#: Where the servers stand: by the original, VS Code, Zed.
_SECTIONS = ("mcpServers", "servers", "context_servers")

#: The keys of a server's URL: Windsurf and Gemini CLI have names of their own.
_URLS = ("url", "serverUrl", "httpUrl")

_ALLOWED = ("allowedTools", "includeTools")
_DENIED = ("disabledTools", "excludeTools")

#: Texts, comments and commas too many, of which only texts are kept.
_JSONC = re.compile(r'("(?:\\.|[^"\\])*")|//[^\n]*|/\*.*?\*/', re.DOTALL)
_LAST_COMMA = re.compile(r'("(?:\\.|[^"\\])*")|,(?=\s*[}\]])', re.DOTALL)

_VARIABLE = re.compile(r"\$\{([^{}]*)\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FIELD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}")


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
        self._take(_read(self.path))

    def take(self, contents: str) -> None:
        """Take what another process has read, which could use it.

        :raises ValueError: as :meth:`reread` does.
        """
        self._take(contents.encode())

    def _take(self, data: bytes) -> None:
        self.file = mcp_file(data, os.environ, Path(self.path).parent)
        #: The text that it was read from.
        self.contents = data.decode()


class _Unusable(ValueError):
    """An entry that cannot be used; the text says why, and repeats no value."""


def read_mcp_file(path: str, environment: Mapping[str, str] = os.environ) -> McpFile:
    """The servers in the file at *path*.

    :raises ValueError: with a text that says why the file as a whole cannot be used.
    """
    return mcp_file(_read(path), environment, Path(path).absolute().parent)


def _read(path: str) -> bytes:
    """:raises ValueError: as :func:`read_mcp_file` does."""
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror or error})") from None
    if len(data) > _MAX_FILE:
        raise ValueError(f"is larger than {_MAX_FILE} bytes")
    return data


def mcp_file(data: bytes, environment: Mapping[str, str], folder: Path) -> McpFile:
    """The servers in a file with these bytes in *folder*.

    :raises ValueError: with a text that says why the file as a whole cannot be used.
    """
    entries = _entries(_parsed(data))
    servers: dict[str, ConfiguredServer] = {}
    problems: dict[str, str] = {}
    for name, entry in entries.items():
        try:
            if not 0 < len(name) <= _MAX_NAME or not name.isprintable() or name != name.strip():
                raise _Unusable(f"its name must have 1 to {_MAX_NAME} printable characters")
            if not isinstance(entry, dict):
                raise _Unusable("it is not an object")
            if entry.get("disabled") is True or entry.get("enabled") is False:
                continue
            servers[name] = _Entry(entry, environment, folder).server(name)
        except _Unusable as problem:
            problems[name] = str(problem)
    return McpFile(servers, problems)


def _parsed(data: bytes) -> Json:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("is not text in UTF-8") from None
    text = _JSONC.sub(lambda match: match[1] or " ", text)
    text = _LAST_COMMA.sub(lambda match: match[1] or " ", text)
    try:
        value = json.loads(text, object_pairs_hook=_without_doubles)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error.msg}, line {error.lineno})") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("must be a JSON object with mcpServers")
    return value


def _without_doubles(pairs: list[tuple[str, Any]]) -> Json:
    """The object of *pairs*; a server that is named twice is a mistake, not the last one."""
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in value if names.count(name) > 1)
        raise ValueError(f"has {double[:_MAX_NAME]!r} twice")
    return value


def _entries(value: Json) -> Json:
    for section in _SECTIONS:
        entries = value.get(section)
        if isinstance(entries, dict):
            if len(entries) > _MAX_SERVERS:
                raise ValueError(f"has more than {_MAX_SERVERS} servers")
            return entries
        if entries is not None:
            raise ValueError(f"must have an object under {section}")
    raise ValueError("must be a JSON object with mcpServers")


@attrs.frozen(eq=False, repr=False)
class _Entry:
    """One server of the file, whose values may name variables of the *environment*."""

    _values: Json
    _environment: Mapping[str, str]
    _folder: Path

    def server(self, name: str) -> ConfiguredServer:
        """:raises _Unusable: if it is none."""
        url = next((self._values[key] for key in _URLS if self._values.get(key)), None)
        allowed, denied = self._patterns(_ALLOWED), self._patterns(_DENIED) or ()
        if self._values.get("command"):
            if url is not None:
                raise _Unusable("it has both a command and a url")
            program = self._program(name)
            return ConfiguredServer(program.endpoint, (), program, allowed, denied)
        if url is None:
            raise _Unusable("it has neither a url nor a command")
        return ConfiguredServer(self._url(url), self._headers(), None, allowed, denied)

    def _program(self, name: str) -> ProgramServer:
        command = self._values["command"]
        words = [*(command if isinstance(command, list) else [command]), *self._list("args")]
        program, *args = (self._text("command and args", word) for word in words)
        cwd = self._values.get("cwd")
        place = self._folder
        if cwd is not None:
            place = self._folder / os.path.expanduser(self._text("cwd", cwd))
        env = {**self._mapping("environment"), **self._mapping("env")}
        for key in env:
            if not key or "=" in key or not key.isprintable():
                raise _Unusable("env has a name that no variable can have")
        started = Command(
            name, os.path.expanduser(program), tuple(args), tuple(env.items()), str(place)
        )
        return ProgramServer(started, self._values.get("perCaller") is True)

    def _url(self, value: object) -> str:
        try:
            _, url = values.mcp_server(f"name={self._text('url', value)}")
        except ValueError:
            raise _Unusable("its url is no URL of http or https") from None
        return url

    def _headers(self) -> tuple[tuple[str, str], ...]:
        headers = self._mapping("headers")
        for name, value in headers.items():
            if not _FIELD.fullmatch(name) or not value.isprintable():
                raise _Unusable("headers has a field that cannot be sent")
        return tuple((name, value.strip()) for name, value in headers.items())

    def _patterns(self, keys: tuple[str, ...]) -> tuple[str, ...] | None:
        key = next((key for key in keys if self._values.get(key) is not None), None)
        return None if key is None else tuple(self._text(key, each) for each in self._list(key))

    def _list(self, key: str) -> list[Any]:
        value = self._values.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise _Unusable(f"{key} is not a list")
        return value

    def _mapping(self, key: str) -> dict[str, str]:
        value = self._values.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise _Unusable(f"{key} is not an object")
        return {name: self._text(key, each) for name, each in value.items()}

    def _text(self, key: str, value: object) -> str:
        """*value*, which stands under *key*, with variables replaced."""
        if isinstance(value, bool):
            value = str(value).lower()
        if isinstance(value, int | float):
            value = str(value)
        if not isinstance(value, str):
            raise _Unusable(f"{key} has something that is not text")
        text = _VARIABLE.sub(lambda match: self._variable(key, match[1]), value)
        if "\0" in text:
            raise _Unusable(f"{key} has a NUL character")
        return text

    def _variable(self, key: str, expression: str) -> str:
        """What ``${expression}`` stands for: ``NAME``, ``NAME:-default``, ``env:NAME``."""
        if expression == "userHome":
            return os.path.expanduser("~")
        name, has_default, default = expression.removeprefix("env:").partition(":-")
        if not _NAME.fullmatch(name):
            raise _Unusable(f"{key} has ${{{expression[:_MAX_NAME]}}}, which is not known here")
        value = self._environment.get(name)
        if value is None and not has_default:
            raise _Unusable(f"{key} names the variable {name}, which is not set")
        return default if value is None else value
