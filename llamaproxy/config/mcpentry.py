"""Entry: one server of an ``mcpServers`` file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from llamaproxy.config import values
from llamaproxy.config.envfile import env_file
from llamaproxy.config.jsonc import Object
from llamaproxy.tools.mcp.configured import ConfiguredServer
from llamaproxy.tools.mcp.program import Command, is_inherited
from llamaproxy.tools.mcp.programs import ProgramServer

#: Bytes of a file, and characters of a server's name.
_MAX_FILE, MAX_NAME = 1024 * 1024, 100

#: The keys of a server's URL: Windsurf and Gemini CLI have names of their own.
_URLS = ("url", "serverUrl", "httpUrl")

#: What the program and its arguments are called in a problem.
_WORDS = "command and args"

#: Copilot's "tools" is a list; what others have under that name is something else.
_ALLOWED = ("allowedTools", "includeTools", "tools")
_DENIED = ("disabledTools", "excludeTools")

#: Gemini CLI's form of a variable.
_BARE_VARIABLE = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)")
_VARIABLE = re.compile(r"\$\{([^{}]*)\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FIELD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}")


class Unusable(ValueError):
    """An entry that cannot be used; the text says why, and repeats no value."""


def read_bounded(path: str | Path) -> bytes:
    """The bytes of a file.

    :raises ValueError: with a text that says why it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror or error})") from None
    if len(data) > _MAX_FILE:
        raise ValueError(f"is larger than {_MAX_FILE} bytes")
    return data


def _env_file(path: Path) -> dict[str, str]:
    """:raises Unusable: if it cannot be read."""
    try:
        return env_file(read_bounded(path).decode("utf-8"))
    except UnicodeDecodeError:
        raise Unusable("its envFile is not text in UTF-8") from None
    except ValueError as error:
        raise Unusable(f"its envFile {error}") from None


@attrs.frozen(eq=False, repr=False)
class Entry:
    """One server of the file, whose values may name variables of the *environment*."""

    _values: Object
    _environment: Mapping[str, str]
    _folder: Path
    #: Values of variables that stand in its command.
    _secrets: list[str] = attrs.Factory(list)

    def server(self, name: str) -> ConfiguredServer:
        """:raises Unusable: if it is none."""
        self._without_doubles(self._values)
        url = next((self._values[key] for key in _URLS if self._values.get(key)), None)
        allowed, denied = self._patterns(_ALLOWED), self._patterns(_DENIED) or ()
        if self._values.get("command"):
            if url is not None:
                raise Unusable("it has both a command and a url")
            program = self._program(name)
            return ConfiguredServer(program.endpoint, (), program, allowed, denied)
        if url is None:
            raise Unusable("it has neither a url nor a command")
        return ConfiguredServer(self._url(url), self._headers(), None, allowed, denied)

    def _program(self, name: str) -> ProgramServer:
        if self._values.get("sandboxEnabled") is True:
            raise Unusable("it is to run in a sandbox, and there is none here")
        program, *args = self._words()
        cwd = self._values.get("cwd")
        place = self._folder
        if cwd is not None:
            place = self._folder / os.path.expanduser(self._text("cwd", cwd))
        env = self._env()
        for key in env:
            if not key or "=" in key or not key.isprintable():
                raise Unusable("env has a name that no variable can have")
        started = Command(
            name,
            os.path.expanduser(program),
            tuple(args),
            tuple(env.items()),
            str(place),
            tuple(self._secrets),
        )
        return ProgramServer(started, self._values.get("perCaller") is True)

    def _words(self) -> list[str]:
        """The program and its arguments."""
        command = self._values["command"]
        args = self._list("args")
        if isinstance(command, Object):  # as Zed had it
            nested = self._nested(command)
            command, args = command.get("path"), [*nested._list("args"), *args]
        words = command if isinstance(command, list) else [command]
        return [self._text(_WORDS, word) for word in (*words, *args)]

    def _env(self) -> dict[str, str]:
        """The variables for the program; one that is null is none."""
        variables: dict[str, str] = {}
        path = self._values.get("envFile")
        if path is not None:
            variables = _env_file(self._folder / os.path.expanduser(self._text("envFile", path)))
        command = self._values["command"]
        places = [self._nested(command)] if isinstance(command, Object) else []
        for place in (*places, self):
            for key in ("environment", "env"):
                variables |= place._mapping(key, nullable=True)
        return {name: self._bare_variable(value) for name, value in variables.items()}

    def _nested(self, values: Object) -> Entry:
        self._without_doubles(values)
        return attrs.evolve(self, values=values)

    def _without_doubles(self, value: Object) -> None:
        for name in value.doubles:
            raise Unusable(f"it has {name[:MAX_NAME]!r} twice")

    def _url(self, value: object) -> str:
        try:
            _, url = values.mcp_server(f"name={self._text('url', value)}")
        except ValueError:
            raise Unusable("its url is no URL of http or https") from None
        return url

    def _headers(self) -> tuple[tuple[str, str], ...]:
        headers = self._mapping("headers")
        for name, value in headers.items():
            if not _FIELD.fullmatch(name) or not value.isprintable():
                raise Unusable("headers has a field that cannot be sent")
        return tuple((name, value.strip()) for name, value in headers.items())

    def _patterns(self, keys: tuple[str, ...]) -> tuple[str, ...] | None:
        key = next((key for key in keys if self._values.get(key) is not None), None)
        if key == "tools" and not isinstance(self._values[key], list):
            return None
        return None if key is None else tuple(self._text(key, each) for each in self._list(key))

    def _list(self, key: str) -> list[Any]:
        value = self._values.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise Unusable(f"{key} is not a list")
        return value

    def _mapping(self, key: str, nullable: bool = False) -> dict[str, str]:
        value = self._values.get(key)
        if value is None:
            return {}
        if not isinstance(value, Object):
            raise Unusable(f"{key} is not an object")
        self._without_doubles(value)
        return {
            name: self._text(key, each)
            for name, each in value.items()
            if not nullable or each is not None
        }

    def _text(self, key: str, value: object) -> str:
        """*value*, which stands under *key*, with variables replaced."""
        if isinstance(value, bool):
            value = str(value).lower()
        if isinstance(value, int | float):
            value = str(value)
        if not isinstance(value, str):
            raise Unusable(f"{key} has something that is not text")
        text = _VARIABLE.sub(lambda match: self._variable(key, match[1]), value)
        if "\0" in text:
            raise Unusable(f"{key} has a NUL character")
        try:
            os.fsencode(text)
        except UnicodeEncodeError:
            raise Unusable(f"{key} has half a character") from None
        return text

    def _bare_variable(self, value: str) -> str:
        """What ``$NAME`` stands for, if that is all of *value* and there is such a variable."""
        match = _BARE_VARIABLE.fullmatch(value)
        return value if match is None else self._environment.get(match[1], value)

    def _variable(self, key: str, expression: str) -> str:
        """What ``${expression}`` stands for: ``NAME``, ``NAME:-default``, ``env:NAME``."""
        if expression == "userHome":
            return os.path.expanduser("~")
        if expression == "workspaceFolder":
            # The file of a project stands in it, or in an editor's folder, such as .vscode.
            hidden = self._folder.name.startswith(".")
            return str(self._folder.parent if hidden else self._folder)
        if expression in ("pathSeparator", "/"):
            return os.sep
        name, has_default, default = expression.removeprefix("env:").partition(":-")
        if not _NAME.fullmatch(name):
            raise Unusable(f"{key} has ${{{expression[:MAX_NAME]}}}, which is not known here")
        value = self._environment.get(name)
        if value is None and not has_default:
            raise Unusable(f"{key} names the variable {name}, which is not set")
        if value is None:
            return default
        if key == _WORDS and value and not is_inherited(name):
            self._secrets.append(value)
        return value
