"""What the scripted model understands: words to the arguments of a call, a result to a sentence."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator

import attrs

from llamaproxy.demo import calculator
from llamaproxy.demo.zones import zones_in
from llamaproxy.jsontext import Json

#: Where in the text a call is asked for, and its arguments.
Found = tuple[int, Json]


@attrs.frozen
class Rule:
    """How one tool is asked for, and how its result is told."""

    example: str
    read: Callable[[str], Iterator[Found]]
    tell: Callable[[Json, str], str]


_NUMBERS = {
    word: number
    for number, word in enumerate(
        "one two three four five six seven eight nine ten eleven twelve".split(), 1
    )
}
_NUMBER = rf"\d+(?:\.\d+)?|{'|'.join(_NUMBERS)}"

_TIME = re.compile(r"\b(?:time|clock|date|today)\b", re.IGNORECASE)
_DATE = re.compile(r"\b\d{4}-\d{1,2}-\d{1,2}\b")
_OPERATORS = (
    (re.compile(r"(?<=\d),(?=\d{3}\b)"), ""),
    (re.compile(r"\b(?:times|multiplied by)\b", re.IGNORECASE), "*"),
    (re.compile(r"\bdivided by\b", re.IGNORECASE), "/"),
    (re.compile(r"\bplus\b", re.IGNORECASE), "+"),
    (re.compile(r"\bminus\b", re.IGNORECASE), "-"),
    (re.compile(r"\bto the power of\b", re.IGNORECASE), "**"),
    (re.compile(r"(?<=\d)\s*x\s*(?=\d)"), "*"),
)
_ARITHMETIC = re.compile(r"(?<![\w.])[-+(]*\d[\d.\s()+*/%-]*")
_CALCULATE = re.compile(r"\bcalculate\s+(?=.*\d)([^?!;]+)", re.IGNORECASE)
_DICE = re.compile(r"\b(\d{0,3})d(\d{1,4})\b", re.IGNORECASE)
_ROLL = re.compile(r"\b(?:roll|throw)\b([^.?!]*?)\b(dice|die)\b", re.IGNORECASE)
_SIDED = re.compile(r"\b(\d+)[- ]sided\b", re.IGNORECASE)
_COUNT = re.compile(rf"\b({_NUMBER})\b", re.IGNORECASE)
_SEED = re.compile(r"\bseed (\d+)", re.IGNORECASE)
_WAIT = re.compile(
    rf"\b(?:wait|pause|sleep)\s+(?:for\s+)?({_NUMBER})\s*(s|secs?|seconds?|m|mins?|minutes?)\b",
    re.IGNORECASE,
)


def _times(text: str) -> Iterator[Found]:
    asked = _TIME.search(text)
    if asked:
        zones = {zone: position for position, zone in zones_in(text)}
        for zone, position in zones.items():
            yield position, {"timezone": zone}
        if not zones:
            yield asked.start(), {}


def _sums(text: str) -> Iterator[Found]:
    plain = calculator.in_ascii(_DATE.sub(" ", text))
    for words, sign in _OPERATORS:
        plain = words.sub(sign, plain)
    found = False
    for match in _ARITHMETIC.finditer(plain):
        expression = _longest_sum(match[0][: calculator.MAX_LENGTH])
        if expression:
            found = True
            yield match.start(), {"expression": expression}
    asked = None if found else _CALCULATE.search(plain)
    if asked:
        # The tool can say better than a rule what is wrong with it.
        yield asked.start(), {"expression": asked[1].strip().rstrip(".")}


def _longest_sum(text: str) -> str | None:
    """What *text* begins with that is arithmetic, with at least one operator between numbers."""
    text = text.rstrip(" .")
    for end in range(len(text), 0, -1):
        try:
            tree = calculator.parse(text[:end])
        except ValueError:
            continue
        return text[:end].strip() if isinstance(tree, ast.BinOp) else None
    return None


def _dice(text: str) -> Iterator[Found]:
    seed = _SEED.search(text)
    seeded: Json = {"seed": int(seed[1])} if seed else {}
    for roll in _DICE.finditer(text):
        yield roll.start(), {"count": int(roll[1] or 1), "sides": int(roll[2]), **seeded}
    for roll in _ROLL.finditer(text):
        sided = _SIDED.search(roll[1])
        count = _COUNT.search(_SIDED.sub("", roll[1]))
        several = 2 if roll[2].lower() == "dice" else 1
        yield (
            roll.start(),
            {
                "count": int(_number(count[1])) if count else several,
                "sides": int(sided[1]) if sided else 6,
                **seeded,
            },
        )


def _waits(text: str) -> Iterator[Found]:
    for wait in _WAIT.finditer(text):
        unit = 60 if wait[2].lower().startswith("m") else 1
        yield wait.start(), {"seconds": _number(wait[1]) * unit}


def _number(word: str) -> float:
    number = float(_NUMBERS.get(word.lower(), 0) or word)
    return int(number) if number.is_integer() else number


def _tell_time(arguments: Json, result: str) -> str:
    place = str(arguments.get("timezone") or "UTC").rpartition("/")[2].replace("_", " ")
    return f"In {place} it is {result}"


def _tell_dice(arguments: Json, result: str) -> str:
    dice = "The die shows" if arguments.get("count", 1) == 1 else "The dice show"
    return f"{dice} {result}"


RULES = {
    "current_time": Rule("What time is it in Oslo?", _times, _tell_time),
    "calculate": Rule(
        "What is 6*7?", _sums, lambda arguments, result: f"{arguments.get('expression')} = {result}"
    ),
    "roll_dice": Rule("Roll two dice.", _dice, _tell_dice),
    "wait": Rule("Wait 3 seconds.", _waits, lambda _, result: f"I {result}"),
}
