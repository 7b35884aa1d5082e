"""Tool lists of all workers: the parent lists for each caller, and every worker asks it."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.error import ConnectionClosed
from twisted.internet.interfaces import IReactorTime
from twisted.protocols import amp

from llamaproxy.errors import ParentSilent, ShuttingDown
from llamaproxy.jsontext import Json
from llamaproxy.tools.catalogue import Catalogue
from llamaproxy.tools.definitions import ToolDefinition
from llamaproxy.tools.results import ToolResult
from llamaproxy.tools.source import BACKGROUND, Listing, ListLimits, ToolSource
from llamaproxy.tools.wire import listing_bytes, listing_of
from llamaproxy.upstream.caller_wire import caller_bytes, caller_of
from llamaproxy.upstream.client_context import ClientContext
from llamaproxy.upstream.dialect import Detector
from llamaproxy.workers.changes import ChangeTeller
from llamaproxy.workers.link import Link, Long
from llamaproxy.workers.programs import ProgramsOfParent

#: Bytes of a listing that a worker is sent, though no more than a fraction of it may be offered.
_MAX_LISTING = 16 * 1024 * 1024

#: Seconds that a listing may take beyond twice what each group may: the server is asked what it is,
#: and groups wait for each other where there are many.
_MORE_SECONDS = 10.0


class ListTools(amp.Command):
    """What *caller* can see, as the parent has listed it or does now.

    *per_group*, in seconds, and *anew* are those of :class:`ListLimits`; *version* is the server's,
    if the parent has detected it.
    """

    arguments: ClassVar[Any] = (
        (b"caller", Long()),
        (b"per_group", amp.Float()),
        (b"anew", amp.Boolean()),
    )
    response: ClassVar[Any] = ((b"listing", Long()), (b"version", amp.Unicode(optional=True)))


@attrs.frozen(eq=False, repr=False)
class ListedByParent:
    """A worker's source: the parent lists, the worker's *own* source runs.

    Implements :class:`ToolSource`.
    """

    _own: ToolSource
    _detector: Detector
    _link: Link
    _clock: IReactorTime

    async def list_tools(self, caller: ClientContext, limits: ListLimits = BACKGROUND) -> Listing:
        """:raises ParentSilent: if the parent does not answer in time, cannot, or is gone."""
        if "" in limits.down:
            raise limits.down[""]
        seconds = 2 * limits.seconds + _MORE_SECONDS
        try:
            answer = await self._link.ask(
                self._clock,
                seconds,
                ListTools,
                caller=caller_bytes(caller.for_listing_elsewhere()),
                per_group=limits.seconds,
                anew=limits.anew,
            )
        except TimeoutError:
            raise ParentSilent(
                f"The parent process, which lists tools, did not answer within {seconds:g} s."
            ) from None
        except ConnectionClosed:
            raise ParentSilent("The parent process, which lists tools, is gone.") from None
        except amp.AmpError:
            raise ParentSilent("The parent process, which lists tools, broke.") from None
        self._note_version(answer.get("version"))
        return listing_of(answer["listing"])

    async def invoke(
        self, tool: ToolDefinition, arguments: dict[str, Any], caller: ClientContext
    ) -> ToolResult:
        return await self._own.invoke(tool, arguments, caller)

    def _note_version(self, version: str | None) -> None:
        """Detect the server anew if the parent takes it for another: each listing asks it there."""
        detected = self._detector.detected
        if version is not None and detected is not None and detected.version != version:
            self._detector.forget()


@attrs.frozen(eq=False, repr=False)
class ToolsOfParent:
    """The parent, as a worker's application sees it. Implements :class:`ToolsElsewhere`."""

    _link: Link
    _clock: IReactorTime
    _teller: ChangeTeller = attrs.field(init=False)
    programs: ProgramsOfParent = attrs.field(init=False)

    @_teller.default
    def _to_parent(self) -> ChangeTeller:
        return ChangeTeller(self._link, self._clock)

    @programs.default
    def _its_programs(self) -> ProgramsOfParent:
        return ProgramsOfParent(self._link, self._clock)

    def source(self, own: ToolSource, detector: Detector) -> ToolSource:
        return ListedByParent(own, detector, self._link, self._clock)

    def changed(self) -> None:
        self._teller.changed()


class SharedLists(amp.CommandLocator):
    """The parent's lists, for all workers."""

    def __init__(self, catalogue: Catalogue, detector: Detector, max_offered: int) -> None:
        """:param max_offered: bytes of the tools that are offered in one chat."""
        amp.CommandLocator.__init__(self)
        self._catalogue = catalogue
        self._detector = detector
        # Definitions with all that only operators are shown, and some tools for which there is no
        # room, which they are told of.
        self._max_bytes = max(_MAX_LISTING, 4 * max_offered)

    @ListTools.responder
    def list_tools(self, caller: bytes, per_group: float, anew: bool) -> Deferred[Json]:
        return Deferred.fromCoroutine(self._answer(caller, ListLimits(per_group, anew=anew)))

    async def _answer(self, caller: bytes, limits: ListLimits) -> Json:
        try:
            listing = await self._catalogue.listing(caller_of(caller), limits)
        except CancelledError:  # nobody cancels an answer: the parent's listings are stopped
            listing = Listing({}, groups_error=ShuttingDown())
        detected = self._detector.detected
        return {
            "listing": listing_bytes(listing, self._max_bytes),
            "version": None if detected is None else detected.version,
        }
