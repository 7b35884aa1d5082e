"""RoundStream: reads one streamed completion, for the client and for the loop. Pure.

Each chunk becomes the one that the client is shown; at the end there is the whole completion. What
servers do differently (DESIGN: S8) is put right here, in :mod:`llamaproxy.chat.calls` and in
:mod:`llamaproxy.chat.deltas`.
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
from llamaproxy.chat.messages import Completion, as_object, number_of, objects
from llamaproxy.chat.normalise import normalise
from llamaproxy.chat.usage import merged_usage
from llamaproxy.errors import UpstreamBroke
from llamaproxy.jsontext import Json

#: Top-level keys that Open WebUI acts on: only its own server may fill them (S9).
CONTROL_KEYS = ("event", "selected_model_id", "sources")

#: Characters of a round that are kept for the next one: a model writes little before it calls
#: tools, and a stream without end must not fill the memory.
_MAX_CHARACTERS = 4 * 1024 * 1024

#: Bytes of JSON of the usage, and of the fields beside it.
_MAX_USAGE = 64 * 1024

#: Choices that one completion may have.
_MAX_CHOICES = 128

#: Keys of a choice that are read here; any other one travels on.
CHOICE_KEYS = ("index", "delta", "message", "finish_reason")

#: Keys of a choice that are about the tokens of its delta, not about its end.
TOKEN_KEYS = ("logprobs", "token_ids")

#: Keys that every chunk has; any other one beside the usage is shown.
_COMMON_KEYS = frozenset({"id", "object", "created", "model", "choices", "usage"})


@attrs.define(eq=False, repr=False)
class _Choice:
    """One of a completion's choices while it is received.

    *beside_finish* are the fields beside its finish reason, *beside_size* bytes as JSON.
    """

    text: MessageBuilder
    calls: CallReader
    finish_reason: str | None = None
    beside_finish: Json = attrs.Factory(dict)
    beside_size: int = 0
    has_deltas: bool = False

    def has_finished(self) -> bool:
        """Whether there is a finish reason, or at least the last call is complete."""
        return bool(self.finish_reason or (self.calls and is_complete_json(self.calls.last_text)))

    def missing_from_deltas(self, message: Json) -> Json:
        """The content and the calls of the complete *message*, if no delta had any."""
        missing = {} if self.text.has("content") else {"content": message.get("content")}
        return missing if self.calls else {**missing, "tool_calls": message.get("tool_calls")}

    def unary(self, index: int) -> Json:
        """The choice as a completion that is not streamed has it."""
        message = self.text.message()
        if self.calls:
            message["tool_calls"] = [call.entry for call in self.calls.tool_calls()]
        fields = {"index": index, "message": message, "finish_reason": self.finish_reason}
        return {**self.beside_finish, **fields}

    @property
    def closing_reason(self) -> str:
        """The finish reason for the client."""
        return closing_reason(self.finish_reason, self.calls.shown_texts)


class _Room:
    """So many characters that may be kept; those who keep them share it."""

    def __init__(self, characters: int) -> None:
        self._left = characters

    def reserve(self, size: int) -> bool:
        """Count *size* more characters that are kept; False if there is no room for them."""
        self._left -= size
        return self._left >= 0


class RoundStream:
    """Reads the chunks of one streamed completion."""

    def __init__(
        self,
        visibility: CallVisibility,
        roles: set[int],
        max_characters: int = _MAX_CHARACTERS,
        max_usage: int = _MAX_USAGE,
    ) -> None:
        """:param roles: the indices of the choices whose role has been sent; added to here."""
        #: Takes a number of characters, and returns whether they may be kept.
        self.reserve = _Room(max_characters).reserve
        self._max_usage = max_usage
        self._visibility = visibility
        self._roles = roles
        self._choices: dict[int, _Choice] = {}
        self._first_index: int | None = None
        self._ended = False
        #: Its fields are those of chunks that are made here.
        self._last_chunk: Json = {}
        self.usage: Json | None = None
        #: The fields beside the usage, such as llama.cpp's ``timings``.
        self.beside_usage: Json = {}
        #: The fields of chunks that showed nothing: the last finish chunk has them.
        self._beside_nothing: Json = {}

    def feed(self, chunk: Json | None) -> Json | None:
        """Read *chunk*, which is changed; None stands for ``[DONE]``.

        :returns: what the client is shown of it, without finish reasons; None for nothing.
        :raises UpstreamBroke: for too many choices, too many calls or too long ones.
        :raises UpstreamRefused: for an error inside a choice.
        """
        if chunk is None:
            self._ended = True
            return None
        if steers(chunk):
            return None
        normalise(chunk, self._visibility.legacy_functions)
        for key in CONTROL_KEYS:
            chunk.pop(key, None)
        if isinstance(chunk.get("usage"), dict) and chunk["usage"]:
            usage = merged_usage(self.usage, chunk.pop("usage"))
            if _size(usage) <= self._max_usage:
                self.usage = usage
            if not chunk.get("choices"):
                more = {k: v for k, v in chunk.items() if k not in _COMMON_KEYS}
                beside = {**self.beside_usage, **more}
                if more and _size(beside) <= self._max_usage:
                    self.beside_usage = beside
                return None
        choices = chunk.get("choices")
        if not isinstance(choices, list):
            return None
        visible = [choice for choice in objects(choices) if self._read(choice, chunk)]
        chunk["choices"] = visible
        # Without an id a chunk could not be shown before the answer has one.
        if visible or (not choices and chunk.get("id")):
            return chunk
        self._keep_beside_nothing(chunk)
        return None

    def _keep_beside_nothing(self, chunk: Json) -> None:
        if chunk.keys() <= _COMMON_KEYS:
            return
        before = self._beside_nothing
        more = {k: v for k, v in chunk.items() if v and k not in _COMMON_KEYS}
        if more and any(before.get(key) != value for key, value in more.items()):
            beside = {**before, **more}
            if _size(beside) <= self._max_usage:
                self._beside_nothing = beside

    def keep(self, index: int, key: str, text: str) -> None:
        """Add *text*, which has been reserved, to that of a choice that has been shown."""
        self._choices[index].text.keep(key, text)

    def completion(self) -> Completion:
        """The message and the calls of the first choice, at the end of the stream.

        :raises UpstreamBroke: if the stream ended before the model did, or with an error (S7).
        """
        choice = self._choices.get(0) or self._new_choice()
        choice.calls.flush()
        calls = choice.calls.tool_calls()
        choices = self._choices.values() or [choice]
        if not self._ended and not all(choice.has_finished() for choice in choices):
            raise UpstreamBroke("Llama Stack ended its answer in the middle.")
        for other in choices:
            check_reason(other.finish_reason, bool(other.calls))
        message = choice.text.message()
        if calls:
            message["tool_calls"] = [call.entry for call in calls]
        return Completion(message, mark_cut_off(calls, choice.finish_reason))

    @property
    def finish_reason(self) -> str | None:
        """Why the model ended the first choice; None if it has not said."""
        choice = self._choices.get(0)
        return None if choice is None else choice.finish_reason

    def held_chunks(self) -> list[Json]:
        """Chunks with what was held back of calls of the client, for the end of the stream."""
        chunks = []
        for index, choice in self._choices.items():
            deltas = choice.calls.flush()
            if deltas:
                held = {"index": index, "delta": {"tool_calls": deltas}, "finish_reason": None}
                chunks.append({**self._last_chunk, "choices": [held]})
        return chunks

    def finish_chunks(self) -> list[Json]:
        """The finish chunk of each choice: ``tool_calls`` if, and only if, calls were shown."""
        chunks = []
        for index, choice in sorted(self._choices.items()) or [(0, self._new_choice())]:
            delta = {} if index in self._roles else {"role": "assistant"}
            self._roles.add(index)
            last = {**choice.beside_finish, "index": index, "delta": delta}
            last["finish_reason"] = choice.closing_reason
            chunks.append({**self._last_chunk, "choices": [last]})
        chunks[-1] = {**self._beside_nothing, **chunks[-1]}
        return chunks

    def unary_choices(self) -> list[Json]:
        """The choices of a completion that is not streamed.

        :raises UpstreamBroke: as :meth:`completion`.
        """
        self.completion()
        return [choice.unary(index) for index, choice in sorted(self._choices.items())]

    def _choice(self, index: int) -> _Choice:
        choice = self._choices.get(index)
        if choice is None:
            if len(self._choices) == _MAX_CHOICES:
                raise UpstreamBroke(f"Llama Stack sent more than {_MAX_CHOICES} choices.")
            choice = self._choices[index] = self._new_choice()
        return choice

    def _index(self, choice: Json) -> int:
        """The index of *choice*: 0 for the first that comes, whatever its server calls it."""
        index = number_of(choice.get("index")) or 0
        if self._visibility.shows_all:
            return max(0, index)
        if self._first_index is None:
            self._first_index = index
        return {self._first_index: 0, 0: self._first_index}.get(index, index)

    def _new_choice(self) -> _Choice:
        return _Choice(MessageBuilder(self.reserve), CallReader(self._visibility, self.reserve))

    def _read(self, choice: Json, chunk: Json) -> bool:
        """Read one choice of *chunk*, and make it what the client is shown; False for nothing."""
        choice["index"] = index = self._index(choice)
        state = self._choice(index)
        self._last_chunk = chunk
        delta = choice["delta"] = self._delta(choice, state)
        has_role = bool(delta.get("role"))
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
        if index not in self._roles and (has_role or any(delta.values())):
            delta["role"] = "assistant"
            self._roles.add(index)
        return self._hold_finish(choice, state, any(delta.values()), bool(entries))

    def _delta(self, choice: Json, state: _Choice) -> Json:
        """What *choice* adds: its delta, or what is new in a complete message."""
        message = as_object(choice.pop("message", None))
        delta = as_object(choice.get("delta"))
        if any(value for key, value in delta.items() if key != "role"):
            state.has_deltas = True
        elif message and not state.has_deltas:
            # Some servers send deltas as messages; some send all so far, at the end or always.
            return state.text.new_in(message)
        elif message:
            return state.missing_from_deltas(message)
        return delta

    def _hold_finish(self, choice: Json, state: _Choice, shown: bool, called: bool) -> bool:
        """Hold back the finish reason of *choice* and the fields beside it.

        :param shown: whether its delta is shown.
        :param called: whether its delta had calls: what is beside those is not shown.
        :returns: whether the choice is shown.
        """
        beside = {k: v for k, v in choice.items() if k not in CHOICE_KEYS}
        reason = finish_reason(choice.get("finish_reason"))
        choice["finish_reason"] = None
        if reason:
            state.finish_reason = reason
            # What is about the tokens is shown once.
            beside = {k: None if shown and k in TOKEN_KEYS else v for k, v in beside.items()}
            size = _size(beside)
            if self.reserve(size - state.beside_size):
                state.beside_finish, state.beside_size = beside, size
            return shown
        return shown or (any(beside.values()) and not called)


def _size(value: Json) -> int:
    """The bytes of *value* as JSON."""
    return len(jsontext.dumps(value))


def steers(chunk: Json) -> bool:
    """Whether *chunk* is an event of Open WebUI's own (S9)."""
    return str(chunk.get("type") or "").startswith("response.")
