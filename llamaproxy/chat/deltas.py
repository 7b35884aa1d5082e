"""MessageBuilder: the message that the deltas of a streamed choice add up to. Pure.

The message is sent back to the model in the next round (DESIGN: L10), so it keeps every field:
text, reasoning as text, as parts, or as blocks with a signature, and fields not known here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from llamaproxy import jsontext
from llamaproxy.chat.messages import REASONING_TYPES, objects, text_of
from llamaproxy.chat.round_merging import TEXT_KEYS
from llamaproxy.jsontext import Json

#: Keys of lists of blocks that come in pieces: OpenRouter's (its API reference, "Reasoning
#: tokens"), where those of one block have its type and index, and LiteLLM's, of one type up to a
#: signature.
_BLOCK_KEYS = ("reasoning_details", "thinking_blocks")

#: Keys of a block whose texts come in pieces.
_PIECE_KEYS = ("text", "summary", "data", "thinking", "arguments")

_IGNORED_KEYS = ("role", "tool_calls")


class _Pieces(list[str]):
    """The pieces of one text of a block."""


#: The blocks of one list, by type and index.
_Blocks: TypeAlias = dict[tuple[object, object], dict[str, Any]]


class MessageBuilder:
    """Adds up the deltas of one choice, except for role and tool calls."""

    def __init__(self, reserve: Callable[[int], bool]) -> None:
        """:param reserve: takes a number of characters, and returns whether they may be kept."""
        self._reserve = reserve
        self._fields: Json = {}
        self._sizes: dict[str, int] = {}
        #: In UTF-8: as many strings as there are tokens would take ten times the memory.
        self._texts: dict[str, bytearray] = {}
        self._parts: dict[str, list[Json]] = {}
        self._blocks: dict[str, _Blocks] = {}
        #: The call of a client that knows no others; it is not read as one.
        self._function_call: dict[str, Any] = {}

    def add(self, delta: Json) -> None:
        """Add *delta*; what there is no room for is left out."""
        for key, value in delta.items():
            if value is None or key in _IGNORED_KEYS:
                continue
            if isinstance(value, str):
                self._add_text(key, value)
            elif key in TEXT_KEYS and isinstance(value, list):
                self._add_parts(key, value)
            elif key in _BLOCK_KEYS and isinstance(value, list):
                self._add_blocks(self._blocks.setdefault(key, {}), objects(value))
            elif key == "function_call" and isinstance(value, dict):
                if self._reserve(len(jsontext.dumps(value)) + 64):
                    _add_piece(self._function_call, value)
            else:
                self._add_other(key, value)

    def _add_other(self, key: str, value: Any) -> None:
        """Keep a value that is no text: lists are added up, any other replaces the one before."""
        size, before = len(key) + len(jsontext.dumps(value)), self._fields.get(key)
        if isinstance(value, list) and isinstance(before, list):
            if self._reserve(size):
                before.extend(value)
        elif self._reserve(size - self._sizes.get(key, 0)):
            self._sizes[key] = size
            self._fields[key] = list(value) if isinstance(value, list) else value

    def has(self, key: str) -> bool:
        """Whether any delta had something under *key*."""
        return any(values.get(key) for values in (self._texts, self._parts, self._fields))

    def new_in(self, message: Json) -> Json:
        """What *message* adds, whose texts may begin with all that has come so far."""
        known_sizes = {
            key: len(self._texts[key].decode("utf-8", "surrogatepass"))
            for key, text in message.items()
            if isinstance(text, str) and self._is_beginning(key, text)
        }
        if not known_sizes:
            return message
        rest = {k: v for k, v in message.items() if isinstance(v, str) or k == "tool_calls"}
        return rest | {key: message[key][size:] for key, size in known_sizes.items()}

    def _is_beginning(self, key: str, text: str) -> bool:
        """Whether there is a text under *key*, and *text* begins with it."""
        before = self._texts.get(key)
        return bool(before) and text.encode("utf-8", "surrogatepass").startswith(before or b"")

    def message(self) -> Json:
        """The message so far, without calls."""
        texts = {key: raw.decode("utf-8", "surrogatepass") for key, raw in self._texts.items()}
        message: Json = {"role": "assistant", "content": None, **self._fields, **texts}
        for key, parts in self._parts.items():
            self._flush_text(key)
            message[key] = parts
        for key, blocks in self._blocks.items():
            if blocks:
                message[key] = [_joined(block) for block in blocks.values()]
        if self._function_call:
            message["function_call"] = _joined(self._function_call)
        return message

    def _add_text(self, key: str, text: str) -> None:
        if self._reserve(len(text) + (0 if key in self._texts else len(key) + 64)):
            self.keep(key, text)

    def keep(self, key: str, text: str) -> None:
        """Add *text*, which has been reserved, to the one under *key*."""
        # A lone surrogate may be half of a pair that was split.
        self._texts.setdefault(key, bytearray()).extend(text.encode("utf-8", "surrogatepass"))

    def _add_parts(self, key: str, parts: list[Any]) -> None:
        """Keep *parts*; those of text are added up."""
        for part in objects(parts):
            if part.get("type") in (None, "text") and isinstance(part.get("text"), str):
                self._add_text(key, part["text"])
            elif self._reserve(len(jsontext.dumps(part)) + 64):
                self._flush_text(key)
                self._parts.setdefault(key, []).append(part)

    def _flush_text(self, key: str) -> None:
        text = self._texts.pop(key, None)
        if text:
            part = {"type": "text", "text": text.decode("utf-8", "surrogatepass")}
            self._parts.setdefault(key, []).append(part)

    def _add_blocks(self, blocks: _Blocks, pieces: list[Json]) -> None:
        for piece in pieces:
            if not self._reserve(len(jsontext.dumps(piece)) + 64):
                continue
            index, kind = piece.get("index"), str(piece.get("type"))
            if not isinstance(index, int):
                # Without an index every piece of encrypted reasoning is a block of its own, and a
                # signature ends one.
                last = next(reversed(blocks), (None, None))
                begins_block = last[0] != kind or piece.get("data") is not None
                begins_block = begins_block or bool(blocks[last].get("signature"))
                index = len(blocks) if begins_block else last[1]
            _add_piece(blocks.setdefault((kind, index), {}), piece)


def _add_piece(block: dict[str, Any], piece: Json) -> None:
    for key, value in piece.items():
        if key in _PIECE_KEYS and isinstance(value, str):
            if not isinstance(block.get(key), _Pieces):
                block[key] = _Pieces()
            block[key].append(value)
        elif value not in (None, "") or key not in block:
            block[key] = value


def _joined(block: dict[str, Any]) -> Json:
    return {
        key: "".join(value) if isinstance(value, _Pieces) else value for key, value in block.items()
    }


def thinking_of(content: object) -> str:
    """The reasoning in the parts of a content (Mistral's API reference, "Reasoning")."""
    texts = []
    for part in objects(content):
        inner = part.get("thinking") or part.get("reasoning")
        if not inner and part.get("type") in REASONING_TYPES:
            inner = part.get("text") or part.get("summary")
        if isinstance(inner, str):
            texts.append(inner)
        elif inner:
            texts.append(text_of(inner))
    return "".join(texts)


def is_text(parts: list[Any]) -> bool:
    """Whether the *parts* of a content are all of text or of reasoning, and none is a picture."""
    return all(
        not part or part.get("type") in ("text", *REASONING_TYPES) or _INNER_KEYS & part.keys()
        for part in objects(parts)
    )


#: Keys of what a part of text or of reasoning says, whatever its type is called.
_INNER_KEYS = frozenset({"text", "thinking", "reasoning"})


def texts_of(message: Json) -> Json:
    """The texts of a message or a delta by :data:`TEXT_KEYS`; those sent as parts are joined.

    A content with any other part is none of them: it is handed on as it is (L8).
    """
    texts = {}
    for key in TEXT_KEYS:
        parts = message.get(key)
        if isinstance(parts, str):
            texts[key] = parts
        elif isinstance(parts, list):
            if key != "content":
                texts[key] = thinking_of(parts) + text_of(parts)
            elif is_text(parts):
                texts[key] = text_of(parts)
        elif isinstance(parts, int | float):
            texts[key] = jsontext.dumps(parts).decode()
    is_joined = isinstance(message.get("content"), list) and "content" in texts
    if is_joined and not texts.get("reasoning_content"):
        if thinking := thinking_of(message["content"]):
            texts["reasoning_content"] = thinking
    return texts
