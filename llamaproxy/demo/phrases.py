"""The phrases that the scripted model understands, and its sentences about tool results."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import attrs

from llamaproxy.demo.tools import time_zones
from llamaproxy.jsontext import Json

#: Where a phrase begins in the question, and the arguments of the call that it asks for.
Request = tuple[int, Json]


@attrs.frozen
class Phrase:
    """How a question asks for one tool, and the sentence that reports the tool's result."""

    example: str
    requests: Callable[[str], Iterator[Request]]
    report: Callable[[Json, str], str]


_NUMBER_WORDS = {"a": 1, "an": 1} | {
    word: number
    for number, word in enumerate("one two three four five six seven eight nine ten".split(), 1)
}
_NUMBER = rf"(?:[0-9]{{1,9}}(?:\.[0-9]{{1,9}})?|{'|'.join(_NUMBER_WORDS)})"

_TIME = re.compile(r"\b(?:time|date|today|what day)\b(?:[^?!.;]*?\bin ([^?!.;]+))?", re.IGNORECASE)
_NEXT_PLACE = re.compile(r", ?|(?: and| or)(?: in)? ")
_ROLL = re.compile(
    rf"\b(?:roll|throw) (?:the )?(?:({_NUMBER}) )?(?:([0-9]{{1,9}})[- ]sided )?(?:dice|die)\b"
    r"|\b([0-9]{0,9})d([0-9]{1,9})\b",
    re.IGNORECASE,
)
_SEED = re.compile(r"\bseed ([0-9]{1,9})\b", re.IGNORECASE)
_WAIT = re.compile(rf"\bwait (?:for )?({_NUMBER}) ?(s|sec|second|min|minute)s?\b", re.IGNORECASE)

_WORD_OPERATORS = {
    "plus": "+",
    "minus": "-",
    "times": "*",
    "x": "*",
    "divided by": "/",
    "^": "**",
    "\N{MULTIPLICATION SIGN}": "*",
    "\N{DIVISION SIGN}": "/",
    "\N{MINUS SIGN}": "-",
}
_WORD_OPERATOR = re.compile("|".join(map(re.escape, _WORD_OPERATORS)), re.IGNORECASE)
_OPERAND = r"(?>(?:[-+(] ?)*)(?>(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?)(?>(?:\.[0-9]+)?)(?<=[0-9])"
#: Operands with operators between them, no part of a date, a time of day or a longer number.
#: Nothing in it backtracks, so that the search costs no more than the question is long: by atomic
#: groups, for of several possessive quantifiers Python 3.11.2, which Debian 12 has, finds fewer
#: (gh-100061).
_SUM = re.compile(
    rf"(?<![\w.,:(+-])(?<![(+-] )(?![0-9]{{4}}-[0-9][0-9]-){_OPERAND}"
    rf"(?>(?:(?>[) ]*)(?:\*\*|[-+*%]|//?|{_WORD_OPERATOR.pattern}) ?{_OPERAND})+)(?>(?: ?\))*)"
    r"(?!\w|[.,:][0-9])",
    re.IGNORECASE,
)


def _time_requests(question: str) -> Iterator[Request]:
    match = _TIME.search(question)
    if match and match[1]:
        first, *other_places = _NEXT_PLACE.split(match[1])
        yield match.start(), {"timezone": _zone(first) or first[:60]}
        for zone in filter(None, map(_zone, other_places)):
            yield match.start(), {"timezone": zone}
    elif match:
        yield match.start(), {}


def _zone(place: str) -> str | None:
    """The zone that the first words of *place* name: "New York right now"."""
    words = place.lower().split(maxsplit=3)[:3]
    names = (" ".join(words[:count]) for count in range(len(words), 0, -1))
    return next(filter(None, map(time_zones().get, names)), None)


def _sum_requests(question: str) -> Iterator[Request]:
    for match in _SUM.finditer(question):
        expression = _WORD_OPERATOR.sub(
            lambda operator: _WORD_OPERATORS[operator[0].lower()], match[0].replace(",", "")
        )
        unopened = max(0, expression.count(")") - expression.count("("))
        yield match.start(), {"expression": expression[: len(expression) - unopened]}


def _roll_requests(question: str) -> Iterator[Request]:
    seed = _SEED.search(question)
    for roll in _ROLL.finditer(question):
        count, sides = roll[1] or roll[3] or "1", roll[2] or roll[4] or "6"
        arguments = {"count": _number(count), "sides": int(sides)}
        yield roll.start(), arguments | ({"seed": int(seed[1])} if seed else {})


def _wait_requests(question: str) -> Iterator[Request]:
    for wait in _WAIT.finditer(question):
        seconds_in_unit = 60 if wait[2].lower().startswith("m") else 1
        yield wait.start(), {"seconds": _number(wait[1]) * seconds_in_unit}


def _number(text: str) -> int | float:
    return _NUMBER_WORDS.get(text.lower()) or (float(text) if "." in text else int(text))


def _report_time(arguments: Json, result: str) -> str:
    place = str(arguments.get("timezone") or "UTC").rpartition("/")[2].replace("_", " ")
    return f"In {place} it is {result}"


def _report_sum(arguments: Json, result: str) -> str:
    return f"{arguments.get('expression')} = {result}"


def _report_roll(arguments: Json, result: str) -> str:
    return f"The {'die shows' if arguments.get('count', 1) == 1 else 'dice show'} {result}"


#: By the name of the tool.
PHRASES = {
    "current_time": Phrase("What time is it in Oslo?", _time_requests, _report_time),
    "calculate": Phrase("What is 6*7?", _sum_requests, _report_sum),
    "roll_dice": Phrase("Roll two dice.", _roll_requests, _report_roll),
    "wait": Phrase("Wait 3 seconds.", _wait_requests, lambda _, result: f"I {result}"),
}
