"""TurnMemory: what a client cannot bring back: the server's calls of a turn that it shared.

In a round with calls of both kinds the client is handed only its own. When it returns with their
results, the model must see the whole turn again: its own message, with the server's calls and
results in their places, and the rounds before it in the same answer (DESIGN: L19, L20).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable

import attrs
from twisted.internet.interfaces import IReactorTime

from llamaproxy import jsontext
from llamaproxy.chat.messages import ToolCall, objects, read_calls, text_of
from llamaproxy.jsontext import Json
from llamaproxy.upstream.headers import Caller


@attrs.frozen
class _Turn:
    """What was said between a client's request and the calls that it was handed.

    No messages at all: two turns that only differ in what the server's tools answered. Which of
    them a client comes back to cannot be told, so it is told neither.
    """

    messages: list[Json]
    size: int
    used_at: float


@attrs.define
class TurnMemory:
    """Remembers shared turns, bounded in entries, bytes and age.

    *max_age*: seconds since a turn was last asked for. One caller's turns are never another's.
    """

    _clock: IReactorTime
    _max_entries: int
    _max_bytes: int
    _max_age: float
    _turns: OrderedDict[bytes, _Turn] = attrs.Factory(OrderedDict)
    _size: int = 0

    def __len__(self) -> int:
        return len(self._turns)

    def remember(
        self, caller: Caller, asked: list[Json], handed: Iterable[ToolCall], said: list[Json]
    ) -> None:
        """Keep *said*, the messages since the client *asked*, of which it was *handed* calls."""
        key = _key(caller, _history(asked), handed)
        known = self._turns.get(key)
        if known is not None and known.messages != said:
            said = []
        size = len(jsontext.dumps(said))
        self._forget(key)
        if size <= self._max_bytes:
            self._turns[key] = _Turn(said, size, self._clock.seconds())
            self._size += size
        while len(self._turns) > self._max_entries or self._size > self._max_bytes:
            self._forget(next(iter(self._turns)))

    def recall(self, caller: Caller, messages: list[Json]) -> list[Json]:
        """*messages* with what is remembered of them back in its places."""
        self._forget_old()
        whole: list[Json] = []
        history = _history([])
        results: list[Json] = []
        for place, message in enumerate(messages):
            calls = _calls(message)
            turn = self._turn(_key(caller, history, calls)) if calls and self._turns else None
            if turn is not None and turn.messages:
                results = _results(messages[place + 1 :])
                whole += _restored(turn.messages, results)
            elif not any(message is result for result in results):
                whole.append(message)
            _add(history, message)
        return whole

    def _turn(self, key: bytes) -> _Turn | None:
        turn = self._turns.get(key)
        if turn is not None:
            self._turns[key] = attrs.evolve(turn, used_at=self._clock.seconds())
            self._turns.move_to_end(key)
        return turn

    def _forget_old(self) -> None:
        oldest = self._clock.seconds() - self._max_age
        while self._turns and next(iter(self._turns.values())).used_at < oldest:
            self._forget(next(iter(self._turns)))

    def _forget(self, key: bytes) -> None:
        turn = self._turns.pop(key, None)
        if turn is not None:
            self._size -= turn.size


def _calls(message: object) -> list[ToolCall]:
    """The calls of an assistant message."""
    if not isinstance(message, dict) or message.get("role") != "assistant":
        return []
    return read_calls(message.get("tool_calls"))


def _results(messages: list[Json]) -> list[Json]:
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
