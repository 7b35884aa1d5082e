"""Requests, messages and tool calls of OpenAI's chat completions, read and made. Pure.

Bodies stay dictionaries: fields that llamaproxy does not know are passed on (DESIGN: L8).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping

import attrs

from llamaproxy import jsontext
from llamaproxy.errors import BadRequest, UpstreamBroke
from llamaproxy.jsontext import Json


@attrs.frozen
class ToolCall:
    """One call that a model made.

    *arguments* is the text that the model wrote, JSON if it is right; *entry* the call as it stands
    in the message; *cut_off* whether the model was stopped before it had written all of it (L12b).
    """

    id: str
    name: str
    arguments: str
    entry: Json = attrs.field(eq=False, factory=dict)
    cut_off: bool = False


@attrs.frozen
class Completion:
    """The answer to one round: the assistant message, with every field it had, and its calls."""

    message: Json
    calls: list[ToolCall]


def parse_request(text: bytes) -> Json:
    """The request body in the JSON *text*, checked as far as llamaproxy depends on it.

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
    """*value* if it is a JSON object, an empty one if a peer sent anything else."""
    return value if isinstance(value, dict) else {}


#: Types of content parts that hold reasoning (Mistral, Anthropic, Responses API).
REASONING_TYPES = ("thinking", "reasoning", "redacted_thinking")


def objects(value: object) -> list[Json]:
    """The objects in a list; nothing for anything else that a peer may have sent."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def number_of(index: object) -> int | None:
    """The number that an ``index`` is, which some servers write as text, or as ``1.0``."""
    if isinstance(index, str) and index.isascii() and index.isdecimal() and len(index) < 10:
        return int(index)
    number = jsontext.whole(index)
    return number if isinstance(number, int) and not isinstance(number, bool) else None


def text_of(content: object) -> str:
    """The text in a message's content, a string or a list of parts; no reasoning among them."""
    if isinstance(content, str):
        return content
    texts = (
        part.get("text") for part in objects(content) if part.get("type") not in REASONING_TYPES
    )
    return "".join(text for text in texts if isinstance(text, str))


def payload_of(entry: Json) -> Json:
    """The object under the key that a tool, a call or a tool choice names as its ``type``.

    That is ``function``, ``custom``, or a type to come (OpenAI's API reference, "Create chat
    completion", ``tools``). Some clients send it flat, as in the Responses API: then it is *entry*.
    """
    kind = entry.get("type")
    for key in (kind, "function", "custom"):
        if isinstance(key, str) and isinstance(entry.get(key), dict):
            return as_object(entry[key])
    return entry if isinstance(entry.get("name"), str) else {}


def wants_json(body: Json) -> bool:
    """Whether the client will parse the answer's content (L15b)."""
    return as_object(body.get("response_format")).get("type") in ("json_object", "json_schema")


_NOTHING: Mapping[str, Json] = {}


def follow_up(
    message: Json,
    results: Iterable[tuple[ToolCall, str]],
    rewritten: Mapping[str, Json] = _NOTHING,
) -> list[Json]:
    """What a round adds: the model's *message* and the results of its calls (L9, L10).

    :param rewritten: the arguments, by id, of calls whose own are not the text of an object. With
        such ones in its history a chat is refused for good: by llama.cpp if they are no JSON, by
        Ollama and SGLang if they are no object.
    """
    tool_messages = [
        {"role": "tool", "tool_call_id": call.id, "content": text} for call, text in results
    ]
    if rewritten:
        entries = [_rewritten(each, rewritten) for each in message["tool_calls"]]
        message = {**message, "tool_calls": entries}
    return [message, *tool_messages]


def _rewritten(entry: Json, rewritten: Mapping[str, Json]) -> Json:
    arguments = rewritten.get(entry["id"])
    if arguments is None or not is_function(entry):
        return entry
    function = {**as_object(entry.get("function")), "arguments": jsontext.dumps(arguments).decode()}
    return {**entry, "function": function}


#: Calls that one message may have; a model that makes more has lost its way.
MAX_CALLS = 1000


def read_calls(entries: object) -> list[ToolCall]:
    """The calls in the ``tool_calls`` of a message, each with an id of its own (S8).

    :raises UpstreamBroke: if there are more than :data:`MAX_CALLS`.
    """
    calls: list[ToolCall] = []
    ids: set[str] = set()
    call_entries = objects(entries)
    if len(call_entries) > MAX_CALLS:
        raise too_many_calls()
    for entry in call_entries:
        call_id = entry.get("id")
        if not isinstance(call_id, str) or not call_id or call_id in ids:
            call_id = new_call_id()
        ids.add(call_id)
        calls.append(_read_call({**entry, "id": call_id}))
    return calls


def _read_call(entry: Json) -> ToolCall:
    inner = payload_of(entry)
    name = inner["name"] if isinstance(inner.get("name"), str) else ""
    if is_function(entry):
        arguments = arguments_text(inner.get("arguments"))
        function = {**inner, "name": name, "arguments": arguments}
        entry = {**entry, "type": entry.get("type") or "function", "function": function}
    else:
        arguments = arguments_text(inner.get("input"))
    return ToolCall(entry["id"], name, arguments, entry)


def is_function(entry: Json) -> bool:
    """Whether a call is of a function; calls of other types are only ever the client's (L8b)."""
    return (entry.get("type") or "function") == "function" and "custom" not in entry


def too_many_calls() -> UpstreamBroke:
    """The error for a round with more than :data:`MAX_CALLS` calls."""
    return UpstreamBroke(f"The model made more than {MAX_CALLS} calls at once.")


def arguments_text(arguments: object) -> str:
    """A call's arguments as the text they should have been, though some send an object."""
    if arguments is None:
        return ""
    if isinstance(arguments, str):
        return arguments
    return json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))  # NaN stays NaN


def new_call_id() -> str:
    """An id for a call that came without one."""
    return f"call_{secrets.token_hex(12)}"
