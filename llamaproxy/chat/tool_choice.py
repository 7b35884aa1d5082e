"""``tool_choice``: the names in it, and what is left of it in later rounds (DESIGN: L11). Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection

from llamaproxy.chat.messages import as_object, objects, payload_of
from llamaproxy.errors import BadRequest
from llamaproxy.jsontext import Json


def chosen_name(body: Json) -> str | None:
    """The name of the one tool that ``tool_choice`` asks for; None if it is of another kind."""
    choice = body.get("tool_choice")
    name = payload_of(choice).get("name") if isinstance(choice, dict) else None
    return name if isinstance(name, str) else None


def allowed_names(body: Json) -> list[str]:
    """The names of the tools that a ``tool_choice`` of type ``allowed_tools`` lists."""
    names = (payload_of(tool).get("name") for tool in objects(_allowed(body).get("tools")))
    return [name for name in names if isinstance(name, str)]


def with_choice(body: Json, rename: Callable[[str], str]) -> Json:
    """*body* with each name in its ``tool_choice`` replaced by *rename* of it."""
    choice = body.get("tool_choice")
    if not isinstance(choice, dict):
        return body
    if chosen_name(body) is not None:
        return {**body, "tool_choice": _renamed(choice, rename)}
    allowed = _allowed(body)
    if isinstance(allowed.get("tools"), list):
        tools = [
            _renamed(tool, rename) if isinstance(tool, dict) else tool for tool in allowed["tools"]
        ]
        return _with_allowed(body, {**allowed, "tools": tools})
    return body


def _renamed(entry: Json, rename: Callable[[str], str]) -> Json:
    inner = payload_of(entry)
    name = inner.get("name")
    if not isinstance(name, str):
        return entry
    payload = {**inner, "name": rename(name)}
    return (
        payload if inner is entry else {k: payload if v is inner else v for k, v in entry.items()}
    )


def _allowed(body: Json) -> Json:
    """The mode and the tools of ``allowed_tools``; some say them flat, as in the Responses API."""
    choice = as_object(body.get("tool_choice"))
    if choice.get("type") == "allowed_tools" and "allowed_tools" not in choice:
        return choice
    return as_object(choice.get("allowed_tools"))


def _with_allowed(body: Json, allowed: Json) -> Json:
    choice = body["tool_choice"]
    if "allowed_tools" in choice:
        allowed = {**choice, "allowed_tools": allowed}
    return {**body, "tool_choice": allowed}


def mode_of(body: Json) -> object:
    """What ``tool_choice`` asks for, in a word as ``none`` or ``required``, if it is one."""
    choice = body.get("tool_choice")
    mode = choice.get("type") if isinstance(choice, dict) else choice
    return _allowed(body).get("mode") or mode


def forces_a_call(body: Json) -> bool:
    """Whether ``tool_choice`` demands a call of any tool: ``required``, or Mistral's ``any``."""
    return mode_of(body) in ("required", "any")


def with_free_choice(body: Json) -> Json:
    """*body* for the rounds after the first: a call is no longer forced (L11)."""
    allowed = _allowed(body)
    if allowed:
        return _with_allowed(body, {**allowed, "mode": "auto"})
    return {**body, "tool_choice": "auto"}


def with_offered_names(
    body: Json, client_tools: Collection[str], offered: Callable[[str], list[str]]
) -> Json:
    """*body* whose choice names server tools by the names under which the model is offered them.

    *offered* gives these for the real name of a tool; the names of the client's own tools, and
    those of no tool at all, stay.

    :raises BadRequest: if several server tools have that real name.
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
    body: Json,
    called_names: Collection[str],
    client_tools: Collection[str],
    server_tools: Collection[str],
) -> Json:
    """*body* for the next round: a ``tool_choice`` that has been satisfied is set to ``auto``.

    *called_names* are those that the model has called. A choice of any tool is satisfied by a call
    of one of the client's tools if it allows any of them, otherwise by any call.
    """
    name = chosen_name(body)
    if name is not None:
        return with_free_choice(body) if name in server_tools and name in called_names else body
    if not called_names or not forces_a_call(body):
        return body
    choosable = {*client_tools} & {*allowed_names(body)} if _allowed(body) else {*client_tools}
    return body if choosable and choosable.isdisjoint(called_names) else with_free_choice(body)
