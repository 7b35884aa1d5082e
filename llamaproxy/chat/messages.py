"""Requests and messages of OpenAI's chat completions. Pure.

Bodies stay dictionaries: what llamaproxy has never heard of travels on (DESIGN: L8).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Any

import attrs

from llamaproxy import jsontext
from llamaproxy.errors import BadRequest, UpstreamBroke
from llamaproxy.jsontext import Json


@attrs.frozen
class ToolCall:
    """One call that a model made; *arguments* is the text that it wrote.

    *cut_off* tells that the model was stopped before it had written all of it.
    """

    id: str
    name: str
    arguments: str
    entry: Json = attrs.field(eq=False, factory=dict)
    cut_off: bool = False


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


#: Types of parts that are reasoning, whatever else they say (Mistral, Anthropic, Responses API).
THOUGHTS = ("thinking", "reasoning", "redacted_thinking")


def objects(value: object) -> list[Json]:
    """The objects in a list; nothing for anything else that a peer may have sent."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def number_of(index: object) -> int | None:
    """The number that an ``index`` is, which some servers write as text."""
    if isinstance(index, str) and index.isascii() and index.isdecimal() and len(index) < 10:
        return int(index)
    return index if isinstance(index, int) and not isinstance(index, bool) else None


def text_of(content: object) -> str:
    """The text in a message's content, a string or a list of parts; no reasoning among them."""
    if isinstance(content, str):
        return content
    texts = (part.get("text") for part in objects(content) if part.get("type") not in THOUGHTS)
    return "".join(text for text in texts if isinstance(text, str))


def tool_names(body: Json) -> frozenset[str]:
    """The names of the tools that the client declared, functions or not (L8b)."""
    names = (details(tool).get("name") for tool in objects(body.get("tools")))
    return frozenset(name for name in names if isinstance(name, str))


def details(entry: Json) -> Json:
    """What a tool, a call or a choice says of itself, under the name of its type.

    That is ``function``, ``custom``, or what may come (OpenAI's API reference, "Create chat
    completion", ``tools``); some clients say it flat, as in the Responses API.
    """
    kind = entry.get("type")
    for key in (kind, "function", "custom"):
        if isinstance(key, str) and isinstance(entry.get(key), dict):
            return as_object(entry[key])
    return entry if isinstance(entry.get("name"), str) else {}


def wants_json(body: Json) -> bool:
    """Whether the client will parse the answer's content (L15b)."""
    return as_object(body.get("response_format")).get("type") in ("json_object", "json_schema")


def with_tools(body: Json, definitions: list[Json]) -> Json:
    """*body* with server tools behind the client's own (L1); no empty list is left (L3)."""
    tools = [*(body.get("tools") or []), *definitions]
    if tools:
        return {**body, "tools": tools}
    absent = ("tools", "tool_choice", "parallel_tool_calls")
    return {key: value for key, value in body.items() if key not in absent}


def follow_up(body: Json, message: Json, results: Iterable[tuple[ToolCall, str]]) -> Json:
    """*body* for the next round: what the model said, and what its calls came to (L9, L10)."""
    told = [{"role": "tool", "tool_call_id": call.id, "content": text} for call, text in results]
    return {**body, "messages": [*body["messages"], message, *told]}


#: Calls of one round that are looked at; a model that makes more has lost its way.
MAX_CALLS = 1000


def read_calls(entries: object) -> list[ToolCall]:
    """The calls of a message, each whole and with an id of its own (S8).

    :raises UpstreamBroke: if there are absurdly many.
    """
    calls: list[ToolCall] = []
    seen: set[str] = set()
    if len(found := objects(entries)) > MAX_CALLS:
        raise too_many_calls()
    for entry in found:
        call_id = entry.get("id")
        if not isinstance(call_id, str) or not call_id or call_id in seen:
            call_id = new_call_id()
        seen.add(call_id)
        calls.append(_read_call({**entry, "id": call_id}))
    return calls


def _read_call(entry: Json) -> ToolCall:
    inner = details(entry)
    name = inner["name"] if isinstance(inner.get("name"), str) else ""
    if is_function(entry):
        arguments = arguments_text(inner.get("arguments"))
        function = {**inner, "name": name, "arguments": arguments}
        entry = {**entry, "type": entry.get("type") or "function", "function": function}
    else:
        arguments = arguments_text(inner.get("input"))
    return ToolCall(entry["id"], name, arguments, entry)


def is_function(entry: Json) -> bool:
    """Whether a call is one of a function: what has another type is the client's to understand."""
    return (entry.get("type") or "function") == "function" and "custom" not in entry


def too_many_calls() -> UpstreamBroke:
    """The failure of a round whose calls nobody could want to be run."""
    return UpstreamBroke(f"The model made more than {MAX_CALLS} calls at once.")


def arguments_text(arguments: object) -> str:
    """A call's arguments as the text they should have been, though some send an object."""
    if arguments is None:
        return ""
    return arguments if isinstance(arguments, str) else jsontext.dumps(arguments).decode()


def new_call_id() -> str:
    """An id for a call that came without one."""
    return f"call_{secrets.token_hex(12)}"


def merged_usage(before: Json | None, more: Json) -> Json:
    """The usage of one round, of which a stream may tell a part at a time; what comes last counts.

    A total that is not told again is that of the parts (the gateways of Anthropic's events).
    """
    if before is None:
        return more
    merged: Json = dict(before)
    for key, value in more.items():
        inner = merged.get(key)
        if isinstance(value, dict) and isinstance(inner, dict):
            merged[key] = merged_usage(inner, value)
        elif value is not None:
            merged[key] = value
    parts = [merged.get("prompt_tokens"), merged.get("completion_tokens")]
    if "total_tokens" in before and more.get("total_tokens") is None:
        if all(isinstance(part, int) for part in parts):
            merged["total_tokens"] = sum(part for part in parts if isinstance(part, int))
    return merged


def added_usage(total: Any, more: Any) -> Any:
    """The sum of two ``usage`` objects, whatever counts they hold (L16)."""
    if isinstance(total, dict) and isinstance(more, dict):
        keys = [*total, *(key for key in more if key not in total)]
        return {key: added_usage(total.get(key), more.get(key)) for key in keys}
    if isinstance(total, int | float) and isinstance(more, int | float):
        return total + more
    return total if more is None else more
