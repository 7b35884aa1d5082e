"""ModelMetrics: the completions that the server is asked for, as gateways for models count them.

A series' labels name the model only if a completion of it has succeeded: clients may ask for any.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from llamaproxy.admin import names
from llamaproxy.admin.tallies import Histogram, Measured, Named, Sample
from llamaproxy.events import RoundEnded
from llamaproxy.records import RoundRecord, durations

#: Models that are named, those of which completions have succeeded first; and of failures, the
#: models with their kinds of error.
_MOST = 100

_OF_ALL = (names.CHAT, names.PROVIDER)


class _Model:
    """What has succeeded with one model: the name that clients ask for, and the server's."""

    __slots__ = ("first", "input", "output", "per_token", "seconds")

    def __init__(self) -> None:
        self.seconds = Histogram(names.REQUEST_DURATION)
        self.first = Histogram(names.TIME_TO_FIRST_TOKEN)
        self.per_token = Histogram(names.TIME_PER_OUTPUT_TOKEN)
        self.input = Histogram(names.TOKEN_USAGE)
        self.output = Histogram(names.TOKEN_USAGE)


class ModelMetrics:
    """Counts rounds by model."""

    def __init__(self, failed: Callable[[str], None]) -> None:
        """:param failed: is called with the kind of each error."""
        self._count_error = failed
        self._models = Named(_Model, _MOST, (names.OTHER, names.OTHER))
        #: The names that clients ask for.
        self._asked: set[str] = set()
        #: By name and kind of error.
        self._failed = Named(
            lambda: Histogram(names.REQUEST_DURATION), _MOST, (names.OTHER, names.OTHER)
        )

    def rounds_ended(self, events: Sequence[RoundEnded]) -> None:
        #: Those that succeeded, by the name that the client asked for and the server's.
        by_model: defaultdict[tuple[str, str], list[RoundRecord]] = defaultdict(list)
        streamed: defaultdict[tuple[str, str], list[RoundRecord]] = defaultdict(list)
        failed: list[RoundRecord] = []
        for event in events:
            round = event.round
            if round.kind:
                failed.append(round)
                continue
            chat = round.chat
            key = (chat.model, round.model)
            by_model[key].append(round)
            if chat.streamed and round.first is not None:
                streamed[key].append(round)
        for key, rounds in by_model.items():
            model = self._models.of(key)
            if key in self._models.kept:
                self._asked.add(key[0])
            model.seconds.add_all(durations(rounds))
            _note_tokens(model, rounds)
        for key, rounds in streamed.items():
            _note_streams(self._models.of(key), rounds)
        for round in failed:
            self._failed_round(round)

    def _failed_round(self, round: RoundRecord) -> None:
        self._count_error(round.kind)
        asked = round.chat.model
        name = asked if asked in self._asked else names.OTHER
        self._failed.of((name, round.kind)).add(round.seconds)
        if round.input_tokens is not None or round.output_tokens is not None:
            model = self._models.kept.get((asked, round.model))
            _note_tokens(model or self._models.of(self._models.other), [round])

    def measured(self) -> Iterator[Measured]:
        models = self._models.kept
        failed = [
            ((*_OF_ALL, asked, "", kind), seconds)
            for (asked, kind), seconds in self._failed.kept.items()
        ]
        yield names.REQUEST_DURATION, [*self._each(lambda model: model.seconds, ""), *failed]
        yield names.TIME_TO_FIRST_TOKEN, self._each(lambda model: model.first)
        yield names.TIME_PER_OUTPUT_TOKEN, self._each(lambda model: model.per_token)
        tokens: list[Sample] = []
        for name, model in models.items():
            tokens.append(((*_OF_ALL, *name, names.INPUT), model.input))
            tokens.append(((*_OF_ALL, *name, names.OUTPUT), model.output))
        yield names.TOKEN_USAGE, tokens

    def _each(self, histogram: Callable[[_Model], Histogram], *more: str) -> list[Sample]:
        """One *histogram* of each model, with the values of *more* labels."""
        return [
            ((*_OF_ALL, *name, *more), histogram(model))
            for name, model in self._models.kept.items()
        ]


def _note_tokens(model: _Model, rounds: Sequence[RoundRecord]) -> None:
    """Those of *rounds* that have failed have been used as well."""
    model.input.add_all([each.input_tokens for each in rounds if each.input_tokens is not None])
    model.output.add_all([each.output_tokens for each in rounds if each.output_tokens is not None])


def _note_streams(model: _Model, rounds: Sequence[RoundRecord]) -> None:
    for round in rounds:
        first = round.began if round.first is None else round.first
        model.first.add(first - round.began)
        if round.output_tokens is not None and round.output_tokens > 1:
            ended = round.began if round.ended is None else round.ended
            model.per_token.add((ended - first) / (round.output_tokens - 1))
