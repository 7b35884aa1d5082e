"""Likeness: tells an event that is like the last one without parsing it. Pure.

Most events of a stream differ from the one before in nothing but the text of one delta. When two in
a row have gone the ordinary way with the same bytes before and after their texts, and a marker put
in place of the text comes out in that place alone, both of the upstream's event and of what the
client was shown of it, the next one like them is told from a template. Every other event goes the
ordinary way, and ends the likeness; so whatever the shown form depends on (roles, earlier rounds,
what is held back) stays as it was when the template was made.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from typing import NamedTuple

import attrs

from llamaproxy import jsontext
from llamaproxy.chat.finish_reasons import finish_reason
from llamaproxy.chat.round_merging import TEXT_KEYS
from llamaproxy.jsontext import Json
from llamaproxy.upstream.sse import encode_event

#: The inside of a JSON string, not empty, as :func:`jsontext.dumps` would spell it.
_PLAIN_TEXT = rb'(?:[^\x00-\x1f"\\]++|\\["\\bfnrt])++'
_PLAIN = re.compile(_PLAIN_TEXT).fullmatch

#: The same of many, with a line end between each two.
_ALL_PLAIN = re.compile(rb"(?:%b)(?:\n(?:%b))*+" % (_PLAIN_TEXT, _PLAIN_TEXT)).fullmatch

#: So many events are looked at at once: no more, for that may be in vain.
_BLOCK = 24

#: The inside of any JSON string (RFC 8259 section 7).
_STRING = re.compile(rb'(?:[^\x00-\x1f"\\]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+').fullmatch

#: A text that no peer can know, with all that is spelled in a way of its own: escapes, characters
#: of each length in UTF-8, and digits enough for an integer that orjson does not read.
_MARKER = f'"\\\b\f\n\r\t/\x7f\u00e9\u20ac\U0001f600{"0" * 24}{secrets.token_hex(8)}'
_MARKER_TEXT = jsontext.dumps(_MARKER)

#: Bytes beside the text of an event that is remembered.
_MAX_BESIDE = 4096


@attrs.frozen
class Place:
    """Where a text stands: the choice's *index*, and the *key* in its delta."""

    index: int
    key: str


class _Around(NamedTuple):
    """The bytes of an event *before* its text, and those *behind* it, both with the quote."""

    before: bytes
    behind: bytes

    def inside(self, event: bytes) -> bytes | None:
        """What *event* has between these bytes, None if it does not have them."""
        if event.startswith(self.before) and event.endswith(self.behind):
            return event[len(self.before) : -len(self.behind)]
        return None

    def insides(self, events: Sequence[bytes], first: int) -> list[bytes]:
        """The plain texts inside of *events*, all UTF-8, up to the first that has none."""
        if len(events) - first > _BLOCK:
            return self._insides_of_many(events, first)
        before, behind = self.before, self.behind
        start, stop = len(before), -len(behind)
        texts = []
        for number in range(first, len(events)):
            event = events[number]
            if not (event.startswith(before) and event.endswith(behind)):
                break
            text = event[start:stop]
            if not (_PLAIN(text) and (text.isascii() or _is_utf8(text))):
                break
            texts.append(text)
        return texts

    def _insides_of_many(self, events: Sequence[bytes], first: int) -> list[bytes]:
        at = first + 1
        # If not even the first is plain, no block is looked at in vain.
        texts = self.insides([events[first]], 0)
        if texts:
            while len(events) - at >= _BLOCK and (block := self._block(events[at : at + _BLOCK])):
                texts += block
                at += _BLOCK
            texts += self.insides(events[at : at + _BLOCK], 0)
        return texts

    def _block(self, events: Sequence[bytes]) -> list[bytes]:
        """The plain texts inside of all of a block of *events*, in a third of the time; or none."""
        before, behind = self.before, self.behind
        start, stop = len(before), -len(behind)
        texts = [event[start:stop] for event in events]
        together = b"\n".join(texts)
        # What is there is the same if the texts are put between these bytes again.
        if before + (behind + b"\n" + before).join(texts) + behind != b"\n".join(events):
            return []
        plain = _ALL_PLAIN(together) and together.count(b"\n") == _BLOCK - 1
        # Half a character is not made whole by the next text: there is a line end between.
        return texts if plain and (together.isascii() or _is_utf8(together)) else []


@attrs.frozen(eq=False, repr=False)
class _Template:
    """An event as the upstream sends it, and as the client is shown it, around a text."""

    sent: _Around
    shown: _Around
    place: Place


class Likeness:
    """Remembers the last event of one round, and keeps the texts of those that were like it."""

    def __init__(self, reserve: Callable[[int], bool]) -> None:
        """:param reserve: takes a number of characters, and returns whether they may be kept."""
        self._reserve = reserve
        self._last: _Around | None = None
        self._template: _Template | None = None
        #: What could not be proven, and is not tried again.
        self._unproven: _Around | None = None
        #: As they stand in JSON: each is whole, so that all are one string's inside.
        self._texts = bytearray()

    def shown(self, events: Sequence[bytes], first: int) -> tuple[int, bytes]:
        """How many of *events*, from number *first* on, are like the last one.

        Besides, what the client is shown of them, as bytes of a stream.
        """
        template = self._template
        texts = template.sent.insides(events, first) if template else []
        if template is None or not texts:
            return 0, b""
        text = b"".join(texts)
        size = len(text) if text.isascii() else len(text.decode())
        if b"\\" in text:
            size -= text.count(b"\\") - text.count(b"\\\\")
        if size and self._reserve(size):
            self._texts += text
        before, behind = template.shown.before, template.shown.behind
        shown = before + (behind + before).join(texts) + behind
        return len(texts), shown

    def taken(self) -> tuple[Place, str] | None:
        """The texts that it has reserved and kept, as one, and their place; they are forgotten.

        To be called before anything is read that they are a part of.
        """
        if not self._texts or self._template is None:
            return None
        text: str = jsontext.loads(b'"%b"' % bytes(self._texts))
        self._texts.clear()
        return self._template.place, text

    def learn(self, event: bytes, visible: Json | None) -> None:
        """Remember *event*, which has gone the ordinary way.

        :param visible: what the client was shown of it, which is changed; None for nothing.
        """
        text = self._template.sent.inside(event) if self._template else None
        if text is not None and _STRING(text):
            return  # like the last one, but spelled in another way
        around = template = None
        if visible is not None and (place := _place_in(visible)):
            around = _around(event, visible["choices"][0]["delta"][place.key])
            if around is not None and around == self._last and around != self._unproven:
                template = _proven(around, place, visible)
                self._unproven = None if template else around
        self._last, self._template = around, template


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _place_in(visible: Json) -> Place | None:
    """The place of the one text in a chunk that a client was shown, None if it has not just one."""
    choices = visible["choices"]
    if len(choices) != 1 or "role" in choices[0]["delta"]:
        return None
    delta = choices[0]["delta"]
    keys = [key for key in TEXT_KEYS if delta.get(key)]
    if len(keys) != 1 or not isinstance(delta[keys[0]], str):
        return None
    return Place(choices[0]["index"], keys[0])


def _around(event: bytes, text: str) -> _Around | None:
    """What stands around *text* in *event*, None if it is not found in just one place."""
    quoted = jsontext.dumps(text)
    if len(event) - len(quoted) > _MAX_BESIDE or event.count(quoted) != 1:
        return None
    before, _, behind = event.partition(quoted)
    return _Around(before + b'"', b'"' + behind)


def _proven(sent: _Around, place: Place, visible: Json) -> _Template | None:
    """The template of events with *sent* around their texts, of which *visible* was shown."""
    try:
        chunk = jsontext.loads_anyhow(sent.before + _MARKER_TEXT[1:-1] + sent.behind)
    except ValueError:
        return None
    if not _is_plain(chunk, place.key):
        return None
    visible["choices"][0]["delta"][place.key] = _MARKER
    parts = encode_event(jsontext.dumps(visible)).split(_MARKER_TEXT[1:-1])
    return _Template(sent, _Around(*parts), place) if len(parts) == 2 else None


def _is_plain(chunk: object, key: str) -> bool:
    """Whether nothing in *chunk* counts but the marker, which stands under *key*."""
    choice = _only_object(chunk, "choices")
    delta = _only_object(choice, "delta")
    if delta is None or choice is None or delta.get(key) != _MARKER or delta.get("tool_calls"):
        return False
    blank = all(value in (None, "") for name, value in delta.items() if name not in (key, *_SENT))
    return blank and finish_reason(choice.get("finish_reason")) is None


#: Keys of a delta that say nothing more: the role has been sent, and there are no calls.
_SENT = ("role", "tool_calls")


def _only_object(holder: object, key: str) -> Json | None:
    """The object that is, or that alone is in the list, under *key*.

    None if another value of *holder* has anything in it.
    """
    if not isinstance(holder, dict):
        return None
    full = [name for name, value in holder.items() if value and isinstance(value, dict | list)]
    value = holder.get(key)
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    return value if full == [key] and isinstance(value, dict) else None
