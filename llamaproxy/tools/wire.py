"""Listings as bytes, for another process that offers the same tools. Pure.

A line of JSON says what there is, and each tool has a line of its own: what is nested in one tool
stands as deep as it came, and no tool is lost for another. Numbers that JSON has not (``NaN``) are
null, as they are in every request.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from llamaproxy import errors, jsontext
from llamaproxy.errors import McpBroke, ProxyError, UpstreamRefused, error_object
from llamaproxy.jsontext import Json
from llamaproxy.tools.definitions import ToolDefinition
from llamaproxy.tools.instructions import ToolGroup, instructions_of
from llamaproxy.tools.source import Listing

#: Characters of an error's words.
_MAX_WORDS = 4000

#: The errors that keep their class; one of another class becomes the nearest of these.
_CLASSES: Mapping[str, type[ProxyError]] = {
    name: value
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, ProxyError)
}


def listing_bytes(listing: Listing, limit: int) -> bytes:
    """*listing*, in about *limit* bytes.

    Of groups for which there is no room any more, there are failures in place of their tools.
    """
    failures = dict(listing.failures)
    lines: list[bytes] = []
    counts: dict[str, list[tuple[str, int, str]]] = {"groups": [], "kept": []}
    for part, groups in (("groups", listing.groups), ("kept", listing.kept)):
        for name, tools in groups.items():
            texts = [jsontext.dumps(attrs.astuple(tool, recurse=False)) for tool in tools]
            instructions = instructions_of(tools)
            size = sum(map(len, texts)) + len(instructions)
            if size <= limit:
                limit -= size
                lines += texts
                counts[part].append((name, len(texts), instructions))
            elif part == "groups":
                failures[name] = McpBroke(f"Its tools are too large for workers: {size} bytes.")
    head = {
        **counts,
        "failures": [(name, error_json(error)) for name, error in failures.items()],
        "groups_error": None if listing.groups_error is None else error_json(listing.groups_error),
        "fresh_for": listing.fresh_for,
        "configured": listing.configured,
        "names_all": listing.names_all,
    }
    return b"\n".join([jsontext.dumps(head), *lines])


def listing_of(text: bytes) -> Listing:
    """The listing of which :func:`listing_bytes` has made *text*.

    :raises ValueError: if that is something else.
    """
    lines = iter(text.split(b"\n"))
    try:
        head = jsontext.loads(next(lines))
        return Listing(
            groups=_groups(head["groups"], lines),
            kept=_groups(head["kept"], lines),
            failures={name: error_of(error) for name, error in head["failures"]},
            groups_error=None if head["groups_error"] is None else error_of(head["groups_error"]),
            fresh_for=head["fresh_for"],
            configured=head["configured"],
            names_all=head["names_all"],
        )
    except (KeyError, TypeError, StopIteration) as error:
        raise ValueError("this is no listing") from error


def _groups(
    counts: list[tuple[str, int, str]], lines: Iterator[bytes]
) -> dict[str, list[ToolDefinition]]:
    return {
        name: ToolGroup(
            [ToolDefinition(*jsontext.loads_exactly(next(lines))) for _ in range(count)],
            instructions,
        )
        for name, count, instructions in counts
    }


def error_json(error: ProxyError) -> Json:
    """*error* as JSON."""
    name = next(each.__name__ for each in type(error).__mro__ if each.__name__ in _CLASSES)
    return {
        "class": name,
        "status": error.status,
        "words": str(error)[:_MAX_WORDS],
        "where": error.where,
        # Of an MCP server's refusal, for the advice to an operator.
        "http_status": getattr(error, "http_status", None),
    }


def error_of(text: Json) -> ProxyError:
    """The error of which :func:`error_json` has made *text*."""
    error_class, words = _CLASSES[text["class"]], text["words"]
    error: Any
    if issubclass(error_class, UpstreamRefused):
        error = error_class(text["status"], error_object(text["status"], words))
    else:
        error = error_class(words)
    error.where = text["where"]
    if text["http_status"] is not None:
        error.http_status = text["http_status"]
    return error  # type: ignore[no-any-return]
