"""What merges several rounds into one answer: one header, joined texts, numbered blocks. Pure.

Where a class has ``begin_round``, it is called before the first part of a round.
"""

from __future__ import annotations

import secrets
import time
from typing import Any

from llamaproxy import jsontext
from llamaproxy.chat.messages import objects
from llamaproxy.errors import UpstreamBroke
from llamaproxy.jsontext import Json

#: The fields of a completion that are taken from the first round (L16).
_HEADER_TYPES: dict[str, Any] = {"id": str, "created": int | float, "model": str}

#: Characters that one of them may have: every chunk has it, and one read may hold a thousand.
_MAX_FIELD = 1024

#: The keys of a message whose texts are joined over the rounds.
TEXT_KEYS = ("content", "reasoning_content", "reasoning")

#: Bytes of chunks with content that may be held back.
_MAX_HELD = 16 * 1024 * 1024


def separator(before: str) -> str:
    """The line ends that make a blank line after *before*, an earlier round's text (S4)."""
    if not before.strip() or before.endswith("\n\n"):
        return ""
    return "\n" if before.endswith("\n") else "\n\n"


class CompletionHeader:
    """The ``id``, ``created`` and ``model`` that every part of an answer has: the first round's."""

    def __init__(self, model: object) -> None:
        """:param model: the request's, for an upstream that sends none."""
        self._model = model if isinstance(model, str) and len(model) <= _MAX_FIELD else ""
        self._adopted: Json = {}
        self._fields: Json = {}

    def adopt(self, completion: Json) -> None:
        """Take the fields that are still missing from a completion of the upstream, or a chunk."""
        if self._fields or len(self._adopted) == len(_HEADER_TYPES):
            return
        for key, kind in _HEADER_TYPES.items():
            value = completion.get(key)
            if isinstance(value, kind) and value and len(str(value)) <= _MAX_FIELD:
                self._adopted.setdefault(key, value)

    def fields(self) -> Json:
        """The fields, which do not change after the first time."""
        if not self._fields:
            adopted = self._adopted.get
            self._fields = {
                "id": adopted("id") or f"chatcmpl-{secrets.token_hex(16)}",
                "created": adopted("created") or int(time.time()),
                "model": adopted("model") or self._model,
            }
        return self._fields


class RoundTexts:
    """Joins the texts of rounds, by key, with a blank line between two rounds (S4)."""

    def __init__(self) -> None:
        self._ends: dict[str, str] = {}
        self._gaps: dict[str, str] = {}

    def begin_round(self) -> None:
        """The texts from now on are another round's."""
        self._gaps = {key: gap for key, end in self._ends.items() if (gap := separator(end))}

    def forget(self, key: str) -> None:
        """Drop the texts of *key* so far from the answer."""
        self._ends.pop(key, None)

    def joined(self, key: str, text: str) -> str:
        """*text*, after a blank line if it is its round's first and an earlier round had one."""
        if text and self._gaps:
            text = self._gaps.pop(key, "") + text
        # All that matters is whether there was any text but white space, and how it ended.
        before = self._ends.get(key, "")
        self._ends[key] = "." * bool(before.strip() or text.strip()) + (before + text)[-2:]
        return text

    def joined_parts(self, key: str, parts: list[Any]) -> list[Any]:
        """*parts* with those of text as :meth:`joined` makes them."""
        return [
            {**part, "text": self.joined(key, part["text"])}
            if isinstance(part, dict) and isinstance(part.get("text"), str)
            else part
            for part in parts
        ]


class ReasoningBlocks:
    """Renumbers ``reasoning_details``, whose ``index`` begins anew in each round (OpenRouter)."""

    def __init__(self) -> None:
        self._first = self._next = 0

    def begin_round(self) -> None:
        """The blocks from now on are another round's."""
        self._first = self._next

    def numbered(self, details: object) -> list[Json]:
        """Copies of the pieces in the list *details*, with indices that no other round has."""
        pieces = [dict(piece) for piece in objects(details)]
        for piece in pieces:
            if isinstance(piece.get("index"), int):
                piece["index"] += self._first
                self._next = max(self._next, piece["index"] + 1)
        return pieces


class HeldContent:
    """Holds back the content of a round while another may follow.

    The content of a client that wants JSON must be the last round's alone (L15b).
    """

    def __init__(self, holding: bool = False) -> None:
        self._holding = holding
        self._size = 0
        #: The chunks with the content.
        self.chunks: list[Json] = []

    def without_text(self, chunk: Json) -> Json | None:
        """*chunk* without its content, which is changed; None if nothing is left.

        What stands beside a content, or beside no delta at all, is about the tokens of the content
        and is held back with it.

        :raises UpstreamBroke: if more content than 16 MiB would be held back.
        """
        if not self._holding:
            return chunk
        held, rest = [], []
        for choice in chunk["choices"]:
            delta = choice["delta"]
            content = delta.pop("content", None)
            any_other = any(delta.values())
            if content or not any_other:
                held_choice = {**choice, "delta": {"content": content or ""}}
                self._size += len(jsontext.dumps({**chunk, "choices": [held_choice]})) + 200
                held.append(held_choice)
                choice = {key: choice[key] for key in ("index", "delta", "finish_reason")}
            if any_other:
                rest.append(choice)
        if self._size > _MAX_HELD:
            raise UpstreamBroke("Llama Stack sent more text than can be held back.")
        if held:
            self.chunks.append({**chunk, "choices": held})
        return {**chunk, "choices": rest} if rest or not held else None
