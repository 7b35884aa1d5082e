"""CallText: the arguments of a call while a model writes them. Pure; each is read once."""

from __future__ import annotations

import re

from llamaproxy import jsontext

#: What matters outside of a string, and within, to whoever counts brackets.
_OUTSIDE = re.compile(r'["{}\[\]]')
_WITHIN = re.compile(r'["\\]')


class CallText:
    """A text that grows, and knows whether the object in it has come to its end."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._size = 0
        self._scanned = 0
        self._depth = 0
        self._in_string = self._escaped = False

    def __str__(self) -> str:
        if len(self._parts) > 1:
            self._scan()
            self._parts = ["".join(self._parts)]
            self._scanned = 1
        return self._parts[0] if self._parts else ""

    def append(self, part: str) -> str:
        """Take *part* in."""
        if part:
            self._parts.append(part)
            self._size += len(part)
        return part

    def append_json(self, part: str) -> str:
        """Take in *part* of an object; what is new in it comes back.

        Some servers send all of the text so far with each delta, or all of it once more at the
        end. No JSON object can go on with its own beginning, so that is what this must be then.
        """
        if self._size and len(part) >= self._size and part.startswith("{"):
            before = str(self)
            if before.startswith("{") and part.startswith(before):
                part = part[len(before) :]
            elif self.repeats(part):
                part = ""
        return self.append(part)

    def repeats(self, part: str) -> bool:
        """Whether *part* says all of this once more, if in another spelling."""
        if not self.is_closed:
            return False
        before = str(self)
        try:
            return part == before or bool(jsontext.loads(part) == jsontext.loads(before))
        except ValueError:
            return False

    @property
    def is_closed(self) -> bool:
        """Whether each bracket of an object has been closed."""
        self._scan()
        return self._size > 0 and self._depth == 0 and not self._in_string

    @property
    def is_empty_object(self) -> bool:
        """Whether all so far is an object with nothing in it."""
        return self._size == 2 and str(self) == "{}"

    def _scan(self) -> None:
        for part in self._parts[self._scanned :]:
            at = 1 if self._escaped else 0
            self._escaped = False
            while match := (_WITHIN if self._in_string else _OUTSIDE).search(part, at):
                at = match.end()
                if match[0] == '"':
                    self._in_string = not self._in_string
                elif match[0] == "\\":
                    self._escaped = at == len(part)
                    at += 1
                else:
                    self._depth += 1 if match[0] in "{[" else -1
        self._scanned = len(self._parts)
