"""RoundStream: one streamed completion taken apart: what the client sees, what the loop needs.

Pure: chunks go in, chunks come out. Whatever odd things model servers do to a stream (DESIGN:
S8) is put right here, in :mod:`llamaproxy.chat.calls` and :mod:`llamaproxy.chat.deltas`.
"""

from __future__ import annotations

import attrs

from llamaproxy import jsontext
from llamaproxy.chat.calls import CallReader, CallVisibility
from llamaproxy.chat.deltas import MessageBuilder, texts_of
from llamaproxy.chat.finish_reasons import (
    check_reason,
    closing_reason,
    finish_reason,
    is_complete_json,
    mark_cut_off,
)
from llamaproxy.chat.messages import Completion, as_object, merged_usage, number_of, objects
from llamaproxy.chat.normalise import normalise
from llamaproxy.errors import UpstreamBroke
from llamaproxy.jsontext import Json

#: Top-level keys that some clients act on: only their own server may fill them (S9).
CONTROL_KEYS = ("event", "selected_model_id", "sources")

#: Characters of a round that are remembered for the next one: what a model says before it calls
#: tools is short, and a stream without end must not fill the memory.
_MAX_REMEMBERED = 4 * 1024 * 1024

#: Bytes of the usage, and of what stands beside it.
_MAX_USAGE = 64 * 1024

#: Choices of one completion that are looked at.
_MAX_CHOICES = 128

_CHOICE_KEYS = ("index", "delta", "message", "finish_reason")

#: What stands beside a delta and is about its tokens, not about the end of the choice.
_TOKEN_KEYS = ("logprobs", "token_ids")

#: What every chunk has; anything else beside the usage is worth showing.
_COMMON_KEYS = ("id", "object", "created", "model", "choices", "usage")


@attrs.define
class _Choice:
    """One of a completion's choices while it comes in."""

    text: MessageBuilder
    calls: CallReader
    finish: str | None = None
    beside_finish: Json = attrs.Factory(dict)
    beside_size: int = 0
    has_deltas: bool = False

    def finished(self) -> bool:
        """Whether the model has come to an end, be it only that of a call."""
        return bool(self.finish or (self.calls and is_complete_json(self.calls.last_text)))

    def missed(self, message: Json) -> Json:
        """What *message*, which is all of this, has that came in no delta: its text, its calls."""
        missed = {} if self.text.has("content") else {"content": message.get("content")}
        return missed if self.calls else {**missed, "tool_calls": message.get("tool_calls")}

    def whole(self, index: int) -> Json:
        """The choice as a completion that is not streamed has it."""
        message = self.text.message()
        if self.calls:
            message["tool_calls"] = [call.entry for call in self.calls.finished()]
        reason = {"message": message, "finish_reason": self.finish}
        return {**self.beside_finish, "index": index, **reason}

    @property
    def closing_reason(self) -> str:
        """The finish reason that the client is told."""
        return closing_reason(self.finish, self.calls.shown_texts)


class RoundStream:
    """Reads the chunks of one completion."""

    def __init__(self, visibility: CallVisibility, roles: set[int]) -> None:
        """:param roles: the choices whose role the client has been told, in any round."""
        self._visibility = visibility
        self._roles = roles
        self._choices: dict[int, _Choice] = {}
        self._first: int | None = None
        self._ended = False
        self._remembered = 0
        #: The last chunk: what stands beside its choices is on those that are made up, too.
        self._last: Json = {}
        self.usage: Json | None = None
        #: What the server says beside the usage, such as llama.cpp's ``timings``.
        self.beside_usage: Json = {}

    def feed(self, chunk: Json | None) -> Json | None:
        """What the client may see of *chunk*, which is changed; finish reasons are kept back.

        None stands for ``[DONE]``.

        :raises UpstreamBroke: for a chunk that nobody could want.
        """
        if chunk is None:
            self._ended = True
            return None
        if str(chunk.get("type") or "").startswith("response."):
            return None
        normalise(chunk, self._visibility.legacy_functions)
        for key in CONTROL_KEYS:
            chunk.pop(key, None)
        if isinstance(chunk.get("usage"), dict) and chunk["usage"]:
            usage = merged_usage(self.usage, chunk.pop("usage"))
            if _size(usage) <= _MAX_USAGE:
                self.usage = usage
            if not chunk.get("choices"):
                more = {k: v for k, v in chunk.items() if k not in _COMMON_KEYS}
                beside = {**self.beside_usage, **more}
                if more and _size(beside) <= _MAX_USAGE:
                    self.beside_usage = beside
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
        choice = self._choices.get(0) or self._new_choice()
        choice.calls.settle()
        calls = choice.calls.finished()
        choices = self._choices.values() or [choice]
        if not self._ended and not all(each.finished() for each in choices):
            raise UpstreamBroke("Llama Stack ended its answer in the middle.")
        for each in choices:
            check_reason(each.finish, bool(each.calls))
        message = choice.text.message()
        if calls:
            message["tool_calls"] = [call.entry for call in calls]
        return Completion(message, mark_cut_off(calls, choice.finish))

    def late(self) -> list[Json]:
        """What becomes clear only at the end: calls of the client's whose names were in doubt."""
        chunks = []
        for index, choice in self._choices.items():
            deltas = choice.calls.settle()
            if deltas:
                told = {"index": index, "delta": {"tool_calls": deltas}, "finish_reason": None}
                chunks.append({**self._last, "choices": [told]})
        return chunks

    def finish_chunks(self) -> list[Json]:
        """The finish chunk of each choice: ``tool_calls`` if, and only if, calls were shown."""
        chunks = []
        for index, choice in sorted(self._choices.items()) or [(0, self._new_choice())]:
            delta = {} if index in self._roles else {"role": "assistant"}
            self._roles.add(index)
            told = {**choice.beside_finish, "index": index, "delta": delta}
            told["finish_reason"] = choice.closing_reason
            chunks.append({**self._last, "choices": [told]})
        return chunks

    def whole_choices(self) -> list[Json]:
        """The choices of a completion that is not streamed.

        :raises UpstreamBroke: as :meth:`completion`.
        """
        self.completion()
        return [choice.whole(index) for index, choice in sorted(self._choices.items())]

    def _choice(self, index: int) -> _Choice:
        choice = self._choices.get(index)
        if choice is None:
            if len(self._choices) == _MAX_CHOICES:
                raise UpstreamBroke(f"Llama Stack sent more than {_MAX_CHOICES} choices.")
            choice = self._choices[index] = self._new_choice()
        return choice

    def _index(self, choice: Json) -> int:
        """The number of *choice*: the one that has been asked for is 0, whatever it is called."""
        index = number_of(choice.get("index")) or 0
        if self._visibility.shows_all:
            return max(0, index)
        if self._first is None:
            self._first = index
        return {self._first: 0, 0: self._first}.get(index, index)

    def _new_choice(self) -> _Choice:
        return _Choice(MessageBuilder(self._grow), CallReader(self._visibility, self._grow))

    def _read(self, choice: Json, chunk: Json) -> bool:
        """Make one choice of a chunk what the client may see; False if that is nothing."""
        choice["index"] = index = self._index(choice)
        state = self._choice(index)
        self._last = chunk
        delta = choice["delta"] = self._delta(choice, state)
        said_role = bool(delta.get("role"))
        state.text.add(delta)
        delta |= texts_of(delta)
        entries = delta.pop("tool_calls", None)
        if entries:
            shown = state.calls.read(objects(entries))
            if shown:
                delta["tool_calls"] = shown
        elif entries is not None:
            delta["tool_calls"] = entries
        delta.pop("role", None)
        if index not in self._roles and (said_role or any(delta.values())):
            delta["role"] = "assistant"
            self._roles.add(index)
        return self._settle_finish(choice, state, any(delta.values()), bool(entries))

    def _delta(self, choice: Json, state: _Choice) -> Json:
        """What *choice* adds: its delta, or its whole message where no delta has come."""
        whole = as_object(choice.pop("message", None))
        delta = as_object(choice.get("delta"))
        if any(value for key, value in delta.items() if key != "role"):
            state.has_deltas = True
        elif whole and not state.has_deltas:
            # Some servers call their deltas so; but some repeat all of them, at the end or always.
            return state.text.unsaid(whole)
        elif whole:
            return state.missed(whole)
        return delta

    def _settle_finish(self, choice: Json, state: _Choice, shown: bool, called: bool) -> bool:
        """Keep a finish reason back, and what stands beside it; whether *choice* is worth showing.

        :param shown: whether its delta is.

        :param called: whether its delta had calls, about whose tokens the client is told nothing.
        """
        beside = {k: v for k, v in choice.items() if k not in _CHOICE_KEYS}
        tokens = any(beside.get(key) for key in _TOKEN_KEYS) and not called
        reason = finish_reason(choice.get("finish_reason"))
        choice["finish_reason"] = None
        if reason:
            state.finish = reason
            # What is about the tokens is told once.
            beside = {k: None if shown and k in _TOKEN_KEYS else v for k, v in beside.items()}
            size = _size(beside)
            if self._grow(size - state.beside_size):
                state.beside_finish, state.beside_size = beside, size
            return shown
        return shown or tokens

    def _grow(self, size: int) -> bool:
        self._remembered += size
        return self._remembered <= _MAX_REMEMBERED


def _size(value: Json) -> int:
    return len(jsontext.dumps(value))


def completion_of(chunks: list[Json | None], legacy: bool = False) -> Json:
    """The completion that the *chunks* of a stream add up to, which nobody had asked for (S8).

    :raises UpstreamBroke: if they break off in the middle.
    """
    rounds = RoundStream(CallVisibility(shows_all=True, legacy_functions=legacy), set())
    whole: Json = {}
    for chunk in chunks:
        for key, value in (chunk or {}).items():
            if not whole.get(key):
                whole[key] = value
        rounds.feed(chunk)
    whole |= {"object": "chat.completion", "choices": rounds.whole_choices()}
    return whole if rounds.usage is None else {**whole, "usage": rounds.usage}
