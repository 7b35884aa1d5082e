"""The part of the daemon's limits that each worker has."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

#: Limits to what the whole daemon takes, each with the least that is of any use.
_OF_ALL = {
    "max-connections": 1,
    "max-calls": 1,
    "max-chat-bodies": 1,
    "max-callers": 1,
    "max-mcp-sessions": 8,
    "memory-entries": 0,
    "memory-bytes": 0,
}


def divide(options: MutableMapping[str, Any], count: int) -> None:
    """Make those limits of *options* that are the whole daemon's those of one worker of *count*.

    Rounded up: together they may take a little more, and none has nothing.
    """
    for name, least in _OF_ALL.items():
        options[name] = max(least, -(-options[name] // count))
