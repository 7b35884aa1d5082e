"""ToolSource: what lists tools and runs them; and what it speaks of."""

from __future__ import annotations

from typing import Any, Protocol

import attrs

from llamaproxy.concurrent import all_of
from llamaproxy.errors import ProxyError, ToolUnknown, UpstreamUnavailable
from llamaproxy.jsontext import Json
from llamaproxy.tools.results import ToolResult
from llamaproxy.upstream.caller import Caller
from llamaproxy.upstream.generation import Detector

#: Seconds within which one tool group must have been listed (DESIGN: T3).
LISTING_TIMEOUT = 10.0

#: Seconds for the list of all groups: one that hangs must not use up the others' time.
WHOLE_LISTING_TIMEOUT = 3.0


@attrs.frozen
class ToolDefinition:
    """One tool of a source: its group, its real name, and what the model is told of it.

    *parameters* is a JSON Schema. *origin* is the source's own note of where it came from;
    *endpoint* is the URL of the MCP server behind it, where that is known.
    """

    group: str
    name: str
    description: str
    parameters: Json = attrs.field(hash=False)
    origin: str = ""
    endpoint: str = ""


#: The *origin* of tools of MCP servers that the proxy calls itself.
SPOKEN_BY_US = "mcp"


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
class NoTools:
    """No tools at all. Implements :class:`ToolSource`."""

    async def list_tools(self, caller: Caller) -> Listing:
        return Listing({})

    async def invoke(
        self, tool: ToolDefinition, arguments: dict[str, Any], caller: Caller
    ) -> ToolResult:
        raise ToolUnknown(f"Error: there is no tool {tool.name!r} any more.")


@attrs.frozen
class DetectedSource:
    """The tools of whatever generation the upstream is. Implements :class:`ToolSource`.

    *connectors* are the tools of the MCP servers that the upstream names, called by ourselves;
    *pinned* is ``tool-runtime`` or ``mcp`` where detection is not to choose.
    """

    _detector: Detector
    _tool_runtime: ToolSource
    _connectors: ToolSource = attrs.Factory(NoTools)
    _pinned: str = "auto"

    async def list_tools(self, caller: Caller) -> Listing:
        """The tools, and first of all whether the upstream is still what it was.

        A list need not show it: 0.7 still answers ``GET /v1/tools``, with what it cannot run.
        """
        generation = await self._detector.confirmed()
        runs_tools = generation.tool_runtime and self._pinned != "mcp"
        try:
            if runs_tools or self._pinned == "tool-runtime":
                return await self._tool_runtime.list_tools(generation.caller(caller))
            return await self._connectors.list_tools(caller)
        except ProxyError:
            self._detector.forget()
            raise

    async def invoke(
        self, tool: ToolDefinition, arguments: dict[str, Any], caller: Caller
    ) -> ToolResult:
        if tool.origin == SPOKEN_BY_US:
            return await self._connectors.invoke(tool, arguments, caller)
        generation = await self._detector.generation()
        try:
            return await self._tool_runtime.invoke(tool, arguments, generation.caller(caller))
        except (ToolUnknown, UpstreamUnavailable):
            self._detector.forget()
            raise


@attrs.frozen
class UnionSource:
    """The tools of the MCP servers of ``--mcp-server``, and the upstream's beside them.

    Implements :class:`ToolSource`. A failure of the one is none of the other; of two groups of
    one name, the one of ``--mcp-server`` counts.
    """

    _named: ToolSource
    _upstream: ToolSource

    async def list_tools(self, caller: Caller) -> Listing:
        named, upstream = await all_of(
            [self._named.list_tools(caller), self._whole(self._upstream, caller)]
        )
        return Listing({**upstream.groups, **named.groups}, {**upstream.failures, **named.failures})

    async def invoke(
        self, tool: ToolDefinition, arguments: dict[str, Any], caller: Caller
    ) -> ToolResult:
        source = self._named if tool.origin == SPOKEN_BY_US else self._upstream
        return await source.invoke(tool, arguments, caller)

    async def _whole(self, source: ToolSource, caller: Caller) -> Listing:
        try:
            return await source.list_tools(caller)
        except ProxyError as error:
            return Listing({}, {"the upstream": str(error)})
