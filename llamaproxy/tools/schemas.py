"""JSON Schemas of tools, fit for strict model servers and for a model to read. Pure (DESIGN: L7).

What a call must repeat (names, ``enum``, ``const``, references) stays as it is, or the tool cannot
be offered. What only describes is made harmless. What only restricts may be left out
(:mod:`llamaproxy.tools.restrictions`), for the tool's own server checks it anyway. Keywords are
those of JSON Schema 2020-12 and the drafts before.
"""

from __future__ import annotations

from typing import Any

from llamaproxy.jsontext import Json
from llamaproxy.tools.neutral import harmless
from llamaproxy.tools.references import drop_dead_references, merge_top
from llamaproxy.tools.restrictions import drop_contradictions, readable

#: The most levels of a schema.
_MAX_DEPTH = 64

#: Keywords that hold schemas: by names of the schema's own choice, in a list, or one.
_SCHEMAS_BY_NAME = frozenset(
    {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"}
)
_SCHEMA_LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_ONE_SCHEMA = frozenset({"items", "contains", "not", "if", "then", "else", "propertyNames"})

#: Keywords that hold a schema, or a flag that model servers know as one.
_SCHEMA_OR_FLAG = frozenset(
    {"additionalProperties", "additionalItems", "unevaluatedProperties", "unevaluatedItems"}
)

#: Keywords whose texts a call must repeat, or that names depend on.
_EXACT = frozenset(
    {"enum", "const", "required", "dependentRequired", "$ref", "$dynamicRef", "$anchor", "type"}
)

#: Keywords whose texts mean themselves, but that a call can do without.
_DISPENSABLE = frozenset(
    {"default", "example", "examples", "pattern", "format", "$id", "$schema", "contentEncoding"}
)

#: Keywords of which null is a value; any other null only stands for nothing, and is refused.
_NULLABLE = frozenset({"const", "default", "example"})


class UnfitTool(ValueError):
    """Why a tool cannot be offered."""


def parameters_of(schema: object) -> Json:
    """*schema* as the schema of an object: strict model servers refuse everything else.

    :raises UnfitTool: if what a call must repeat is not harmless.
    """
    parameters = _schema(schema, 0) if isinstance(schema, dict) else {}
    parameters["type"] = "object"
    merge_top(parameters)
    drop_dead_references(parameters)
    return parameters


def _schema(schema: object, depth: int) -> Json:
    if depth > _MAX_DEPTH:
        raise UnfitTool("its schema is nested too deeply")
    if schema is False:
        return {"not": {}}
    if not isinstance(schema, dict):
        # ``true`` allows everything, as ``{}`` does, which every model server takes.
        return {}
    result: Json = {}
    for keyword, value in schema.items():
        if value is not None or keyword in _NULLABLE:
            result.update(_keyword(keyword, value, depth + 1))
    drop_contradictions(result)
    kind = result.get("type")
    is_array = kind == "array" or (isinstance(kind, list) and "array" in kind)
    if is_array and not result.keys() & {"items", "prefixItems"}:
        result["items"] = {}
    return result


def _keyword(keyword: str, value: Any, depth: int) -> Json:
    """The *keyword* with its value, or nothing where a schema does without it."""
    _check_harmless(keyword)
    value = readable(keyword, value)
    if value is None and keyword not in _NULLABLE:
        return {}
    if keyword in _SCHEMAS_BY_NAME:
        if not isinstance(value, dict):
            return {}
        _check_harmless(list(value))
        read = _schema_or_names if keyword == "dependencies" else _schema
        return {keyword: {name: read(each, depth) for name, each in value.items()}}
    if keyword in _SCHEMA_LISTS or (keyword == "items" and isinstance(value, list)):
        if not isinstance(value, list) or (not value and keyword in _SCHEMA_LISTS):
            return {}
        return {keyword: [_schema(each, depth) for each in value]}
    if keyword in _ONE_SCHEMA:
        return {keyword: _schema(value, depth)}
    if keyword in _SCHEMA_OR_FLAG:
        return {keyword: value if isinstance(value, bool) else _schema(value, depth)}
    if keyword in _EXACT:
        _check_harmless(value)
        return {keyword: value}
    if keyword in _DISPENSABLE:
        return {keyword: value} if _is_harmless(value) else {}
    return {keyword: _described(value, depth)}


def _schema_or_names(value: object, depth: int) -> object:
    """What older drafts' ``dependencies`` may have for a name."""
    if isinstance(value, list):
        _check_harmless(value)
        return value
    return _schema(value, depth)


def _described(value: Any, depth: int) -> Any:
    """The value of a keyword that only describes, made harmless.

    Under an unknown keyword there may be schemas that a ``$ref`` points to: what a call must repeat
    of those is not changed either.
    """
    if depth > _MAX_DEPTH:
        raise UnfitTool("its schema is nested too deeply")
    if isinstance(value, str):
        return harmless(value)
    if isinstance(value, list):
        return [_described(each, depth + 1) for each in value]
    if isinstance(value, dict):
        _check_harmless([*value, *(value[key] for key in value.keys() & _EXACT)])
        return {key: _described(each, depth + 1) for key, each in value.items()}
    return value


def _check_harmless(value: object) -> None:
    if not _is_harmless(value):
        raise UnfitTool("its schema has names or values that are not fit to be shown")


def _is_harmless(value: object) -> bool:
    """Whether no text in *value* would be changed."""
    pending = [value]
    while pending:
        each = pending.pop()
        if isinstance(each, str) and harmless(each) != each:
            return False
        if isinstance(each, list):
            pending.extend(each)
        elif isinstance(each, dict):
            pending.extend([*each, *each.values()])
    return True
