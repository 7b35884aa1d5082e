"""A streamed answer as a strict client reads it."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from twisted.web.http import Request

from llamaproxy.chat.mixed_turns import split_id, without_marks
from tests.support import (
    Answer,
    Exchange,
    FakeStack,
    Proxy,
    answer,
    chunk,
    completion,
    events,
    pending_calls,
    read,
    tool,
)

Json = dict[str, Any]

#: Every rule holds for both.
both = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])

#: One on all chunks of an answer (S1).
_IDENTITY = ("id", "object", "created", "model")


@attrs.define
class Choice:
    """One choice, put together from its deltas."""

    message: Json = attrs.Factory(dict)
    finish_reason: str | None = None
    roles: int = 0


@attrs.define
class Streamed:
    """What a stream said: its choices by index, its usage, its identity."""

    choices: dict[int, Choice] = attrs.Factory(dict)
    usage: Any = None
    identity: Json = attrs.Factory(dict)

    @property
    def message(self) -> Json:
        return self.choices[0].message

    @property
    def finish_reason(self) -> str | None:
        return self.choices[0].finish_reason


def joined(events: list[Any]) -> Streamed:
    """*events* put together as OpenAI's own clients do it, and every rule of S1 held against them.

    Only what a chunk may be is accepted: nothing after the finish chunk but the usage, call
    deltas in order, one identity.
    """
    assert events[-1] == "[DONE]"
    assert "[DONE]" not in events[:-1]
    chunks = events[:-1]
    assert all(isinstance(chunk, dict) and "error" not in chunk for chunk in chunks)
    identities = [{key: chunk.get(key) for key in _IDENTITY} for chunk in chunks]
    assert all(identity == identities[0] for identity in identities)
    assert identities[0]["object"] == "chat.completion.chunk"
    streamed = Streamed(identity=identities[0])
    for each in chunks:
        assert isinstance(each.get("choices"), list), each
        assert streamed.usage is None, "nothing comes after the usage"
        for choice in each["choices"]:
            _take(streamed.choices.setdefault(choice["index"], Choice()), choice)
        if each.get("usage") is not None:
            assert each["choices"] == []
            streamed.usage = each["usage"]
    for choice in streamed.choices.values():
        assert choice.finish_reason is not None
        assert choice.roles == 1
    return streamed


def _take(state: Choice, choice: Json) -> None:
    assert state.finish_reason is None, "nothing comes after the finish chunk"
    delta = dict(choice["delta"])
    if delta.pop("role", None) is not None:
        state.roles += 1
        state.message["role"] = "assistant"
    for delta_of_call in delta.pop("tool_calls", None) or ():
        _take_call(state.message.setdefault("tool_calls", []), delta_of_call)
    for key, value in delta.items():
        if isinstance(value, str):
            state.message[key] = (state.message.get(key) or "") + value
        elif value is not None:
            state.message[key] = value
    state.finish_reason = choice.get("finish_reason")


def _take_call(calls: list[Json], delta: Json) -> None:
    function = delta["function"]
    if delta["index"] == len(calls):
        assert delta["id"] and function["name"] and delta["type"] == "function"
        calls.append(
            {
                "id": delta["id"],
                "type": "function",
                "function": {"name": function["name"], "arguments": ""},
            }
        )
    else:
        assert 0 <= delta["index"] < len(calls), "an index without a call"
        assert not delta.get("id") and not function.get("name"), "a call is begun once"
    call = calls[delta["index"]]
    call["function"]["arguments"] += function.get("arguments") or ""


def message_of(exchange: Exchange) -> Json:
    """The message of an answer, streamed or not, without what is null in it."""
    if (exchange.field("Content-Type") or "").startswith("text/event-stream"):
        message = joined(exchange.events()).message
    else:
        message = exchange.json()["choices"][0]["message"]
    return {key: value for key, value in message.items() if value is not None}


def own_ids(message: Json) -> Json:
    """*message* with its calls under the model's own ids, all of which must have had a mark."""
    calls = message.get("tool_calls") or []
    marks = {split_id(each["id"])[1] for each in calls}
    assert len(marks) == bool(calls) and "" not in marks
    bare: Json = without_marks(message)
    return bare


def finish_of(exchange: Exchange) -> str | None:
    """The finish reason of an answer, streamed or not."""
    if (exchange.field("Content-Type") or "").startswith("text/event-stream"):
        return joined(exchange.events()).finish_reason
    reason: str | None = exchange.json()["choices"][0]["finish_reason"]
    return reason


def failure_in(events: list[Any]) -> Json:
    """The error with which a stream ended (S7), and nothing but chunks before it."""
    assert events[-1] == "[DONE]"
    error: Json = events[-2]["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    assert isinstance(error["message"], str) and error["message"]
    assert all("error" not in event for event in events[:-2])
    reasons = [c.get("finish_reason") for event in events[:-2] for c in event.get("choices", ())]
    assert not any(reasons), "an end that hides the failure"
    return error


def client_tool(name: str, **fields: Any) -> Json:
    """A tool as a client declares it."""
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} | (
        fields
    )


def names_of(body: Json) -> list[str]:
    """The names of the tools in a request, in order."""
    return [entry["function"]["name"] for entry in body["tools"]]


def stack_with(*names: str, group: str = "mcp::main") -> FakeStack:
    """A Llama Stack that has the tools *names*."""
    stack = FakeStack()
    stack.on("GET /v1/tools", answer({"data": [tool(name, group) for name in names]}))
    return stack


def nothing_left(proxy: Proxy, stack: FakeStack) -> bool:
    """Whether no request is open and no timer is running."""
    return stack.open == [] and pending_calls(proxy.clock) == []


def replying(message: Json, reason: str | None = "stop", usage: Json | None = None) -> Answer:
    """One turn of the model, exactly *message*: whole, or in three pieces a text if streamed."""
    counted = {} if usage is None else {"usage": usage}

    def write(request: Request) -> None:
        if not read(request).json().get("stream"):
            answer(completion(message, reason, **counted))(request)
            return
        chunks = [chunk({"role": "assistant", "content": ""})]
        for key, value in message.items():
            if key == "tool_calls":
                numbered = [{"index": n, **entry} for n, entry in enumerate(value or ())]
                chunks += [chunk({key: [entry]}) for entry in numbered]
            elif isinstance(value, str):
                cut = len(value) // 3
                pieces = (value[:cut], value[cut : 2 * cut], value[2 * cut :])
                chunks += [chunk({key: piece}) for piece in pieces if piece]
            else:
                chunks.append(chunk({key: value}))
        chunks.append(chunk({}, reason))
        if counted:
            chunks.append({**chunk({}), "choices": [], **counted})
        events(*chunks)(request)

    return write
