"""The tools of the demonstration, real ones, as Llama Stack 0.6.1 lists and runs them."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from llamaproxy.demo.calculator import calculate
from llamaproxy.jsontext import Json

#: The tool group that all of them belong to, and the provider that it claims to come from.
GROUP = "demo::tools"
PROVIDER = "demo"

#: Limits of the tools, in seconds and in numbers of dice and sides.
MAX_WAIT = 300
MAX_DICE = 100
MAX_SIDES = 1000

_TYPES: Json = {"string": str, "integer": int, "number": (int, float)}


@attrs.frozen
class Tool:
    """One tool: its definition, and the function that runs it."""

    name: str
    description: str
    #: The JSON schema of each argument; one without a default is required.
    properties: dict[str, Json]
    run: Callable[..., str | Awaitable[str]]

    def definition(self) -> Json:
        """The tool as ``GET /v1/tools`` of 0.6.1 describes it."""
        return {
            "toolgroup_id": GROUP,
            "name": self.name,
            "description": self.description,
            "input_schema": {
                "properties": self.properties,
                "required": [
                    key for key in self.properties if "default" not in self.properties[key]
                ],
                "title": f"{self.name}Arguments",
                "type": "object",
            },
            "output_schema": None,
            "metadata": None,
        }

    async def invoke(self, kwargs: Json) -> Json:
        """Run the tool; the answer of ``POST /v1/tool-runtime/invoke`` of 0.6.1 (recorded).

        A failure is a result too, with an error code.
        """
        error_code = 0
        try:
            result = self.run(**self._arguments(kwargs))
            text = result if isinstance(result, str) else await result
        except ValueError as error:
            error_code = 1
            text = f"Error executing tool {self.name}: {error}"
        return {
            "content": [{"type": "text", "text": text}],
            "error_message": None,
            "error_code": error_code,
            "metadata": None,
        }

    def _arguments(self, kwargs: Json) -> Json:
        """The arguments of a call, of the right types; null is as good as none.

        :raises ValueError: if one is missing or of another type.
        """
        arguments: Json = {}
        for name, schema in self.properties.items():
            value = kwargs.get(name)
            if value is not None and not _is(value, schema["type"]):
                raise ValueError(f"{name}: Input should be a valid {schema['type']}")
            if value is None and "default" not in schema:
                raise ValueError(f"{name}: Field required")
            arguments[name] = schema["default"] if value is None else value
        return arguments


def _is(value: object, kind: str) -> bool:
    return isinstance(value, _TYPES[kind]) and not isinstance(value, bool)


def demo_tools(clock: IReactorTime, now: Callable[[], float]) -> dict[str, Tool]:
    """The four tools by name; *now* is the time of day, in seconds since 1970."""

    async def wait(seconds: float) -> str:
        if not 0 <= seconds <= MAX_WAIT:
            raise ValueError(f"seconds must be between 0 and {MAX_WAIT}")
        await deferLater(clock, seconds)
        return f"waited {seconds:g} {'second' if seconds == 1 else 'seconds'}"

    tools = (
        Tool(
            "current_time",
            "The current date and time in a time zone.",
            {"timezone": _argument("string", "IANA name, such as Europe/Oslo.", default="UTC")},
            lambda timezone: current_time(timezone, now()),
        ),
        Tool(
            "calculate",
            "The value of an arithmetic expression: numbers, + - * / // % ** and parentheses.",
            {"expression": _argument("string", "For example (2 + 3) * 4.")},
            calculate,
        ),
        Tool(
            "roll_dice",
            "Roll dice. The same seed always gives the same roll.",
            {
                "count": _argument("integer", f"How many dice, 1 to {MAX_DICE}.", default=1),
                "sides": _argument("integer", f"Sides of each, 2 to {MAX_SIDES}.", default=6),
                "seed": _argument("integer", "For a roll that can be repeated.", default=None),
            },
            roll_dice,
        ),
        Tool(
            "wait",
            "Wait, then say so.",
            {"seconds": _argument("number", f"How long, at most {MAX_WAIT}.")},
            wait,
        ),
    )
    return {tool.name: tool for tool in tools}


def _argument(kind: str, description: str, **default: Any) -> Json:
    return {"type": kind, "description": description, **default}


def current_time(timezone: str, now: float) -> str:
    """The moment *now*, in seconds since 1970, on the clocks of an IANA time zone.

    :raises ValueError: if there is no such zone.
    """
    if timezone not in time_zones().values():
        hint = "use an IANA name such as Europe/Oslo"
        raise ValueError(f"there is no time zone {timezone[:60]!r}: {hint}")
    moment = datetime.fromtimestamp(now, ZoneInfo(timezone))
    offset = moment.isoformat(timespec="seconds")[19:]
    return f"{moment:%H:%M:%S} on {moment:%A} {moment.day} {moment:%B %Y} (UTC{offset})"


#: Last parts such as that of Australia/South, with which other places' names begin.
_NO_CITIES = frozenset({"north", "south", "east", "west", "central", "center", "general"})


@cache
def time_zones() -> dict[str, str]:
    """All IANA names, by themselves and by their last parts ("new york"), in small letters."""
    # Of several with one last part the shortest wins.
    names = sorted(available_timezones(), key=lambda name: (-len(name), name))
    cities = {name.rpartition("/")[2].replace("_", " ").lower(): name for name in names}
    zones = cities | {name.lower(): name for name in names}
    return {key: name for key, name in zones.items() if key not in _NO_CITIES}


def roll_dice(count: int, sides: int, seed: int | None) -> str:
    """What the dice show, in words.

    :raises ValueError: if there are too few or too many, or no such dice.
    """
    if not 1 <= count <= MAX_DICE:
        raise ValueError(f"count must be between 1 and {MAX_DICE}")
    if not 2 <= sides <= MAX_SIDES:
        raise ValueError(f"sides must be between 2 and {MAX_SIDES}")
    generator = random.Random(seed)
    faces = [generator.randint(1, sides) for _ in range(count)]
    if count == 1:
        return str(faces[0])
    return f"{', '.join(map(str, faces[:-1]))} and {faces[-1]}, together {sum(faces)}"
