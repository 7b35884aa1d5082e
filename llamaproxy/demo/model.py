"""A model that follows rules: it calls the tools it is offered and quotes what they say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import attrs

from llamaproxy import jsontext
from llamaproxy.demo.rules import RULES, Found
from llamaproxy.jsontext import Json

MODEL = "demo/scripted"

#: So much of a question is read, so much of a result is quoted, so many calls are made at once.
_MAX_QUESTION = 4000
_MAX_QUOTE = 2000
_MAX_CALLS = 16

#: "Wait 2 seconds, then roll a die": one round of calls after the other.
_THEN = re.compile(r"[\s,;.]*\b(?:and )?then\b", re.IGNORECASE)


@attrs.frozen
class ToolCall:
    """A call that the model asks for."""

    name: str
    arguments: Json


@attrs.frozen
class Reply:
    """What the model says: words, or calls."""

    content: str | None
    calls: list[ToolCall] = attrs.Factory(list)


@attrs.define
class _Turn:
    """The last question, how many rounds of calls it has had, and what came of them."""

    question: str = ""
    rounds: int = 0
    results: list[str] = attrs.Factory(list)


def reply(body: Json) -> Reply:
    """The model's answer to a chat completion request."""
    turn = _turn(body["messages"])
    offered = _offered(body)
    choice = body.get("tool_choice")
    calls = _calls(turn, offered, choice)
    if calls:
        return Reply(None, calls[:_MAX_CALLS])
    if turn.results:
        return Reply(" ".join(turn.results))
    return Reply(_introduction(turn.question, offered, choice))


def text_of(content: object) -> str:
    """The words of a message's content, a string or a list of parts."""
    if isinstance(content, str):
        return content
    texts = (part.get("text") for part in _objects(content))
    return " ".join(text for text in texts if isinstance(text, str))


def _calls(turn: _Turn, offered: dict[str, Json], choice: object) -> list[ToolCall]:
    """The calls to make now; a forced choice is obeyed whatever was called before."""
    if not offered or choice == "none":
        return []
    steps = [step for part in _THEN.split(turn.question) if (step := _asked(part, offered))]
    if isinstance(choice, dict):
        name = _object(choice.get("function")).get("name")
        if name not in offered:
            return []
        named = [call for step in steps for call in step if call.name == name]
        return named or [ToolCall(name, _made_up(offered[name], turn.question))]
    if turn.rounds < len(steps):
        return steps[turn.rounds]
    if choice == "required":
        name, schema = next(iter(offered.items()))
        return steps[-1] if steps else [ToolCall(name, _made_up(schema, turn.question))]
    return []


def _asked(text: str, offered: dict[str, Json]) -> list[ToolCall]:
    """The calls of offered tools that *text* asks for, in its order."""
    found: list[tuple[int, ToolCall]] = []
    for name, schema in offered.items():
        spelled = list(_spelled_out(name, schema, text))
        ruled = RULES[name].read(text) if name in RULES and not spelled else ()
        found += [(place, ToolCall(name, arguments)) for place, arguments in [*spelled, *ruled]]
    return [call for _, call in sorted(found, key=lambda each: each[0])]


def _spelled_out(name: str, schema: Json, text: str) -> Iterator[Found]:
    """Calls by name, with or without a JSON object of arguments: ``get_text {"city": "Oslo"}``.

    The names of our own tools are ordinary words: they need the object.
    """
    for match in re.finditer(rf"(?<![\w-]){re.escape(name)}(?![\w-])\s*", text):
        arguments = _leading_object(text[match.end() :])
        if arguments is not None:
            yield match.start(), arguments
        elif name not in RULES:
            yield match.start(), _made_up(schema, text)


def _leading_object(text: str) -> Json | None:
    try:
        value, _ = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _made_up(schema: Json, text: str) -> Json:
    """Arguments that fit what *schema* requires, the text itself where a string is wanted."""
    properties = _object(schema.get("properties"))
    required = [name for name in _list(schema.get("required")) if isinstance(name, str)]
    return {name: _value(_object(properties.get(name)), text) for name in required}


def _value(schema: Json, text: str) -> Any:
    if "default" in schema:
        return schema["default"]
    if choices := _list(schema.get("enum")):
        return choices[0]
    number = re.search(r"\d{1,9}", text)
    values = {
        "integer": int(number[0]) if number else 1,
        "number": int(number[0]) if number else 1,
        "boolean": True,
        "array": [],
        "object": {},
        "null": None,
    }
    kind = schema.get("type")
    return values.get(kind, text) if isinstance(kind, str) else text


def _turn(messages: list[Any]) -> _Turn:
    turn = _Turn()
    made: dict[str, ToolCall] = {}
    for message in _objects(messages):
        match message.get("role"):
            case "user":
                turn = _Turn(text_of(message.get("content"))[:_MAX_QUESTION])
            case "assistant" if message.get("tool_calls"):
                turn.rounds += 1
                made.update(_made(message["tool_calls"]))
            case "tool":
                turn.rounds = max(turn.rounds, 1)
                call = made.get(str(message.get("tool_call_id")), ToolCall("A tool", {}))
                turn.results.append(_sentence(call, text_of(message.get("content")).strip()))
    return turn


def _made(tool_calls: object) -> Iterator[tuple[str, ToolCall]]:
    """The calls of an assistant message, by id."""
    for call in _objects(tool_calls):
        function = _object(call.get("function"))
        try:
            arguments = _object(jsontext.loads(function.get("arguments") or "{}"))
        except (ValueError, TypeError, AttributeError):
            arguments = {}
        yield str(call.get("id")), ToolCall(str(function.get("name")), arguments)


def _sentence(call: ToolCall, result: str) -> str:
    """A tool's result as a sentence that quotes it."""
    quote = result if len(result) <= _MAX_QUOTE else f"{result[:_MAX_QUOTE]}…"
    if error := re.match(rf"error(?: executing tool {re.escape(call.name)})?\b:?\s*", quote, re.I):
        said = f"{call.name} failed: {quote[error.end() :]}"
    elif call.name in RULES:
        said = RULES[call.name].tell(call.arguments, quote)
    else:
        said = f"{call.name} says: {quote or 'nothing'}"
    return said if said.endswith((".", "!", "?", "…", "}", "]")) else f"{said}."


def _introduction(question: str, offered: dict[str, Json], choice: object) -> str:
    """What the model is, and what it could be asked instead."""
    me = "I am a script that stands in for a language model"
    missing = [name for name in RULES if name not in offered and any(RULES[name].read(question))]
    if choice == "none":
        return f"{me}, and this request told me to call no tools."
    if missing:
        return f"{me}. This needs a tool that I was not offered: {', '.join(missing)}."
    if not offered:
        return f"{me}. I was offered no tools, and without tools I know nothing."
    names = ", ".join(list(offered)[:10]) + (" and more" if len(offered) > 10 else "")
    examples = " ".join(rule.example for name, rule in RULES.items() if name in offered)
    ask = f"Ask me: {examples}" if examples else "Name one in your message and I will call it."
    return (
        f"{me}. I understand a few questions, and can call the tools I am offered: {names}. {ask}"
    )


def _offered(body: Json) -> dict[str, Json]:
    """The parameter schemas of the offered tools, by name."""
    functions = [_object(tool.get("function")) for tool in _objects(body.get("tools"))]
    return {
        function["name"]: _object(function.get("parameters"))
        for function in functions
        if function.get("name") and isinstance(function["name"], str)
    }


def _object(value: object) -> Json:
    """*value* if it is an object, otherwise an empty one."""
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    """*value* if it is a list, otherwise an empty one."""
    return value if isinstance(value, list) else []


def _objects(value: object) -> list[Json]:
    """The objects in *value*, if it is a list."""
    return [each for each in _list(value) if isinstance(each, dict)]
