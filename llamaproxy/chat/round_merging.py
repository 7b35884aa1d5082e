"""What makes one answer of several rounds: one identity, and texts that read as one. Pure."""

from __future__ import annotations

import time
from typing import Any

from llamaproxy import jsontext
from llamaproxy.chat.messages import objects
from llamaproxy.errors import UpstreamBroke
from llamaproxy.jsontext import Json

#: What is the first round's in the whole answer (L16).
_IDENTITY: dict[str, Any] = {"id": str, "created": int | float, "model": str}


#: RoundTexts of a message that every round may add to.
TEXT_KEYS = ("content", "reasoning_content", "reasoning")

#: Bytes of a content that is held back.
_MAX_HELD = 16 * 1024 * 1024


def separator(before: str) -> str:
    """What makes a blank line after *before*, the end of an earlier round's text (S4)."""
    if not before.strip() or before.endswith("\n\n"):
        return ""
    return "\n" if before.endswith("\n") else "\n\n"


class CompletionHeader:
    """Gives the ``id``, ``created`` and ``model`` of an answer: the first round's."""

    def __init__(self, model: object, new_id: str) -> None:
        self._fields: Json = {"id": new_id, "created": int(time.time()), "model": model or ""}
        self._learnt: Json = {}
        self._settled = False

    def learn(self, said: Json) -> None:
        """Take each field from the first thing of the upstream's that has it."""
        if self._settled:
            return
        for key, kind in _IDENTITY.items():
            if isinstance(said.get(key), kind) and said[key]:
                self._learnt.setdefault(key, said[key])

    def fields(self) -> Json:
        """The fields; from now on they stay as they are."""
        if not self._settled:
            self._settled = True
            self._fields |= self._learnt
        return self._fields


class RoundTexts:
    """What the rounds have said so far, as far as the next round's text depends on it (S4)."""

    def __init__(self) -> None:
        self._ends: dict[str, str] = {}
        self._gaps: dict[str, str] = {}

    def begin_round(self) -> None:
        """What is said from now on is another round's."""
        self._gaps = {key: gap for key, end in self._ends.items() if (gap := separator(end))}

    def forget(self, key: str) -> None:
        """The texts of that *key* so far are not part of the answer."""
        self._ends.pop(key, None)

    def joined(self, key: str, text: str) -> str:
        """*text*, with a blank line before it where an earlier round had a text of that *key*."""
        if text and self._gaps:
            text = self._gaps.pop(key, "") + text
        # All that matters is whether anything was said, and how it ended.
        before = self._ends.get(key, "")
        self._ends[key] = "." * bool(before.strip() or text.strip()) + (before + text)[-2:]
        return text


class ReasoningBlocks:
    """Keeps blocks of reasoning apart that different rounds have given the same number."""

    def __init__(self) -> None:
        self._first = self._next = 0

    def begin_round(self) -> None:
        """The blocks from now on are another round's."""
        self._first = self._next

    def numbered(self, details: object) -> list[Json]:
        """The pieces in a round's *details*, with numbers that no other round's have."""
        pieces = [dict(piece) for piece in objects(details)]
        for piece in pieces:
            if isinstance(piece.get("index"), int):
                piece["index"] += self._first
                self._next = max(self._next, piece["index"] + 1)
        return pieces


class HeldContent:
    """The content of a round that may not be the last: nobody is shown it until that is known.

    A word before it would break the parser of a client that wants JSON (L15b).
    """

    def __init__(self, holding: bool = False) -> None:
        self._holding = holding
        self._size = 0
        self.chunks: list[Json] = []

    def without_text(self, chunk: Json) -> Json | None:
        """What is left of *chunk* without its content; None for nothing.

        :raises UpstreamBroke: if the content is more than can be held.
        """
        if not self._holding:
            return chunk
        held, left = [], []
        for choice in chunk["choices"]:
            delta = choice["delta"]
            content = delta.pop("content", None)
            if content:
                told = {**choice, "delta": {"content": content}}
                self._size += len(jsontext.dumps({**chunk, "choices": [told]})) + 200
                held.append(told)
                choice.pop("logprobs", None)
            if any(delta.values()):
                left.append(choice)
        if self._size > _MAX_HELD:
            raise UpstreamBroke("Llama Stack sent more text than can be held back.")
        if held:
            self.chunks.append({**chunk, "choices": held})
        return {**chunk, "choices": left} if left else None
