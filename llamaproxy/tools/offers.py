"""Offers: the server's tools as a chat is offered them, and equal ones kept once.

However many callers there are, those who see the same tools share one offer (DESIGN: T4).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from weakref import WeakValueDictionary

import attrs

from llamaproxy import jsontext
from llamaproxy.jsontext import Json
from llamaproxy.tools.definitions import ToolDefinition
from llamaproxy.tools.names import Patterns, offered_names

Groups = Mapping[str, list[ToolDefinition]]


@attrs.frozen
class Offer:
    """The server tools offered in one chat, by the name that the model knows."""

    tools: dict[str, ToolDefinition] = attrs.Factory(dict)
    _entries: dict[str, Json] = attrs.field()

    @_entries.default
    def _all_entries(self) -> dict[str, Json]:
        return {
            name: {
                "type": "function",
                "function": {
                    "name": name,
                    "description": tool.description,
                    "parameters": tool.parameters,
                },
            }
            for name, tool in self.tools.items()
        }

    def definitions(self) -> list[Json]:
        """The offer as entries of a request's ``tools``, which all chats share."""
        return [self._entries[name] for name in self.tools]

    def narrowed(self, taken: Collection[str], patterns: list[str] | None) -> Offer:
        """The offer without the names *taken*, and with nothing but what *patterns* match.

        :raises BadRequest: for patterns that are too many or too long.
        """
        if not taken and patterns is None:
            return self
        wanted = None if patterns is None else Patterns(patterns)
        tools = {
            name: tool
            for name, tool in self.tools.items()
            if name not in taken and (wanted is None or wanted.match(name, tool))
        }
        return Offer(tools, self._entries)

    def named(self, name: str) -> list[str]:
        """The offered names of the tools that are called *name*, offered or real."""
        if name in self.tools:
            return [name]
        return [offered for offered, tool in self.tools.items() if tool.name == name]


@attrs.frozen(eq=False)
class Listed:
    """What one listing has come to: the tools of each group, and the offer made of them.

    *left_out* are the tools for which the budget had no room.
    """

    groups: Groups
    offer: Offer
    left_out: tuple[ToolDefinition, ...] = ()


@attrs.define
class Offers:
    """Makes offers of listings, within a budget, one for all that are equal.

    *max_tools*: how many are offered; *max_bytes*: of their definitions as they are sent.
    """

    max_tools: int
    max_bytes: int
    _known: WeakValueDictionary[bytes, Listed] = attrs.field(
        init=False, factory=WeakValueDictionary
    )

    def of(self, groups: Groups) -> Listed:
        """The offer of the tools in *groups*."""
        key = _digest(groups)
        listed = self._known.get(key)
        if listed is None:
            listed = self._known[key] = self._fitted(groups)
        return listed

    def _fitted(self, groups: Groups) -> Listed:
        """As many whole tools as there is room for, in the order in which they are offered (L1)."""
        whole = Offer(offered_names(groups))
        kept: dict[str, ToolDefinition] = {}
        left_out: list[ToolDefinition] = []
        room = self.max_bytes
        for (name, tool), entry in zip(whole.tools.items(), whole.definitions(), strict=True):
            size = len(jsontext.dumps(entry))
            if size > room or len(kept) == self.max_tools:
                left_out.append(tool)
            else:
                room -= size
                kept[name] = tool
        return Listed(groups, whole if not left_out else Offer(kept), tuple(left_out))


def _digest(groups: Groups) -> bytes:
    """What tells listings apart; it costs their length."""
    found = hashlib.sha256()
    for group, tools in sorted(groups.items()):
        for tool in tools:
            fields = [group, tool.group, tool.name, tool.description, tool.origin, tool.endpoint]
            found.update(jsontext.canonical([*fields, tool.parameters, tool.annotations]))
    return found.digest()
