"""CallReader: adds up the tool call deltas of a streamed choice. Pure.

However a server numbers, names, splits or repeats its calls, each comes out once, and the client
is shown those of its own tools, numbered from 0 (DESIGN: S3, S8).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import attrs

from llamaproxy import jsontext
from llamaproxy.chat.arguments_buffer import ArgumentsBuffer
from llamaproxy.chat.finish_reasons import is_complete_json
from llamaproxy.chat.messages import (
    MAX_CALLS,
    ToolCall,
    arguments_text,
    as_object,
    is_function,
    new_call_id,
    number_of,
    too_many_calls,
)
from llamaproxy.errors import UpstreamBroke
from llamaproxy.jsontext import Json
from llamaproxy.tools.names import NameIndex, whole_names

#: Characters of a name that are kept; servers refuse more than 64.
_MAX_NAME = 512

_CALL_KEYS = ("index", "id", "type", "function", "custom")


@attrs.define(eq=False, repr=False)
class CallVisibility:
    """Which calls of a round the client is shown: those of its own tools.

    *client_tools* and *server_tools* are the names of the tools; *shows_all* shows every call;
    *mark* is appended to the ids that the client is shown (L19); *after_server_calls* tells that
    server tools have been run in earlier rounds; *legacy_functions* that the client declared
    ``functions`` (deprecated in OpenAI's API reference), not ``tools``; *index*
    has all of these names, where there is one.
    """

    client_tools: Collection[str] = ()
    server_tools: Collection[str] = ()
    shows_all: bool = False
    mark: str = ""
    after_server_calls: bool = False
    legacy_functions: bool = False
    index: NameIndex | None = None
    _whole: frozenset[str] | None = None

    def shows(self, name: str) -> bool:
        """Whether the client is shown a call of *name*."""
        return self.shows_all or name in self.client_tools

    def is_complete_name(self, name: str) -> bool:
        """Whether *name* is that of a tool, and not the beginning of another tool's."""
        if self.index is not None:
            return name in self.index.whole_names
        if self._whole is None:
            self._whole = whole_names({*self.client_tools, *self.server_tools})
        return name in self._whole


@attrs.define(eq=False, repr=False)
class _Call:
    """A tool call while it is received.

    *kind* is its type, *key* that of the object which says more, *extra* and *inner* are further
    fields of the call and of that object, and *pieces* its further texts, if it is no function;
    *shown* is None until it is known whether the client is shown it, then under *index*.
    """

    kind: str = "function"
    key: str = "function"
    extra: Json = attrs.Factory(dict)
    inner: Json = attrs.Factory(dict)
    pieces: dict[str, list[str]] = attrs.Factory(dict)
    id: str | None = None
    name: str = ""
    text: ArgumentsBuffer = attrs.Factory(ArgumentsBuffer)
    has_text: bool = False
    shown: bool | None = None
    index: int = 0

    @property
    def text_key(self) -> str:
        """The key of the model's text: ``arguments`` of a function, ``input`` of a custom tool."""
        return "arguments" if self.key == "function" else "input"

    def add(self, more: Json) -> None:
        """Add further fields of the object under *key*."""
        for key, value in more.items():
            if self.key == "function" or not isinstance(value, str):
                self.inner[key] = value
            else:
                self.pieces.setdefault(key, []).append(value)

    def payload(self, text: str) -> Json:
        """The object under *key*, with *text* as the model's."""
        pieces = {key: "".join(pieces) for key, pieces in self.pieces.items()}
        payload = {**self.inner, **pieces, "name": self.name}
        return {**payload, self.text_key: text} if self.has_text else payload

    def tool_call(self, call_id: str) -> ToolCall:
        text = str(self.text)
        payload = self.payload(text)
        entry = {**self.extra, "id": call_id, "type": self.kind, self.key: payload}
        return ToolCall(call_id, self.name, text, entry)


class CallReader:
    """Adds up the call deltas of one choice."""

    def __init__(self, visibility: CallVisibility, reserve: Callable[[int], bool]) -> None:
        """:param reserve: takes a number of characters, and returns whether they may be kept."""
        self._visibility = visibility
        self._reserve = reserve
        self._calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}
        self._by_id: dict[str, _Call] = {}
        self._ids: set[str] = set()
        self._shown = 0
        self._server_called = visibility.after_server_calls

    def __bool__(self) -> bool:
        return bool(self._calls)

    @property
    def shown_texts(self) -> list[str]:
        """The arguments or inputs of the calls that the client has been shown."""
        return [str(call.text) for call in self._calls if call.shown]

    @property
    def last_text(self) -> str:
        """The arguments or the input of the last call, empty if there is none."""
        return str(self._calls[-1].text) if self._calls else ""

    def read(self, deltas: list[Json]) -> list[Json]:
        """Add the call deltas of one chunk.

        :returns: the deltas that the client is shown for them.
        :raises UpstreamBroke: if the calls are too many, or too long.
        """
        visible: list[Json] = []
        chunk_calls: set[_Call] = set()
        for delta in deltas:
            previous = self._calls[-1] if self._calls else None
            call = self._call_of(delta, chunk_calls)
            chunk_calls.add(call)
            if previous and previous.shown and call is self._calls[-1] is not previous:
                # Some clients close a call as soon as another begins.
                visible += self._flush_call(previous)
            inner = as_object(delta.get(call.key))
            self._add_name(call, inner.get("name"))
            if not call.id and isinstance(delta.get("id"), str) and delta["id"]:
                self._reserve_or_fail(len(delta["id"]))
                call.id = delta["id"]
                self._by_id.setdefault(call.id, call)
            extra = {k: v for k, v in delta.items() if v is not None and k not in _CALL_KEYS}
            extra.pop(call.key, None)
            more = {k: v for k, v in inner.items() if k not in ("name", call.text_key)}
            more = {k: v for k, v in more.items() if v is not None}
            if extra or more:
                self._reserve_or_fail(len(jsontext.dumps([extra, more])))
                call.extra.update(extra)
                call.add(more)
            text = self._add_text(call, inner.get(call.text_key))
            if call.shown is None:
                # Held back until its name is complete.
                if self._visibility.is_complete_name(call.name) or (call.text.size and call.name):
                    visible += self._begin(call)
            elif call.shown and (text or extra or (more and call.key != "function")):
                said = {call.text_key: text} if call.has_text else {}
                if call.key != "function":
                    said |= more
                visible.append({"index": call.index, **extra, call.key: said})
        return visible

    def flush(self) -> list[Json]:
        """Deltas with what was held back because more might have come, for the end of a stream."""
        return [delta for call in self._calls for delta in self._flush_call(call)]

    def _flush_call(self, call: _Call) -> list[Json]:
        deltas = self._begin(call) if call.shown is None else []
        text = call.text.append(call.text.release())
        if call.shown and text:
            if deltas:
                deltas[0][call.key][call.text_key] += text
            else:
                deltas = [{"index": call.index, call.key: {call.text_key: text}}]
        return deltas

    def tool_calls(self) -> list[ToolCall]:
        """The calls so far, each with an id of its own."""
        return [call.tool_call(self._id_of(call)) for call in self._calls]

    def _add_text(self, call: _Call, value: Any) -> str:
        """Add to a call's arguments or input; what the client may be shown of it at once."""
        size_before, text = call.text.size, arguments_text(value)
        call.has_text = call.has_text or value is not None
        # The text of a custom tool need not be JSON, and may well repeat itself.
        is_json = call.key == "function"
        text = call.text.append_json(text) if is_json else call.text.append(text)
        self._reserve_or_fail(max(0, call.text.size - size_before))
        return text

    def _reserve_or_fail(self, size: int) -> None:
        if not self._reserve(size + 1):
            raise UpstreamBroke("The model's tool calls are too long.")

    def _add_name(self, call: _Call, name: object) -> None:
        if not isinstance(name, str) or call.shown is not None or name == call.name:
            return
        if name.startswith(call.name) and self._visibility.is_complete_name(name):
            call.name = name
        elif len(call.name) < _MAX_NAME:
            call.name += name[:_MAX_NAME]

    def _call_of(self, delta: Json, chunk_calls: set[_Call]) -> _Call:
        """The call that *delta* belongs to, a new one if it begins one.

        :param chunk_calls: the calls that other deltas of the same chunk belong to.
        """
        inner = _inner(delta)
        name = inner.get("name")
        index, call_id = number_of(delta.get("index")), delta.get("id")
        if not isinstance(call_id, str):
            call_id = None
        if index is not None:
            call = self._by_index.get(index)
        else:
            call = self._by_id.get(call_id) if call_id else None
            call = call or (self._calls[-1] if self._calls else None)
        is_new = False
        if call is not None and name:
            same_id = call_id is not None and call_id == call.id
            text = arguments_text(inner.get(call.text_key))
            if call_id and not same_id:
                # Some servers number every call 0.
                is_new = index is None or call.id is not None
            elif index is None and not call_id:
                is_new = call in chunk_calls or call.text.is_closed
            elif call.text.is_closed and text.strip() and not call.text.is_placeholder:
                # Incomplete JSON under the same id is a piece of a repetition.
                is_piece = same_id and not is_complete_json(text)
                is_new = not is_piece and not call.text.repeats(text)
        if call is not None and name and call.shown is not None and name != call.name:
            is_new = True
        if call is None or is_new:
            if len(self._calls) == MAX_CALLS:
                raise too_many_calls()
            kind, key = _kind(delta), _key(delta)
            call = _Call(kind, key, has_text=key == "function")
            self._reserve_or_fail(len(call.kind))
            self._calls.append(call)
            if index is not None:
                self._by_index[index] = call
        return call

    def _begin(self, call: _Call) -> list[Json]:
        """The first delta of a client's call, whose name is complete; none for another's."""
        call.shown = self._visibility.shows(call.name)
        if not call.shown:
            self._server_called = True
            return []
        call.index = self._shown
        self._shown += 1
        shown_id = self._id_of(call)
        if call.kind == "function" or self._server_called:
            # Calls of other types are left alone (L8b), unless the turn is remembered.
            shown_id += self._visibility.mark
        head = {"index": call.index, "id": shown_id, "type": call.kind}
        return [{**head, **call.extra, call.key: call.payload(call.text.confirmed)}]

    def _id_of(self, call: _Call) -> str:
        """The id of a call, a new one if it has none of its own; it does not change afterwards."""
        if call.id is None or self._by_id.get(call.id) is not call:
            call.id = new_call_id()
            self._by_id[call.id] = call
        return call.id


def _inner(delta: Json) -> Json:
    return as_object(delta.get(_key(delta)))


def _key(delta: Json) -> str:
    """The key of the object in a delta that says more of its call.

    It need not be the call's type: Moonshot's ``builtin_function`` has it under ``function``.
    """
    kind = _kind(delta)
    if isinstance(delta.get(kind), dict):
        return kind
    return next((key for key in ("function", "custom") if isinstance(delta.get(key), dict)), kind)


def _kind(delta: Json) -> str:
    """The type of the call in a delta; only the first delta of a call must name it."""
    if is_function(delta):
        return "function"
    kind = delta.get("type")
    return kind if isinstance(kind, str) and kind != "function" else "custom"
