"""References within a schema, and unions at its top, in the form that all servers read. Pure.

llama.cpp refuses every chat in which a tool's schema has a reference that it cannot follow, or one
that leads back to itself (measured). OpenAI and Anthropic refuse ``anyOf`` and the like at the top
of a schema (their API references, "Function calling"), which many tools have there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llamaproxy import jsontext
from llamaproxy.jsontext import Json

#: Keywords with schemas for the same value as their own schema.
_UNIONS = ("allOf", "anyOf", "oneOf")

#: Keywords whose values are data.
_DATA = frozenset({"const", "default", "enum", "example", "examples"})

#: Unions and references one within another that are looked into.
_MAX_DEPTH = 32

#: Schemas of one property, by their canonical JSON, so that equal ones are there once.
_Alternatives = dict[bytes, Any]


def merge_top(parameters: Json) -> None:
    """Put the properties of the unions at the top of *parameters*, and of what it refers to, there.

    Properties of one name may be any of those; what only some alternatives require is not required.
    """
    if not parameters.keys() & {*_UNIONS, "$ref"}:
        properties, required = parameters.get("properties", {}), parameters.get("required", [])
    else:
        alternatives, required = _merged(parameters, parameters, set(), 0)
        properties = {
            name: next(iter(each.values())) if len(each) == 1 else {"anyOf": list(each.values())}
            for name, each in alternatives.items()
        }
    for keyword in (*_UNIONS, "$ref", "enum", "const", "not", "required"):
        parameters.pop(keyword, None)
    parameters["properties"] = properties
    if required:
        parameters["required"] = required


def _merged(
    schema: Json, root: Json, seen: set[int], depth: int
) -> tuple[dict[str, _Alternatives], list[str]]:
    """The schemas of the properties that *schema* knows of, by name, and the names it requires.

    :param seen: the schemas that have been looked at, and are not again.
    """
    if id(schema) in seen or depth > _MAX_DEPTH:
        return {}, []
    seen.add(id(schema))
    properties: dict[str, _Alternatives] = {
        name: {jsontext.canonical(each): each}
        for name, each in schema.get("properties", {}).items()
    }
    required = dict.fromkeys(schema.get("required", ()))
    parts: dict[str, list[Any]] = {key: schema.get(key, []) for key in _UNIONS}
    if "$ref" in schema:
        parts["allOf"] = [*parts["allOf"], _target(root, schema["$ref"])]
    for keyword, variants in parts.items():
        merged = [_merged(each, root, seen, depth + 1) for each in variants if each]
        for more, _ in merged:
            for name, schemas in more.items():
                properties.setdefault(name, {}).update(schemas)
        names = [set(each) for _, each in merged]
        if names:
            common = set.union(*names) if keyword == "allOf" else set.intersection(*names)
            required |= dict.fromkeys(sorted(common))
    return properties, list(required)


def drop_dead_references(root: Json) -> None:
    """Take the references out of the schema *root* that lead nowhere, or back to themselves."""
    holders = [node for node in _nodes(root) if "$ref" in node]
    for holder in holders:
        if _target(root, holder["$ref"]) is None:
            del holder["$ref"]
    done: set[str] = set()
    for holder in holders:
        if "$ref" in holder and holder["$ref"] not in done:
            _break_loops(root, holder["$ref"], done)


def _break_loops(root: Json, start: str, done: set[str]) -> None:
    """Drop what leads from *start* back to where it came from, with no object or list between."""
    path = {start: _same_value(_target(root, start))}
    while path:
        pointer, holders = next(reversed(path.items()))
        holder = next(holders, None)
        if holder is None:
            done.add(pointer)
            del path[pointer]
            continue
        target = holder["$ref"]
        if target in path:
            del holder["$ref"]
        elif target not in done:
            path[target] = _same_value(_target(root, target))


def _same_value(schema: Json | None) -> Iterator[Json]:
    """The schemas with a reference among those for the same value as *schema*."""
    pending = [schema]
    while pending:
        each = pending.pop()
        if isinstance(each, dict):
            if "$ref" in each:
                yield each
            for keyword in _UNIONS:
                pending += each.get(keyword, [])


def _nodes(root: Json) -> Iterator[Json]:
    """All objects in *root* that may be schemas."""
    pending: list[Any] = [root]
    while pending:
        each = pending.pop()
        if isinstance(each, list):
            pending += each
        elif isinstance(each, dict):
            if isinstance(each.get("$ref", ""), str):
                yield each
            pending += [value for key, value in each.items() if key not in _DATA]


def _target(root: Json, pointer: str) -> Json | None:
    """The schema that *pointer* names, as it is written; None if *root* has none there."""
    if not pointer.startswith("#/"):
        return None
    place: Any = root
    for step in pointer[2:].split("/"):
        if isinstance(place, list) and step.isascii() and step.isdecimal() and len(step) < 6:
            place = place[int(step)] if int(step) < len(place) else None
        elif isinstance(place, dict):
            place = place.get(step)
        else:
            return None
    return place if isinstance(place, dict) else None
