"""Turns that client and server share: the marks they are known by, and how they are made whole.

In a round with calls of both kinds the client is handed only its own. When it returns with their
results, the model must see the whole turn again: its own message, with the server's calls and
results in their places, and the rounds before it in the same answer (DESIGN: L19). Pure.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable
from typing import Any

import attrs

from llamaproxy.chat.messages import objects
from llamaproxy.jsontext import Json

_MARK = "_lp"
_LETTERS = string.ascii_letters + string.digits
_MARK_LENGTH = len(_MARK) + 14


def new_mark() -> str:
    """What the ids of the calls of one answer end in: nobody can guess it."""
    return _MARK + "".join(secrets.choice(_LETTERS) for _ in range(_MARK_LENGTH - len(_MARK)))


def split_id(call_id: object) -> tuple[Any, str]:
    """The model's own id of a call, and its mark; an id without one is left alone."""
    if isinstance(call_id, str) and len(call_id) >= _MARK_LENGTH:
        mark = call_id[-_MARK_LENGTH:]
        random = mark[len(_MARK) :]
        if mark.startswith(_MARK) and random.isascii() and random.isalnum():
            return call_id[:-_MARK_LENGTH], mark
    return call_id, ""


def restore_turns(messages: list[Any], turn_of: Callable[[str], list[Json]]) -> list[Any]:
    """*messages* with the turns that they came from back in their places, and without marks.

    *turn_of* gives what is remembered by a mark, nothing if that is forgotten. One pass finds what
    the client brought back of each turn, another puts it together.
    """
    halves = _client_halves(messages)
    whole: list[Any] = []
    unmarked: dict[str, int] = {}  # where each name was last called under an id without a mark
    question = -1
    for number, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        mark = _mark_of(message)
        half = halves.get(mark)
        if role == "user":
            question = number
        elif role == "assistant":
            entries = objects(message.get("tool_calls"))
            unmarked |= {_name(e): number for e in entries if not split_id(e.get("id"))[1]}
        if half is not None and number == half.first:
            turn = turn_of(mark)
            # Open WebUI replays the server's calls by itself, in the same message or before (W3).
            replayed = any(unmarked.get(name, -1) > question for name in _server_names(turn))
            half.restored = bool(turn) and not replayed
            if half.restored:
                whole += _put_together(turn, half)
        if half is None or not half.restored:
            whole.append(without_marks(message))
    return whole


def without_marks(message: Any) -> Any:
    """*message* as the model may see it: with the ids that it gave to its calls itself."""
    if not isinstance(message, dict):
        return message
    own_id, mark = split_id(message.get("tool_call_id"))
    if mark:
        return {**message, "tool_call_id": own_id}
    entries: Any = message.get("tool_calls")
    if any(split_id(entry.get("id"))[1] for entry in objects(entries)):
        own = [
            {**entry, "id": split_id(entry.get("id"))[0]} if isinstance(entry, dict) else entry
            for entry in entries
        ]
        return {**message, "tool_calls": own}
    return message


@attrs.define
class _ClientHalf:
    """What a client brought back of one turn: which of its calls, and their results by id."""

    first: int
    call_ids: set[str] = attrs.Factory(set)
    results: dict[str, Json] = attrs.Factory(dict)
    restored: bool = False


def _client_halves(messages: list[Any]) -> dict[str, _ClientHalf]:
    """By mark, what *messages* have of the turns that began in them."""
    halves: dict[str, _ClientHalf] = {}
    for number, message in enumerate(messages):
        mark = _mark_of(message)
        if not mark:
            continue
        if message.get("role") == "assistant":
            half = halves.setdefault(mark, _ClientHalf(number))
            ids = (split_id(entry.get("id")) for entry in objects(message.get("tool_calls")))
            half.call_ids |= {own_id for own_id, its_mark in ids if its_mark == mark}
        elif mark in halves:
            result = without_marks(message)
            halves[mark].results.setdefault(result["tool_call_id"], result)
    return halves


def _mark_of(message: object) -> str:
    """The mark of the turn that *message* is a part of, empty if it is of none."""
    if not isinstance(message, dict):
        return ""
    if message.get("role") == "assistant":
        marks = (split_id(entry.get("id"))[1] for entry in objects(message.get("tool_calls")))
        return next(filter(None, marks), "")
    return split_id(message.get("tool_call_id"))[1]


def _name(entry: Json) -> str:
    function = entry.get("function")
    return str(function.get("name")) if isinstance(function, dict) else ""


def _server_names(turn: list[Json]) -> set[str]:
    """The names of the server's calls in *turn*, which are those that have results there."""
    answered = {message.get("tool_call_id") for message in turn}
    return {
        _name(entry)
        for message in turn
        for entry in objects(message.get("tool_calls"))
        if entry.get("id") in answered
    }


def _put_together(turn: list[Json], half: _ClientHalf) -> list[Json]:
    """The whole turn, the client's results between the server's in the order of the calls."""
    last = max(n for n, message in enumerate(turn) if message.get("role") == "assistant")
    results = {message["tool_call_id"]: message for message in turn[last + 1 :]} | half.results
    known = results.keys() | half.call_ids
    calls = [entry for entry in objects(turn[last].get("tool_calls")) if entry["id"] in known]
    ids = [entry["id"] for entry in calls]
    told = [results[call_id] for call_id in ids if call_id in results]
    return [*turn[:last], {**turn[last], "tool_calls": calls}, *told]
