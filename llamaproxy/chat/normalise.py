"""Puts other servers' forms of completions and chunks into OpenAI's (DESIGN: S8). Pure."""

from __future__ import annotations

from llamaproxy.chat.messages import as_object, objects
from llamaproxy.chat.round_merging import TEXT_KEYS
from llamaproxy.jsontext import Json
from llamaproxy.upstream.chunks import without_error

#: What servers call the type ``function`` of a call, in lower case.
_FUNCTION_TYPES = ("function", "function_call", "tool", "tool_call", "tool_use")


def normalise(answer: Json, legacy: bool = False) -> None:
    """Change *answer*, a completion or a chunk of one, into the form of OpenAI's API reference.

    An error or the usage may stand inside a choice (OpenRouter, Moonshot) or under ``x_groq``
    (Groq); a list of one may be that one; a call may be a ``function_call``, which
    came before the list of calls, or say flat what belongs under ``function``.

    :param legacy: whether the client sent ``functions``, and so expects a ``function_call``.
    :raises UpstreamRefused: for an error inside one of these.
    """
    if isinstance(answer.get("choices"), dict):
        answer["choices"] = [answer["choices"]]
    choices = objects(answer.get("choices"))
    for holder in (*choices, as_object(answer["x_groq"])) if "x_groq" in answer else choices:
        if holder.get("error"):
            without_error({"error": holder["error"]})
        usage = holder.get("usage")
        if usage and isinstance(usage, dict):
            del holder["usage"]
            if not answer.get("usage"):
                answer["usage"] = usage
    if answer.get("usage") is not None and not isinstance(answer["usage"], dict):
        del answer["usage"]
    for choice in choices:
        for message in (choice.get("delta"), choice.get("message")):
            if isinstance(message, dict):
                _normalise_message(message, legacy)
        reason = choice.get("finish_reason")
        if not legacy and isinstance(reason, str) and reason.lower() == "function_call":
            choice["finish_reason"] = "tool_calls"


def _normalise_message(message: Json, legacy: bool) -> None:
    for key in TEXT_KEYS:
        value = message.get(key)
        if value is None or isinstance(value, str):
            continue
        if isinstance(value, dict):
            message[key] = [value]
        elif isinstance(value, list):
            message[key] = [{"type": "text", "text": p} if isinstance(p, str) else p for p in value]
    calls = message.get("tool_calls")
    if calls is not None:
        if isinstance(calls, dict):
            calls = message["tool_calls"] = [calls]
        for entry in objects(calls):
            _normalise_call(entry)
    call = message.get("function_call")
    if isinstance(call, dict) and not legacy:
        del message["function_call"]
        if not message.get("tool_calls") and any(call.values()):
            message["tool_calls"] = [{"index": 0, "type": "function", "function": call}]


def _normalise_call(call: Json) -> None:
    kind, function = call.get("type"), call.get("function")
    if isinstance(kind, str) and kind.lower() in _FUNCTION_TYPES:
        call["type"] = kind = "function"
    if not isinstance(function, dict) and "custom" not in call and kind in (None, "", "function"):
        flat = {key: call.pop(key) for key in ("name", "arguments") if key in call}
        if isinstance(function, str) and function:
            flat.setdefault("name", function)
        if flat:
            call["function"] = flat
