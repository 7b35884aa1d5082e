"""Why a round ended, in OpenAI's words, and what that says of its calls. Pure."""

from __future__ import annotations

import attrs

from llamaproxy import jsontext
from llamaproxy.chat.messages import ToolCall
from llamaproxy.errors import UpstreamBroke

#: Other servers' words for OpenAI's reasons, in lower case with underscores: Gemini, Anthropic,
#: Mistral, Cohere, Bedrock, TGI, Azure (their API references).
_REASONS = {
    **dict.fromkeys(("max_tokens", "max_output_tokens", "model_length", "max_length"), "length"),
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

#: Reasons with which a model was stopped in the middle.
_CUT_REASONS = ("length", "content_filter", "error")


def finish_reason(said: object) -> str | None:
    """A finish reason as OpenAI spells it, None for no reason at all (S8)."""
    if isinstance(said, dict):  # SGLang's own
        said = said.get("type")
    if not isinstance(said, str):
        return None
    reason = said.strip().lower().replace("-", "_")
    return _REASONS.get(reason, reason) or None


def check_reason(said: object, any_call: bool) -> None:
    """Refuse a choice that failed, unless it made a call, whose result says so to the model (S7).

    :raises UpstreamBroke: if it did.
    """
    if finish_reason(said) == "error" and not any_call:
        raise UpstreamBroke("The model's answer ended with an error.")


def closing_reason(said: object, handed: list[str]) -> str:
    """The finish reason of a choice that hands over calls with the arguments *handed*.

    It says ``tool_calls`` if, and only if, there are calls (L15, L18), unless one of them has been
    cut off: a client must not take that for a call.
    """
    reason = finish_reason(said) or "stop"
    if not handed:
        return "stop" if reason == "tool_calls" else reason
    return reason if reason in _CUT_REASONS and any(_cut_off(handed)) else "tool_calls"


def with_cut_off(calls: list[ToolCall], said: object) -> list[ToolCall]:
    """*calls*, those marked as cut off that are not whole, if the finish reason *said* so (L12b).

    Any of them may be, since some servers write several side by side. A round that ended without
    a reason ended in the middle, as far as anybody can tell.
    """
    reason = finish_reason(said)
    if reason is not None and reason not in _CUT_REASONS:
        return calls
    cut_off = _cut_off([call.arguments for call in calls])
    if reason is None and calls and not calls[-1].arguments.strip():
        cut_off[-1] = False
    return [attrs.evolve(call, cut_off=cut) for call, cut in zip(calls, cut_off, strict=True)]


def _cut_off(texts: list[str]) -> list[bool]:
    """Which *texts* of calls a model was stopped in; only the last can be empty for that."""
    last = len(texts) - 1
    return [
        not is_whole(text) and (place == last or bool(text.strip()))
        for place, text in enumerate(texts)
    ]


def is_whole(arguments: str) -> bool:
    """Whether *arguments* are complete JSON."""
    try:
        jsontext.loads(arguments)
    except ValueError:
        return False
    return True
