"""The names under which tools are offered to a model. Pure (DESIGN: L6)."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatchcase

from llamaproxy.tools.source import ToolDefinition

#: What OpenAI, and every strict model server, accepts as a function's name.
_VALID = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def offered_names(groups: Mapping[str, list[ToolDefinition]]) -> dict[str, ToolDefinition]:
    """Every tool by a valid name of its own, sorted by group and real name.

    A valid name that is alone stays as it is. Any other is made of group and name, and ends in a
    digest of both, so that it depends on nothing else and never changes between listings.
    """
    tools = sorted(
        (tool for group in groups.values() for tool in group), key=lambda t: (t.group, t.name)
    )
    shared = Counter(tool.name for tool in tools)
    offered: dict[str, ToolDefinition] = {}
    for tool in tools:
        plain = _VALID.fullmatch(tool.name) and shared[tool.name] == 1
        name = tool.name if plain else _rewritten(tool)
        offered.setdefault(name, tool)
    return offered


def _rewritten(tool: ToolDefinition) -> str:
    said = f"{tool.group}__{tool.name}" if tool.group else tool.name
    digest = hashlib.sha256(f"{tool.group}\0{tool.name}".encode("utf-8", "replace")).hexdigest()
    return f"{re.sub('[^a-zA-Z0-9_-]+', '_', said)[:55]}_{digest[:8]}"


def matches(patterns: list[str], offered: str, tool: ToolDefinition) -> bool:
    """Whether one of the shell-style *patterns* names the tool or its group (DESIGN: L5)."""
    return any(
        fnmatchcase(said, pattern)
        for pattern in patterns
        for said in (offered, tool.name, tool.group)
    )
