"""RoundStream: one streamed completion taken apart: what the client sees, what the loop needs.

Pure: chunks go in, chunks come out. Whatever odd things model servers do to a stream (DESIGN:
S8) is put right here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Collection

import attrs

from llamaproxy.chat.messages import (
    Completion,
    ToolCall,
    arguments_text,
    as_object,
    closing_reason,
    finish_reason,
    is_whole,
    new_call_id,
    objects,
    text_of,
)
from llamaproxy.errors import UpstreamBroke
from llamaproxy.jsontext import Json

#: Top-level keys that some clients act on: only their own server may fill them (S9).
FOREIGN = ("event", "selected_model_id", "sources")


#: Characters of a round that are remembered for the next one: what a model says before it calls
#: tools is short, and a stream without end must not fill the memory.
_MAX_REMEMBERED = 4 * 1024 * 1024


@attrs.frozen
class Audience:
    """For whom a round's calls are: the client's are shown, all others are withheld.

    *client* and *server* are the names that either declared; *everything* shows every call.
    """

    client: Collection[str] = ()
    server: Collection[str] = ()
    everything: bool = False

    def shows(self, name: str) -> bool:
        """Whether a call of *name* is the client's."""
        return self.everything or name in self.client

    def knows(self, name: str) -> bool:
        """Whether *name* is certainly whole, and not the beginning of another name."""
        names = (*self.client, *self.server)
        return name in names and not any(n != name and n.startswith(name) for n in names)


@attrs.define
class _Call:
    """A tool call while it comes in."""

    entry: Json
    id: str | None = None
    name: str = ""
    arguments: list[str] = attrs.Factory(list)
    shown: bool | None = None
    index: int = 0
    waiting: Json = attrs.Factory(dict)

    def whole(self) -> bool:
        """Whether the arguments so far are complete JSON."""
        return is_whole("".join(self.arguments))

    def finished(self) -> ToolCall:
        arguments = "".join(self.arguments)
        call_id = self.id or new_call_id()
        function = {"name": self.name, "arguments": arguments}
        entry = {**self.entry, "id": call_id, "type": "function", "function": function}
        return ToolCall(call_id, self.name, arguments, entry)


@attrs.define
class _Choice:
    """One of a completion's choices while it comes in."""

    message: Json = attrs.Factory(dict)
    #: In UTF-8: as many strings as there are tokens would take ten times the memory.
    texts: dict[str, bytearray] = attrs.Factory(dict)
    calls: list[_Call] = attrs.Factory(list)
    by_index: dict[int, _Call] = attrs.Factory(dict)
    shown: int = 0
    finish: str | None = None
    beside_finish: Json = attrs.Factory(dict)
    last: Json | None = None

    def finished(self) -> bool:
        """Whether the model has come to an end, be it only that of a call."""
        return bool(self.finish or (self.calls and self.calls[-1].whole()))


class RoundStream:
    """Reads the chunks of one completion."""

    def __init__(self, audience: Audience, roles: set[int]) -> None:
        """:param roles: the choices whose role the client has been told, in any round."""
        self._audience = audience
        self._roles = roles
        self._choices: dict[int, _Choice] = {}
        self._ended = False
        self._remembered = 0
        self.usage: Json | None = None

    def feed(self, chunk: Json | None) -> Json | None:
        """What the client may see of *chunk*, which is changed; finish reasons are kept back.

        None stands for ``[DONE]``.
        """
        if chunk is None:
            self._ended = True
            return None
        if str(chunk.get("type") or "").startswith("response."):
            return None
        for key in FOREIGN:
            chunk.pop(key, None)
        if chunk.get("usage"):
            self.usage = chunk.pop("usage")
            if not chunk.get("choices"):
                return None
        choices = chunk.get("choices")
        if not isinstance(choices, list):
            return None
        told = [choice for choice in objects(choices) if self._read(choice, chunk)]
        chunk["choices"] = told
        # Without an id a chunk could not be shown before the answer has one.
        return chunk if told or (not choices and chunk.get("id")) else None

    def completion(self) -> Completion:
        """The first choice, whole.

        :raises UpstreamBroke: if the stream ended before the model did (S7).
        """
        choice = self._choices.get(0) or _Choice()
        self._settle(choice)
        calls: list[ToolCall] = []
        for call in choice.calls:
            if call.id in {known.id for known in calls}:
                call.id = None
            calls.append(call.finished())
        if not self._ended and not all(c.finished() for c in self._choices.values() or [choice]):
            raise UpstreamBroke("Llama Stack ended its answer in the middle.")
        texts = {key: raw.decode("utf-8", "surrogatepass") for key, raw in choice.texts.items()}
        message = {"role": "assistant", "content": None, **choice.message, **texts}
        if calls:
            message["tool_calls"] = [call.entry for call in calls]
        return Completion(message, calls)

    def late(self) -> list[Json]:
        """What becomes clear only at the end: calls of the client's whose names were in doubt."""
        chunks = []
        for index, choice in self._choices.items():
            deltas = self._settle(choice)
            if deltas:
                told = {"index": index, "delta": {"tool_calls": deltas}, "finish_reason": None}
                chunks.append({**(choice.last or {}), "choices": [told]})
        return chunks

    def finish_chunks(self) -> list[Json]:
        """The finish chunk of each choice: ``tool_calls`` if, and only if, calls were shown."""
        chunks = []
        for index, choice in sorted(self._choices.items()) or [(0, _Choice())]:
            shown = ["".join(call.arguments) for call in choice.calls if call.shown]
            reason = closing_reason(choice.finish, shown)
            delta = {} if index in self._roles else {"role": "assistant"}
            self._roles.add(index)
            told = {**choice.beside_finish, "index": index, "delta": delta}
            told["finish_reason"] = reason
            chunks.append({**(choice.last or {}), "choices": [told]})
        return chunks

    def _read(self, choice: Json, chunk: Json) -> bool:
        """Make one choice of a chunk what the client may see; False if that is nothing."""
        index = choice.get("index")
        if not isinstance(index, int):
            choice["index"] = index = 0
        state = self._choices.get(index)
        if state is None:
            state = self._choices[index] = _Choice()
        state.last = chunk
        whole = choice.pop("message", None)
        delta = choice["delta"] = as_object(choice.get("delta") or whole)
        if isinstance(delta.get("content"), list):
            delta["content"] = text_of(delta["content"])
        self._remember(state, delta)
        if delta.get("tool_calls"):
            shown = self._read_calls(state, objects(delta.pop("tool_calls")))
            if shown:
                delta["tool_calls"] = shown
        reason = finish_reason(choice.get("finish_reason"))
        if reason:
            state.finish = reason
            state.beside_finish = {k: v for k, v in choice.items() if k not in _CHOICE_KEYS}
        choice["finish_reason"] = None
        if index in self._roles:
            if delta.get("role"):
                del delta["role"]
        elif any(delta.values()):
            delta["role"] = "assistant"
            self._roles.add(index)
        return any(delta.values())

    def _remember(self, state: _Choice, delta: Json) -> None:
        """Add *delta* to the message that the model will be reminded of (L10)."""
        for key, value in delta.items():
            if value is None or key in ("role", "tool_calls"):
                continue
            before = state.message.get(key)
            if isinstance(value, str):
                if self._grow(len(value)):
                    # A lone surrogate may be half of a pair that was split.
                    said = value.encode("utf-8", "surrogatepass")
                    if key in state.texts:
                        state.texts[key] += said
                    else:
                        state.texts[key] = bytearray(said)
            elif isinstance(value, list) and isinstance(before, list):
                state.message[key] = before + value
            else:
                state.message[key] = value

    def _grow(self, size: int) -> bool:
        self._remembered += size
        return self._remembered <= _MAX_REMEMBERED

    def _read_calls(self, state: _Choice, deltas: list[Json]) -> list[Json]:
        """Take in call deltas; those that the client may see come out, renumbered (S3)."""
        told: list[Json] = []
        touched: list[_Call] = []
        for delta in deltas:
            call = self._call_of(state, delta, touched)
            touched.append(call)
            function = as_object(delta.get("function"))
            name = function.get("name")
            if isinstance(name, str) and call.shown is None and name != call.name:
                call.name += name
            if isinstance(delta.get("id"), str) and delta["id"]:
                call.id = call.id or delta["id"]
            extra = {k: v for k, v in delta.items() if v is not None and k not in _CALL_KEYS}
            call.entry.update(extra)
            arguments = arguments_text(function.get("arguments"))
            if not self._grow(len(arguments) + 1):
                raise UpstreamBroke("The model's tool calls are too long.")
            call.arguments.append(arguments)
            if call.shown is None:
                # Held back only until its name is known.
                call.waiting.update(extra)
                if self._audience.knows(call.name) or (arguments and call.name):
                    told += self._decide(state, call)
            elif call.shown and (arguments or extra):
                told.append({"index": call.index, **extra, "function": {"arguments": arguments}})
        return told

    def _call_of(self, state: _Choice, delta: Json, touched: list[_Call]) -> _Call:
        """The call that a delta belongs to, a new one if it begins one."""
        function = as_object(delta.get("function"))
        name = function.get("name")
        index, call_id = delta.get("index"), delta.get("id")
        if isinstance(index, int):
            call = state.by_index.get(index)
            # Some servers number every call 0.
            other_id = bool(call and call_id and call.id and call_id != call.id and name)
            if call is not None and name and not call_id and call.whole():
                other_id = bool(arguments_text(function.get("arguments")).strip())
        else:
            known = [known for known in state.calls if call_id and known.id == call_id]
            call = next(reversed(known or state.calls), None)
            other_id = bool(call and call_id and call_id != call.id and name)
            if call is not None and name and (call in touched or call.whole()):
                other_id = True
        if call is not None and name and call.shown is not None and name != call.name:
            other_id = True
        if call is None or other_id:
            call = _Call(entry={})
            state.calls.append(call)
            if isinstance(index, int):
                state.by_index[index] = call
        return call

    def _decide(self, state: _Choice, call: _Call) -> list[Json]:
        """The name is known: show all that has come of a client's call, nothing of another."""
        call.shown = self._audience.shows(call.name)
        if not call.shown:
            return []
        known = {other.id for other in state.calls if other is not call}
        call.id = call.id if call.id and call.id not in known else new_call_id()
        call.index = state.shown
        state.shown += 1
        function = {"name": call.name, "arguments": "".join(call.arguments)}
        head = {"index": call.index, "id": call.id, "type": "function"}
        return [{**head, **call.waiting, "function": function}]

    def _settle(self, state: _Choice) -> list[Json]:
        """Decide the calls whose names were still in doubt."""
        told: list[Json] = []
        for call in state.calls:
            if call.shown is None:
                told += self._decide(state, call)
        return told


_CHOICE_KEYS = ("index", "delta", "message", "finish_reason")
_CALL_KEYS = ("index", "id", "type", "function")
