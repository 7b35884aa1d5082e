"""ToolPages: the list of the tools of one MCP server, which comes in pages."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

import attrs
from twisted.logger import Logger

from llamaproxy import jsontext
from llamaproxy.errors import McpBroke
from llamaproxy.jsontext import Json
from llamaproxy.tools.mcp.messages import MAX_MESSAGE

#: The most tools of one server, the most pages of its list, and the most bytes of all of them.
MAX_TOOLS, MAX_PAGES, MAX_BYTES = 10_000, 1000, MAX_MESSAGE


@attrs.define(eq=False, repr=False)
class ToolPages:
    """Reads the list of one server again and again; *place* is where that is, for the log."""

    _place: str
    #: Whether it has been read to its end, or as far as it may.
    _was_read: bool = False
    _log: ClassVar[Logger] = Logger()

    async def read(self, ask: Callable[[Json], Coroutine[Any, Any, Json]]) -> list[Json]:
        """Every tool, as the server describes it; as many as it will list.

        If it refuses the next page, those before it are the list, unless there has been a better
        one: it is kept then (DESIGN: T2).

        :param ask: returns a page for the parameters of a ``tools/list``.

        :raises McpBroke: if there is no list at all, or none as good as before.
        """
        tools: list[Json] = []
        cursors: set[str] = set()
        params: Json = {}
        room = MAX_BYTES
        for _ in range(MAX_PAGES):
            try:
                page = await ask(params)
                page_tools = page.get("tools")
                if not isinstance(page_tools, list):
                    raise McpBroke("The MCP server sent a list without tools.")
            except McpBroke as error:
                if self._was_read or not tools:
                    raise
                return self._cut(tools, str(error))
            room -= len(jsontext.dumps(page))
            if room < 0 and params:  # the first is no larger than a message may be
                return self._read_so_far(tools, f"its list has more than {MAX_BYTES} bytes")
            tools += [tool for tool in page_tools if isinstance(tool, dict)]
            if len(tools) > MAX_TOOLS:
                break
            cursor = page.get("nextCursor")
            if not isinstance(cursor, str) or not cursor:
                self._was_read = True
                return tools
            if cursor in cursors:
                return self._read_so_far(tools, "its list goes round in circles")
            cursors.add(cursor)
            params = {"cursor": cursor}
        return self._read_so_far(tools[:MAX_TOOLS], f"it lists more than {MAX_TOOLS}")

    def _read_so_far(self, tools: list[Json], reason: str) -> list[Json]:
        """The *tools* of a list of which no more is read, now or later."""
        self._was_read = True
        return self._cut(tools, reason)

    def _cut(self, tools: list[Json], reason: str) -> list[Json]:
        """The *tools* of a list that is not whole."""
        self._log.warn("not all tools of {url} are known: {reason}", url=self._place, reason=reason)
        return tools
