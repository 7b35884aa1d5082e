"""The completion that a stream adds up to, from a server that was not asked for one (S8). Pure."""

from __future__ import annotations

from typing import Any

from llamaproxy.chat.calls import CallVisibility
from llamaproxy.chat.stream import CHOICE_KEYS, TOKEN_KEYS, RoundStream, steers
from llamaproxy.jsontext import Json


def completion_of(chunks: list[Json | None], legacy: bool = False) -> Json:
    """The completion that *chunks* add up to.

    :raises UpstreamBroke: if they break off in the middle.
    """
    stream = RoundStream(CallVisibility(shows_all=True, legacy_functions=legacy), set())
    completion: Json = {}
    beside: dict[int, Json] = {}
    for chunk in chunks:
        if chunk is not None and not steers(chunk):
            for key, value in chunk.items():
                if not completion.get(key):
                    completion[key] = value
        for choice in (stream.feed(chunk) or {}).get("choices", ()):
            _add_beside(beside.setdefault(choice["index"], {}), choice)
    choices = stream.unary_choices()
    for choice in choices:
        all_beside = beside.get(choice["index"], {})
        _add_beside(all_beside, choice)
        choice |= all_beside
    completion |= {"object": "chat.completion", "choices": choices}
    return completion if stream.usage is None else {**completion, "usage": stream.usage}


def _add_beside(total: Json, choice: Json) -> None:
    """Add to *total* what stands beside a delta or a message: of tokens, to those before."""
    for key, value in choice.items():
        if key in CHOICE_KEYS or value is None:
            continue
        before = total.get(key)
        if key in TOKEN_KEYS and isinstance(value, dict) and isinstance(before, dict):
            for name, tokens in value.items():
                before[name] = _added(before.get(name), tokens)
        else:
            total[key] = _added(before, value) if key in TOKEN_KEYS else value


def _added(before: Any, tokens: Any) -> Any:
    if isinstance(before, list) and isinstance(tokens, list):
        before.extend(tokens)
        return before
    return before if tokens is None else tokens
