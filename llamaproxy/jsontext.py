"""JSON: orjson for speed, the standard library where orjson is too strict.

orjson refuses lone surrogates and ``NaN``, which real clients and models send, and reads integers
beyond 64 bits as floats, which would change a body that is only passing through.
"""

from __future__ import annotations

import json
from typing import Any

import attrs
import orjson

Json = dict[str, Any]

#: Nineteen digits or more in a row may be an integer that orjson cannot hold. To look for zeros
#: where every digit has become one is five times as fast as a regular expression.
_DIGITS_TO_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_HUGE_INTEGER = b"0" * 19

#: All bytes but opening brackets: to count what is left without them takes half as long.
_NO_BRACKETS = bytes(range(256)).translate(None, b"[{")

#: The deepest nesting that is accepted.
_MAX_DEPTH = 200


def loads(text: bytes | str) -> Any:
    """Parse JSON.

    :raises ValueError: if *text* is not JSON, not UTF-8, or absurdly nested.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return _tolerant(text)
    return _bounded(value) if _may_be_deep(text) else value


def loads_exactly(text: bytes | str) -> Any:
    """Parse JSON that will be sent on: no integer, however large, loses a digit.

    :raises ValueError: as :func:`loads`.
    """
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return _tolerant(text) if _HUGE_INTEGER in raw.translate(_DIGITS_TO_ZEROS) else loads(text)


def loads_anyhow(raw: bytes) -> Any:
    """Parse JSON in UTF-8 that may be invalid; it may be sent on.

    :raises ValueError: as :func:`loads`.
    """
    try:
        return loads_exactly(raw)
    except UnicodeDecodeError:
        return loads_exactly(raw.decode("utf-8", "replace"))


class RepeatedName(ValueError):
    """A name stands twice in one object: parsers take the one or the other (RFC 8259, 4)."""


def check_unique_names(text: str) -> None:
    """:raises RepeatedName: if an object in the JSON *text* has a name twice.

    :raises ValueError: if it is no JSON.
    """
    try:
        json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("too deeply nested") from None


def _unique(pairs: list[tuple[str, Any]]) -> None:
    names = {name for name, _ in pairs}
    if len(names) != len(pairs):
        raise RepeatedName("a name stands twice in one object")


def _tolerant(text: bytes | str) -> Any:
    try:
        # A byte order mark may be ignored (RFC 8259 section 8.1).
        decoded = (
            text.decode("utf-8-sig") if isinstance(text, bytes) else text.removeprefix("\ufeff")
        )
        return _bounded(json.loads(decoded))
    except RecursionError:
        raise ValueError("too deeply nested") from None


@attrs.frozen
class JsonList:
    """A list that is serialised already, to stand in something larger that is.

    It takes a fraction of the memory and of the time that its values would. *elements* is the JSON
    text between its brackets.
    """

    elements: bytes = b""

    @classmethod
    def of(cls, values: list[Any]) -> JsonList:
        """The list of *values*."""
        return cls(dumps(values)[1:-1])

    @property
    def text(self) -> bytes:
        """The whole list as JSON."""
        return b"[%b]" % self.elements

    def __bool__(self) -> bool:
        return bool(self.elements)

    def __add__(self, other: JsonList) -> JsonList:
        if not (self.elements and other.elements):
            return self if self.elements else other
        return JsonList(b"%b,%b" % (self.elements, other.elements))


def dumps(value: Any) -> bytes:
    """Serialise to compact UTF-8; what UTF-8 cannot hold becomes an escape."""
    try:
        return orjson.dumps(value, default=_fragment)
    except (orjson.JSONEncodeError, TypeError):
        return json.dumps(value, separators=(",", ":"), default=_values).encode("ascii")


def dumps_strictly(value: Any) -> bytes:
    """Serialise for a parser that takes nothing but JSON, as a browser's does.

    What is no number in JSON (``NaN``, infinities) becomes null.
    """
    text = dumps(value)
    if b"NaN" in text or b"Infinity" in text:  # in a string as well: then nothing changes
        text = dumps(json.loads(text, parse_constant=_nothing))
    return text


def _nothing(constant: str) -> None:
    """What stands for a *constant* that is no JSON."""


def _fragment(value: object) -> orjson.Fragment:
    if isinstance(value, JsonList):
        return orjson.Fragment(value.text)
    raise TypeError


def _values(value: object) -> Any:
    if isinstance(value, JsonList):
        return json.loads(value.text)
    raise TypeError(f"{type(value).__name__} is no JSON")


def whole(number: Any) -> Any:
    """*number*, as the integer that it is: JSON has one kind of them, and some write 1 as 1.0."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


def canonical(value: Any) -> bytes:
    """Serialise so that equal values become equal texts, whatever the order of their keys."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except (orjson.JSONEncodeError, TypeError):
        return json.dumps(value, separators=(",", ":"), sort_keys=True).encode("ascii")


def _may_be_deep(text: bytes | str) -> bool:
    """Whether *text* has brackets for an absurd depth; few texts have, most need no walk."""
    if len(text) < 2 * _MAX_DEPTH:  # what is opened is closed: most chunks of a stream end here
        return False
    if isinstance(text, str):
        return text.count("[") + text.count("{") > _MAX_DEPTH
    return len(text.translate(None, _NO_BRACKETS)) > _MAX_DEPTH


def _bounded(value: Any) -> Any:
    """*value* itself, if it is not nested beyond what orjson could write again."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(_MAX_DEPTH + 1):
        level = [
            child
            for holder in level
            for child in (holder.values() if isinstance(holder, dict) else holder)
            if isinstance(child, dict | list)
        ]
        if not level:
            return value
    raise ValueError("too deeply nested")
