"""Usage: the tokens of a round that come in parts, and those of all rounds (L16). Pure."""

from __future__ import annotations

from typing import Any

from llamaproxy.jsontext import Json


def merged_usage(before: Json | None, more: Json) -> Json:
    """The usage of one round that a stream sends in several objects; a later value replaces others.

    A total that is not sent again is the sum of the parts (gateways to Anthropic's API).
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
    counts = [merged.get("prompt_tokens"), merged.get("completion_tokens")]
    if "total_tokens" in before and more.get("total_tokens") is None:
        if all(isinstance(count, int) for count in counts):
            merged["total_tokens"] = sum(count for count in counts if isinstance(count, int))
    return merged


def added_usage(total: Any, more: Any) -> Any:
    """The sum of the ``usage`` objects of two rounds, number by number (L16).

    What is no number, such as OpenRouter's ``is_byok``, is the later round's.
    """
    if isinstance(total, dict) and isinstance(more, dict):
        keys = [*total, *(key for key in more if key not in total)]
        return {key: added_usage(total.get(key), more.get(key)) for key in keys}
    if isinstance(total, bool) or isinstance(more, bool):  # which Python would add up
        return total if more is None else more
    if isinstance(total, int | float) and isinstance(more, int | float):
        return total + more
    return total if more is None else more
