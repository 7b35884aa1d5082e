"""Mixed turns, with calls of client and server tools: their marks, and how they are restored.

The client is shown only its own calls of a turn. When it sends their results, the model must see
the turn as it was: its message with all of its calls, the server's results in their places, and
the rounds before it in the same answer (DESIGN: L19). Pure.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import attrs

from llamaproxy.chat.messages import objects
from llamaproxy.jsontext import Json

_MARK = "_lp"
_MARK_LENGTH = len(_MARK) + 14


def new_mark() -> str:
    """A mark, which the ids of the client's calls of one answer end in; it cannot be guessed."""
    return _MARK + secrets.token_hex((_MARK_LENGTH - len(_MARK)) // 2)


def split_id(call_id: object) -> tuple[Any, str]:
    """The id that the model gave a call, and the mark behind it, empty if there is none."""
    if isinstance(call_id, str) and len(call_id) >= _MARK_LENGTH:
        mark = call_id[-_MARK_LENGTH:]
        random = mark[len(_MARK) :]
        if mark.startswith(_MARK) and random.isascii() and random.isalnum():
            return call_id[:-_MARK_LENGTH], mark
    return call_id, ""


def marks_of(messages: list[Any]) -> list[str]:
    """For each message the mark of the turn that it is a part of, empty if it is of none."""
    return list(map(_mark_of, messages))


def turns_in(messages: list[Any], marks: list[str]) -> list[str]:
    """The marks of the turns that begin in *messages*, which have these *marks*; each once."""
    begun = (
        mark
        for message, mark in zip(messages, marks, strict=True)
        if mark and message.get("role") == "assistant"
    )
    return list(dict.fromkeys(begun))


def restore_turns(
    messages: list[Any], marks: list[str], turn_of: Callable[[str], list[Json]]
) -> list[Any]:
    """*messages* with each mixed turn in place of what the client sent of it, and without marks.

    *turn_of* gives the messages of the turn with that mark, none if it is forgotten. Two passes:
    one collects what the client sent of each turn, the other restores the turns.

    :param marks: those of *messages*.
    """
    parts = _client_parts(messages, marks)
    restored: list[Any] = []
    unmarked: dict[str, int] = {}  # where a name was last called under an id without a mark
    user_message = -1
    for number, (message, mark) in enumerate(zip(messages, marks, strict=True)):
        role = message.get("role") if isinstance(message, dict) else None
        part = parts.get(mark) if mark else None
        if role == "user":
            user_message = number
        elif role == "assistant":
            entries = objects(message.get("tool_calls"))
            unmarked |= {_name(e): number for e in entries if not split_id(e.get("id"))[1]}
        if part is not None and number == part.first:
            turn = turn_of(mark)
            # Open WebUI replays the server's calls by itself, in the same message or before (W3).
            replayed = any(unmarked.get(name, -1) > user_message for name in _server_names(turn))
            part.restored = bool(turn) and not replayed
            if part.restored:
                restored += _merged(turn, part)
        if part is None or not part.restored:
            restored.append(without_marks(message) if mark else message)
    return restored


def without_marks(message: Any) -> Any:
    """*message* with the model's own ids of its calls."""
    if not isinstance(message, dict):
        return message
    own_id, mark = split_id(message.get("tool_call_id"))
    if mark:
        return {**message, "tool_call_id": own_id}
    entries: Any = message.get("tool_calls")
    if any(split_id(entry.get("id"))[1] for entry in objects(entries)):
        unmarked = [
            {**entry, "id": split_id(entry.get("id"))[0]} if isinstance(entry, dict) else entry
            for entry in entries
        ]
        return {**message, "tool_calls": unmarked}
    return message


@attrs.define(eq=False, repr=False)
class _ClientPart:
    """What the client sent of one turn: where it begins, ids of calls, and results by such ids."""

    first: int
    call_ids: set[str] = attrs.Factory(set)
    results: dict[str, Json] = attrs.Factory(dict)
    restored: bool = False


def _client_parts(messages: list[Any], marks: list[str]) -> dict[str, _ClientPart]:
    """By mark, what *messages*, which have these *marks*, have of the turns that began in them."""
    parts: dict[str, _ClientPart] = {}
    for number, (message, mark) in enumerate(zip(messages, marks, strict=True)):
        if not mark:
            continue
        if message.get("role") == "assistant":
            part = parts.setdefault(mark, _ClientPart(number))
            ids = (split_id(entry.get("id")) for entry in objects(message.get("tool_calls")))
            part.call_ids |= {own_id for own_id, id_mark in ids if id_mark == mark}
        elif mark in parts:
            result = without_marks(message)
            parts[mark].results.setdefault(result["tool_call_id"], result)
    return parts


def _mark_of(message: object) -> str:
    """The mark of the turn that *message* is a part of, empty if it is of none."""
    if not isinstance(message, dict):
        return ""
    if "tool_calls" in message:
        marks = (split_id(entry.get("id"))[1] for entry in objects(message["tool_calls"]))
        return next(filter(None, marks), "")
    return split_id(message.get("tool_call_id"))[1]


def _name(entry: Json) -> str:
    function = entry.get("function")
    return str(function.get("name")) if isinstance(function, dict) else ""


def _server_names(turn: list[Json]) -> set[str]:
    """The names of the server's calls in *turn*, which are those that have results there."""
    result_ids = {message.get("tool_call_id") for message in turn}
    return {
        _name(entry)
        for message in turn
        for entry in objects(message.get("tool_calls"))
        if entry.get("id") in result_ids
    }


def _merged(turn: list[Json], part: _ClientPart) -> list[Json]:
    """*turn* with the client's results among the server's, in the order of the calls."""
    last = max(n for n, message in enumerate(turn) if message.get("role") == "assistant")
    results = {message["tool_call_id"]: message for message in turn[last + 1 :]} | part.results
    present = results.keys() | part.call_ids
    calls = [entry for entry in objects(turn[last].get("tool_calls")) if entry["id"] in present]
    tool_messages = [results[entry["id"]] for entry in calls if entry["id"] in results]
    return [*turn[:last], {**turn[last], "tool_calls": calls}, *tool_messages]
