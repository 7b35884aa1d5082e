"""ArgumentsBuffer: the arguments of a call while a model writes them. Pure; each is read once."""

from __future__ import annotations

import re

from llamaproxy import jsontext

#: What matters outside of a string, and within, to whoever counts brackets.
_OUTSIDE = re.compile(r'["{}\[\]]')
_WITHIN = re.compile(r'["\\]')


class ArgumentsBuffer:
    """A text that grows, and knows whether the object in it has come to its end.

    What may yet turn out to be no part of it is held back: an empty object at the beginning, which
    some servers send whatever follows, and what comes behind the end of the object.
    """

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._size = 0
        self._scanned = 0
        self._depth = 0
        self._in_string = self._escaped = self._opened = False
        self._held: ArgumentsBuffer | None = None
        #: What the object says, once it has been looked at; None where it is none.
        self._value: bytes | None = None
        self._looked_at = False

    def __str__(self) -> str:
        return self.settled if self._held is None else self.settled + str(self._held)

    @property
    def size(self) -> int:
        """The characters that are kept."""
        return self._size if self._held is None else self._size + self._held.size

    @property
    def settled(self) -> str:
        """All but what is held back."""
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
        """Take in *part* of an object; what is new in it and not held back comes back.

        Some servers send all of the text so far with each delta, or all of it once more at the
        end, in one piece or in several, or in another spelling. No JSON object can go on with its
        own beginning, or behind its end, so that is what this must be then.
        """
        if self._held is None:
            if self._size <= len(part) and part.startswith("{") and part.startswith(self.settled):
                part = part[self._size :]
            if not self._may_be_void(part):
                return self.append(part)
            self._held = ArgumentsBuffer()
        elif not self._size:
            if not part.strip():
                return ""
            if part.lstrip().startswith("{"):
                self._held = None
                return self.append_json(part)
            return self.append(self.release() + part)
        self._held.append(part)
        if self._size and self._held.is_closed:
            again = self.release()
            return "" if self.repeats(again) else self._spoilt(again)
        return ""

    def release(self) -> str:
        """What has been held back, which is held no more, and is not yet a part of the text."""
        held, self._held = self._held, None
        return "" if held is None else str(held)

    def repeats(self, part: str) -> bool:
        """Whether *part* says all of this once more, if in another spelling.

        The object itself is read once, however often it is asked for.
        """
        if not self._is_over:
            return False
        if len(part) == self._size and part == self.settled:
            return True
        if not self._looked_at:
            self._looked_at = True
            self._value = _object_in(self.settled)
        return self._value is not None and _object_in(part) == self._value

    @property
    def is_closed(self) -> bool:
        """Whether each bracket of an object has been closed."""
        if self._held is not None:
            return self.is_placeholder
        self._scan()
        return self._size > 0 and self._depth == 0 and not self._in_string

    @property
    def is_placeholder(self) -> bool:
        """Whether there is nothing but an empty object, which may stand for what follows."""
        return self._held is not None and not self._size

    @property
    def _is_over(self) -> bool:
        return self._held is None and self.is_closed and self._opened

    def _may_be_void(self, part: str) -> bool:
        if not self._size:
            return part.strip() == "{}"
        return part.lstrip().startswith("{") and self._is_over

    def _spoilt(self, part: str) -> str:
        """Take in *part* behind the end of the object, which nothing can repeat any more."""
        self._looked_at, self._value = True, None
        return self.append(part)

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
                    self._opened = True
                    self._depth += 1 if match[0] in "{[" else -1
        self._scanned = len(self._parts)


def _object_in(text: str) -> bytes | None:
    try:
        return jsontext.canonical(jsontext.loads_exactly(text))
    except ValueError:
        return None
