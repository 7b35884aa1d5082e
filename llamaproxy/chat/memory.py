"""TurnMemory: what a client cannot bring back: the server's calls of a turn that it shared.

In a round with calls of both kinds the client is handed only its own. When it returns with their
results, the model must see the whole turn again: its own message, with the server's calls and
results in their places, and the rounds before it in the same answer (DESIGN: L19, L20).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice

import attrs
from twisted.internet.interfaces import IReactorTime

from llamaproxy import jsontext
from llamaproxy.chat.messages import ToolCall, objects, read_calls, text_of
from llamaproxy.jsontext import Json
from llamaproxy.upstream.headers import Caller

#: Turns kept that began alike: more are of clients that never came back.
_MAX_ALIKE = 16


@attrs.define
class _Turn:
    """What was said between a client's request and the calls that it was handed.

    *answered* are the results with which the client came back, once it has.
    """

    messages: list[Json]
    size: int
    answered: bytes | None = None


@attrs.define
class _Place:
    """The turns that began after the same messages with the same calls; mostly there is one."""

    turns: list[_Turn] = attrs.Factory(list)
    used_at: float = 0.0

    def turn(self, results: bytes) -> _Turn | None:
        """The turn that a client returns to with *results*.

        Where several wait for their client and their tools answered differently, none: whose the
        answers are cannot be told, and no conversation may be shown those of another.
        """
        known = [turn for turn in self.turns if turn.answered == results]
        waiting = [turn for turn in self.turns if turn.answered is None]
        if not known and len({_without_ids(turn.messages) for turn in waiting}) == 1:
            waiting[-1].answered = results
            self.turns = [turn for turn in self.turns if turn.answered is not None]
            return waiting[-1]
        return known[-1] if known else None


@attrs.define
class TurnMemory:
    """Remembers shared turns, bounded in entries, bytes and age.

    *max_age*: seconds since a turn was last asked for. One caller's turns are never another's.
    """

    _clock: IReactorTime
    _max_entries: int
    _max_bytes: int
    _max_age: float
    _places: OrderedDict[bytes, _Place] = attrs.Factory(OrderedDict)

    def __len__(self) -> int:
        return sum(len(place.turns) for place in self._places.values())

    def remember(
        self, caller: Caller, asked: list[Json], handed: Iterable[ToolCall], said: list[Json]
    ) -> None:
        """Keep *said*, the messages since the client *asked*, of which it was *handed* calls."""
        key = _key(caller, _history(asked), handed)
        turn = _Turn(said, len(jsontext.dumps(said)))
        place = self._places.setdefault(key, _Place())
        place.turns = [*place.turns[1 - _MAX_ALIKE :], turn]
        self._touch(key, place)
        while self._places and (len(self) > self._max_entries or self._size() > self._max_bytes):
            self._places.popitem(last=False)

    def recall(self, caller: Caller, messages: list[Json]) -> list[Json]:
        """*messages* with what is remembered of them back in its places."""
        self._forget_old()
        if not self._places:
            return list(messages)
        whole: list[Json] = []
        history = _history([])
        results: list[Json] = []
        for number, message in enumerate(messages):
            calls = _calls(message)
            answers = _results(islice(messages, number + 1, None)) if calls else []
            turn = self._turn(_key(caller, history, calls), answers) if calls else None
            if turn is not None:
                results = answers
                whole += _restored(turn.messages, results)
            elif not any(message is result for result in results):
                whole.append(message)
            _add(history, message)
        return whole

    def _turn(self, key: bytes, answers: list[Json]) -> _Turn | None:
        place = self._places.get(key)
        if place is None:
            return None
        self._touch(key, place)
        return place.turn(_history(answers).digest())

    def _touch(self, key: bytes, place: _Place) -> None:
        place.used_at = self._clock.seconds()
        self._places.move_to_end(key)

    def _size(self) -> int:
        return sum(turn.size for place in self._places.values() for turn in place.turns)

    def _forget_old(self) -> None:
        oldest = self._clock.seconds() - self._max_age
        while self._places and next(iter(self._places.values())).used_at < oldest:
            self._places.popitem(last=False)


def _without_ids(messages: list[Json]) -> bytes:
    """What was said and answered, whatever ids its calls had."""
    said = [
        [
            message.get("role"),
            text_of(message.get("content")),
            [[call.name, call.arguments] for call in read_calls(message.get("tool_calls"))],
        ]
        for message in messages
    ]
    return jsontext.canonical(said)


def _calls(message: object) -> list[ToolCall]:
    """The calls of an assistant message."""
    if not isinstance(message, dict) or message.get("role") != "assistant":
        return []
    return read_calls(message.get("tool_calls"))


def _results(messages: Iterable[Json]) -> list[Json]:
    """The tool messages that *messages* begin with."""
    results: list[Json] = []
    for message in messages:
        if not isinstance(message, dict) or message.get("role") != "tool":
            break
        results.append(message)
    return results


def _restored(said: list[Json], results: list[Json]) -> list[Json]:
    """The whole turn: *said*, with the client's *results* between ours in the calls' order."""
    last = max(n for n, message in enumerate(said) if message.get("role") == "assistant")
    order = [entry["id"] for entry in objects(said[last].get("tool_calls"))]
    told = [*said[last + 1 :], *results]
    rank = {call_id: place for place, call_id in enumerate(order)}
    told.sort(key=lambda message: rank.get(str(message.get("tool_call_id")), len(order)))
    return [*said[: last + 1], *told]


def _key(caller: Caller, history: hashlib._Hash, calls: Iterable[ToolCall]) -> bytes:
    """Whose turn it is, after which messages, and which calls were handed over.

    Models repeat the ids of their calls in every conversation, so these alone say nothing.
    """
    key = history.copy()
    made = sorted([call.id, call.name, _arguments(call)] for call in calls)
    key.update(jsontext.dumps(made))
    key.update(repr(caller.credentials).encode())
    return key.digest()


def _arguments(call: ToolCall) -> str:
    """The arguments, however they are written: clients parse them and write them anew."""
    try:
        return jsontext.canonical(jsontext.loads(call.arguments)).decode("utf-8", "replace")
    except ValueError:
        return call.arguments


def _history(messages: list[Json]) -> hashlib._Hash:
    history = hashlib.sha256()
    for message in messages:
        _add(history, message)
    return history


def _add(history: hashlib._Hash, message: object) -> None:
    """Add what identifies *message*, however its sender writes it."""
    if not isinstance(message, dict):
        return
    calls = sorted(str(call.get("id")) for call in objects(message.get("tool_calls")))
    said = [message.get("role"), calls, message.get("tool_call_id")]
    if not calls:
        # What is said beside calls is brought back in different ways: as text, empty, or not.
        content = message.get("content")
        parts = [part for part in objects(content) if part.get("type") != "text"]
        said += [text_of(content).strip(), parts]
    history.update(jsontext.canonical(said))
