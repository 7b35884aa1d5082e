"""``tool_choice``: which calls it asks for, and when it has got them (DESIGN: L11). Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection

from llamaproxy.chat.messages import as_object, details, objects
from llamaproxy.errors import BadRequest
from llamaproxy.jsontext import Json


def chosen_name(body: Json) -> str | None:
    """The tool that ``tool_choice`` names."""
    choice = body.get("tool_choice")
    name = details(choice).get("name") if isinstance(choice, dict) else None
    return name if isinstance(name, str) else None


def allowed_names(body: Json) -> list[str]:
    """The tools that a ``tool_choice`` of type ``allowed_tools`` lists."""
    names = (details(tool).get("name") for tool in objects(_allowed(body).get("tools")))
    return [name for name in names if isinstance(name, str)]


def with_choice(body: Json, renamed: Callable[[str], str]) -> Json:
    """*body* with each name in its ``tool_choice`` replaced by what *renamed* makes of it."""
    choice = body.get("tool_choice")
    if not isinstance(choice, dict):
        return body
    if chosen_name(body) is not None:
        return {**body, "tool_choice": _renamed(choice, renamed)}
    allowed = _allowed(body)
    if isinstance(allowed.get("tools"), list):
        tools = [
            _renamed(tool, renamed) if isinstance(tool, dict) else tool for tool in allowed["tools"]
        ]
        choice = {**choice, "allowed_tools": {**allowed, "tools": tools}}
    return {**body, "tool_choice": choice}


def _renamed(entry: Json, renamed: Callable[[str], str]) -> Json:
    inner = details(entry)
    name = inner.get("name")
    if not isinstance(name, str):
        return entry
    named = {**inner, "name": renamed(name)}
    return named if inner is entry else {k: named if v is inner else v for k, v in entry.items()}


def _allowed(body: Json) -> Json:
    choice = body.get("tool_choice")
    return as_object(choice.get("allowed_tools")) if isinstance(choice, dict) else {}


def forces_a_call(body: Json) -> bool:
    """Whether ``tool_choice`` demands a call, of whichever tool: ``any`` is Mistral's word."""
    choice = body.get("tool_choice")
    mode = choice.get("type") if isinstance(choice, dict) else choice
    return (_allowed(body).get("mode") or mode) in ("required", "any")


def with_free_choice(body: Json) -> Json:
    """*body* for the rounds after the first: a call is no longer forced (L11)."""
    allowed = _allowed(body)
    if allowed:
        choice = {**body["tool_choice"], "allowed_tools": {**allowed, "mode": "auto"}}
        return {**body, "tool_choice": choice}
    return {**body, "tool_choice": "auto"}


def with_offered_names(
    body: Json, client_tools: Collection[str], offered: Callable[[str], list[str]]
) -> Json:
    """*body* whose choice names server tools as the model knows them.

    *offered* gives the names under which tools of one real name are offered; the client's own
    tools, and names that nobody has, stay.

    :raises BadRequest: if two server tools have that name: neither may stand in for the other.
    """

    def renamed(name: str) -> str:
        names = [] if name in client_tools else offered(name)
        if len(names) > 1:
            raise BadRequest(
                f"'tool_choice' names {name[:64]!r}, which several servers have: choose one of "
                f"{', '.join(names)}."
            )
        return names[0] if names else name

    return with_choice(body, renamed)


def after_round(
    body: Json, called: Collection[str], client_tools: Collection[str], offered: Collection[str]
) -> Json:
    """*body* for the next round: a choice that has been satisfied forces no more.

    *called* are the names that the model has called, *offered* those of the server's tools. With
    tools of the client's own to choose from, only a call of theirs satisfies a choice of
    whichever tool.
    """
    name = chosen_name(body)
    if name is not None:
        return with_free_choice(body) if name in offered and name in called else body
    if not called or not forces_a_call(body):
        return body
    choosable = {*client_tools} & {*allowed_names(body)} if _allowed(body) else {*client_tools}
    return body if choosable and choosable.isdisjoint(called) else with_free_choice(body)
