"""What ends a tool loop: too many rounds, and a call that always has the same result (L15)."""

from __future__ import annotations

import attrs

from llamaproxy import jsontext
from llamaproxy.chat.messages import ToolCall
from llamaproxy.errors import ToolFailed
from llamaproxy.tools.arguments import parse_arguments
from llamaproxy.tools.names import plain_name
from llamaproxy.tools.results import ToolResult

#: Rounds in a row in which the same call may have the same result.
_MAX_REPEATS = 3

CallResults = list[tuple[ToolCall, ToolResult]]


class Repeats:
    """Looks for calls that have had the same result in several rounds in a row."""

    def __init__(self) -> None:
        self._rounds: list[CallResults] = []

    def too_many(self, results: CallResults) -> bool:
        """Note the *results* of a round; whether a call has been repeated too often."""
        self._rounds = [*self._rounds, results][-_MAX_REPEATS:]
        if len(self._rounds) < _MAX_REPEATS:
            return False
        return bool(set.intersection(*map(_keys, self._rounds)))


def _keys(results: CallResults) -> set[tuple[str, bytes, str]]:
    return {
        (plain_name(call.name), jsontext.canonical(_arguments(call)), result.text)
        for call, result in results
    }


def _arguments(call: ToolCall) -> object:
    try:
        return parse_arguments(call.arguments)
    except ToolFailed:
        return call.arguments


@attrs.frozen(eq=False, repr=False)
class Limit:
    """A limit that ends a loop.

    *name* is its name in the log, *note* is added to the last results for the model, and *fallback*
    is the answer if the model gives none.
    """

    name: str
    note: str
    fallback: str

    def noted(self, result: ToolResult) -> ToolResult:
        """*result* with the note behind its text."""
        return attrs.evolve(result, text=f"{result.text}\n\n[{self.note}]")


ROUNDS = Limit(
    "rounds",
    "This was the last round of tool calls that is allowed. Answer with what is known.",
    "I stopped after {rounds} rounds of tool calls without reaching an answer.",
)

REPETITION = Limit(
    "repetition",
    "The same call has come to the same result three times in a row, so no more tools are run. "
    "Answer with what is known.",
    "I stopped because I was repeating the same tool call without reaching an answer.",
)
