"""Requests and messages of OpenAI's chat completions. Pure.

Bodies stay dictionaries: what llamaproxy has never heard of travels on (DESIGN: L8).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Any

import attrs

from llamaproxy import jsontext
from llamaproxy.errors import BadRequest
from llamaproxy.jsontext import Json


@attrs.frozen
class ToolCall:
    """One call that a model made; *arguments* is the text that it wrote."""

    id: str
    name: str
    arguments: str
    entry: Json = attrs.field(eq=False, factory=dict)


@attrs.frozen
class Completion:
    """What came of one round: the assistant message as it was said, and its calls."""

    message: Json
    calls: list[ToolCall]


def parse_request(text: bytes) -> Json:
    """A request body, checked as far as llamaproxy depends on it.

    :raises BadRequest: if it is no chat completion request.
    """
    try:
        body = jsontext.loads_exactly(text)
    except ValueError as error:
        raise BadRequest(f"The request body is not valid JSON: {error}.") from None
    if not isinstance(body, dict):
        raise BadRequest("The request body must be a JSON object.")
    if not isinstance(body.get("messages"), list):
        raise BadRequest("The request has no 'messages', which must be a list.")
    if not isinstance(body.get("tools", []), list | None):
        raise BadRequest("'tools' must be a list.")
    if not isinstance(body.get("stream"), bool | None):
        raise BadRequest("'stream' must be true or false.")
    return body


def as_object(value: object) -> Json:
    """*value* if it is an object, an empty one if a peer sent anything else."""
    return value if isinstance(value, dict) else {}


def objects(value: object) -> list[Json]:
    """The objects in a list; nothing for anything else that a peer may have sent."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def text_of(content: object) -> str:
    """The text in a message's content, a string or a list of parts."""
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text") or "") for part in objects(content))


def tool_names(body: Json) -> frozenset[str]:
    """The names of the functions that the client declared."""
    names = (_function(tool).get("name") for tool in objects(body.get("tools")))
    return frozenset(name for name in names if isinstance(name, str))


def with_tools(body: Json, definitions: list[Json]) -> Json:
    """*body* with server tools behind the client's own (L1); no empty list is left (L3)."""
    tools = [*(body.get("tools") or []), *definitions]
    if tools:
        return {**body, "tools": tools}
    absent = ("tools", "tool_choice", "parallel_tool_calls")
    return {key: value for key, value in body.items() if key not in absent}


def chosen_name(body: Json) -> str | None:
    """The function that ``tool_choice`` names."""
    choice = body.get("tool_choice")
    name = _function(choice).get("name") if isinstance(choice, dict) else None
    return name if isinstance(name, str) else None


def with_choice(body: Json, name: str) -> Json:
    """*body* with ``tool_choice`` naming the function *name*."""
    choice = body["tool_choice"]
    return {**body, "tool_choice": {**choice, "function": {**choice["function"], "name": name}}}


def forces_a_call(body: Json) -> bool:
    """Whether ``tool_choice`` demands a call, of whichever tool."""
    choice = body.get("tool_choice")
    allowed = choice.get("allowed_tools") if isinstance(choice, dict) else None
    mode = allowed.get("mode") if isinstance(allowed, dict) else choice
    return mode == "required"


def with_free_choice(body: Json) -> Json:
    """*body* for the rounds after the first: a call is no longer forced (L11)."""
    choice = body.get("tool_choice")
    allowed = choice.get("allowed_tools") if isinstance(choice, dict) else None
    if isinstance(choice, dict) and isinstance(allowed, dict):
        return {**body, "tool_choice": {**choice, "allowed_tools": {**allowed, "mode": "auto"}}}
    return {**body, "tool_choice": "auto"}


def follow_up(body: Json, message: Json, results: Iterable[tuple[ToolCall, str]]) -> Json:
    """*body* for the next round: what the model said, and what its calls came to (L9, L10)."""
    told = [{"role": "tool", "tool_call_id": call.id, "content": text} for call, text in results]
    return {**body, "messages": [*body["messages"], message, *told]}


def read_calls(entries: object) -> list[ToolCall]:
    """The calls of a message, each whole and with an id of its own (S8)."""
    calls: list[ToolCall] = []
    seen: set[str] = set()
    for entry in objects(entries):
        function = _function(entry)
        call_id = entry.get("id")
        if not isinstance(call_id, str) or not call_id or call_id in seen:
            call_id = new_call_id()
        seen.add(call_id)
        name = function.get("name")
        arguments = arguments_text(function.get("arguments"))
        name = name if isinstance(name, str) else ""
        whole = {
            **entry,
            "id": call_id,
            "type": entry.get("type") or "function",
            "function": {**function, "name": name, "arguments": arguments},
        }
        calls.append(ToolCall(call_id, name, arguments, whole))
    return calls


def arguments_text(arguments: object) -> str:
    """A call's arguments as the text they should have been, though some send an object."""
    if arguments is None:
        return ""
    return arguments if isinstance(arguments, str) else jsontext.dumps(arguments).decode()


def new_call_id() -> str:
    """An id for a call that came without one."""
    return f"call_{secrets.token_hex(12)}"


def finish_reason(said: object) -> str | None:
    """A finish reason as OpenAI spells it, None for no reason at all (S8)."""
    return said.strip().lower() or None if isinstance(said, str) else None


def closing_reason(said: object, handed: list[str]) -> str:
    """The finish reason of a choice that hands over calls with the arguments *handed*.

    It says ``tool_calls`` if, and only if, there are calls (L15, L18), unless the last of them has
    been cut off: a client must not take that for a call.
    """
    reason = finish_reason(said) or "stop"
    if not handed:
        return "stop" if reason == "tool_calls" else reason
    cut_off = reason in ("length", "content_filter") and not is_whole(handed[-1])
    return reason if cut_off else "tool_calls"


def is_whole(arguments: str) -> bool:
    """Whether *arguments* are complete JSON."""
    try:
        jsontext.loads(arguments)
    except ValueError:
        return False
    return True


def added_usage(total: Any, more: Any) -> Any:
    """The sum of two ``usage`` objects, whatever counts they hold (L16)."""
    if isinstance(total, dict) and isinstance(more, dict):
        keys = [*total, *(key for key in more if key not in total)]
        return {key: added_usage(total.get(key), more.get(key)) for key in keys}
    if isinstance(total, int | float) and isinstance(more, int | float):
        return total + more
    return total if more is None else more


def _function(entry: Json) -> Json:
    """The ``function`` of a tool, a call or a choice, if it has one."""
    return as_object(entry.get("function"))
