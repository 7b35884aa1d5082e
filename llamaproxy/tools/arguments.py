"""A model's arguments, which are meant to be a JSON object. Pure."""

from __future__ import annotations

import re
from itertools import accumulate
from typing import Any

import json_repair

from llamaproxy import jsontext
from llamaproxy.errors import ToolFailed

#: What is repaired, in characters, and in characters times depth: the tolerant parser may read
#: the rest again for each open bracket, at some 5 µs a character, while nothing else is served.
_MAX_LENGTH = 64 * 1024
_MAX_EFFORT = 256 * 1024


def parse_arguments(text: str) -> dict[str, Any]:
    """The object that *text* stands for (DESIGN: L12).

    Valid JSON is never changed; nothing at all means no arguments; a repairable flaw is repaired.

    :raises ToolFailed: with words for the model, if no object can be made of it.
    """
    if not text.strip():
        return {}
    try:
        value = jsontext.loads_exactly(text)
        if isinstance(value, str):
            # The object was encoded twice.
            value = jsontext.loads_exactly(value) if value.strip() else None
    except ValueError as error:
        value = _repaired(text, error)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ToolFailed("Error: the arguments must be one JSON object, with a value by name.")
    return value


def _repaired(text: str, error: ValueError) -> Any:
    if "{" in text and len(text) <= _MAX_LENGTH and len(text) * _depth(text) <= _MAX_EFFORT:
        try:
            value = json_repair.loads(text)
        except (RecursionError, ValueError):
            value = None
        # An empty object made of more than punctuation has lost what was said.
        if isinstance(value, dict) and (value or not any(map(str.isalnum, text))):
            return value
    raise ToolFailed(f"Error: the arguments are not valid JSON ({error}). Call again, corrected.")


def _depth(text: str) -> int:
    """How deep the brackets of *text* are nested, or seem to be."""
    steps = (1 if bracket in "[{" else -1 for bracket in re.findall(r"[\[\]{}]", text))
    return max(accumulate(steps), default=0)
