"""JSON as people write it: with comments, commas too many, and keys twice. Pure."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

#: Texts, comments and commas too many, of which only texts are kept. What has no end goes to the
#: end of the file, for to look for one again and again would take time without end.
_JSONC = re.compile(r'("(?:\\.|[^"\\])*"?)|//[^\n]*|/\*.*?(?:\*/|\Z)', re.DOTALL)
_LAST_COMMA = re.compile(r'("(?:\\.|[^"\\])*"?)|,(?=\s*[}\]])', re.DOTALL)


class Object(dict[str, Any]):
    """An object of JSON; *doubles* are the keys that stand in it more than once."""

    doubles: frozenset[str] = frozenset()


def loads(data: bytes) -> Any:
    """What *data* means; its objects are of :class:`Object`.

    :raises ValueError: with a text that says why it cannot be read.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("is not text in UTF-8") from None
    text = _JSONC.sub(lambda match: match[1] or " " + "\n" * match[0].count("\n"), text)
    text = _LAST_COMMA.sub(lambda match: match[1] or " ", text)
    try:
        return json.loads(text, object_pairs_hook=_object_of)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error.msg}, line {error.lineno})") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except ValueError:  # of int()
        raise ValueError("has a number of too many digits") from None


def _object_of(pairs: list[tuple[str, Any]]) -> Object:
    value = Object(pairs)
    if len(value) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        value.doubles = frozenset(name for name, count in counts.items() if count > 1)
    return value
