"""Finish reasons in OpenAI's spelling, and whether a round's calls were cut off. Pure."""

from __future__ import annotations

import attrs

from llamaproxy import jsontext
from llamaproxy.chat.messages import ToolCall
from llamaproxy.errors import UpstreamBroke

#: OpenAI's reasons by their names, and by those of other servers in lower case with underscores:
#: Gemini, Anthropic, Mistral, Cohere, Bedrock, TGI, Azure (their API references).
_REASONS = {
    **dict.fromkeys(("null", "none"), ""),
    **{reason: reason for reason in ("stop", "length", "tool_calls", "content_filter")},
    **dict.fromkeys(
        (
            *("max_tokens", "max_output_tokens", "model_length", "max_length"),
            "model_context_window_exceeded",
        ),
        "length",
    ),
    **dict.fromkeys(
        (
            *("end_turn", "stop_sequence", "stop_token", "eos_token", "end", "complete"),
            *("completed", "finished", "finish", "done", "eos_token_found", "normal"),
        ),
        "stop",
    ),
    **dict.fromkeys(("tool_use", "tool_call", "tool", "function_calls", "tools"), "tool_calls"),
    **dict.fromkeys(
        (
            *("safety", "recitation", "blocklist", "prohibited_content", "spii", "language"),
            *("image_safety", "content_filtered", "filtered", "refusal", "error_toxic"),
            *("guardrail_intervened", "sensitive", "moderation"),
        ),
        "content_filter",
    ),
    **dict.fromkeys(
        (
            *("failed", "failure", "server_error", "internal_error", "internal_server_error"),
            *("abort", "aborted", "cancelled", "canceled"),
        ),
        "error",
    ),
}

#: Reasons of a model that had finished. With any other, which may be new or a server's own
#: (DeepSeek's ``insufficient_system_resource``, GLM's ``network_error``), it may have been stopped.
#: Together's word, which clients have always been told as it is, is the last.
_FINISHED = ("stop", "tool_calls", "function_call", "eos")


def finish_reason(value: object) -> str | None:
    """The ``finish_reason`` *value* as OpenAI spells it, None if it is none (S8)."""
    if isinstance(value, dict):  # SGLang's own
        value = value.get("type")
    if not isinstance(value, str):
        return None
    if value in _REASONS:  # as most often: it is looked up several times a round
        return _REASONS[value] or None
    reason = value.strip().lower().replace("-", "_")
    return _REASONS.get(reason, reason) or None


def check_reason(value: object, has_calls: bool) -> None:
    """Refuse a choice that ended with an error (S7); a call's result tells the model of one.

    :raises UpstreamBroke: if it did, and has no calls.
    """
    if finish_reason(value) == "error" and not has_calls:
        raise UpstreamBroke("The model's answer ended with an error.")


def closing_reason(value: object, arguments: list[str]) -> str:
    """The finish reason for the client, of a choice that shows it calls with these *arguments*.

    :param value: the upstream's finish reason.
    :returns: ``tool_calls`` if, and only if, there are calls (L15, L18), unless one of them may
        have been cut off: a client must not take that for a call.
    """
    reason = finish_reason(value)
    if not arguments:
        return "stop" if reason in (None, "tool_calls") else reason
    return (reason or "length") if any(_cut_off(arguments, reason)) else "tool_calls"


def mark_cut_off(calls: list[ToolCall], value: object) -> list[ToolCall]:
    """*calls*, with ``cut_off`` set on those that may have been cut off (L12b).

    :param value: the finish reason.
    """
    reason = finish_reason(value)
    if reason in _FINISHED:
        return calls
    cut_off = _cut_off([call.arguments for call in calls], reason)
    return [attrs.evolve(call, cut_off=cut) for call, cut in zip(calls, cut_off, strict=True)]


def _cut_off(arguments: list[str], reason: str | None) -> list[bool]:
    """Which *arguments* are incomplete JSON, in a round that ended with *reason* or with none.

    Any may be, since some servers write several side by side. Where there are none, only the last
    count as such. Without a reason only an object that has begun does.
    """
    if reason in _FINISHED:
        return []
    last = len(arguments) - 1
    return [
        not is_complete_json(text)
        and (text.lstrip()[:1] == "{" if reason is None else position == last or bool(text.strip()))
        for position, text in enumerate(arguments)
    ]


def is_complete_json(arguments: str) -> bool:
    """Whether *arguments* are complete JSON."""
    try:
        jsontext.loads(arguments)
    except ValueError:
        return False
    return True
