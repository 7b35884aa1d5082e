"""Definitions of tools, as any source describes them, fit to be sent with every chat. Pure.

A description is read by the model, so nothing in it may pass for the chat's own structure; a name
cannot be changed, so a tool whose name has such things in it is not offered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from llamaproxy import jsontext
from llamaproxy.jsontext import Json
from llamaproxy.tools.neutral import harmless, shortened
from llamaproxy.tools.schemas import UnfitTool, parameters_of

#: Bytes of what one tool may add to every completion: its schema (with more it is not offered) and
#: its description (which is cut).
_MAX_SCHEMA, _MAX_DESCRIPTION = 128 * 1024, 16 * 1024

#: Bytes of tools, as they were listed, that are looked at in one turn of the reactor.
_SLICE = 64 * 1024

#: Characters of a name.
_MAX_NAME = 256

T = TypeVar("T")


@attrs.frozen
class ToolDefinition:
    """One tool of a source: its group, its real name, and what is sent to the model.

    *parameters* is a JSON Schema. *origin* is a note of the source's own;
    *endpoint* is the URL of the MCP server behind it, where that is known; *annotations* are MCP's
    hints about what it does; *title* is its name for people, empty if it has none.
    """

    group: str
    name: str
    description: str
    parameters: Json = attrs.field(hash=False)
    origin: str = ""
    endpoint: str = ""
    annotations: Json = attrs.field(hash=False, factory=dict)
    title: str = ""


def definition(
    group: str,
    name: str,
    description: object,
    schema: object,
    origin: str = "",
    endpoint: str = "",
    annotations: object = None,
    title: object = None,
) -> ToolDefinition:
    """The tool that a source describes, made fit to be offered.

    :raises UnfitTool: if it cannot be offered.
    """
    if not name or len(name) > _MAX_NAME or harmless(name) != name:
        raise UnfitTool("its name is too long, or not fit to be shown")
    text = description if isinstance(description, str) else ""
    if len(jsontext.dumps(schema)) > _MAX_SCHEMA:
        raise UnfitTool(f"its schema is larger than {_MAX_SCHEMA} bytes")
    hints = annotations if isinstance(annotations, dict) else {}
    title = title or hints.get("title")
    return ToolDefinition(
        group=group,
        name=name,
        description=shortened(text, _MAX_DESCRIPTION),
        parameters=parameters_of(schema),
        origin=origin,
        endpoint=endpoint,
        annotations=hints,
        title=harmless(title[:_MAX_NAME]) if isinstance(title, str) else "",
    )


async def in_slices(
    work: Callable[[Json], T], entries: Iterable[Json], clock: IReactorTime
) -> list[T]:
    """The results of *work* for each of the *entries*, in slices of a turn of the reactor each."""
    results: list[T] = []
    size = 0
    for entry in entries:
        size += len(jsontext.dumps(entry))
        if size > _SLICE:
            size = 0
            await deferLater(cast(Any, clock), 0)
        results.append(work(entry))
    return results
