"""The log of requests and calls: what their lines say, and what no line ever does."""

from __future__ import annotations

import ast
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from twisted.logger import ILogObserver, formatEvent, globalLogPublisher

from llamaproxy.admin.eventlog import log_event
from llamaproxy.config import logformat
from llamaproxy.config.logformat import FIELDS, MAY_WAIT, LineLog, format_json, format_text
from llamaproxy.events import CallEnded, RequestEnded
from llamaproxy.records import CallRecord, ChatRecord, RequestRecord, RoundRecord
from tests.chat.script import Chat
from tests.support import answer, calling, nothing, saying

PRODUCT = Path(__file__).parent.parent.parent / "llamaproxy"


@contextmanager
def logged() -> Iterator[list[Any]]:
    """The events of the log meanwhile."""
    lines: list[Any] = []
    observer = cast(ILogObserver, lines.append)
    globalLogPublisher.addObserver(observer)
    try:
        yield lines
    finally:
        globalLogPublisher.removeObserver(observer)


def ended_chat() -> RequestRecord:
    request = RequestRecord("r1", "10.0.0.9", "POST", "/v1/chat/completions", 100.0)
    request.who, request.trace_id, request.route = "0badcafe", "4b" * 16, "chat_completions"
    request.status, request.sent, request.ended, request.first_byte = 200, 512, 103.5, 101.25
    chat = request.chat = ChatRecord(request, model="llama-3")
    chat.offered = ("clock", "weather")
    for number in (1, 2):
        round = RoundRecord(chat, number, 100.0)
        round.note_answer("m", "stop", {"prompt_tokens": 10, "completion_tokens": number})
        chat.rounds.append(round)
    clock = CallRecord(chat, 1, 1, 101.0, "clock", "mcp::a", began=101.0, ended=101.5)
    clock.outcome = "answered"
    chat.calls += [clock, CallRecord(chat, 2, 1, 101.0, ended=101.0, outcome="unknown")]
    return request


def test_the_line_of_a_chat_is_text_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logformat, "current", LineLog(io.StringIO(), format_text))
    with logged() as lines:
        log_event(RequestEnded(ended_chat()))
    [line] = map(format_text, lines)
    assert line is not None
    assert line.partition("] ")[2] == (
        "10.0.0.9 POST /v1/chat/completions 200 512 bytes 3.500 s, first byte: 1.250 s, "
        "who: 0badcafe, model: llama-3, tools: 2, rounds: 2, calls: 2, failed: 1, "
        "ran: clock answered 0.500 s; unknown tool unknown 0.000 s, input tokens: 20, "
        f"output tokens: 3, trace: {'4b' * 16} [r1]\n"
    )


def test_the_line_of_a_chat_is_json_for_machines() -> None:
    request = ended_chat()
    request.kind, request.error = "upstream_broke", "upstream_broke (ended)"
    assert request.chat is not None
    request.chat.limit = "rounds"
    with logged() as lines:
        log_event(RequestEnded(request))
    [line] = [json.loads(format_json(each)) for each in lines]
    for key in ("time", "level", "logger", "message"):
        del line[key]
    assert line == {
        **{"client": "10.0.0.9", "method": "POST", "path": "/v1/chat/completions"},
        **{"status": 200, "sent": 512, "seconds": 3.5, "request": "r1", "trace": "4b" * 16},
        **{"route": "chat_completions", "first_byte": 1.25, "who": "0badcafe"},
        **{"model": "llama-3", "tools": 2, "rounds": 2, "calls": 2, "failed": 1},
        "ran": [
            {"tool": "clock", "group": "mcp::a", "outcome": "answered", "seconds": 0.5},
            {"tool": "", "group": "", "outcome": "unknown", "seconds": 0.0},
        ],
        **{"input_tokens": 20, "output_tokens": 3, "limit": "rounds"},
        **{"error": "upstream_broke (ended)", "kind": "upstream_broke"},
    }


def test_tools_of_one_name_are_told_apart_by_their_groups() -> None:
    request = ended_chat()
    assert request.chat is not None
    other = CallRecord(request.chat, 3, 1, 102.0, "clock", "mcp::b", began=102.0, ended=102.25)
    other.outcome = "failed"
    request.chat.calls.append(other)
    with logged() as lines:
        log_event(RequestEnded(request))
    assert (
        "ran: clock of mcp::a answered 0.500 s; unknown tool unknown 0.000 s; "
        "clock of mcp::b failed 0.250 s, " in str(format_text(lines[0]))
    )


def test_a_line_names_some_calls_of_many() -> None:
    request = ended_chat()
    assert request.chat is not None
    request.chat.calls *= 1000
    with logged() as lines:
        log_event(RequestEnded(request))
    line = json.loads(format_json(lines[0]))
    assert line["calls"] == 2000 and len(line["ran"]) == 32
    assert len(str(format_text(lines[0]))) < 4000


SECRETS = {
    "prompt": "SECRET-PROMPT",
    "argument": "SECRET-ARGUMENT",
    "result": "SECRET-RESULT",
    "text": "SECRET-ANSWER",
    "key": "SECRET-KEY",
    "made up": "SECRET_TOOL",
}

FIELDS_WITH_SECRETS = {
    "Authorization": f"Bearer {SECRETS['key']}",
    "Api-Key": SECRETS["key"],
    "Cookie": f"session={SECRETS['key']}",
    "X-LlamaStack-Provider-Data": json.dumps({"token": SECRETS["key"]}),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    "last",
    [
        saying(SECRETS["text"]),
        answer({"error": {"message": SECRETS["text"]}}, 500),
        answer(SECRETS["text"].encode()),
        nothing,
    ],
    ids=["answered", "refused", "nonsense", "left"],
)
def test_nothing_that_was_said_is_in_any_line(stream: bool, last: Any) -> None:
    with logged() as lines:
        chat = Chat(
            calling("clock", {"at": SECRETS["argument"]}),
            calling(SECRETS["made up"]),
            calling("clock", f'{{"broken": "{SECRETS["argument"]}'),
            last,
            stream=stream,
            results=(SECRETS["result"],),
            body={"messages": [{"role": "user", "content": SECRETS["prompt"]}]},
            fields=FIELDS_WITH_SECRETS,
        )
        if last is nothing:
            chat.exchange.leave()
            chat.proxy.settle()
    text = "".join(f"{format_text(line)}{format_json(line)}" for line in lines)
    assert "tool clock of mcp::main answered" in text and "there is not" in text
    assert "ran: clock answered" in text
    for name, secret in SECRETS.items():
        assert secret not in text, name


def test_what_is_no_field_of_the_log_is_in_no_json() -> None:
    event = {"log_time": 0.0, "log_format": "said", "prompt": "x", "arguments": {"a": 1}}
    assert set(json.loads(format_json(event))) == {"time", "level", "logger", "message"}


def test_every_field_that_is_logged_is_one_of_the_log() -> None:
    names = set()
    for path in PRODUCT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
                tuple(f"_log.{level}" for level in ("debug", "info", "warn", "error", "failure"))
            ):
                names |= {keyword.arg for keyword in node.keywords}
    assert len(names) > 10
    assert names - FIELDS <= {"request", "failure", "of_group"}


def test_another_log_has_lines_that_are_safe_and_name_their_request() -> None:
    chat = ended_chat()
    assert chat.chat is not None
    chat.chat.model = "a\nb\x1b[2J"
    with logged() as lines:
        log_event(RequestEnded(chat))
    [line] = map(formatEvent, lines)
    assert line.endswith(f" [{chat.id}]") and r"model: a\nb\x1b[2J," in line


def test_a_log_of_our_own_asks_for_the_fields_it_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    call = CallRecord(ChatRecord(), 1, 1, 0.0, "clock", "mcp::a", began=0.0, ended=0.5)
    call.outcome = "answered"
    told = RequestEnded(ended_chat()), CallEnded(call)
    stream = io.StringIO()
    with logged() as flat:
        for each in told:
            log_event(each)
    monkeypatch.setattr(logformat, "current", LineLog(stream, format_json))
    with logged() as lines:
        for each in told:
            log_event(each)
    for each in (*flat, *lines):
        each["log_time"] = 0.0
    own, others = ([json.loads(format_json(each)) for each in those] for those in (lines, flat))
    for line, anothers in zip(own, others, strict=True):
        del line["message"], anothers["message"]
    assert own == others
    assert all("outcome" in each or "status" in each for each in flat)
    assert all(each[MAY_WAIT] for each in lines), "there are many of them in a turn"
    assert not [each for each in lines if "outcome" in each or "status" in each]
