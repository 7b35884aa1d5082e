"""Definitions of tools, as any source describes them, fit to be sent with every chat. Pure.

A description is read by the model, so nothing in it may pass for the chat's own structure; names
and values that a call needs cannot be changed, so a tool that has such things there is not offered.
"""

from __future__ import annotations

from typing import Any

import attrs

from llamaproxy import jsontext
from llamaproxy.jsontext import Json
from llamaproxy.tools.neutral import harmless, shortened

#: Bytes of what one tool may add to every completion: its schema (with more it is not offered) and
#: its description (which is cut).
_MAX_SCHEMA, _MAX_DESCRIPTION = 128 * 1024, 16 * 1024

#: Characters of a name, and levels of a schema.
_MAX_NAME, _MAX_DEPTH = 256, 64

#: Keywords of JSON Schema whose texts mean themselves.
_EXACT = frozenset(
    {
        *("enum", "const", "required", "pattern", "format", "type", "dependentRequired"),
        *("$ref", "$id", "$schema", "$anchor", "$dynamicRef", "contentEncoding"),
    }
)

#: Keywords whose value has names of its own choice for keys.
_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})


@attrs.frozen
class ToolDefinition:
    """One tool of a source: its group, its real name, and what the model is told of it.

    *parameters* is a JSON Schema. *origin* is the source's own note of where it came from;
    *endpoint* is the URL of the MCP server behind it, where that is known; *annotations* are MCP's
    hints about what it does.
    """

    group: str
    name: str
    description: str
    parameters: Json = attrs.field(hash=False)
    origin: str = ""
    endpoint: str = ""
    annotations: Json = attrs.field(hash=False, factory=dict)


class Unfit(ValueError):
    """Why a tool cannot be offered."""


def definition(
    group: str,
    name: str,
    description: object,
    schema: object,
    origin: str = "",
    endpoint: str = "",
    annotations: object = None,
) -> ToolDefinition:
    """A tool as a source describes it.

    :raises Unfit: if it cannot be offered.
    """
    if not name or len(name) > _MAX_NAME or harmless(name) != name:
        raise Unfit("its name is too long, or not fit to be shown")
    text = description if isinstance(description, str) else ""
    parameters = object_schema(schema)
    if len(jsontext.dumps(parameters)) > _MAX_SCHEMA:
        raise Unfit(f"its schema is larger than {_MAX_SCHEMA} bytes")
    return ToolDefinition(
        group=group,
        name=name,
        description=shortened(text, _MAX_DESCRIPTION),
        parameters=_harmless_schema(parameters, 0),
        origin=origin,
        endpoint=endpoint,
        annotations=annotations if isinstance(annotations, dict) else {},
    )


def object_schema(schema: object) -> Json:
    """*schema* as one of an object: strict model servers refuse everything else."""
    given: Json = schema if isinstance(schema, dict) else {}
    whole = {**given, "type": "object"}
    if not isinstance(given.get("properties"), dict):
        whole["properties"] = {}
    if "required" in given and not isinstance(given["required"], list):
        del whole["required"]
    return whole


def _harmless_schema(value: Any, depth: int) -> Any:
    """A schema with harmless annotations.

    :raises Unfit: if what a call must repeat is not harmless.
    """
    if depth > _MAX_DEPTH:
        raise Unfit("its schema is nested too deeply")
    if isinstance(value, str):
        return harmless(value)
    if isinstance(value, list):
        return [_harmless_schema(each, depth + 1) for each in value]
    if not isinstance(value, dict):
        return value
    made: Json = {}
    for key, each in value.items():
        _exact(key)
        if key in _EXACT:
            _exact(each)
            made[key] = each
        elif key in _NAMED and isinstance(each, dict):
            made[key] = {}
            for name, inner in each.items():
                _exact(name)
                made[key][name] = _harmless_schema(inner, depth + 1)
        else:
            made[key] = _harmless_schema(each, depth + 1)
    return made


def _exact(value: Any) -> None:
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, str) and harmless(each) != each:
            raise Unfit("its schema has names or values that are not fit to be shown")
        if isinstance(each, list):
            waiting.extend(each)
        elif isinstance(each, dict):
            waiting.extend([*each, *each.values()])
