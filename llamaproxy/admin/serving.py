"""Serving: what the admin port asks those who answer clients; and the answers of this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import attrs

from llamaproxy.admin.metrics import Metrics
from llamaproxy.admin.processes import resident_bytes
from llamaproxy.admin.tallies import Measured
from llamaproxy.admin.toolcalls import ToolCalls
from llamaproxy.jsontext import Json


class Serving(Protocol):
    """Those who answer clients, whether in one process or in several."""

    @property
    def calls(self) -> ToolCalls:
        """The calls of tools, as they were when they were last asked about."""

    async def measured(self) -> Iterable[Measured]:
        """All that is counted."""

    async def figures(self) -> Json:
        """Further figures by name, with the limits of what has one."""

    def unready(self) -> str:
        """Why no client is answered; empty if clients are."""

    def set_log_level(self, level: str) -> None:
        """Have the log of all of them have that level, one that there is."""


@attrs.frozen(eq=False, repr=False)
class ThisProcess:
    """It answers clients itself; what *figures* return has the names that they have there."""

    metrics: Metrics
    calls: ToolCalls
    _figures: Mapping[str, Callable[[], Json]]

    async def measured(self) -> Iterable[Measured]:
        return await self.metrics.measured()

    async def figures(self) -> Json:
        memory = {"resident_bytes": resident_bytes()}
        return {"memory": memory, **{name: value() for name, value in self._figures.items()}}

    def unready(self) -> str:
        return ""

    def set_log_level(self, level: str) -> None:
        """The admin port is in this process, and has set it."""
