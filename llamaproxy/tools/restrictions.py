"""What a schema restricts, in the form that every model server reads. Pure (DESIGN: L7).

A server that cannot read one keyword of one tool refuses every chat: llama.cpp turns the schemas
into a grammar (its ``common/json-schema-to-grammar.cpp``; measured), Ollama reads them into Go's
types (its ``api/types.go``), OpenAI checks them. A restriction that one of them cannot read is left
out, for the tool's own server checks it anyway.
"""

from __future__ import annotations

import re
from typing import Any

from llamaproxy import jsontext
from llamaproxy.jsontext import Json

#: The types of JSON Schema, by other names that servers of tools use for them, in lower case.
_TYPES = {
    **{t: t for t in ("string", "number", "integer", "boolean", "object", "array", "null")},
    **dict.fromkeys(("str", "text", "char"), "string"),
    **dict.fromkeys(("int", "long"), "integer"),
    **dict.fromkeys(("float", "double", "decimal"), "number"),
    **dict.fromkeys(("dict", "map", "record"), "object"),
    **dict.fromkeys(("list", "tuple", "set"), "array"),
    **dict.fromkeys(("none", "nil", "nonetype"), "null"),
    "bool": "boolean",
}

#: Keywords with the least and the most of something: numbers of things, and plain numbers.
_COUNTS = (
    ("minLength", "maxLength"),
    ("minItems", "maxItems"),
    ("minProperties", "maxProperties"),
    ("minContains", "maxContains"),
)
_NUMBERS = (("minimum", "maximum"), ("exclusiveMinimum", "exclusiveMaximum"))

_COUNT_KEYWORDS = frozenset(keyword for pair in _COUNTS for keyword in pair)
_NUMBER_KEYWORDS = frozenset([*(keyword for pair in _NUMBERS for keyword in pair), "multipleOf"])

#: The largest count: llama.cpp writes as much into its grammar, and has been seen to fill the
#: memory of its machine with it.
_MAX_COUNT = 4096

#: The largest number that all know exactly.
_MAX_NUMBER = 2**53

#: Patterns that llama.cpp has read in all its versions: anchored, of characters and classes of
#: them, without escapes and groups, repeated at most hundreds of times.
_PLAIN_PATTERN = re.compile(
    r"\^(?:(?:[A-Za-z0-9_ ,:;@#%&=/.-]|\[\^?[A-Za-z0-9_ .,:;@#%&=/+*-]+\])"
    r"(?:[+*?]|\{[0-9]{1,3}(?:,[0-9]{1,3})?\})?)*\$"
)

#: Keywords whose values must be texts.
_TEXTS = frozenset({"description", "format", "title"})


def readable(keyword: str, value: Any) -> Any:
    """The *value* of a *keyword* as all servers read it; None if there is no such form."""
    if keyword == "type":
        return _type(value)
    if keyword in _COUNT_KEYWORDS:
        return _count(value)
    if keyword in _NUMBER_KEYWORDS:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        return value if fits and -_MAX_NUMBER <= value <= _MAX_NUMBER else None
    if keyword == "pattern":
        return value if isinstance(value, str) and _is_plain(value) else None
    if keyword == "required":
        names = [each for each in value if isinstance(each, str)] if isinstance(value, list) else []
        return list(dict.fromkeys(names)) or None
    if keyword == "enum":
        return value if isinstance(value, list) and value else None
    if keyword in _TEXTS or keyword == "$ref":
        return value if isinstance(value, str) else None
    return value


def drop_contradictions(schema: Json) -> None:
    """Take limits out of *schema* of which the least is more than the most."""
    for least, most in (*_COUNTS, *_NUMBERS):
        if least in schema and most in schema and schema[least] > schema[most]:
            del schema[least], schema[most]


def _type(value: Any) -> str | list[str] | None:
    if isinstance(value, str):
        return _TYPES.get(value.lower())
    if not isinstance(value, list):
        return None
    types = [_TYPES.get(each.lower()) if isinstance(each, str) else None for each in value]
    known = [each for each in types if each is not None]
    # With one that is not known left out, the others would forbid what it allows.
    return list(dict.fromkeys(known)) if known and len(known) == len(types) else None


def _is_plain(pattern: str) -> bool:
    if _PLAIN_PATTERN.fullmatch(pattern) is None:
        return False
    try:
        re.compile(pattern)
    except re.error:  # a range or a repetition that ends before it begins
        return False
    return True


def _count(value: Any) -> int | None:
    count = jsontext.whole(value)
    fits = isinstance(count, int) and not isinstance(count, bool)
    return count if fits and 0 <= count <= _MAX_COUNT else None
