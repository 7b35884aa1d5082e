"""Offers: the server's tools as a chat is offered them, within a budget.

Callers who see the same tools share one offer (DESIGN: T4).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Set
from functools import cached_property
from types import MappingProxyType
from weakref import WeakValueDictionary, finalize

import attrs

from llamaproxy import jsontext
from llamaproxy.jsontext import JsonList
from llamaproxy.tools.definitions import ToolDefinition
from llamaproxy.tools.instructions import instructions_of, notes_of
from llamaproxy.tools.names import NameIndex, Patterns, offered_names

Groups = Mapping[str, list[ToolDefinition]]

_NOTHING: Mapping[str, str] = MappingProxyType({})


class Withheld(Mapping[str, str]):
    """Why each tool is not offered that another offer has, by name; made when somebody looks."""

    def __init__(self, wider: Offer, offered: Collection[str], clashes: Set[str]) -> None:
        """:param clashes: the names that the client's own tools have."""
        # Not the offer itself: whoever watches keeps this longer than a list of tools is kept.
        self._names = wider.all_names
        self._before = wider.withheld
        self._offered = offered
        self._clashes = clashes

    @cached_property
    def _reasons(self) -> dict[str, str]:
        offered = frozenset(self._offered)
        reasons = {
            name: CLIENT_HAS_IT if name in self._clashes else NOT_ASKED_FOR
            for name in self._names
            if name not in offered
        }
        return {**self._before, **reasons}

    def __getitem__(self, name: str) -> str:
        return self._reasons[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._reasons)

    def __len__(self) -> int:
        return len(self._reasons)


#: Why a tool is not offered.
CLIENT_HAS_IT = "the client declares a tool of this name"
NOT_ASKED_FOR = "X-Llamaproxy-Tools does not match it"
NO_ROOM = "there is no room for it (--max-tools, --max-tool-list)"


@attrs.frozen(eq=False, repr=False)
class Offer:
    """The server tools offered in one chat, by the name that the model knows.

    *entries* has each as an entry of a request's ``tools``, serialised once for all chats;
    *instructions* are those of servers, by group.
    """

    tools: dict[str, ToolDefinition] = attrs.Factory(dict)
    entries: dict[str, bytes] = attrs.field(repr=False)
    #: Why others of the listing are not offered, by name.
    withheld: Mapping[str, str] = attrs.field(default=_NOTHING, repr=False, eq=False)
    instructions: Mapping[str, str] = attrs.field(default=_NOTHING, repr=False)
    #: The names, for those who keep them longer than the tools.
    all_names: tuple[str, ...] = attrs.field(init=False, repr=False, eq=False)
    #: The entries of a request's ``tools``, which all chats share.
    definitions: JsonList = attrs.field(init=False, repr=False)
    #: The instructions of the groups of these tools, for the model.
    notes: str = attrs.field(init=False, repr=False)
    _names: NameIndex = attrs.field(init=False, repr=False, eq=False)

    @entries.default
    def _all_entries(self) -> dict[str, bytes]:
        return {name: _entry(name, tool) for name, tool in self.tools.items()}

    @definitions.default
    def _all_definitions(self) -> JsonList:
        return JsonList(b",".join(self.entries[name] for name in self.tools))

    @all_names.default
    def _tuple_of_names(self) -> tuple[str, ...]:
        return tuple(self.tools)

    @notes.default
    def _all_notes(self) -> str:
        if not self.instructions:
            return ""
        return notes_of(self.instructions, {tool.group for tool in self.tools.values()})

    @_names.default
    def _index(self) -> NameIndex:
        return NameIndex(self.tools)

    def names(self, client_tools: Collection[str]) -> NameIndex:
        """What finds the tool that a model means, in a chat whose client has tools of its own."""
        return NameIndex(self.tools, client_tools) if client_tools else self._names

    def narrowed(self, reserved: Collection[str], patterns: list[str] | None) -> Offer:
        """The offer without the names *reserved*, and with nothing but what *patterns* match.

        :raises BadRequest: for patterns that are too many or too long.
        """
        clashes = self.tools.keys() & reserved if reserved else frozenset()
        if patterns is None and not clashes:
            return self
        allowed = None if patterns is None else Patterns(patterns)
        tools = {
            name: tool
            for name, tool in self.tools.items()
            if name not in clashes and (allowed is None or allowed.match(name, tool))
        }
        withheld = Withheld(self, tuple(tools), clashes)
        return Offer(tools, self.entries, withheld, self.instructions)

    def named(self, name: str) -> list[str]:
        """The offered names of the tools that are called *name*, offered or real."""
        if name in self.tools:
            return [name]
        return [offered for offered, tool in self.tools.items() if tool.name == name]


def _entry(name: str, tool: ToolDefinition) -> bytes:
    function = {
        "name": name,
        "description": tool.description,
        "parameters": tool.parameters,
    }
    return jsontext.dumps({"type": "function", "function": function})


@attrs.frozen(eq=False, repr=False)
class ListedTools:
    """The tools of one listing by group, and the offer made of them.

    *left_out* are the tools for which the budget had no room; *size* is that of all of them, in
    bytes as they are sent.
    """

    groups: Groups
    offer: Offer
    left_out: tuple[ToolDefinition, ...] = ()
    size: int = 0


@attrs.define(eq=False, repr=False)
class _Budget:
    """Room for as many *tools*, of *size* bytes together."""

    tools: int
    size: int

    def holds(self, size: int) -> bool:
        return self.tools > 0 and size <= self.size

    def take(self, size: int) -> None:
        self.tools -= 1
        self.size -= size


@attrs.define(eq=False, repr=False)
class Offers:
    """Makes offers of listings, within a budget; the same one for equal listings.

    *max_tools*: how many are offered; *max_bytes*: of their definitions as they are sent.
    """

    max_tools: int
    max_bytes: int
    #: Bytes of all lists that somebody keeps.
    held: int = attrs.field(init=False, default=0)
    _listed_by_digest: WeakValueDictionary[bytes, ListedTools] = attrs.field(
        init=False, factory=WeakValueDictionary
    )

    def of(self, groups: Groups) -> ListedTools:
        """The offer of the tools in *groups*."""
        key = _digest(groups)
        listed = self._listed_by_digest.get(key)
        if listed is None:
            listed = self._listed_by_digest[key] = self._fitted(groups)
            self._hold(listed.size)
            finalize(listed, self._hold, -listed.size).atexit = False
        return listed

    def _hold(self, size: int) -> None:
        self.held += size

    def _fitted(self, groups: Groups) -> ListedTools:
        """As many whole tools as there is room for, in the order in which they are offered (L1).

        First every group has an equal share, so that none crowds out those behind it; then what is
        left goes to the first groups that need more.
        """
        texts = {name: text for name, tools in groups.items() if (text := instructions_of(tools))}
        offer = Offer(offered_names(groups), instructions=texts)
        bytes_of_all = sum(map(len, offer.entries.values()))
        by_group: dict[str, list[tuple[str, int]]] = {}
        for name, tool in offer.tools.items():
            by_group.setdefault(tool.group, []).append((name, len(offer.entries[name])))
        shares = len(by_group) or 1
        room = _Budget(self.max_tools, self.max_bytes)
        fitting: set[str] = set()
        for share in (
            _Budget(max(1, room.tools // shares), room.size // shares),
            attrs.evolve(room),
        ):
            for sizes in by_group.values():
                group_room = attrs.evolve(share)
                for name, size in sizes:
                    if name not in fitting and group_room.holds(size) and room.holds(size):
                        fitting.add(name)
                        group_room.take(size)
                        room.take(size)
        left_out = tuple(tool for name, tool in offer.tools.items() if name not in fitting)
        if left_out:
            tools = {name: tool for name, tool in offer.tools.items() if name in fitting}
            reasons = {name: NO_ROOM for name in offer.tools if name not in fitting}
            entries = {name: offer.entries[name] for name in tools}
            offer = Offer(tools, entries, reasons, texts)
        return ListedTools(groups, offer, left_out, bytes_of_all)


def _digest(groups: Groups) -> bytes:
    """A digest of all that is in *groups*; its cost is linear in their size."""
    digest = hashlib.sha256()
    for group, tools in sorted(groups.items()):
        digest.update(jsontext.canonical([group, instructions_of(tools)]))
        for tool in tools:
            fields = [group, tool.group, tool.name, tool.description, tool.origin, tool.endpoint]
            fields.append(tool.title)
            digest.update(jsontext.canonical([*fields, tool.parameters, tool.annotations]))
    return digest.digest()
