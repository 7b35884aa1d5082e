"""ToolSource: what lists tools and runs them; and what it speaks of."""

from __future__ import annotations

from typing import Any, Protocol

import attrs

from llamaproxy.errors import ProxyError, ToolUnknown
from llamaproxy.jsontext import Json
from llamaproxy.tools.results import ToolResult
from llamaproxy.upstream.generation import Detector
from llamaproxy.upstream.headers import Caller

#: Seconds within which one tool group must have been listed (DESIGN: T3).
LISTING_TIMEOUT = 10.0


@attrs.frozen
class ToolDefinition:
    """One tool of a source: its group, its real name, and what the model is told of it.

    *parameters* is a JSON Schema. *origin* is the source's own note of where it came from.
    """

    group: str
    name: str
    description: str
    parameters: Json = attrs.field(hash=False)
    origin: str = ""


@attrs.frozen
class Listing:
    """The tools of each group that could be listed, and why the others could not."""

    groups: dict[str, list[ToolDefinition]]
    failures: dict[str, str] = attrs.Factory(dict)


class ToolSource(Protocol):
    """A place that tools come from."""

    async def list_tools(self, caller: Caller) -> Listing:
        """Every group's tools, as *caller* may see them.

        :raises ProxyError: if nothing at all can be listed.
        """

    async def invoke(
        self, tool: ToolDefinition, arguments: dict[str, Any], caller: Caller
    ) -> ToolResult:
        """Run *tool*.

        :raises ToolUnknown: if the source does not know it, or not any more.
        :raises ToolFailed: if it cannot be run.
        :raises ProxyError: if the source cannot be reached.
        """


@attrs.frozen
class DetectedSource:
    """The tools of whatever generation the upstream is. Implements :class:`ToolSource`."""

    _detector: Detector
    _tool_runtime: ToolSource

    async def list_tools(self, caller: Caller) -> Listing:
        if not (await self._detector.generation()).tool_runtime:
            return Listing({})
        try:
            return await self._tool_runtime.list_tools(caller)
        except ProxyError:
            self._detector.forget()
            raise

    async def invoke(
        self, tool: ToolDefinition, arguments: dict[str, Any], caller: Caller
    ) -> ToolResult:
        try:
            return await self._tool_runtime.invoke(tool, arguments, caller)
        except ToolUnknown:
            # The server was restarted, so it may be another version now.
            self._detector.forget()
            raise
