"""Env files: a variable a line, as ``docker --env-file``, VS Code and Cursor have them. Pure."""

from __future__ import annotations

import re

_LINE = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_.-]*)\s*=(.*)", re.ASCII)
_QUOTED = re.compile(r"""'([^']*)'|"((?:[^"\\]|\\.)*)\"""")
_COMMENT = re.compile(r"(?:^|\s)#.*")
_ESCAPE = re.compile(r"\\(.)")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}


def env_file(text: str) -> dict[str, str]:
    """The variables in *text*; what is no line with a variable, such as a comment, is left out.

    A value may stand in single quotes, as it is, or in double quotes, with backslashes.
    """
    lines = (_LINE.fullmatch(line.strip()) for line in text.removeprefix("\ufeff").split("\n"))
    return {match[1]: _value(match[2].strip()) for match in lines if match is not None}


def _value(text: str) -> str:
    quoted = _QUOTED.match(text)
    if quoted is None:
        return _COMMENT.sub("", text).rstrip()
    if quoted[1] is not None:
        return quoted[1]
    return _ESCAPE.sub(lambda match: _ESCAPES.get(match[1], match[1]), quoted[2])
