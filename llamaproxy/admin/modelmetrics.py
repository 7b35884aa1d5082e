"""ModelMetrics: the completions that the server is asked for, as gateways for models count them.

A series' labels name the model only if a completion of it has succeeded: clients may ask for any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from llamaproxy.admin import names
from llamaproxy.admin.tallies import Histogram, Measured, Named, Sample
from llamaproxy.events import RoundEnded
from llamaproxy.records import RoundRecord

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

    def __init__(self) -> None:
        self._models = Named(_Model, _MOST, (names.OTHER, names.OTHER))
        #: The names that clients ask for.
        self._asked: set[str] = set()
        #: By name and kind of error.
        self._failed = Named(
            lambda: Histogram(names.REQUEST_DURATION), _MOST, (names.OTHER, names.OTHER)
        )

    def round_ended(self, event: RoundEnded) -> None:
        round = event.round
        ended = round.began if round.ended is None else round.ended
        chat = round.chat
        asked = chat.model
        key = (asked, round.model)
        model = self._models.kept.get(key)
        if round.kind:
            name = asked if asked in self._asked else names.OTHER
            self._failed.of((name, round.kind)).add(ended - round.began)
            if round.input_tokens is not None or round.output_tokens is not None:
                _note_tokens(model or self._models.of(self._models.other), round)
            return
        if model is None:
            model = self._models.of(key)
            if key in self._models.kept:
                self._asked.add(asked)
        model.seconds.add(ended - round.began)
        _note_tokens(model, round)
        if chat.streamed and round.first is not None:
            _note_stream(model, round, round.first, ended)

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


def _note_tokens(model: _Model, round: RoundRecord) -> None:
    """Those of a *round* that has failed have been used as well."""
    if round.input_tokens is not None:
        model.input.add(round.input_tokens)
    if round.output_tokens is not None:
        model.output.add(round.output_tokens)


def _note_stream(model: _Model, round: RoundRecord, first: float, ended: float) -> None:
    model.first.add(first - round.began)
    if round.output_tokens is not None and round.output_tokens > 1:
        model.per_token.add((ended - first) / (round.output_tokens - 1))
