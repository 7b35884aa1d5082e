"""OpenAI's own clients as judges: whatever an upstream does, they understand what they get.

The programs in ``sdk`` ask every case in every way that the client of their language knows. The
Python one asks in some ways "strictly": an answer that is not exactly OpenAI's is an error then.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.sdk.node import NodeMissing, NodePackages
from tests.sdk.upstream import MISSHAPEN, MISSHAPEN_CALLS, SCENARIOS, running
from tests.test_twistd import ROOT, Daemon

Json = dict[str, Any]

PROGRAMS = Path(__file__).parent / "sdk"

OPENAI = NodePackages("npm-openai", ("openai@6",))

#: Rounds with tools, before the model is told to come to an end.
MAX_ROUNDS = 3

OWN: Json = {
    "type": "function",
    "function": {
        "name": "own",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"text": {"type": "string"}},
            "additionalProperties": False,
        },
    },
}

NOON = "It is noon."


@attrs.frozen
class Case:
    """A question, and what becomes of it.

    *calls*: the arguments of the calls of ``own`` that the client is handed at first; *content*:
    the text in the end. *status*: that of an error, and *message* a part of its text; *begun*: a
    stream has begun by then.
    """

    asks: str
    content: str | None = None
    calls: tuple[str, ...] = ()
    reason: str = "stop"
    status: int | None = None
    message: str = ""
    begun: bool = False
    own: bool = False
    demo: bool = False
    more: Json = attrs.Factory(dict)

    @property
    def name(self) -> str:
        return f"demo: {self.asks}" if self.demo else self.asks

    def body(self) -> Json:
        model = "demo/scripted" if self.demo else "m"
        body = {"model": model, "messages": [{"role": "user", "content": self.asks}], **self.more}
        return body | ({"tools": [OWN]} if self.own or self.calls else {})


_USAGE = {"stream_options": {"include_usage": True}}

#: It travels on, and is nothing that OpenAI knows.
_FOREIGN = "an unknown finish reason"

CASES = [
    Case("plain", "Grüße, 世界 🎲!\n\nIt is noon."),
    Case("nothing", ""),
    Case("cut off", "It is", reason="length"),
    Case("refusal", ""),
    Case("server tool", NOON),
    Case("usage", NOON, more=_USAGE),
    Case("content around a server tool", f"Let me see.\n\n{NOON}"),
    Case("parallel", "clock: 12:00, dice: 4"),
    Case("a tool that fails", "clock: Error: it broke"),
    Case("reasoning", NOON),
    Case("client tool", "own: local", ('{"text": "now"}',)),
    Case("mixed", "own: local, clock: 12:00, own: local", ('{"text": "now"}', "{}")),
    Case(
        "server tool, then mixed",
        "clock: 12:00, own: local, clock: 12:00, own: local",
        ('{"text": "now"}', "{}"),
    ),
    Case("rounds", "Enough."),
    Case("repetition", "Enough."),
    Case("too many", status=429, message="overloaded"),
    Case("not found", status=404, message="nope"),
    Case("a page", status=503, message="503"),
    Case("refused later", status=400, message="no more", begun=True),
    Case("dies", status=502, message="Llama Stack", begun=True),
    Case("dies later", status=502, message="Llama Stack", begun=True),
    Case("ends early", status=502, message="Llama Stack", begun=True),
    Case("an error event", status=502, message="", begun=True),
    Case("no JSON", status=502, message="Llama Stack", begun=True),
    *(Case(name, NOON) for name in MISSHAPEN if name != _FOREIGN),
    Case(_FOREIGN, NOON, reason="eos"),
    *(Case(name, "own: local", ('{"text": "now"}',)) for name in MISSHAPEN_CALLS),
    Case("What is 6*7?", "6*7 = 42.", demo=True, more=_USAGE),
    Case("What is 6*7 and 2+3?", "6*7 = 42. 2+3 = 5.", demo=True),
    Case("Wait 0.01 seconds, then what is 6*7?", "I waited 0.01 seconds. 6*7 = 42.", demo=True),
    Case("Call own, please.", "own says: local.", ("{}",), demo=True),
    Case("What is 6*7? And own?", "6*7 = 42. own says: local.", ("{}",), demo=True),
]


# --- the programs


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The cases, and the daemons that they are for, as the programs want them."""
    logs = tmp_path_factory.mktemp("daemons")
    with ExitStack() as stack:
        upstream = stack.enter_context(running())
        limits = ("--max-iterations", str(MAX_ROUNDS))
        demo = Daemon(logs / "demo", "--demo")
        stack.callback(_stopped, demo)
        scripted = Daemon(logs / "scripted", "--llamastack-url", upstream, *limits)
        stack.callback(_stopped, scripted)
        ports = {True: demo.port, False: scripted.port}
        yield json.dumps(
            [
                {
                    "name": case.name,
                    "base_url": f"http://127.0.0.1:{ports[case.demo]}/v1",
                    "body": case.body(),
                }
                for case in CASES
            ]
        )
        for daemon in (demo, scripted):
            log = daemon.log.read_text()
            assert "Traceback" not in log and "Unhandled" not in log, log


def _stopped(daemon: Daemon) -> None:
    daemon.process.kill()
    daemon.process.wait()


def _answers(*command: str) -> Json:
    """What the program says, by way and case."""
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    answers: Json = json.loads(ran.stdout)
    return answers


@pytest.fixture(scope="module")
def python(cases: str) -> Json:
    """The answers that the Python client got. A field of a wrong type is a UserWarning."""
    return _answers(sys.executable, "-W", "error::UserWarning", str(PROGRAMS / "ask.py"), cases)


@pytest.fixture(scope="module")
def javascript(cases: str) -> Json:
    """The answers that the JavaScript client got."""
    try:
        folder = OPENAI.folder()
    except NodeMissing as missing:
        if os.environ.get("CI"):
            pytest.fail(str(missing))
        pytest.skip(f"THE JAVASCRIPT CLIENT IS NOT TESTED: {missing}")
    return _answers("node", str(PROGRAMS / "ask.mjs"), str(folder), cases)


# --- what is compared


def gist(answer: Json) -> Json:
    """What matters of a completion, whoever wrote it down."""
    (choice,) = answer["choices"]
    message = choice["message"]
    assert message["role"] == "assistant"
    calls = message.get("tool_calls") or []
    assert all(made["id"] and made["type"] == "function" for made in calls)
    assert len({made["id"] for made in calls}) == len(calls)
    return {
        "id": answer["id"] if answer["id"] == "chatcmpl-up" else "ours",
        "content": message.get("content") or "",
        "reasoning": message.get("reasoning_content"),
        "refusal": message.get("refusal"),
        "calls": [(c["function"]["name"], c["function"]["arguments"]) for c in calls],
        "finish_reason": choice["finish_reason"],
        "usage": _counts(answer.get("usage")),
    }


def _counts(usage: Json | None) -> Json:
    return {key: value for key, value in (usage or {}).items() if value is not None}


def runs_tools(way: str) -> bool:
    """Whether a client calls its tools by itself: only the last answer is there to see."""
    return way.startswith("runTools")


def streams(way: str) -> bool:
    return "stream" in way


CLIENTS = ("python", "javascript")


@pytest.mark.parametrize(
    ("client", "case"),
    [
        pytest.param(client, case, id=f"{client}-{case.name}")
        for client in CLIENTS
        for case in CASES
        if case.status is None
    ],
)
def test_a_client_understands_the_answer(
    client: str, case: Case, request: pytest.FixtureRequest
) -> None:
    whole = [gist(turn) for turn in request.getfixturevalue("python")["create"][case.name]["turns"]]
    for way, answers in request.getfixturevalue(client).items():
        if case.name not in answers:
            assert runs_tools(way) and not case.calls
            continue
        outcome = answers[case.name]
        if case.asks == _FOREIGN and way.endswith("strictly"):
            continue
        if case.asks == "cut off" and client == "python" and way.endswith("stream()"):
            # The helper's own way to say so.
            assert outcome["error"]["name"] == "LengthFinishReasonError"
            continue
        assert "error" not in outcome, (way, outcome["error"])
        turns = [gist(turn) for turn in outcome["turns"]]
        assert turns[-1]["content"] == case.content, way
        assert turns[-1]["finish_reason"] == case.reason, way
        if case.calls and not runs_tools(way):
            assert len(turns) == 2, way
            handed = [(name, json.loads(arguments)) for name, arguments in turns[0]["calls"]]
            assert handed == [("own", json.loads(arguments)) for arguments in case.calls], way
            assert turns[0]["finish_reason"] == "tool_calls", way
        # The streamed message is the unary one.
        for turn, same in zip(reversed(turns), reversed(whole), strict=False):
            assert _seen(turn, case, client, way) == _seen(same, case, client, way), way


def _seen(turn: Json, case: Case, client: str, way: str) -> Json:
    """What of a *turn* this client can see in this way."""
    hidden = set()
    if streams(way) and (not case.more or runs_tools(way)):
        hidden.add("usage")
    if client == "javascript" and streams(way) and way != "create(stream)":
        # Its helper keeps only the last delta of a field that OpenAI does not have.
        hidden.add("reasoning")
    return {key: value for key, value in turn.items() if key not in hidden}


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    "case", [case for case in CASES if case.status is not None], ids=lambda case: case.name
)
def test_a_failure_is_the_clients_api_error(
    case: Case, client: str, request: pytest.FixtureRequest
) -> None:
    for way, answers in request.getfixturevalue(client).items():
        if case.name not in answers:
            assert runs_tools(way)
            continue
        error = answers[case.name].get("error")
        assert error is not None, (way, answers[case.name])
        assert error["is_api_error"], (way, error)
        assert case.message in error["message"], way
        expected = None if case.begun and streams(way) else case.status
        assert error["status"] == expected, (way, error)


def test_the_usage_is_the_sum_of_the_rounds(python: Json) -> None:
    for way in ("create", "create(stream)", "stream()"):
        (turn,) = python[way]["usage"]["turns"]
        assert turn["usage"]["total_tokens"] == 42, way
        assert turn["usage"]["prompt_tokens_details"]["cached_tokens"] == 2, way


def test_every_scenario_is_asked() -> None:
    assert SCENARIOS.keys() <= {case.asks for case in CASES}
