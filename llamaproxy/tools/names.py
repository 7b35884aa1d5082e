"""The names under which tools are offered to a model. Pure (DESIGN: L6)."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import translate
from functools import cached_property
from itertools import chain, islice, zip_longest
from operator import add

from llamaproxy.errors import BadRequest
from llamaproxy.tools.definitions import ToolDefinition

#: What OpenAI, and every strict model server, accepts as a function's name.
_VALID = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def offered_names(groups: Mapping[str, list[ToolDefinition]]) -> dict[str, ToolDefinition]:
    """Every tool by a valid name of its own, sorted by group and real name.

    A valid name that only one tool has stays as it is. Any other is replaced by one made of group
    and name, with a digest of both at its end: it depends on nothing else, and so is the same in
    all listings. No tool keeps a real name that is another's replacement.
    """
    by_key = {(tool.group, tool.name): tool for group in groups.values() for tool in group}
    tools = [by_key[key] for key in sorted(by_key)]
    shared = Counter(tool.name for tool in tools)
    rewritten = [_rewritten(tool) for tool in tools]
    reserved = frozenset(rewritten)
    offered: dict[str, ToolDefinition] = {}
    for tool, other_name in zip(tools, rewritten, strict=True):
        alone = shared[tool.name] == 1 and tool.name not in reserved
        offered[tool.name if alone and _VALID.fullmatch(tool.name) else other_name] = tool
    return offered


def _rewritten(tool: ToolDefinition) -> str:
    qualified = f"{tool.group}__{tool.name}" if tool.group else tool.name
    digest = hashlib.sha256(f"{tool.group}\0{tool.name}".encode("utf-8", "replace")).hexdigest()
    return f"{re.sub('[^a-zA-Z0-9_-]+', '_', qualified)[:55]}_{digest[:8]}"


#: The most patterns of one request, and characters of one.
_MAX_PATTERNS, _MAX_PATTERN = 64, 256


class Patterns:
    """Shell-style patterns that name tools or groups (DESIGN: L5)."""

    def __init__(self, patterns: Sequence[str]) -> None:
        """:raises BadRequest: if they are too many, or too long."""
        if len(patterns) > _MAX_PATTERNS or any(len(each) > _MAX_PATTERN for each in patterns):
            raise BadRequest(
                f"X-Llamaproxy-Tools has more than {_MAX_PATTERNS} patterns, or one of more than "
                f"{_MAX_PATTERN} characters."
            )
        self._fits = re.compile("|".join(map(translate, patterns))).match

    def match(self, offered: str, tool: ToolDefinition) -> bool:
        """Whether a pattern matches *tool*: its *offered* name, its real name or its group."""
        return any(map(self._fits, (offered, tool.name, tool.group)))


#: Characters of a name that are compared, and names that one is compared with.
_MAX_NAME, _MAX_NAMES = 64, 256

#: Between 0 (nothing in common) and 1 (equal).
_MIN_SIMILARITY = 0.6


class NameIndex:
    """Finds the tool that a model means by a name that is not offered.

    Its cost is that of the names' length once, however many calls there are.
    """

    def __init__(self, offered: Mapping[str, ToolDefinition], others: Iterable[str] = ()) -> None:
        """:param others: the names of the client's own tools."""
        self._offered = offered
        self._others = tuple(others)

    @cached_property
    def _spellings(self) -> dict[str, list[str]]:
        """The offered names by the plain names that stand for them."""
        spellings: dict[str, list[str]] = {}
        for name, tool in self._offered.items():
            last = re.split("[^a-zA-Z0-9]", tool.group)[-1]
            for spelling in {
                plain_name(name),
                plain_name(tool.name),
                plain_name(tool.group + tool.name),
                plain_name(last + tool.name),
            }:
                spellings.setdefault(spelling, []).append(name)
        return spellings

    @cached_property
    def whole_names(self) -> frozenset[str]:
        """The names, the client's too, that are not the beginning of another."""
        return whole_names({*self._others, *self._offered})

    @cached_property
    def _rivals(self) -> frozenset[str]:
        return frozenset(plain_name(other) for other in self._others)

    @cached_property
    def _pieces(self) -> list[tuple[frozenset[str], str]]:
        """The first names, each with its characters and pairs of characters."""
        names = islice(chain(self._others, self._offered), _MAX_NAMES)
        return [(_pieces_of(name), name) for name in names]

    def fuzzy_match(self, called: str) -> str | None:
        """The one offered name that *called* differs from only in case, punctuation or its group.

        None if one of the client's own tools could be meant as well.
        """
        if called in self._offered:
            return called
        plain = plain_name(called[: 4 * _MAX_NAME])
        names = self._spellings.get(plain, []) if plain and plain not in self._rivals else []
        return names[0] if len(names) == 1 else None

    def nearest(self, called: str) -> list[str]:
        """Up to three names that are similar to *called*, the most similar first.

        Similarity is Dice's coefficient over characters and pairs of them. Its cost is linear in
        the lengths of the names: a model may call hundreds that there are not.
        """
        pieces = _pieces_of(called)
        similarity = [
            (2 * len(pieces & others) / (len(pieces) + len(others) or 1), name)
            for others, name in self._pieces
        ]
        likely = [each for each in similarity if each[0] >= _MIN_SIMILARITY]
        return [name for _, name in sorted(likely, key=lambda each: -each[0])[:3]]


def _pieces_of(name: str) -> frozenset[str]:
    plain = plain_name(name[:_MAX_NAME])
    return frozenset([*plain, *map(add, plain, plain[1:])])


def whole_names(names: Collection[str]) -> frozenset[str]:
    """Those of *names*, which are different, that are not the beginning of another."""
    in_order = sorted(names)
    # A name that begins with another stands right behind it.
    pairs = zip_longest(in_order, in_order[1:], fillvalue="")
    return frozenset(name for name, following in pairs if not following.startswith(name))


def plain_name(name: str) -> str:
    """*name* in lower case and without punctuation, which models get wrong."""
    return re.sub("[^a-z0-9]", "", name.lower())
