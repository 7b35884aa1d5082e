"""The demonstration stack: its tools, its model, and its wire format (recorded from 0.6.1)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from treq.testing import StubTreq
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.iweb import IResponse

from llamaproxy.demo import MODEL, DemoStack
from llamaproxy.demo.calculator import MAX_LENGTH, calculate
from llamaproxy.demo.model import Reply, ScriptedCall, reply
from llamaproxy.demo.tools import demo_tools
from llamaproxy.upstream.sse import EventDecoder
from tests.support import recording

Json = dict[str, Any]

#: 2026-11-22 15:06:25 UTC, a Sunday.
NOON = 1795359985.0


def _pair(children: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    operators = st.sampled_from(["+", "-", "*", "/", "//", "%", "**"])
    return st.builds("({} {} {})".format, children, operators, children)


_literals = st.integers(0, 50).map(str) | st.sampled_from(["0.5", "2.25", "1e3", ".125"])
_sums = st.recursive(
    _literals, lambda inner: _pair(inner) | inner.map("(-{})".format), max_leaves=8
)


@given(_sums)
def test_the_calculator_agrees_with_python(expression: str) -> None:
    try:
        value = calculate(expression)
    except ValueError:
        return  # refused for its size or result; which ones are is tested below
    expected = eval(expression)
    assert value == (format(expected, ".15g") if isinstance(expected, float) else str(expected))


@pytest.mark.parametrize(
    ("expressions", "reason"),
    [
        (["__import__('os')", "x", "1 < 2", "True", "1_0"], "only numbers"),
        (["e", "3(4)", "1 e", "", "1 +", "(" * (MAX_LENGTH - 1)], "not a complete"),
        (["1+" * MAX_LENGTH + "1"], "longer"),
        (["9**9**9", "(9**999)**9", "1e308*10", "1e999", "10.0**400"], "too large"),
        (["*".join(["9**999"] * 4)], "too large"),
        (["1/0", "1%0", "0**-1"], "division by zero"),
        (["(-8)**0.5"], "not a real number"),
    ],
)
def test_the_calculator_takes_only_bounded_arithmetic(expressions: list[str], reason: str) -> None:
    for expression in expressions:
        with pytest.raises(ValueError, match=reason):
            calculate(expression)


def _function(name: str, parameters: Json | None = None) -> Json:
    return {"type": "function", "function": {"name": name, "parameters": parameters or {}}}


TOOLS = [
    _function(tool.name, tool.definition()["input_schema"])
    for tool in demo_tools(Clock(), lambda: NOON).values()
]
WEATHER = _function(
    "get_text",
    {
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "extra": {}},
        "required": ["city", "days"],
    },
)


def requested(question: object, tools: list[Json] = TOOLS, **fields: Any) -> Reply:
    messages = [{"role": "user", "content": question}]
    return reply({"messages": messages, "tools": tools, **fields})


def after(question: str, *results: tuple[str, Json, str], **fields: Any) -> Reply:
    """The reply once the calls made in one round have these results."""
    calls = [
        {"id": str(index), "function": {"name": name, "arguments": json.dumps(arguments)}}
        for index, (name, arguments, _) in enumerate(results)
    ]
    answers = [
        {"role": "tool", "tool_call_id": str(index), "content": text}
        for index, (_, _, text) in enumerate(results)
    ]
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": None, "tool_calls": calls},
        *answers,
    ]
    return reply({"messages": messages, "tools": TOOLS, **fields})


@pytest.mark.parametrize(
    ("question", "calls"),
    [
        ("What time is it?", [("current_time", {})]),
        ("the time in Atlantis", [("current_time", {"timezone": "Atlantis"})]),
        (
            "What time is it in oslo right now and in New York, and what is 6*7?",
            [
                ("current_time", {"timezone": "Europe/Oslo"}),
                ("current_time", {"timezone": "America/New_York"}),
                ("calculate", {"expression": "6*7"}),
            ],
        ),
        (
            "What is 6*7 and the time in UTC?",
            [("calculate", {"expression": "6*7"}), ("current_time", {"timezone": "UTC"})],
        ),
        ("What is 12,000 times 3?", [("calculate", {"expression": "12000 * 3"})]),
        ("(perhaps (1+2)^3).", [("calculate", {"expression": "(1+2)**3"})]),
        ("Roll two dice", [("roll_dice", {"count": 2, "sides": 6})]),
        ("roll a 20-sided die", [("roll_dice", {"count": 1, "sides": 20})]),
        ("2d8 with seed 7", [("roll_dice", {"count": 2, "sides": 8, "seed": 7})]),
        ("Wait 2.5 seconds", [("wait", {"seconds": 2.5})]),
        ("wait for two minutes", [("wait", {"seconds": 120})]),
        ("Am I free on 2026-11-22 at 16:30-17:00?", []),
        ("sqrt(2*8), 3,5*2, 2*3,5 or 1e3*2", []),
        ("Wait a moment, three times", []),
        ("", []),
    ],
)
def test_phrases_become_calls(question: str, calls: list[tuple[str, Json]]) -> None:
    assert [(call.name, call.arguments) for call in requested(question).calls] == calls


def test_a_question_may_come_in_parts() -> None:
    parts = [{"type": "text", "text": "What is"}, {"type": "image_url"}, {"text": "6*7?"}]
    assert requested(parts).calls == [ScriptedCall("calculate", {"expression": "6*7"})]


def test_results_are_quoted_in_sentences() -> None:
    answer = after(
        "What time is it in Oslo and what is 6*7?",
        ("current_time", {"timezone": "Europe/Oslo"}, "16:06:25 on Sunday"),
        ("calculate", {"expression": "6*7"}, "42"),
        ("calculate", {"expression": "1/0"}, "Error executing tool calculate: no"),
        ("roll_dice", {}, "4"),
        ("roll_dice", {"count": 2}, "4 and 5, together 9"),
        ("wait", {"seconds": 1}, "waited 1 second"),
        ("get_text", {"city": "Oslo"}, "Sunny,\nwarm! "),
        ("get_text", {"city": "Rome"}, ""),
        ("get_text", {"city": "Bonn"}, "Error: no"),
    )
    assert answer == Reply(
        "In Oslo it is 16:06:25 on Sunday. 6*7 = 42. calculate failed: no. The die shows 4. "
        "The dice show 4 and 5, together 9. I waited 1 second. get_text says: Sunny,\nwarm! "
        "get_text says: nothing. get_text failed: no."
    )


def test_a_long_result_is_cut() -> None:
    answer = after("What is 1/2?", ("get_text", {}, "x" * 9000))
    assert answer.content is not None and len(answer.content) < 2100
    assert answer.content.endswith("x…")


def test_then_makes_another_round() -> None:
    question = "Wait 1 second, then roll a die."
    assert [call.name for call in requested(question).calls] == ["wait"]
    waited = ("wait", {"seconds": 1}, "waited 1 second")
    assert [call.name for call in after(question, waited).calls] == ["roll_dice"]
    rolled = {"role": "tool", "tool_call_id": "2", "content": "4"}
    roll = {"id": "2", "function": {"name": "roll_dice", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "wait"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "waited 1 second"},
        {"role": "assistant", "tool_calls": [roll]},
        rolled,
    ]
    final = reply({"messages": messages, "tools": TOOLS})
    assert final == Reply("I waited 1 second. The die shows 4.")


def test_a_choice_is_obeyed() -> None:
    forced = {"type": "function", "function": {"name": "get_text"}}
    tools = [*TOOLS, WEATHER]
    assert not requested("What is 6*7?", tool_choice="none").calls
    assert requested("hi", tools, tool_choice=forced).calls == [
        ScriptedCall("get_text", {"city": "hi", "days": 1})
    ]
    assert requested("hi", tool_choice="required").calls == [ScriptedCall("current_time", {})]
    sums = [ScriptedCall("calculate", {"expression": "6*7"})]
    result = ("calculate", {"expression": "6*7"}, "42")
    assert requested("6*7", tool_choice="required").calls == sums
    assert after("6*7", result, tool_choice="required").calls == sums
    assert not requested("hi", tool_choice=forced).calls


def test_a_tool_can_be_called_by_its_name() -> None:
    both = requested('What is 6*7, and get_text {"city": "Oslo"}?', [*TOOLS, WEATHER])
    assert both.calls == [
        ScriptedCall("calculate", {"expression": "6*7"}),
        ScriptedCall("get_text", {"city": "Oslo"}),
    ]
    example = requested("Use get_text, please", [WEATHER])
    assert example.calls == [ScriptedCall("get_text", {"city": "Use get_text, please", "days": 1})]
    assert not requested("get_texts", [WEATHER]).calls


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (
            requested("hi"),
            ', and understand only what is like these: "What time is it in Oslo?", '
            '"What is 6*7?", "Roll two dice.", "Wait 3 seconds.".',
        ),
        (
            requested("hi", [WEATHER]),
            ", and understand only what is like these: the name get_text.",
        ),
        (
            requested("What is 6*7?", [WEATHER]),
            ". This needs a tool that I was not offered: calculate.",
        ),
        (requested("hi", []), ". I was offered no tools, and without tools I know nothing."),
        (requested("6*7", tool_choice="none"), ", and this request told me to call no tools."),
    ],
)
def test_anything_else_gets_what_it_understands(answer: Reply, sentence: str) -> None:
    assert answer == Reply(f"I am a script that stands in for a language model{sentence}")


_anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=9,
)
_keys = "role content tool_calls tool_call_id id function name arguments parameters".split()
_objects = st.dictionaries(
    st.sampled_from(_keys), _anything | st.sampled_from(["user", "assistant", "tool", "wait"])
)


@settings(deadline=None)
@given(st.lists(_objects | _anything), _anything | st.lists(_objects), _anything | _objects)
def test_no_body_upsets_it(messages: list[Any], tools: object, choice: object) -> None:
    answer = reply({"messages": messages, "tools": tools, "tool_choice": choice})
    assert answer.calls or answer.content


@pytest.fixture(autouse=True)
def nothing_fails_unseen() -> Iterator[None]:
    """A test must not leave a failure in the log, where nobody reads it."""
    with capturedLogs() as events:
        yield
    assert [event for event in events if "log_failure" in event] == []


def result_of(deferred: Deferred[Any]) -> Any:
    """The result that *deferred* has by now."""
    results: list[Any] = []
    deferred.addBoth(results.append)
    assert results, "no result yet"
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return results[0]


@attrs.frozen
class Client:
    """Talks to a DemoStack without a socket, at a time of its own."""

    clock: Clock
    treq: Any  # a StubTreq, whose methods mypy does not see

    def request(self, method: str, path: str, **kwargs: Any) -> tuple[int, Any, IResponse]:
        response = result_of(self.treq.request(method, f"http://demo{path}", **kwargs))
        content = result_of(self.treq.content(response))
        kind = response.headers.getRawHeaders("content-type")
        assert kind == ["application/json"]
        return response.code, json.loads(content), response

    def get(self, path: str) -> tuple[int, Any]:
        return self.request("GET", path)[:2]

    def post(self, path: str, body: object) -> tuple[int, Any]:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json; charset=utf-8"}
        return self.request("POST", path, data=raw, headers=headers)[:2]

    def begin(self, path: str, body: Json) -> Deferred[IResponse]:
        deferred: Deferred[IResponse] = self.treq.request(
            "POST",
            f"http://demo{path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
            unbuffered=True,
        )
        return deferred

    def pass_time(self, seconds: float, steps: int = 1) -> None:
        for _ in range(steps):
            self.clock.advance(seconds)
            self.treq.flush()


@pytest.fixture
def client() -> Client:
    clock = Clock()
    clock.advance(NOON)
    return Client(clock, StubTreq(DemoStack(clock, clock.seconds).resource()))


INVOKE = "/v1/tool-runtime/invoke"
CHAT = "/v1/chat/completions"


def chat(question: str, **fields: Any) -> Json:
    messages = [{"role": "user", "content": question}]
    return {"model": MODEL, "messages": messages, "tools": TOOLS, **fields}


def shape(value: Any) -> Any:
    """The fields of an object, however deep."""
    if isinstance(value, list):
        return [shape(each) for each in value[:1]]
    return {key: shape(each) for key, each in value.items()} if isinstance(value, dict) else None


def test_what_it_is_and_has(client: Client) -> None:
    assert client.get("/v1/version") == (200, {"version": "0.6.1"})
    assert client.get("/v1/health") == (200, {"status": "OK"})
    status, models = client.get("/v1/models")
    assert (status, [model["id"] for model in models["data"]]) == (200, [MODEL])
    assert client.get(f"/v1/models/{MODEL}") == (200, models["data"][0])
    assert shape(models) == shape(recording("0.6.1", "models")["response"]["body"])
    status, tools = client.get("/v1/tools")
    names = ["current_time", "calculate", "roll_dice", "wait"]
    assert (status, [tool["name"] for tool in tools["data"]]) == (200, names)
    _, groups = client.get("/v1/toolgroups")
    assert [group["identifier"] for group in groups["data"]] == ["demo::tools"]


def test_a_completion_has_the_fields_of_the_recorded_one(client: Client) -> None:
    recorded = recording("0.6.1", "chat_v1_tools")["response"]["body"]
    status, completion = client.post(CHAT, chat("What time is it in Oslo and what is 6*7?"))
    assert status == 200
    assert shape(completion) == shape(recorded)
    assert completion["choices"][0]["finish_reason"] == "tool_calls"
    assert re.fullmatch(r"chatcmpl-\w{32}", completion["id"])
    assert len({call["id"] for call in completion["choices"][0]["message"]["tool_calls"]}) == 2
    assert completion["created"] == int(NOON)
    _, completion = client.post(CHAT, chat("hi", tools=None))
    assert [completion["usage"][f"{kind}_tokens"] for kind in ("prompt", "total")] == [1, 23]


@pytest.mark.parametrize(
    ("name", "kwargs", "error_code", "text"),
    [
        ("current_time", {}, 0, "15:06:25 on Sunday 22 November 2026 (UTC+00:00)"),
        ("current_time", {"timezone": "../x"}, 1, "there is no time zone '../x': use an IANA name"),
        ("calculate", {"expression": "6*7", "unknown": 1}, 0, "42"),
        ("calculate", {"expression": "1/0"}, 1, "division by zero"),
        ("calculate", {}, 1, "expression: Field required"),
        ("calculate", {"expression": 5}, 1, "expression: Input should be a valid string"),
        ("roll_dice", {"count": 2, "sides": 6, "seed": 7}, 0, "3 and 2, together 5"),
        ("roll_dice", {"count": True}, 1, "count: Input should be a valid integer"),
        ("roll_dice", {"count": 101}, 1, "count must be between 1 and 100"),
        ("roll_dice", {"sides": 1001}, 1, "sides must be between 2 and 1000"),
        ("wait", {"seconds": 10**400}, 1, "seconds must be between 0 and 300"),
    ],
)
def test_invoke(client: Client, name: str, kwargs: Json, error_code: int, text: str) -> None:
    status, answer = client.post(INVOKE, {"tool_name": name, "kwargs": kwargs})
    assert (status, answer["error_code"]) == (200, error_code)
    prefix = f"Error executing tool {name}: " if error_code else ""
    assert answer["content"][0]["text"].startswith(prefix + text)


def test_waiting_takes_its_time(client: Client) -> None:
    pending = client.begin(INVOKE, {"tool_name": "wait", "kwargs": {"seconds": 2}})
    answers: list[object] = []

    def note(response: IResponse) -> IResponse:
        answers.append(response)
        return response

    pending.addCallback(note)
    client.pass_time(1.9)
    assert not answers
    client.pass_time(0.1)
    answer = json.loads(result_of(client.treq.content(result_of(pending))))
    assert answer["content"][0]["text"] == "waited 2 seconds" and answer["error_code"] == 0


def test_waiting_ends_when_the_client_leaves(client: Client) -> None:
    pending = client.begin(INVOKE, {"tool_name": "wait", "kwargs": {"seconds": 300}})
    pending.addErrback(lambda _: None)
    assert client.clock.getDelayedCalls()
    pending.cancel()
    client.treq.flush()
    assert client.clock.getDelayedCalls() == []


def test_a_whole_turn(client: Client) -> None:
    body = chat("What time is it in Oslo and what is 6*7?")
    _, completion = client.post(CHAT, body)
    message = completion["choices"][0]["message"]
    body["messages"].append(message)
    for call in message["tool_calls"]:
        kwargs = json.loads(call["function"]["arguments"])
        _, answer = client.post(INVOKE, {"tool_name": call["function"]["name"], "kwargs": kwargs})
        result = {"role": "tool", "tool_call_id": call["id"], "content": answer["content"]}
        body["messages"].append(result)
    _, completion = client.post(CHAT, body)
    assert completion["choices"][0]["message"]["content"] == (
        "In Oslo it is 16:06:25 on Sunday 22 November 2026 (UTC+01:00). 6*7 = 42."
    )


class Stream(Protocol):
    """What has come of a streamed answer."""

    def __init__(self, response: IResponse) -> None:
        self.response = response
        self.chunks: list[Json] = []
        self.ended = False
        self._decoder = EventDecoder()

    def dataReceived(self, data: bytes) -> None:
        self.chunks.extend(json.loads(event.data) for event in self._decoder.feed(data))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ended = reason.check(ResponseDone) is not None


def stream(client: Client, **fields: Any) -> Stream:
    response = result_of(client.begin(CHAT, chat(stream=True, **fields)))
    streamed = Stream(response)
    response.original.deliverBody(streamed)
    return streamed


def test_a_streamed_answer_comes_word_by_word(client: Client) -> None:
    options = {"include_usage": True}
    streamed = stream(client, question="hi", tools=None, stream_options=options)
    headers = streamed.response.headers
    assert headers.getRawHeaders("content-type") == ["text/event-stream; charset=utf-8"]
    client.pass_time(0.02)
    contents = [chunk["choices"][0]["delta"]["content"] for chunk in streamed.chunks]
    assert contents == ["", "I "]
    client.pass_time(0.02, steps=24)
    assert streamed.ended
    *words, finish, usage = streamed.chunks
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert usage["choices"] == [] and usage["usage"]["total_tokens"] == 23
    _, completion = client.post(CHAT, chat("hi", tools=None))
    content = "".join(chunk["choices"][0]["delta"]["content"] for chunk in words)
    assert content == completion["choices"][0]["message"]["content"]


def test_streamed_calls_come_in_pieces(client: Client) -> None:
    streamed = stream(client, question="What time is it in Oslo and what is 6*7?")
    client.pass_time(0.02, steps=20)
    assert streamed.ended
    _, *pieces, finish = streamed.chunks
    assert finish["choices"][0]["finish_reason"] == "tool_calls"
    calls = [chunk["choices"][0]["delta"]["tool_calls"][0] for chunk in pieces]
    assert [call["index"] for call in calls] == [0, 0, 1, 1]
    names = [call["function"]["name"] for call in calls if call["id"]]
    assert names == ["current_time", "calculate"]
    arguments = "".join(call["function"]["arguments"] for call in calls)
    assert arguments == '{"timezone":"Europe/Oslo"}{"expression":"6*7"}'


def test_a_stream_stops_when_the_client_leaves(client: Client) -> None:
    streamed = stream(client, question="hi")
    client.pass_time(0.02, steps=3)
    assert client.clock.getDelayedCalls()
    assert streamed.transport is not None
    streamed.transport.loseConnection()
    client.treq.flush()
    assert client.clock.getDelayedCalls() == []


def test_other_requests_are_refused(client: Client) -> None:
    hi = [{"role": "user", "content": "hi"}]
    refused = [
        client.post(CHAT, {"model": "nope", "messages": hi}),
        client.post(CHAT, {"model": MODEL}),
        client.post(CHAT, b'{"model":'),
        client.post(CHAT, b'"hi"'),
        client.post(INVOKE, {"tool_name": "nope", "kwargs": {}}),
    ]
    assert [status for status, _ in refused] == [404, 400, 400, 400, 400]
    assert all(isinstance(body["error"]["message"], str) for _, body in refused)
    assert client.get("/v1/nope") == (404, {"detail": "Not Found"})
    status, _, response = client.request("OPTIONS", CHAT)
    assert status == 405 and response.headers.getRawHeaders("allow") == ["POST"]
