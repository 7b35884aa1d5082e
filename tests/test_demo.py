"""The demonstration stack: its tools, its model, and its wire format (recorded from 0.6.1)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

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

from llamaproxy.demo import GROUP, MODEL, DemoStack
from llamaproxy.demo.calculator import MAX_LENGTH, calculate, evaluate
from llamaproxy.demo.model import Reply, ToolCall, reply
from llamaproxy.demo.tools import demo_tools, roll_dice
from llamaproxy.demo.zones import current_time, zones_in
from llamaproxy.upstream.sse import EventDecoder

Json = dict[str, Any]

#: 2026-11-22 15:06:25 UTC, a Sunday.
NOON = 1795359985.0


# --- the calculator


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
        value = evaluate(expression)
    except ValueError:
        return  # refused for its size or result; which ones are is tested below
    assert value == eval(expression)


@pytest.mark.parametrize("expression", ["2**10", "7/2", "7//2", "-7%3", "2**-2", "1e3+.5", "+4"])
def test_the_calculator_does_not_refuse_ordinary_sums(expression: str) -> None:
    assert evaluate(expression) == eval(expression)


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("6*7", "42"),
        ("0.1 + 0.2", "0.3"),
        ("6/3", "2"),
        ("2^10", "1024"),
        ("6 \N{MULTIPLICATION SIGN} 7 \N{DIVISION SIGN} 2 \N{MINUS SIGN} 1", "20"),
        (" 1 +\n 1 ", "2"),
    ],
)
def test_results_are_written_for_people(expression: str, text: str) -> None:
    assert calculate(expression) == text


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os')",
        "x",
        "e",
        "(1).real",
        "1 .e",
        "3(4)",
        "f(2)",
        "[1]",
        "1,2",
        "1 if 1 else 2",
        "1 < 2",
        "not 1",
        "~1",
        "1 << 9",
        "1 | 2",
        "'a'",
        "1j",
        "0x10",
        "lambda: 1",
        "True",
        "1)+(1",
        "1 2",
        "",
        "  ",
        "(",
        "1 +",
        "\0",
    ],
)
def test_the_calculator_takes_nothing_but_arithmetic(expression: str) -> None:
    with pytest.raises(ValueError, match=r"calculate|complete"):
        calculate(expression)


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("9**9**9", "too large"),
        ("9**99999", "too large"),
        ("(9**999)**9", "too large"),
        ("1e308*10", "too large"),
        ("1e999", "too large"),
        ("10.0**400", "too large"),
        ("1/0", "division by zero"),
        ("1%0", "division by zero"),
        ("0**-1", "division by zero"),
        ("(-8)**0.5", "not a real number"),
        ("1+" * MAX_LENGTH + "1", "longer"),
        ("-" * 100 + "1", "nested"),
        ("(" * 99 + "1" + ")" * 99, None),
        ("(" * (MAX_LENGTH - 1), "complete"),
    ],
)
def test_the_calculator_is_bounded(expression: str, reason: str | None) -> None:
    if reason is None:
        assert calculate(expression) == "1"
        return
    with pytest.raises(ValueError, match=reason):
        calculate(expression)


# --- zones and dice


def test_the_time_is_that_of_the_zone() -> None:
    assert current_time("Europe/Oslo", NOON) == "16:06:25 on Sunday 22 November 2026 (UTC+01:00)"
    assert current_time("Asia/Kolkata", NOON) == "20:36:25 on Sunday 22 November 2026 (UTC+05:30)"
    moment = datetime.fromtimestamp(NOON, ZoneInfo("America/New_York"))
    assert current_time("America/New_York", NOON).startswith(f"{moment:%H:%M:%S}")


@pytest.mark.parametrize(
    ("zone", "hint"),
    [
        ("Oslo", "did you mean Europe/Oslo"),
        ("europe/oslo", "did you mean Europe/Oslo"),
        ("Atlantis", "IANA name"),
        ("../../etc/passwd", "IANA name"),
        ("", "IANA name"),
        ("Factory", "IANA name"),
    ],
)
def test_an_unknown_zone_is_named_with_a_hint(zone: str, hint: str) -> None:
    with pytest.raises(ValueError, match=f"there is no time zone '{re.escape(zone)}': .*{hint}"):
        current_time(zone, NOON)


@pytest.mark.parametrize(
    ("text", "zones"),
    [
        ("in Oslo and New York", ["Europe/Oslo", "America/New_York"]),
        ("time in oslo, tokyo and los angeles", "Europe/Oslo Asia/Tokyo America/Los_Angeles"),
        ("in S\xe3o Paulo?", ["America/Sao_Paulo"]),
        ("Europe/Paris or UTC", ["Europe/Paris", "UTC"]),
        ("when shall I wake", []),
        ("in Atlantis", ["Atlantis"]),
        ("nothing", []),
    ],
)
def test_places_are_found_in_words(text: str, zones: list[str] | str) -> None:
    wanted = zones.split() if isinstance(zones, str) else zones
    assert [zone for _, zone in zones_in(text)] == wanted


@given(st.integers(1, 100), st.integers(2, 1000), st.integers())
def test_a_seed_repeats_a_roll_within_its_range(count: int, sides: int, seed: int) -> None:
    rolled = roll_dice(count, sides, seed)
    assert rolled == roll_dice(count, sides, seed)
    shown = [int(number) for number in re.findall(r"\d+", rolled)]
    if count > 1:
        total = shown.pop()
        assert total == sum(shown)
    assert len(shown) == count
    assert all(1 <= each <= sides for each in shown)


@pytest.mark.parametrize(("count", "sides"), [(0, 6), (101, 6), (1, 1), (1, 1001), (-1, 6)])
def test_impossible_dice_are_refused(count: int, sides: int) -> None:
    with pytest.raises(ValueError, match="must be between"):
        roll_dice(count, sides, None)


# --- the model


def _function(name: str, parameters: Json | None = None) -> Json:
    return {"type": "function", "function": {"name": name, "parameters": parameters or {}}}


TOOLS = [
    _function(tool.name, tool.definition()["input_schema"]) for tool in demo_tools(Clock()).values()
]
WEATHER = _function(
    "get_text",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "unit": {"enum": ["c", "f"]},
            "extra": {"type": "object"},
        },
        "required": ["city", "days", "unit"],
    },
)


def asked(question: object, tools: list[Json] = TOOLS, **fields: Any) -> Reply:
    messages = [{"role": "user", "content": question}]
    return reply({"messages": messages, "tools": tools, **fields})


def told(question: str, *results: tuple[str, Json, str], **fields: Any) -> Reply:
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
        ("What time is it in Oslo?", [("current_time", {"timezone": "Europe/Oslo"})]),
        ("the time in Atlantis", [("current_time", {"timezone": "Atlantis"})]),
        (
            "What time is it in Oslo and what is 6*7?",
            [("current_time", {"timezone": "Europe/Oslo"}), ("calculate", {"expression": "6*7"})],
        ),
        (
            "What is 6*7 and the time in Tokyo?",
            [("calculate", {"expression": "6*7"}), ("current_time", {"timezone": "Asia/Tokyo"})],
        ),
        ("What is 12,000 times 3?", [("calculate", {"expression": "12000 * 3"})]),
        ("15 x 4", [("calculate", {"expression": "15*4"})]),
        ("(1+2)*3.", [("calculate", {"expression": "(1+2)*3"})]),
        ("Calculate foo(2)", [("calculate", {"expression": "foo(2)"})]),
        ("Roll two dice", [("roll_dice", {"count": 2, "sides": 6})]),
        ("roll a 20-sided die", [("roll_dice", {"count": 1, "sides": 20})]),
        ("2d8 with seed 7", [("roll_dice", {"count": 2, "sides": 8, "seed": 7})]),
        ("Wait 2.5 seconds", [("wait", {"seconds": 2.5})]),
        ("wait for two minutes", [("wait", {"seconds": 120})]),
        ('wait {"seconds": 1}', [("wait", {"seconds": 1})]),
        ("Am I free on 2026-11-22?", []),
        ("Wait a moment", []),
        ("Three times I tried", []),
        ("hello", []),
        ("", []),
    ],
)
def test_words_become_calls(question: str, calls: list[tuple[str, Json]]) -> None:
    assert [(call.name, call.arguments) for call in asked(question).calls] == calls


def test_a_question_may_come_in_parts() -> None:
    parts = [{"type": "text", "text": "What is"}, {"type": "image_url"}, {"text": "6*7?"}]
    assert asked(parts).calls == [ToolCall("calculate", {"expression": "6*7"})]


def test_only_the_last_question_counts() -> None:
    messages = [
        {"role": "user", "content": "What is 6*7?"},
        {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "calculate"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "42"},
        {"role": "user", "content": "What is 1+1?"},
    ]
    calls = reply({"messages": messages, "tools": TOOLS}).calls
    assert calls == [ToolCall("calculate", {"expression": "1+1"})]


def test_results_are_quoted_in_sentences() -> None:
    answer = told(
        "What time is it in Oslo and what is 6*7?",
        ("current_time", {"timezone": "Europe/Oslo"}, "16:06:25 on Sunday"),
        ("calculate", {"expression": "6*7"}, "42"),
        ("roll_dice", {}, "4"),
        ("roll_dice", {"count": 2}, "4 and 5, together 9"),
        ("wait", {"seconds": 1}, "waited 1 second"),
        ("get_text", {"city": "Oslo"}, "Sunny!"),
        ("get_text", {"city": "Rome"}, ""),
    )
    assert answer == Reply(
        "In Oslo it is 16:06:25 on Sunday. 6*7 = 42. The die shows 4. "
        "The dice show 4 and 5, together 9. I waited 1 second. get_text says: Sunny! "
        "get_text says: nothing."
    )


@pytest.mark.parametrize("text", ["Error executing tool calculate: no", "Error: no", "error no"])
def test_a_failure_is_called_one(text: str) -> None:
    answer = told("What is 1/0?", ("calculate", {"expression": "1/0"}, text))
    assert answer == Reply("calculate failed: no.")


def test_a_long_result_is_cut() -> None:
    answer = told("What is 1/2?", ("get_text", {}, "x" * 9000))
    assert answer.content is not None and len(answer.content) < 2100
    assert answer.content.endswith("x…")


def test_then_makes_another_round() -> None:
    question = "Wait 1 second, then roll a die."
    assert [call.name for call in asked(question).calls] == ["wait"]
    waited = ("wait", {"seconds": 1}, "waited 1 second")
    assert [call.name for call in told(question, waited).calls] == ["roll_dice"]
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


def test_choice_none_never_calls() -> None:
    refused = asked("What is 6*7?", tool_choice="none")
    assert not refused.calls and "call no tools" in str(refused.content)
    sum_ = ("calculate", {"expression": "6*7"}, "42")
    assert told("What is 6*7?, then 1+1", sum_, tool_choice="none") == Reply("6*7 = 42.")


def test_a_forced_choice_is_obeyed() -> None:
    def named(name: str) -> Json:
        return {"type": "function", "function": {"name": name}}

    tools = [*TOOLS, WEATHER]
    both = "What time is it in Oslo and what is 6*7?"
    assert [c.name for c in asked(both, tool_choice=named("calculate")).calls] == ["calculate"]
    assert asked("hi", tools, tool_choice=named("get_text")).calls == [
        ToolCall("get_text", {"city": "hi", "days": 1, "unit": "c"})
    ]
    assert asked("hi", tool_choice="required").calls == [ToolCall("current_time", {})]
    assert asked("6*7", tool_choice="required").calls == [
        ToolCall("calculate", {"expression": "6*7"})
    ]
    assert not asked("hi", tool_choice=named("unheard_of")).calls
    again = told("6*7", ("calculate", {"expression": "6*7"}, "42"), tool_choice="required")
    assert [call.name for call in again.calls] == ["calculate"]


def test_a_tool_can_be_called_by_its_name() -> None:
    spelled = asked('Use get_text {"city": "Oslo"} please', [*TOOLS, WEATHER])
    assert spelled.calls == [ToolCall("get_text", {"city": "Oslo"})]
    made_up = asked("get_text for 3 days", [WEATHER])
    assert made_up.calls[0].arguments == {"city": "get_text for 3 days", "days": 3, "unit": "c"}
    assert not asked("get_texts", [WEATHER]).calls


def test_it_says_what_it_is() -> None:
    assert asked("hi").content == (
        "I am a script that stands in for a language model. I understand a few questions, and can "
        "call the tools I am offered: current_time, calculate, roll_dice, wait. Ask me: "
        "What time is it in Oslo? What is 6*7? Roll two dice. Wait 3 seconds."
    )
    assert "not offered: calculate" in str(asked("What is 6*7?", [WEATHER]).content)
    assert "offered no tools" in str(asked("hi", []).content)
    assert "Name one" in str(asked("hi", [WEATHER]).content)


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


# --- over HTTP, in memory


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
    return Client(clock, StubTreq(DemoStack(clock).resource()))


NOT_FOUND = (404, {"detail": "Not Found"})
INVOKE = "/v1/tool-runtime/invoke"
CHAT = "/v1/chat/completions"


def chat(question: str, **fields: Any) -> Json:
    messages = [{"role": "user", "content": question}]
    return {"model": MODEL, "messages": messages, "tools": TOOLS, **fields}


def test_version_and_health(client: Client) -> None:
    assert client.get("/v1/version") == (200, {"version": "0.6.1"})
    assert client.get("/v1/health") == (200, {"status": "OK"})


def test_models(client: Client) -> None:
    listed = {
        "id": "demo/scripted",
        "object": "model",
        "created": int(NOON),
        "owned_by": "llama_stack",
        "custom_metadata": {
            "model_type": "llm",
            "provider_id": "demo",
            "provider_resource_id": "scripted",
        },
    }
    assert client.get("/v1/models") == (200, {"data": [listed]})
    model: Json = {
        "identifier": "demo/scripted",
        "provider_resource_id": "scripted",
        "provider_id": "demo",
        "type": "model",
        "metadata": {},
        "model_type": "llm",
        "model_validation": None,
    }
    assert client.get("/v1/models/demo/scripted") == (200, model)
    assert client.get("/v1/models/demo%2Fscripted") == (200, model)
    message = "Model 'nope' not found. Use 'client.models.list()' to list available Models."
    assert client.get("/v1/models/nope") == (404, {"error": {"message": message}})


def test_tool_definitions(client: Client) -> None:
    status, listed = client.get("/v1/tools")
    assert status == 200 and list(listed) == ["data"]
    tools = {tool["name"]: tool for tool in listed["data"]}
    assert list(tools) == ["current_time", "calculate", "roll_dice", "wait"]
    assert tools["wait"] == {
        "toolgroup_id": "demo::tools",
        "name": "wait",
        "description": "Wait, then say so.",
        "input_schema": {
            "properties": {
                "seconds": {
                    "description": "How long, at most 300.",
                    "title": "Seconds",
                    "type": "number",
                }
            },
            "required": ["seconds"],
            "title": "waitArguments",
            "type": "object",
        },
        "output_schema": {
            "properties": {"result": {"title": "Result", "type": "string"}},
            "required": ["result"],
            "title": "waitOutput",
            "type": "object",
        },
        "metadata": None,
    }
    seed = tools["roll_dice"]["input_schema"]["properties"]["seed"]
    assert seed["anyOf"] == [{"type": "integer"}, {"type": "null"}] and seed["default"] is None
    assert client.get("/v1/tools?toolgroup_id=demo::tools") == (200, listed)
    assert client.get("/v1/tools/wait") == (200, tools["wait"])
    assert client.get("/v1/tools/nope") == (400, {"detail": "Tool 'nope' not found"})


def test_tool_groups(client: Client) -> None:
    group = {
        "identifier": GROUP,
        "provider_resource_id": GROUP,
        "provider_id": "demo",
        "type": "tool_group",
        "mcp_endpoint": None,
        "args": None,
    }
    assert client.get("/v1/toolgroups") == (200, {"data": [group]})
    one = {**group, "owner": None, "source": "via_register_api"}
    assert client.get("/v1/toolgroups/demo::tools") == (200, one)
    detail = "Tool Group 'nope' not found. Use 'client.toolgroups.list()' to list available "
    unknown = (404, {"detail": f"{detail}Tool Groups."})
    assert client.get("/v1/toolgroups/nope") == unknown
    assert client.get("/v1/tools?toolgroup_id=nope") == unknown


@pytest.mark.parametrize(
    ("name", "kwargs", "error_code", "text"),
    [
        ("current_time", {}, 0, "15:06:25 on Sunday 22 November 2026 (UTC+00:00)"),
        (
            "current_time",
            {"timezone": "Oslo"},
            1,
            "Error executing tool current_time: there is no time zone 'Oslo': "
            "did you mean Europe/Oslo?",
        ),
        ("calculate", {"expression": "6*7", "unknown": 1}, 0, "42"),
        ("calculate", {"expression": "1/0"}, 1, "Error executing tool calculate: division by zero"),
        ("calculate", {}, 1, "Error executing tool calculate: expression: Field required"),
        (
            "calculate",
            {"expression": 5},
            1,
            "Error executing tool calculate: expression: Input should be a valid string",
        ),
        ("roll_dice", {"count": "2", "sides": 6.0, "seed": 7}, 0, "3 and 2, together 5"),
        (
            "roll_dice",
            {"count": True},
            1,
            "Error executing tool roll_dice: count: Input should be a valid integer",
        ),
        (
            "wait",
            {"seconds": 301},
            1,
            "Error executing tool wait: seconds must be between 0 and 300",
        ),
        (
            "wait",
            {"seconds": 10**400},
            1,
            "Error executing tool wait: seconds: Input should be a valid number",
        ),
        (
            "wait",
            {"seconds": "nan"},
            1,
            "Error executing tool wait: seconds: Input should be a valid number",
        ),
    ],
)
def test_invoke(client: Client, name: str, kwargs: Json, error_code: int, text: str) -> None:
    answer = client.post(INVOKE, {"tool_name": name, "kwargs": kwargs, "toolgroup_id": "x"})
    assert answer == (
        200,
        {
            "content": [{"type": "text", "text": text}],
            "error_message": None,
            "error_code": error_code,
            "metadata": None,
        },
    )


def test_a_roll_without_a_seed(client: Client) -> None:
    status, answer = client.post(INVOKE, {"tool_name": "roll_dice", "kwargs": {"seed": None}})
    assert status == 200 and answer["content"][0]["text"] in "123456"


def test_invoke_refusals(client: Client) -> None:
    assert client.post(INVOKE, {"tool_name": "no_such_tool", "kwargs": {}}) == (
        400,
        {
            "detail": "Tool_group `no_such_tool` not served by provider: `demo`. "
            "Make sure there is an ToolGroups provider serving this tool_group."
        },
    )
    assert client.post(INVOKE, {"tool_name": "wait"}) == invalid(
        "{'loc': ['body', 'kwargs'], 'msg': 'Field required', 'type': 'missing'}"
    )
    assert client.post(INVOKE, {"tool_name": "wait", "kwargs": "{}"}) == invalid(
        "{'loc': ['body', 'kwargs'], 'msg': 'Input should be a valid dictionary', "
        "'type': 'dict_type'}"
    )
    assert client.post(INVOKE, b'{"tool_name":') == invalid(
        "{'loc': ['body', 13], 'msg': 'JSON decode error', 'type': 'json_invalid'}"
    )
    plain = {"Content-Type": "text/plain"}
    body = b'{"tool_name":"wait","kwargs":{}}'
    assert client.request("POST", INVOKE, data=body, headers=plain)[:2] == invalid(
        "{'loc': ['body', 'tool_name'], 'msg': 'Field required', 'type': 'missing'}, "
        "{'loc': ['body', 'kwargs'], 'msg': 'Field required', 'type': 'missing'}"
    )


def invalid(errors: str) -> tuple[int, Json]:
    return 400, {"error": {"message": f"{{'errors': [{errors}]}}"}}


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


def test_a_completion_in_words(client: Client) -> None:
    status, body = client.post(CHAT, chat("hi", tools=None))
    content = (
        "I am a script that stands in for a language model. "
        "I was offered no tools, and without tools I know nothing."
    )
    assert status == 200
    assert re.fullmatch(r"chatcmpl-\w{32}", body.pop("id"))
    assert body == {
        "choices": [
            {
                "finish_reason": "stop",
                "index": 0,
                "logprobs": None,
                "message": {
                    "content": content,
                    "refusal": None,
                    "role": "assistant",
                    "annotations": None,
                    "audio": None,
                    "function_call": None,
                    "tool_calls": None,
                },
            }
        ],
        "created": int(NOON),
        "model": MODEL,
        "object": "chat.completion",
        "metadata": None,
        "moderation": None,
        "service_tier": None,
        "system_fingerprint": None,
        "usage": {
            "completion_tokens": 22,
            "prompt_tokens": 1,
            "total_tokens": 23,
            "completion_tokens_details": None,
            "prompt_tokens_details": None,
        },
    }


def test_a_completion_with_calls(client: Client) -> None:
    _, body = client.post(CHAT, chat("What time is it in Oslo and what is 6*7?"))
    (choice,) = body["choices"]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    time, sum_ = choice["message"]["tool_calls"]
    assert time.pop("id") != sum_.pop("id")
    assert time == {
        "function": {"arguments": '{"timezone":"Europe/Oslo"}', "name": "current_time"},
        "type": "function",
    }
    assert sum_ == {
        "function": {"arguments": '{"expression":"6*7"}', "name": "calculate"},
        "type": "function",
    }


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
    streamed = stream(client, question="hi", tools=None)
    assert streamed.response.code == 200
    headers = streamed.response.headers
    assert headers.getRawHeaders("content-type") == ["text/event-stream; charset=utf-8"]
    client.treq.flush()
    (first,) = streamed.chunks
    assert re.fullmatch(r"chatcmpl-\w{32}", first["id"])
    assert first == {
        "id": first["id"],
        "choices": [
            {
                "delta": {
                    "audio": None,
                    "content": "",
                    "function_call": None,
                    "refusal": None,
                    "role": "assistant",
                    "tool_calls": None,
                },
                "index": 0,
                "finish_reason": None,
                "logprobs": None,
            }
        ],
        "created": int(NOON),
        "model": MODEL,
        "object": "chat.completion.chunk",
        "moderation": None,
        "obfuscation": None,
        "service_tier": None,
        "system_fingerprint": None,
        "usage": None,
    }
    client.pass_time(0.02)
    assert [chunk["choices"][0]["delta"]["content"] for chunk in streamed.chunks] == ["", "I "]
    client.pass_time(0.02, steps=22)
    assert streamed.ended
    *words, last = streamed.chunks
    assert last["choices"][0]["finish_reason"] == "stop"
    assert last["choices"][0]["delta"] == dict.fromkeys(first["choices"][0]["delta"])
    assert all(list(chunk) == list(first) and chunk["id"] == first["id"] for chunk in words)
    _, unary = client.post(CHAT, chat("hi", tools=None))
    said = "".join(chunk["choices"][0]["delta"]["content"] for chunk in words)
    assert said == unary["choices"][0]["message"]["content"]


def test_streamed_calls_come_in_pieces(client: Client) -> None:
    streamed = stream(client, question="What time is it in Oslo and what is 6*7?")
    client.pass_time(0.02, steps=20)
    assert streamed.ended
    role, *pieces, finish = streamed.chunks
    assert role["choices"][0]["delta"]["content"] is None
    assert finish["choices"][0]["finish_reason"] == "tool_calls"
    calls = [chunk["choices"][0]["delta"]["tool_calls"][0] for chunk in pieces]
    assert [call["index"] for call in calls] == [0, 0, 0, 0, 1, 1, 1]
    opening = [call for call in calls if call["id"]]
    assert [call["function"]["name"] for call in opening] == ["current_time", "calculate"]
    assert all(call["type"] == "function" for call in opening)
    assert len({call["id"] for call in opening}) == 2
    following = [call for call in calls if not call["id"]]
    assert all(call["type"] is None and call["function"]["name"] is None for call in following)
    arguments = "".join(call["function"]["arguments"] for call in calls)
    assert arguments == '{"timezone":"Europe/Oslo"}{"expression":"6*7"}'


def test_usage_is_streamed_if_asked_for(client: Client) -> None:
    streamed = stream(client, question="hi", tools=None, stream_options={"include_usage": True})
    client.pass_time(0.02, steps=24)
    assert streamed.ended
    *_, finish, usage = streamed.chunks
    assert finish["choices"][0]["finish_reason"] == "stop" and finish["usage"] is None
    assert usage["choices"] == [] and usage["usage"]["total_tokens"] == 23


def test_without_a_delay_a_stream_needs_no_time() -> None:
    clock = Clock()
    client = Client(clock, StubTreq(DemoStack(clock, word_delay=0).resource()))
    streamed = stream(client, question="hi")
    client.treq.flush()
    assert streamed.ended
    assert len(streamed.chunks) > 20


def test_a_stream_stops_when_the_client_leaves(client: Client) -> None:
    streamed = stream(client, question="hi")
    client.pass_time(0.02, steps=3)
    assert client.clock.getDelayedCalls()
    assert streamed.transport is not None
    streamed.transport.loseConnection()
    client.treq.flush()
    assert client.clock.getDelayedCalls() == []


def test_completions_refused(client: Client) -> None:
    unknown = "Model 'nope' not found. Use 'client.models.list()' to list available Models."
    no_tools = "'tool_choice' is only allowed when 'tools' is also provided"
    hi = [{"role": "user", "content": "hi"}]
    assert client.post(CHAT, {"model": "nope", "messages": hi, "stream": True}) == (
        404,
        {"error": {"message": unknown}},
    )
    assert client.post(CHAT, {"model": MODEL, "messages": hi, "tool_choice": "none"}) == (
        400,
        {"error": {"message": no_tools}},
    )
    body = {"model": MODEL, "messages": hi, "tools": [], "tool_choice": "auto"}
    assert client.post(CHAT, body)[0] == 200
    assert client.post(CHAT, {"model": MODEL, "messages": None}) == invalid(
        "{'loc': ['body', 'messages'], 'msg': 'Input should be a valid list', 'type': 'list_type'}"
    )
    assert client.post(CHAT, {"model": MODEL, "messages": []}) == invalid(
        "{'loc': ['body', 'messages'], "
        "'msg': 'List should have at least 1 item after validation, not 0', 'type': 'too_short'}"
    )
    assert client.post(CHAT, {"model": None, "messages": hi}) == invalid(
        "{'loc': ['body', 'model'], 'msg': 'Input should be a valid string', 'type': 'string_type'}"
    )
    assert client.post(CHAT, b'{"model":') == invalid(
        "{'loc': ['body', 9], 'msg': 'JSON decode error', 'type': 'json_invalid'}"
    )
    assert client.post(CHAT, b'"hi"') == invalid(
        "{'loc': ['body'], "
        "'msg': 'Input should be a valid dictionary or object to extract fields from', "
        "'type': 'model_attributes_type'}"
    )


@pytest.mark.parametrize("path", ["/", "/v1/nope", "/v1/openai/v1/models", "/v1/tools/", "/health"])
def test_everything_else_is_not_found(client: Client, path: str) -> None:
    assert client.get(path) == NOT_FOUND


def test_a_wrong_method_is_refused(client: Client) -> None:
    status, body, response = client.request("OPTIONS", CHAT)
    assert (status, body) == (405, {"detail": "Method Not Allowed"})
    assert response.headers.getRawHeaders("allow") == ["POST"]
