"""The names under which tools are offered to a model. Pure (DESIGN: L6)."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase

from llamaproxy.tools.source import ToolDefinition

#: What OpenAI, and every strict model server, accepts as a function's name.
_VALID = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def offered_names(groups: Mapping[str, list[ToolDefinition]]) -> dict[str, ToolDefinition]:
    """Every tool by a valid name of its own, sorted by group and real name.

    A valid name that is alone stays as it is. Any other is made of group and name, and ends in a
    digest of both, so that it depends on nothing else and never changes between listings; nor can
    a tool take it that is really called so.
    """
    listed = {(tool.group, tool.name): tool for group in groups.values() for tool in group}
    tools = [listed[key] for key in sorted(listed)]
    shared = Counter(tool.name for tool in tools)
    rewritten = [_rewritten(tool) for tool in tools]
    taken = frozenset(rewritten)
    offered: dict[str, ToolDefinition] = {}
    for tool, other_name in zip(tools, rewritten, strict=True):
        alone = shared[tool.name] == 1 and tool.name not in taken
        offered[tool.name if alone and _VALID.fullmatch(tool.name) else other_name] = tool
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


def meant(
    called: str, offered: Mapping[str, ToolDefinition], others: Collection[str] = ()
) -> ToolDefinition | None:
    """The one tool that *called* differs from only in case, punctuation or its group in front.

    None if one of the *others*, the client's own, could be meant as well.
    """
    wanted = plain_name(called)
    found = {
        name: tool
        for name, tool in offered.items()
        if wanted
        and wanted
        in (
            plain_name(name),
            plain_name(tool.name),
            plain_name(tool.group + tool.name),
            plain_name(re.split("[^a-zA-Z0-9]", tool.group)[-1] + tool.name),
        )
    }
    rivals = any(plain_name(other) == wanted for other in others)
    return next(iter(found.values())) if len(found) == 1 and not rivals else None


def nearest(called: str, names: list[str]) -> list[str]:
    """Up to three *names* that look like *called*."""
    close = get_close_matches(plain_name(called[:128]), {plain_name(name) for name in names})
    return [name for plain in close for name in names if plain_name(name) == plain][:3]


def plain_name(name: str) -> str:
    """*name* without what models get wrong: case and punctuation."""
    return re.sub("[^a-z0-9]", "", name.lower())
