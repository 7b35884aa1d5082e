"""The tools of llama.cpp's llama-server: ``GET /tools``, ``POST /tools``.

It starts MCP servers (``--mcp-servers-config``), and lists and runs their tools and some of its
own; the loop it leaves to others (llama.cpp, tools/server/README-dev.md).
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

import attrs
from twisted.logger import Logger

from llamaproxy import jsontext
from llamaproxy.errors import (
    ProxyError,
    ToolFailed,
    ToolUnknown,
    UpstreamBroke,
    UpstreamRefused,
    UpstreamTimeout,
)
from llamaproxy.jsontext import Json
from llamaproxy.tools.definitions import ToolDefinition, definition, in_slices
from llamaproxy.tools.results import ToolResult, result_of
from llamaproxy.tools.schemas import UnfitTool
from llamaproxy.tools.source import BACKGROUND, Listing, ListLimits
from llamaproxy.upstream.client import LlamaStackClient
from llamaproxy.upstream.client_context import ClientContext

_log = Logger()

#: The group of its tools, and their origin.
GROUP = LLAMA_SERVER = "llama-server"

_PATH = "/tools"

#: Seconds for a call, whose limit is the catalogue's.
_NO_LIMIT = 7 * 86400.0


@attrs.define(eq=False, repr=False)
class LlamaServerTools:
    """The tools of a plain OpenAI server, if it is a llama-server. Implements :class:`ToolSource`.

    Of its own tools, a shell among them, only those are offered that are in *builtins*.
    """

    _client: LlamaStackClient
    _builtins: Collection[str] = ()
    #: Whether it has listed tools before: others have no such path.
    _known: bool = False

    async def list_tools(self, caller: ClientContext, limits: ListLimits = BACKGROUND) -> Listing:
        if GROUP in limits.down:
            return Listing({}, {GROUP: limits.down[GROUP]})
        try:
            answer = await self._client.ask_any("GET", _PATH, caller, timeout=0.9 * limits.seconds)
        except ProxyError as error:
            if isinstance(error, UpstreamTimeout) and not limits.patient:
                raise  # it may be one that is slow: with more time, that will be known
            status = error.status if isinstance(error, UpstreamRefused) else None
            # While it loads its model, it answers 503 to everything.
            if status == 503 or (self._known and status != 404):
                raise
            return Listing({})
        if not isinstance(answer, list):
            return Listing({})
        self._known = True
        entries = [entry for entry in answer if isinstance(entry, dict)]
        define = partial(definition_of, builtins=self._builtins)
        tools = await in_slices(define, entries, self._client.clock)
        return Listing({GROUP: list({tool.name: tool for tool in tools if tool}.values())})

    async def invoke(
        self, tool: ToolDefinition, arguments: dict[str, Any], caller: ClientContext
    ) -> ToolResult:
        body = jsontext.dumps({"tool": tool.name, "params": arguments})
        try:
            answer = await self._client.ask("POST", _PATH, caller, body, timeout=_NO_LIMIT)
        except UpstreamRefused as error:
            if error.status == 404:  # it has been started again, with other tools or none
                raise ToolUnknown(f"Error: {error}") from None
            raise ToolFailed(f"Error: {error}", f"HTTP status {error.status}") from None
        except UpstreamBroke:
            raise ToolFailed("Error: the tool's answer cannot be read.") from None
        return _result(answer)


def _result(answer: Json) -> ToolResult:
    if answer.get("error"):
        error = answer["error"]
        message = error.get("message") if isinstance(error, dict) else error
        return result_of(message if isinstance(message, str) else error, is_error=True)
    text = answer.get("plain_text_response")
    return result_of(text if isinstance(text, str) else answer)


def definition_of(entry: Json, builtins: Collection[str] = ()) -> ToolDefinition | None:
    """A tool as llama-server describes it, None if it is not to be offered."""
    described = entry.get("definition")
    function = described.get("function") if isinstance(described, dict) else None
    if not isinstance(function, dict):
        return None
    name = entry.get("tool") or function.get("name")
    if not isinstance(name, str) or (entry.get("type") != "mcp" and name not in builtins):
        return None
    permissions = entry.get("permissions")
    writes = permissions.get("write") if isinstance(permissions, dict) else None
    try:
        return definition(
            group=GROUP,
            name=name,
            description=function.get("description"),
            schema=function.get("parameters"),
            origin=LLAMA_SERVER,
            annotations={} if not isinstance(writes, bool) else {"readOnlyHint": not writes},
        )
    except UnfitTool as reason:
        _log.warn("a tool of {group} is not offered: {reason}", group=GROUP, reason=str(reason))
        return None
