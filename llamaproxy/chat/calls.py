"""CallReader: the tool calls of a streamed round, put together out of their deltas.

Pure. However a server numbers, names, splits, repeats or sends again its calls, each comes out
once, and a client sees those that are its own, numbered from 0 (DESIGN: S3, S8).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import zip_longest
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

#: Characters of a name; servers refuse more than 64.
_MAX_NAME = 512

_CALL_KEYS = ("index", "id", "type", "function", "custom")


@attrs.define
class CallVisibility:
    """For whom a round's calls are: the client's are shown, all others are withheld.

    *client* and *server* are the names that either declared; *everything* shows every call; *mark*
    is what the ids end in that the client is shown (L19); *later* tells that the server has run
    calls already, *legacy* that the client declared ``functions``, which came before tools.
    """

    client_tools: Collection[str] = ()
    server_tools: Collection[str] = ()
    shows_all: bool = False
    mark: str = ""
    after_server_calls: bool = False
    legacy_functions: bool = False
    _unambiguous: frozenset[str] | None = None

    def shows(self, name: str) -> bool:
        """Whether a call of *name* is the client's."""
        return self.shows_all or name in self.client_tools

    def is_complete_name(self, name: str) -> bool:
        """Whether *name* is certainly whole, and not the beginning of another name."""
        if self._unambiguous is None:
            names = sorted({*self.client_tools, *self.server_tools})
            # Whatever begins with a name stands right behind it.
            self._unambiguous = frozenset(
                name
                for name, after in zip_longest(names, names[1:], fillvalue="")
                if not after.startswith(name)
            )
        return name in self._unambiguous


@attrs.define(eq=False)
class _Call:
    """A tool call while it comes in."""

    kind: str = "function"
    extra: Json = attrs.Factory(dict)
    inner: Json = attrs.Factory(dict)
    id: str | None = None
    name: str = ""
    text: ArgumentsBuffer = attrs.Factory(ArgumentsBuffer)
    shown: bool | None = None
    index: int = 0

    @property
    def text_key(self) -> str:
        """Where the model's text stands: a function has arguments, a custom tool an input."""
        return "arguments" if self.kind == "function" else "input"

    def finished(self, call_id: str) -> ToolCall:
        text = str(self.text)
        inner = {**self.inner, "name": self.name, self.text_key: text}
        entry = {**self.extra, "id": call_id, "type": self.kind, self.kind: inner}
        return ToolCall(call_id, self.name, text, entry)


class CallReader:
    """Reads the call deltas of one choice."""

    def __init__(self, visibility: CallVisibility, grow: Callable[[int], bool]) -> None:
        """:param grow: is told of characters to keep; says whether there is room."""
        self._visibility = visibility
        self._grow = grow
        self._calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}
        self._by_id: dict[str, _Call] = {}
        self._ids: set[str] = set()
        self._shown = 0
        self._shared = visibility.after_server_calls

    def __bool__(self) -> bool:
        return bool(self._calls)

    @property
    def shown_texts(self) -> list[str]:
        """The texts of the calls that the client has been shown."""
        return [str(call.text) for call in self._calls if call.shown]

    @property
    def last_text(self) -> str:
        """The text of the last call, empty if there is none."""
        return str(self._calls[-1].text) if self._calls else ""

    def read(self, deltas: list[Json]) -> list[Json]:
        """Take in the call deltas of one chunk; those that the client may see come out.

        :raises UpstreamBroke: if they are too many, or too long.
        """
        told: list[Json] = []
        touched: set[_Call] = set()
        for delta in deltas:
            before = self._calls[-1] if self._calls else None
            call = self._call_of(delta, touched)
            touched.add(call)
            if before and before.shown and call is self._calls[-1] is not before:
                # Some clients close a call as soon as another begins.
                told += self._settled(before)
            inner = as_object(delta.get(call.kind))
            self._name(call, inner.get("name"))
            if not call.id and isinstance(delta.get("id"), str) and delta["id"]:
                self._keep(len(delta["id"]))
                call.id = delta["id"]
                self._by_id.setdefault(call.id, call)
            extra = {k: v for k, v in delta.items() if v is not None and k not in _CALL_KEYS}
            extra.pop(call.kind, None)
            more = {k: v for k, v in inner.items() if k not in ("name", call.text_key)}
            more = {k: v for k, v in more.items() if v is not None}
            if extra or more:
                self._keep(len(jsontext.dumps([extra, more])))
                call.extra.update(extra)
                call.inner.update(more)
            text = self._added(call, inner.get(call.text_key))
            if call.shown is None:
                # Held back only until its name is known.
                if self._visibility.is_complete_name(call.name) or (call.text.size and call.name):
                    told += self._decide(call)
            elif call.shown and (text or extra):
                told.append({"index": call.index, **extra, call.kind: {call.text_key: text}})
        return told

    def settle(self) -> list[Json]:
        """What was held back because more might have come; what is the client's comes out."""
        return [delta for call in self._calls for delta in self._settled(call)]

    def _settled(self, call: _Call) -> list[Json]:
        begun = self._decide(call) if call.shown is None else []
        text = call.text.append(call.text.release())
        if call.shown and text:
            if begun:
                begun[0][call.kind][call.text_key] += text
            else:
                begun = [{"index": call.index, call.kind: {call.text_key: text}}]
        return begun

    def finished(self) -> list[ToolCall]:
        """The calls, each with an id of its own."""
        return [call.finished(self._id_of(call)) for call in self._calls]

    def _added(self, call: _Call, value: Any) -> str:
        before, text = call.text.size, arguments_text(value)
        # Any other text than a function's may well repeat itself.
        is_json = call.kind == "function"
        text = call.text.append_json(text) if is_json else call.text.append(text)
        self._keep(max(0, call.text.size - before))
        return text

    def _keep(self, size: int) -> None:
        if not self._grow(size + 1):
            raise UpstreamBroke("The model's tool calls are too long.")

    def _name(self, call: _Call, name: object) -> None:
        if not isinstance(name, str) or call.shown is not None or name == call.name:
            return
        if name.startswith(call.name) and self._visibility.is_complete_name(name):
            call.name = name
        elif len(call.name) < _MAX_NAME:
            call.name += name[:_MAX_NAME]

    def _call_of(self, delta: Json, touched: set[_Call]) -> _Call:
        """The call that a delta belongs to, a new one if it begins one."""
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
        another = False
        if call is not None and name:
            same_id = call_id is not None and call_id == call.id
            text = arguments_text(inner.get(call.text_key))
            if call_id and not same_id:
                # Some servers number every call 0.
                another = index is None or call.id is not None
            elif index is None and not call_id:
                another = call in touched or call.text.is_closed
            elif call.text.is_closed and text.strip() and not call.text.is_placeholder:
                # A piece, under the same id, is one of the same arguments once more.
                is_piece = same_id and not is_complete_json(text)
                another = not is_piece and not call.text.repeats(text)
        if call is not None and name and call.shown is not None and name != call.name:
            another = True
        if call is None or another:
            if len(self._calls) == MAX_CALLS:
                raise too_many_calls()
            call = _Call(kind=_kind(delta))
            self._keep(len(call.kind))
            self._calls.append(call)
            if index is not None:
                self._by_index[index] = call
        return call

    def _decide(self, call: _Call) -> list[Json]:
        """The name is known: show all that has come of a client's call, nothing of another."""
        call.shown = self._visibility.shows(call.name)
        if not call.shown:
            self._shared = True
            return []
        call.index = self._shown
        self._shown += 1
        inner = {**call.inner, "name": call.name, call.text_key: call.text.settled}
        shown_id = self._id_of(call)
        if call.kind == "function" or self._shared:
            # Other calls are untouched (L8b), unless there is something to remember.
            shown_id += self._visibility.mark
        head = {"index": call.index, "id": shown_id, "type": call.kind}
        return [{**head, **call.extra, call.kind: inner}]

    def _id_of(self, call: _Call) -> str:
        """The id of a call, which no other has; settled when it is first asked for."""
        if call.id is None or self._by_id.get(call.id) is not call:
            call.id = new_call_id()
            self._by_id[call.id] = call
        return call.id


def _inner(delta: Json) -> Json:
    return as_object(delta.get(_kind(delta)) or delta.get("function") or delta.get("custom"))


def _kind(delta: Json) -> str:
    """The type of the call that a delta is of; what follows the first need not say it."""
    if is_function(delta):
        return "function"
    kind = delta.get("type")
    return kind if isinstance(kind, str) and kind != "function" else "custom"
