"""ArgumentsBuffer: the arguments of a streamed tool call. Pure; each character is read once."""

from __future__ import annotations

import re

from llamaproxy import jsontext

#: What counting brackets has to look at, outside of a JSON string and within.
_OUTSIDE = re.compile(r'["{}\[\]]')
_WITHIN = re.compile(r'["\\]')


class ArgumentsBuffer:
    """Adds up the pieces of a JSON text, and knows whether the object in it has ended.

    The object may be encoded twice, as a string.

    Three kinds of pieces are held back until it is clear whether they belong to the text: ``{}`` at
    its beginning, which some servers send whatever follows; an object behind its end, which may be
    the same once more; and, where a value may begin, one that begins as the text does.
    """

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._size = 0
        self._scanned = 0
        self._depth = 0
        self._in_string = self._escaped = self._opened = False
        self._held: ArgumentsBuffer | None = None
        self._doubt: _Doubt | None = None
        #: The canonical JSON of the object once it has been parsed; None if it is none.
        self._canonical: bytes | None = None
        self._parsed = False

    def __str__(self) -> str:
        if self._doubt is not None:
            return self._doubt.outcome
        return self.confirmed if self._held is None else self.confirmed + str(self._held)

    @property
    def size(self) -> int:
        """The number of characters, with those that are held back."""
        if self._doubt is not None:
            return self._doubt.appended.size
        return self._size if self._held is None else self._size + self._held.size

    @property
    def confirmed(self) -> str:
        """The text without what is held back."""
        if len(self._parts) > 1:
            self._scan()
            self._parts = ["".join(self._parts)]
            self._scanned = 1
        return self._parts[0] if self._parts else ""

    def append(self, part: str) -> str:
        """Add *part*, and return it."""
        if part:
            self._parts.append(part)
            self._size += len(part)
        return part

    def append_json(self, part: str) -> str:
        """Add *part* of an object, and return what is new in it and not held back.

        Some servers send all of the text so far with each delta, or all of it once more at the
        end, in one piece or several, perhaps spelt otherwise. No JSON object goes on with its own
        beginning but where a value may begin, or goes on behind its end: such a part is taken for a
        repetition.
        """
        if self._doubt is not None:
            return self._append_in_doubt(self._doubt, part)
        if self._held is None:
            if self._size <= len(part) and part.startswith("{") and part.startswith(self.confirmed):
                if self._size and self._may_go_on_with(part):
                    self._doubt = _Doubt(self.confirmed)
                    return self._append_in_doubt(self._doubt, part)
                part = part[self._size :]
            if not self._must_wait(part):
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
            held_back = self.release()
            return "" if self.repeats(held_back) else self._append_behind_end(held_back)
        return ""

    def _append_in_doubt(self, doubt: _Doubt, part: str) -> str:
        """Add *part*, which may be the text once more, or go on with it, as those before it."""
        begins_alike = part.startswith(str(doubt.resent))
        may_go_on = not part.lstrip().startswith("{") or doubt.appended._may_go_on_with(part)
        if not may_go_on:
            self._doubt = None
            added = self.append(str(doubt.resent)[self._size :])
            return added + self.append_json(part)
        doubt.appended.append(part)
        if begins_alike:
            doubt.resent = ArgumentsBuffer()
            doubt.resent.append(part)
        if part.strip() and not begins_alike:
            self._doubt = None
            return self.append(str(doubt.appended)[self._size :])
        return self.append(self.release()) if doubt.appended.is_closed else ""

    def _may_go_on_with(self, part: str) -> bool:
        """Whether the text may still become JSON with *part*, which begins with a bracket.

        It is not told apart whether a comma is one of an object: the next part will show.
        """
        self._scan()
        if self._in_string:
            # The part's first quote ends the string.
            return part.partition('"')[2].lstrip()[:1] in ("", ":", ",", "}", "]")
        last = next((each for each in reversed(self._parts) if each.strip()), "")
        return last.rstrip()[-1:] in (":", ",", "[")

    def release(self) -> str:
        """Forget what has been held back, and return it for :meth:`append`."""
        if self._doubt is not None:
            outcome, self._doubt = self._doubt.outcome, None
            return outcome[self._size :]
        held, self._held = self._held, None
        return "" if held is None else str(held)

    def repeats(self, part: str) -> bool:
        """Whether *part* is the same object as the text, spelt in whatever way.

        The text is parsed once, however often this is called.
        """
        if self._doubt is not None:
            return self._doubt.resent.repeats(part)
        if not self._has_ended:
            return False
        if len(part) == self._size and part == self.confirmed:
            return True
        if not self._parsed:
            self._parsed = True
            self._canonical = _canonical_json(self.confirmed)
        return self._canonical is not None and _canonical_json(part) == self._canonical

    @property
    def is_closed(self) -> bool:
        """Whether every bracket has been closed, outside of a string."""
        if self._doubt is not None:
            return self._doubt.resent.is_closed
        if self._held is not None:
            return self.is_placeholder
        self._scan()
        return self._size > 0 and self._depth == 0 and not self._in_string

    @property
    def is_placeholder(self) -> bool:
        """Whether there is nothing but ``{}``, held back for what may follow."""
        return self._held is not None and not self._size

    @property
    def _has_ended(self) -> bool:
        return self._held is None and self.is_closed and self._opened

    def _must_wait(self, part: str) -> bool:
        """Whether *part* has to be held back."""
        if not self._size:
            return part.strip() == "{}"
        return part.lstrip().startswith(("{", '"')) and self._has_ended

    def _append_behind_end(self, part: str) -> str:
        """Add *part* behind the end of the object; nothing is a repetition from now on."""
        self._parsed, self._canonical = True, None
        return self.append(part)

    def _scan(self) -> None:
        for part in self._parts[self._scanned :]:
            at = 1 if self._escaped else 0
            self._escaped = False
            while match := (_WITHIN if self._in_string else _OUTSIDE).search(part, at):
                at = match.end()
                if match[0] == '"':
                    self._in_string = not self._in_string
                    self._opened = True
                elif match[0] == "\\":
                    self._escaped = at == len(part)
                    at += 1
                else:
                    self._opened = True
                    self._depth += 1 if match[0] in "{[" else -1
        self._scanned = len(self._parts)


class _Doubt:
    """Pieces of which each begins with the one before, the first with the text so far.

    *appended* is the text with all of them, *resent* the last one, which may be all of the text.
    """

    def __init__(self, text: str) -> None:
        self.appended, self.resent = ArgumentsBuffer(), ArgumentsBuffer()
        self.appended.append(text)
        self.resent.append(text)

    @property
    def outcome(self) -> str:
        """What the text is if nothing follows: the reading in which it is whole."""
        appended, resent = str(self.appended), str(self.resent)
        if not self.appended.is_closed:
            return appended if _canonical_json(resent) is None else resent
        self.resent._scan()
        # With brackets too many the last piece is no text of its own.
        is_whole = self.resent._depth < 0 or _canonical_json(appended) is not None
        return appended if is_whole else resent


def _canonical_json(text: str) -> bytes | None:
    try:
        return jsontext.canonical(jsontext.loads_exactly(text))
    except ValueError:
        return None
