"""Other shapes of a completion's parts, put into OpenAI's, whole or streamed (DESIGN: S8). Pure."""

from __future__ import annotations

from llamaproxy.chat.messages import as_object, objects
from llamaproxy.jsontext import Json
from llamaproxy.upstream.chunks import without_error


def straighten(answer: Json, legacy: bool = False) -> None:
    """Change *answer*, a completion or a chunk of one, where its server has shapes of its own.

    An error or the usage may stand inside a choice (OpenRouter, Moonshot), the usage under
    ``x_groq`` (Groq); a list of one may be that one; a call may be a ``function_call``, which
    came before the list of calls.

    :param legacy: whether the client asked in the words of then, and wants such calls itself.
    :raises UpstreamRefused: for an error.
    """
    if isinstance(answer.get("choices"), dict):
        answer["choices"] = [answer["choices"]]
    choices = objects(answer.get("choices"))
    for holder in (*choices, as_object(answer.get("x_groq"))):
        usage = as_object(holder.get("usage"))
        if usage:
            del holder["usage"]
            if not answer.get("usage"):
                answer["usage"] = usage
    for choice in choices:
        if choice.get("error"):
            without_error({"error": choice["error"]})
        for key in ("delta", "message"):
            _straighten_calls(as_object(choice.get(key)), legacy)
        reason = choice.get("finish_reason")
        if not legacy and isinstance(reason, str) and reason.lower() == "function_call":
            choice["finish_reason"] = "tool_calls"


def _straighten_calls(message: Json, legacy: bool) -> None:
    if isinstance(message.get("tool_calls"), dict):
        message["tool_calls"] = [message["tool_calls"]]
    call = message.get("function_call")
    if isinstance(call, dict) and not legacy:
        del message["function_call"]
        if not message.get("tool_calls") and any(call.values()):
            message["tool_calls"] = [{"index": 0, "type": "function", "function": call}]
