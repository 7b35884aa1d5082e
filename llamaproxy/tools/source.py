"""ToolSource: the interface of what lists tools and runs them, and the sources made of others."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import attrs

from llamaproxy.deferreds import all_of
from llamaproxy.errors import ProxyError, ToolUnknown, UpstreamTimeout, UpstreamUnavailable
from llamaproxy.tools.definitions import ToolDefinition
from llamaproxy.tools.results import ToolResult
from llamaproxy.upstream.client_context import ClientContext
from llamaproxy.upstream.dialect import Detector

T = TypeVar("T")

#: Seconds that a first chat waits for the slowest group, and that each has in the background
#: (DESIGN: T3).
FIRST_WAIT_SECONDS, LISTING_SECONDS = 5.0, 30.0

#: Groups that are listed at a time, and the most groups of one server.
MAX_CONCURRENT_LISTINGS, MAX_GROUPS = 16, 1000


#: The *origin* of tools of MCP servers that the proxy calls itself: of those that the upstream
#: names, and of those that the operator does.
PROXY_CALLED, CONFIGURED = "mcp", "configured"


@attrs.frozen
class Listing:
    """The tools of each group that could be listed, and why the others could not.

    *groups_error* is the failure to list the groups themselves, None if they could be listed. The
    operator's are known nevertheless: *configured* has their endpoints by name, and is None if
    there is nothing of his.

    A listing that was made for others too (:meth:`CallerLists.listing`) is fresh for no more than
    *fresh_for* seconds, and has *kept* what those groups had before that could not be listed now.
    *names_all* says whether it names those groups too that have no tools.
    """

    groups: dict[str, list[ToolDefinition]]
    failures: dict[str, ProxyError] = attrs.Factory(dict)
    groups_error: ProxyError | None = None
    kept: dict[str, list[ToolDefinition]] = attrs.Factory(dict)
    fresh_for: float | None = None
    configured: Mapping[str, str] | None = None
    names_all: bool = True

    def keeps(self, group: str, tools: Sequence[ToolDefinition]) -> bool:
        """Whether *group* still has the *tools* that it had before, for it could not be listed."""
        if self.configured is not None:
            endpoint = self.configured.get(group)
            was_at = {tool.endpoint for tool in tools if tool.origin == CONFIGURED}
            if was_at != (set() if endpoint is None else {endpoint}):
                return False  # they were those of another group of that name, or it is removed
        return group in self.failures or self.groups_error is not None

    @property
    def errors(self) -> list[tuple[str, ProxyError]]:
        """All failures by group; ``""`` stands for the list of the groups."""
        groups_failure = [] if self.groups_error is None else [("", self.groups_error)]
        return [*self.failures.items(), *groups_failure]


#: Seconds after which a group that has not answered has failed; sooner, it may be healthy.
_TELLING_SECONDS = 1.0

#: The error of a group for which a first chat had no time, or too little; it is never raised.
_NO_TIME = UpstreamTimeout("There was too little time to list its tools.")


@attrs.frozen(eq=False, repr=False)
class ListLimits:
    """How long a listing may take: *seconds* for each group, and until *until* for all of them.

    That is in clock seconds. The groups that are *down* have failed for other callers just now and
    are not listed; ``""`` among them stands for the list of the groups. What others have listed
    before will not do if it is to be listed *anew*. The *suspects* have failed before, and may
    again: they are listed last.
    """

    seconds: float = LISTING_SECONDS
    down: Mapping[str, ProxyError] = attrs.Factory(dict)
    anew: bool = False
    until: float = math.inf
    suspects: Mapping[str, ProxyError] = attrs.Factory(dict)

    def is_new(self, group: str, error: ProxyError) -> bool:
        """Whether the *group* was asked, with time to answer, and has failed now."""
        before = self.down.get(group), self.suspects.get(group), _NO_TIME
        return all(error is not each for each in before)

    def seconds_for(self, share: float, now: float) -> float:
        """How long a step may take that begins *now*: so much of a group's time; 0 for none."""
        return max(0.0, min(share * self.seconds, self.until - now))

    def late(self, group: str, seconds: float, error: ProxyError | None = None) -> ProxyError:
        """The error of a *group* that has not answered within so many *seconds*: *error*.

        If that was too little time, or none at all, it is that of before, if it has one.
        """
        if error is not None and seconds >= _TELLING_SECONDS:
            return error
        return self.suspects.get(group, _NO_TIME)

    def at(self, now: float) -> ListLimits:
        """The limits *now*: what is left of the time is for all steps that follow."""
        return attrs.evolve(self, seconds=min(self.seconds, max(0.0, self.until - now)))

    @property
    def patient(self) -> bool:
        """Whether no chat waits for it."""
        return self.seconds >= LISTING_SECONDS


#: The limits of a listing in the background.
BACKGROUND = ListLimits()


async def each_listed(
    names: Sequence[str], list_one: Callable[[int], Coroutine[Any, Any, T]], limits: ListLimits
) -> list[T]:
    """What *list_one* comes to for the place of each group among *names*, in their order.

    So many are listed at a time, the suspects last.
    """
    turns = sorted(range(len(names)), key=lambda place: names[place] in limits.suspects)
    outcomes = await all_of(map(list_one, turns), MAX_CONCURRENT_LISTINGS)
    by_place = dict(zip(turns, outcomes, strict=True))
    return [by_place[place] for place in range(len(names))]


class ToolSource(Protocol):
    """Lists tools and runs them."""

    async def list_tools(self, caller: ClientContext, limits: ListLimits = BACKGROUND) -> Listing:
        """The tools of all groups that *caller* can see.

        :raises ProxyError: if nothing at all can be listed.
        """

    async def invoke(
        self, tool: ToolDefinition, arguments: dict[str, Any], caller: ClientContext
    ) -> ToolResult:
        """Run *tool*.

        :raises ToolUnknown: if the source does not know it, or not any more.
        :raises ToolFailed: if it cannot be run.
        :raises ProxyError: if the source cannot be reached.
        """


@attrs.frozen(eq=False, repr=False)
class NoTools:
    """No tools at all. Implements :class:`ToolSource`."""

    async def list_tools(self, caller: ClientContext, limits: ListLimits = BACKGROUND) -> Listing:
        return Listing({})

    async def invoke(
        self, tool: ToolDefinition, arguments: dict[str, Any], caller: ClientContext
    ) -> ToolResult:
        raise ToolUnknown(f"Error: there is no tool {tool.name!r} any more.")


@attrs.frozen(eq=False, repr=False)
class DetectedSource:
    """The tools of the upstream, by its generation. Implements :class:`ToolSource`.

    *connectors* are those of the MCP servers that the upstream names, which the proxy calls itself;
    *plain* is asked where it is no Llama Stack; *pinned* is ``tool-runtime`` or ``mcp`` to override
    detection, or ``auto``.
    """

    _detector: Detector
    _tool_runtime: ToolSource
    _connectors: ToolSource = attrs.Factory(NoTools)
    _pinned: str = "auto"
    _plain: ToolSource = attrs.Factory(NoTools)

    async def list_tools(self, caller: ClientContext, limits: ListLimits = BACKGROUND) -> Listing:
        """The tools, after the generation has been detected anew.

        The list itself need not show an upgrade: 0.7 still answers ``GET /v1/tools``, with tools
        that it cannot run.

        :raises ProxyError: as any source, and if it is not known what the server is.
        """
        if "" in limits.down:
            raise limits.down[""]
        generation = await self._detector.confirmed(limits.until)
        limits = limits.at(self._detector.seconds())
        if self._detector.trouble is not None and self._pinned != "tool-runtime":
            raise self._detector.trouble
        runs_tools = generation.tool_runtime and self._pinned != "mcp"
        try:
            if runs_tools or self._pinned == "tool-runtime":
                return await self._tool_runtime.list_tools(generation.context_for(caller), limits)
            if not generation.version and self._pinned == "auto":
                return await self._plain.list_tools(caller, limits)
            return await self._connectors.list_tools(caller, limits)
        except ProxyError:
            self._detector.forget()
            raise

    async def invoke(
        self, tool: ToolDefinition, arguments: dict[str, Any], caller: ClientContext
    ) -> ToolResult:
        if tool.origin == PROXY_CALLED:
            return await self._connectors.invoke(tool, arguments, caller)
        if tool.origin:
            return await self._plain.invoke(tool, arguments, caller)
        generation = await self._detector.generation()
        try:
            return await self._tool_runtime.invoke(tool, arguments, generation.context_for(caller))
        except (ToolUnknown, UpstreamUnavailable):
            self._detector.forget()
            raise


@attrs.frozen(eq=False, repr=False)
class UnionSource:
    """The tools of the MCP servers that the operator names, and the upstream's beside them.

    Implements :class:`ToolSource`. The upstream's failures do not affect the MCP servers; of two
    groups of one name, that of the operator counts, even when it cannot be listed. *endpoints*
    returns where the operator's are, by name.
    """

    _named: ToolSource
    _upstream: ToolSource
    _endpoints: Callable[[], Mapping[str, str]]

    async def list_tools(self, caller: ClientContext, limits: ListLimits = BACKGROUND) -> Listing:
        # The operator may have named a server because llamaproxy cannot reach the upstream's.
        configured = self._endpoints()
        down = {**limits.down, **dict.fromkeys(configured, _NO_TIME)}
        named, upstream = await all_of(
            [
                self._named.list_tools(caller, limits),
                self._listing_of(self._upstream, caller, attrs.evolve(limits, down=down)),
            ]
        )
        taken = named.groups.keys() | named.failures.keys()
        return Listing(
            {**_without(taken, upstream.groups), **named.groups},
            {**_without(taken, upstream.failures), **named.failures},
            upstream.groups_error,
            configured=configured,
            names_all=upstream.names_all,
        )

    async def invoke(
        self, tool: ToolDefinition, arguments: dict[str, Any], caller: ClientContext
    ) -> ToolResult:
        source = self._named if tool.origin == CONFIGURED else self._upstream
        return await source.invoke(tool, arguments, caller)

    async def _listing_of(
        self, source: ToolSource, caller: ClientContext, limits: ListLimits
    ) -> Listing:
        try:
            return await source.list_tools(caller, limits)
        except ProxyError as error:
            return Listing({}, groups_error=error)


def _without(names: Collection[str], groups: Mapping[str, T]) -> dict[str, T]:
    return {name: value for name, value in groups.items() if name not in names}
