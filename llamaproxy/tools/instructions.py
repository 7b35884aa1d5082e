"""What servers say of how their tools are to be used (MCP, "Lifecycle": ``instructions``). Pure.

They are kept and shown; a conversation has them only where the operator wants it
(``--mcp-instructions``), for they are the words of others in the place of the operator's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from llamaproxy.tools.definitions import ToolDefinition
from llamaproxy.tools.neutral import harmless, shortened

#: Bytes of one server's, and of all that one conversation has.
_MAX_INSTRUCTIONS, _MAX_NOTES = 4096, 16 * 1024

_HEADING = "The servers of your tools say how to use them."


class ToolGroup(list[ToolDefinition]):
    """The tools of one group, and the *instructions* of its server, empty if there are none."""

    def __init__(self, tools: Iterable[ToolDefinition] = (), instructions: str = "") -> None:
        super().__init__(tools)
        self.instructions = instructions


def tidied(instructions: object) -> str:
    """What a server says of its tools, harmless and no longer than it may be."""
    text = instructions if isinstance(instructions, str) else ""
    return shortened(text.strip(), _MAX_INSTRUCTIONS)


def instructions_of(tools: list[ToolDefinition]) -> str:
    """The instructions of the server of a group's *tools*."""
    return tools.instructions if isinstance(tools, ToolGroup) else ""


def notes_of(instructions: Mapping[str, str], groups: Collection[str]) -> str:
    """The *instructions*, by group, of those among *groups*, as the model is told of them."""
    notes = ""
    for group in sorted(groups):
        text = instructions.get(group, "")
        note = f"\n\n## {harmless(group)}\n\n{text}" if text else ""
        if len((notes + note).encode()) <= _MAX_NOTES:
            notes += note
    return _HEADING + notes if notes else ""
