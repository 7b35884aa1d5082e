"""A scripted model: it calls the offered tools that a question asks for, and quotes the results."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import attrs

from llamaproxy import jsontext
from llamaproxy.demo.phrases import PHRASES
from llamaproxy.jsontext import Json

MODEL = "demo/scripted"

#: Limits: characters that are read of a question and quoted of a result, calls in one round,
#: names of tools in a sentence.
_MAX_QUESTION = 4000
_MAX_QUOTE = 2000
_MAX_CALLS = 16
_MAX_NAMES = 10

_NAME = re.compile(r"\w+(?:[.:/-]+\w+)*+ ?")
_ERROR = re.compile(r"error\b(?: executing tool \w+)?:? *", re.IGNORECASE)

#: "Wait 2 seconds, then roll a die": one round of calls after the other.
_NEXT_ROUND = re.compile(r"\bthen\b", re.IGNORECASE)

_EXAMPLE_VALUES: Json = {"integer": 1, "number": 1, "boolean": True, "array": [], "object": {}}


@attrs.frozen
class ScriptedCall:
    """A call that the model asks for."""

    name: str
    arguments: Json


@attrs.frozen
class Reply:
    """The model's answer: text, or calls."""

    content: str | None
    calls: list[ScriptedCall] = attrs.Factory(list)


@attrs.define
class _Turn:
    """The last question, the rounds of calls made since, and the sentences about their results."""

    question: str = ""
    rounds: int = 0
    reports: list[str] = attrs.Factory(list)


def reply(body: Json) -> Reply:
    """The model's answer to a chat completion request; it takes any JSON for messages and tools."""
    turn, choice = _turn(body["messages"]), body.get("tool_choice")
    functions = [_object(tool.get("function")) for tool in _objects(body.get("tools"))]
    offered = {
        name: _object(function.get("parameters"))
        for function in functions
        if isinstance(name := function.get("name"), str)
    }
    calls = _calls(turn, offered, choice)
    if calls:
        return Reply(None, calls[:_MAX_CALLS])
    return Reply(" ".join(turn.reports) or _introduction(turn.question, offered, choice))


def text_of(content: object) -> str:
    """The text of a message's content, which is a string or a list of parts."""
    if isinstance(content, str):
        return content
    texts = (part.get("text") for part in _objects(content))
    return " ".join(text for text in texts if isinstance(text, str))


def _calls(turn: _Turn, offered: dict[str, Json], choice: object) -> list[ScriptedCall]:
    """The calls of this round; a forced choice is obeyed in every round."""
    if isinstance(choice, dict):
        name = _object(choice.get("function")).get("name")
        offered = {key: schema for key, schema in offered.items() if key == name}
    if not offered or choice == "none":
        return []
    parts = _NEXT_ROUND.split(turn.question)
    rounds = [calls for part in parts if (calls := _requested(part, offered))]
    if turn.rounds < len(rounds):
        return rounds[turn.rounds]
    if choice != "required" and not isinstance(choice, dict):
        return []
    name, schema = next(iter(offered.items()))
    return rounds[-1] if rounds else [ScriptedCall(name, _example(schema, turn.question))]


def _requested(text: str, offered: dict[str, Json]) -> list[ScriptedCall]:
    """The calls of offered tools that *text* asks for, in its order."""
    calls = list(_named(text, offered))
    for name in PHRASES.keys() & offered.keys():
        requests = PHRASES[name].requests(text)
        calls += [(start, ScriptedCall(name, arguments)) for start, arguments in requests]
    return [call for _, call in sorted(calls, key=lambda each: each[0])]


def _named(text: str, offered: dict[str, Json]) -> Iterator[tuple[int, ScriptedCall]]:
    """Calls by a tool's name, with or without its arguments: ``get_text {"city": "Oslo"}``.

    The names of the demonstration's own tools are ordinary words, which need other ones.
    """
    position = 0
    while match := _NAME.search(text, position):
        position = match.end()
        name = match[0].rstrip(" ")
        if name in offered and name not in PHRASES:
            try:
                arguments, position = json.JSONDecoder().raw_decode(text, position)
            except (ValueError, RecursionError):
                arguments = None
            if not isinstance(arguments, dict):
                arguments = _example(offered[name], text)
            yield match.start(), ScriptedCall(name, arguments)


def _example(schema: Json, text: str) -> Json:
    """Arguments of the types that *schema* requires, *text* for each string."""
    properties = _object(schema.get("properties"))
    required = schema.get("required")
    names = map(str, required) if isinstance(required, list) else ()
    types = {name: str(_object(properties.get(name)).get("type")) for name in names}
    return {name: _EXAMPLE_VALUES.get(kind, text) for name, kind in types.items()}


def _turn(messages: object) -> _Turn:
    turn = _Turn()
    calls: dict[str, ScriptedCall] = {}
    for message in _objects(messages):
        content = text_of(message.get("content"))
        match message.get("role"):
            case "user":
                turn = _Turn(" ".join(content[:_MAX_QUESTION].split()))
            case "assistant" if message.get("tool_calls"):
                turn.rounds += 1
                calls.update(_calls_of(message))
            case "tool":
                call = calls.get(str(message.get("tool_call_id")), ScriptedCall("A tool", {}))
                turn.reports.append(_report(call, content.strip()))
    return turn


def _calls_of(message: Json) -> Iterator[tuple[str, ScriptedCall]]:
    """The calls of an assistant message, by id."""
    for call in _objects(message["tool_calls"]):
        function = _object(call.get("function"))
        try:
            arguments = _object(jsontext.loads(function.get("arguments") or "{}"))
        except (ValueError, TypeError, AttributeError):
            arguments = {}
        yield str(call.get("id")), ScriptedCall(str(function.get("name")), arguments)


def _report(call: ScriptedCall, result: str) -> str:
    """A sentence that quotes a tool's result."""
    quote = result if len(result) <= _MAX_QUOTE else f"{result[:_MAX_QUOTE]}…"
    if error := _ERROR.match(quote):
        sentence = f"{call.name} failed: {quote[error.end() :]}"
    elif call.name in PHRASES:
        sentence = PHRASES[call.name].report(call.arguments, quote)
    else:
        sentence = f"{call.name} says: {quote or 'nothing'}"
    return sentence if sentence.endswith((".", "!", "?", "…", "}", "]")) else f"{sentence}."


def _introduction(question: str, offered: dict[str, Json], choice: object) -> str:
    """What the model is, and what it understands."""
    model = "I am a script that stands in for a language model"
    if choice == "none":
        return f"{model}, and this request told me to call no tools."
    phrases = {name: phrase for name, phrase in PHRASES.items() if name not in offered}
    if missing := [name for name, phrase in phrases.items() if any(phrase.requests(question))]:
        return f"{model}. This needs a tool that I was not offered: {', '.join(missing)}."
    if not offered:
        return f"{model}. I was offered no tools, and without tools I know nothing."
    own_examples = [f'"{phrase.example}"' for name, phrase in PHRASES.items() if name in offered]
    other_names = [f"the name {name}" for name in offered if name not in PHRASES][:_MAX_NAMES]
    return (
        f"{model}, and understand only what is like these: {', '.join(own_examples + other_names)}."
    )


def _object(value: object) -> Json:
    """*value* if it is an object, otherwise an empty one."""
    return value if isinstance(value, dict) else {}


def _objects(value: object) -> list[Json]:
    """The objects in *value*, if it is a list."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
