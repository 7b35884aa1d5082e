"""Trials: an operator runs a tool, as nobody's caller."""

from __future__ import annotations

from typing import Any

import attrs
from twisted.internet.interfaces import IReactorTime

from llamaproxy.errors import Overloaded
from llamaproxy.jsontext import Json
from llamaproxy.records import CallRecord, ChatRecord
from llamaproxy.tools.catalogue import Catalogue
from llamaproxy.upstream.client_context import ClientContext

#: Tools that are tried at the same time.
_MAX_TRIALS = 8


@attrs.define(eq=False, repr=False)
class Trials:
    """Runs tools of the catalogue's for no chat, with no caller's credentials."""

    _catalogue: Catalogue
    _clock: IReactorTime
    _running: int = attrs.field(init=False, default=0)

    async def run(self, group: str, name: str, arguments: dict[str, Any]) -> Json | None:
        """What has come of the tool *name* of *group*, with *arguments*; None if there is none.

        It is watched as any call, but for its arguments and its result.

        :raises Overloaded: if too many run already.
        """
        if self._running >= _MAX_TRIALS:
            raise Overloaded(f"{_MAX_TRIALS} tools are being tried already.")
        self._running += 1
        try:
            return await self._run(group, name, arguments)
        finally:
            self._running -= 1

    async def _run(self, group: str, name: str, arguments: dict[str, Any]) -> Json | None:
        caller = ClientContext()
        offer = await self._catalogue.offer(caller)
        tools = [tool for tool in offer.tools.values() if (tool.group, tool.name) == (group, name)]
        if not tools:
            return None
        chat = ChatRecord()
        record = CallRecord(chat, 1, 0, self._clock.seconds())
        result = await self._catalogue.invoke(tools[0], arguments, caller, record)
        return {
            "outcome": record.outcome,
            "seconds": record.seconds,
            "text": result.text,
            "is_error": result.is_error,
        }
