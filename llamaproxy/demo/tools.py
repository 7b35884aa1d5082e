"""The tools of the demonstration, real ones, as Llama Stack 0.6.1 lists and runs them."""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from llamaproxy.demo.calculator import calculate
from llamaproxy.demo.zones import current_time
from llamaproxy.jsontext import Json

#: The tool group that all of them belong to, and the provider that it claims to come from.
GROUP = "demo::tools"
PROVIDER = "demo"

MAX_WAIT = 300.0
MAX_DICE = 100
MAX_SIDES = 1000


@attrs.frozen
class Parameter:
    """One argument of a tool: its schema, and its value in a call.

    A default of None makes it nullable; without a default (``...``) it is required.
    """

    name: str
    type: Literal["string", "integer", "number"]
    description: str
    default: Any = ...

    @property
    def required(self) -> bool:
        return self.default is ...

    def schema(self) -> Json:
        kind: Json = {"type": self.type}
        if self.default is None:
            kind = {"anyOf": [kind, {"type": "null"}]}
        if not self.required:
            kind["default"] = self.default
        return {**kind, "description": self.description, "title": self.name.capitalize()}

    def read(self, kwargs: Json) -> Any:
        """The argument, converted as leniently as the real server does ("3" is an integer).

        :raises ValueError: if it is missing or of another type.
        """
        value = kwargs.get(self.name, self.default)
        if value is ...:
            raise ValueError(f"{self.name}: Field required")
        if value is None and self.default is None:
            return None
        try:
            return _CONVERT[self.type](value)
        except (ValueError, OverflowError):
            raise ValueError(f"{self.name}: Input should be a valid {self.type}") from None


@attrs.frozen
class Tool:
    """One tool: what a model is told of it, and what runs."""

    name: str
    description: str
    parameters: tuple[Parameter, ...]
    run: Callable[..., Awaitable[str]]

    def definition(self) -> Json:
        """The tool as ``GET /v1/tools`` of 0.6.1 describes it (recorded)."""
        return {
            "toolgroup_id": GROUP,
            "name": self.name,
            "description": self.description,
            "input_schema": {
                "properties": {each.name: each.schema() for each in self.parameters},
                "required": [each.name for each in self.parameters if each.required],
                "title": f"{self.name}Arguments",
                "type": "object",
            },
            "output_schema": {
                "properties": {"result": {"title": "Result", "type": "string"}},
                "required": ["result"],
                "title": f"{self.name}Output",
                "type": "object",
            },
            "metadata": None,
        }

    async def invoke(self, kwargs: Json) -> Json:
        """Run the tool; the answer of ``POST /v1/tool-runtime/invoke`` of 0.6.1 (recorded).

        A tool that fails says so in the result, with an error code.
        """
        error_code = 0
        try:
            text = await self.run(**{each.name: each.read(kwargs) for each in self.parameters})
        except ValueError as error:
            error_code = 1
            text = f"Error executing tool {self.name}: {error}"
        return {
            "content": [{"type": "text", "text": text}],
            "error_message": None,
            "error_code": error_code,
            "metadata": None,
        }


def demo_tools(clock: IReactorTime, now: Callable[[], float] | None = None) -> dict[str, Tool]:
    """The four tools by name; the waiting is that of *clock*, and so is the time without *now*."""
    time_of_day = clock.seconds if now is None else now

    async def run_current_time(timezone: str) -> str:
        return current_time(timezone, time_of_day())

    async def run_calculate(expression: str) -> str:
        return calculate(expression)

    async def run_roll_dice(count: int, sides: int, seed: int | None) -> str:
        return roll_dice(count, sides, seed)

    async def run_wait(seconds: float) -> str:
        if not 0 <= seconds <= MAX_WAIT:
            raise ValueError(f"seconds must be between 0 and {MAX_WAIT:g}")
        await deferLater(clock, seconds)
        return f"waited {seconds:g} {'second' if seconds == 1 else 'seconds'}"

    tools = (
        Tool(
            "current_time",
            "The current date and time in a time zone.",
            (Parameter("timezone", "string", "IANA time zone, such as Europe/Oslo.", "UTC"),),
            run_current_time,
        ),
        Tool(
            "calculate",
            "The value of an arithmetic expression: numbers, + - * / // % ** and parentheses.",
            (Parameter("expression", "string", "For example (2 + 3) * 4."),),
            run_calculate,
        ),
        Tool(
            "roll_dice",
            "Roll dice. The same seed always gives the same roll.",
            (
                Parameter("count", "integer", f"How many dice, 1 to {MAX_DICE}.", 1),
                Parameter("sides", "integer", f"Sides of each, 2 to {MAX_SIDES}.", 6),
                Parameter("seed", "integer", "For a roll that can be repeated.", None),
            ),
            run_roll_dice,
        ),
        Tool(
            "wait",
            "Wait, then say so.",
            (Parameter("seconds", "number", f"How long, at most {MAX_WAIT:g}."),),
            run_wait,
        ),
    )
    return {tool.name: tool for tool in tools}


def roll_dice(count: int, sides: int, seed: int | None) -> str:
    """What the dice show, in words.

    :raises ValueError: if nobody has such dice.
    """
    if not 1 <= count <= MAX_DICE:
        raise ValueError(f"count must be between 1 and {MAX_DICE}")
    if not 2 <= sides <= MAX_SIDES:
        raise ValueError(f"sides must be between 2 and {MAX_SIDES}")
    chance = random.Random(seed)
    rolled = [chance.randint(1, sides) for _ in range(count)]
    if count == 1:
        return str(rolled[0])
    return f"{', '.join(map(str, rolled[:-1]))} and {rolled[-1]}, together {sum(rolled)}"


def _string(value: object) -> str:
    if isinstance(value, str):
        return value
    raise ValueError


def _number(value: object) -> float:
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        number = float(value)
        if math.isfinite(number):
            return number
    raise ValueError


def _integer(value: object) -> int:
    if isinstance(value, int | str) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise ValueError


_CONVERT: dict[str, Callable[[object], Any]] = {
    "string": _string,
    "integer": _integer,
    "number": _number,
}
