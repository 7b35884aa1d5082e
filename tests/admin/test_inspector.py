"""What the page asks for: one answer, to stop it, to try a tool, its files."""

from __future__ import annotations

import gc
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import pytest
from twisted.logger import formatEvent, globalLogPublisher

from llamaproxy.admin import inspector as inspector_module
from llamaproxy.admin import redaction
from llamaproxy.admin.answers import Answer
from llamaproxy.admin.page import file_of
from llamaproxy.config.options import Options
from llamaproxy.events import CallEnded
from llamaproxy.records import CallRecord, ChatRecord, RequestRecord, RoundRecord
from llamaproxy.tap import _log_start
from llamaproxy.tools.names import offered_names
from llamaproxy.tools.offers import Withheld
from llamaproxy.tools.toolruntime import definition_of
from llamaproxy.tools.trial import Trials
from tests.admin.inspected import Inspected
from tests.admin.traces import Traced
from tests.support import (
    CHAT,
    INVOKE,
    FakeStack,
    MemoryAgent,
    answer,
    begin_events,
    call,
    calling,
    chunk,
    event,
    nothing,
    pending_calls,
    saying,
    tool,
    tool_result,
    turn,
)
from tests.tools.mcp_servers import FakeMcp, error

JSON = b"Content-Type: application/json"
TRY = {"group": "mcp::main", "tool": "clock", "arguments": {"n": 1}}


def inspected(*answers: Any, contents: bool = False, **more: Any) -> Inspected:
    stack = FakeStack()
    stack.on("GET /v1/tools", answer({"data": [tool("clock"), tool("web", "mcp::web")]}))
    stack.on(CHAT, *(answers or (calling("clock"), saying("It is noon."))))
    stack.on(INVOKE, tool_result("12:00"))
    return Inspected(stack, contents, **more)


def detail(app: Inspected, key: int = 1) -> Any:
    got = app.get(f"/answers/{key}")
    assert got.status == 200
    return json.loads(got.body)


# --- one answer


def test_an_answer_is_shown_with_all_that_is_known_of_it() -> None:
    app = inspected()
    app.chat(fields={"X-Request-Id": "mine"}, stream=True)
    shown = detail(app)
    assert (shown["key"], shown["id"], shown["status"], shown["streamed"]) == (1, "mine", 200, True)
    assert (shown["offered_tools"], shown["called"]) == (["clock", "web"], ["clock"])
    assert (shown["withheld"], shown["contents"]) == ({}, None)
    assert shown["shares"].keys() == {"model", "tools", "proxy"}


def test_a_tool_that_was_offered_by_another_name_has_been_called_by_that() -> None:
    stack = FakeStack()
    both = [tool("too big", "mcp::a"), tool("clock", "mcp::b")]
    stack.on("GET /v1/tools", answer({"data": both}))
    offered = offered_names({"": list(filter(None, map(definition_of, both)))})
    [name] = offered.keys() - {"clock"}
    stack.on(CHAT, calling(name), saying("Done."))
    stack.on(INVOKE, tool_result("12:00"))
    app = Inspected(stack)
    app.chat()
    shown = detail(app)
    assert sorted(shown["offered_tools"]) == sorted(offered)
    assert shown["called"] == [name] != ["too big"]


def test_what_the_server_was_is_known_while_it_is_away() -> None:
    app = inspected()
    assert json.loads(app.get("/status").body)["upstream"]["server"] is None
    app.chat()
    app.app.detector.forget()
    assert json.loads(app.get("/status").body)["upstream"]["server"] == "version 0.6.1"
    assert app.page().events()[0][1]["server"] == "Llama Stack 0.6.1"


def test_an_answer_that_is_not_kept_is_a_404() -> None:
    app = inspected()
    for path in ("/answers/1", "/answers/0", "/answers/x", "/answers/1/2", "/answers/" + "9" * 40):
        assert app.get(path).status == 404
    assert app.post("/answers/1/stop").status == 404


def test_an_answer_can_be_downloaded_under_a_name_that_is_no_path() -> None:
    app = inspected()
    app.chat(fields={"X-Request-Id": 'a/../"b'})
    got = app.get("/answers/1?download")
    [disposition] = got.fields["content-disposition"]
    assert disposition.startswith('attachment; filename="answer-')
    assert not {"/", "\\", ".."} & set(disposition.partition("answer-")[2].removesuffix('.json"'))
    assert "content-disposition" not in app.get("/answers/1").fields


def test_it_says_why_each_other_tool_was_not_offered() -> None:
    app = inspected()
    function = {"type": "function", "function": {"name": "clock", "parameters": {}}}
    app.chat(tools=[function])
    app.chat(fields={"X-Llamaproxy-Tools": "mcp::main"})
    app.chat(fields={"X-Llamaproxy-Tools": "none"})
    assert detail(app, 1)["withheld"] == {"clock": "the client declares a tool of this name"}
    assert detail(app, 2)["withheld"] == {"web": "X-Llamaproxy-Tools does not match it"}
    shown = detail(app, 3)
    assert (shown["withheld"], shown["offered_tools"]) == ({}, [])
    assert shown["not_injected"] == "its X-Llamaproxy-Tools is none"


def test_it_says_which_group_could_not_be_listed() -> None:
    app = inspected()
    app.stack.on("GET /v1/tools", answer({"detail": "dead"}, 500))
    app.stack.on("GET /v1/tools?toolgroup_id=mcp::main", answer({"data": [tool("clock")]}))
    app.stack.on("GET /v1/tools?toolgroup_id=mcp::web", answer({"detail": "dead"}, 500))
    groups = [{"identifier": "mcp::main"}, {"identifier": "mcp::web"}]
    app.stack.on("GET /v1/toolgroups", answer({"data": groups}))
    app.chat()
    [(name, why)] = detail(app)["withheld"].items()
    assert name == "mcp::web (group)"
    assert why.startswith("its group mcp::web could not be listed: upstream_refused")


def test_of_a_group_that_failed_after_it_nothing_is_said() -> None:
    app = inspected(ttl=1)
    app.chat()
    app.stack.on("GET /v1/tools", answer({"detail": "dead"}, 500))
    app.stack.on("GET /v1/toolgroups", answer({"detail": "dead"}, 500))
    app.advance(10)
    app.chat()
    assert detail(app, 1)["withheld"] == {}


def test_requests_other_than_chats_are_shown_if_they_failed() -> None:
    app = inspected()
    app.request("GET", "/health")
    app.request("POST", "/v1/chat/completions", b"[")
    page = app.page()
    [[row]] = page.rows()
    assert (row["status"], row["kind"], row["rounds"]) == (400, "invalid_request", [])


# --- curl


def test_a_request_can_be_repeated_without_its_key() -> None:
    app = inspected()
    app.chat(fields={"Authorization": "Bearer hidden-key"}, model="m'$(x)`y`")
    shown = detail(app)
    assert "hidden-key" not in json.dumps(shown)
    words = shlex.split(shown["curl"])
    assert words[:3] == ["curl", "-g", "http://localhost:8322/v1/chat/completions"]
    assert "Authorization: Bearer YOUR_KEY" in words
    body = json.loads(words[words.index("--data-raw") + 1])
    assert body["model"] == "m'$(x)`y`"
    assert "--inspect-contents" in body["messages"][0]["content"]


def test_with_contents_it_is_repeated_as_the_client_sent_it() -> None:
    app = inspected(saying("So."), contents=True)
    function = {"type": "function", "function": {"name": "mine", "parameters": {}}}
    app.chat(tools=[function], temperature=0.5)
    app.chat(messages=[{"role": "user", "content": "It's $HOME; sk-1234567890abcdef"}])
    for key, expected in ((1, {"tools": [function], "temperature": 0.5}), (2, {})):
        words = shlex.split(detail(app, key)["curl"])
        body = json.loads(words[words.index("--data-raw") + 1])
        messages = body.pop("messages")
        assert body == {"model": "m", **expected}
    assert messages == [{"role": "user", "content": "It's $HOME; ***"}]


def test_what_was_too_large_to_be_kept_is_said_to_be_that() -> None:
    app = inspected(saying("So."), contents=True)
    app.chat(messages=[{"role": "user", "content": "long " * 250_000}])
    app.chat(fields={"X-Llamaproxy-Tools": "mcp::m*"})
    app.chat(messages=7)
    large, narrowed, refused = detail(app, 1), detail(app, 2), detail(app, 3)
    assert large["contents"]["cut"] and "are too large" in large["curl_lacks"]
    assert "has not been asked" in refused["curl_lacks"]
    assert narrowed["curl_lacks"] == ""
    assert "X-Llamaproxy-Tools: mcp::m*" in shlex.split(narrowed["curl"])


# --- contents


def test_contents_are_shown_by_round_and_call_without_credentials() -> None:
    calls = calling("clock", {"zone": "UTC", "api_key": "abc-123-secret"})
    app = inspected(calls, saying("It is noon."), contents=True)
    app.chat(messages=[{"role": "user", "content": "Authorization: Bearer abc.def.ghi, please"}])
    shown = detail(app)
    contents = shown["contents"]
    assert contents["rounds"].keys() == {"1", "2"} and contents["cut"] is False
    assert contents["rounds"]["2"]["answer"]["content"] == "It is noon."
    assert contents["calls"] == {
        "1": {"arguments": '{"zone":"UTC","api_key":"***"}', "result": "12:00"}
    }
    text = json.dumps(shown)
    assert "abc-123-secret" not in text and "abc.def.ghi" not in text
    assert contents["rounds"]["1"]["request"]["messages"][0]["content"].startswith("Authorization")


# --- stop


def test_a_whole_answer_can_be_stopped() -> None:
    app = inspected(nothing)
    asked = app.chat()
    assert app.post("/answers/1/stop").status == 204
    app.settle()
    assert (asked.status, asked.json()["error"]["code"]) == (403, "stopped")
    assert asked.field("X-Should-Retry") == "false"
    assert detail(app)["kind"] == "stopped" and app.stack.open == []
    assert app.post("/answers/1/stop").status == 404


def test_a_streamed_answer_can_be_stopped() -> None:
    app = inspected(begin_events)
    asked = app.chat(stream=True)
    app.stack.open[-1].write(event(chunk({"content": "Once"})))
    app.settle()
    assert asked.text() == "Once"
    assert app.post("/answers/1/stop").status == 204
    app.settle()
    [*_, error, end] = asked.events()
    assert (error["error"]["code"], end) == ("stopped", "[DONE]")
    assert detail(app)["kind"] == "stopped" and app.stack.open == []


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_an_answer_whose_tool_runs_can_be_stopped(stream: bool) -> None:
    app = inspected(calling("clock"))
    app.stack.on(INVOKE, nothing)
    asked = app.chat(stream=stream)
    assert [each.path for each in app.stack.open] == [b"/v1/tool-runtime/invoke"]
    assert app.post("/answers/1/stop").status == 204
    app.settle()
    assert app.stack.open == []
    shown = detail(app)
    assert [each["outcome"] for each in shown["calls"]] == ["cancelled"]
    assert shown["kind"] == "stopped"
    if not stream:
        assert (asked.status, asked.field("X-Should-Retry")) == (403, "false")


PHASES: dict[str, tuple[Any, ...]] = {
    "tools are listed": ("GET /v1/tools", nothing),
    "the model is asked": (CHAT, nothing),
    "the model answers": (CHAT, begin_events),
    "a tool runs and a call waits": (INVOKE, nothing),
    "a call has waited": (INVOKE, tool_result("12:00"), nothing),
    "the model is asked again": (CHAT, calling("clock"), nothing),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("phase", PHASES)
def test_an_answer_can_be_stopped_in_every_phase(phase: str, stream: bool) -> None:
    calls = [call("clock", {"n": n}, f"call_{n}") for n in range(2)]
    app = inspected(turn(None, calls), max_calls=(1, 1))
    app.stack.on(*PHASES[phase])
    page = app.page()
    app.chat(stream=stream)
    assert len(app.stack.open) == 1
    before = app.app.tell.failures
    assert app.post("/answers/1/stop").status == 204
    app.settle()
    app.advance(1)
    shown = detail(app)
    assert shown["kind"] == "stopped" and shown["status"] != 0 and shown["total"] is not None
    assert {each["outcome"] for each in shown["calls"]} <= {"answered", "cancelled"}
    assert all(each["ended"] is not None for each in shown["calls"] + shown["rounds"])
    assert app.site.connections.running == 1  # the page
    if phase != "tools are listed":  # which others may wait for as well
        assert app.stack.open == []
    assert page.rows()[-1][0]["kind"] == "stopped"
    assert app.post("/answers/1/stop").status == 404
    assert app.app.tell.failures == before


def test_one_answer_is_stopped_and_no_other() -> None:
    app = inspected(nothing)
    first, second = app.chat(), app.chat()
    assert app.post("/answers/2/stop").status == 204
    app.settle()
    assert second.status == 403 and not first.answered
    assert detail(app)["status"] == 0


# --- trying a tool


def test_a_tool_can_be_tried_without_a_callers_credentials() -> None:
    app = inspected()
    got = app.post("/tools/try", TRY)
    result = json.loads(got.body)
    assert result.pop("seconds") >= 0
    assert result == {"outcome": "answered", "text": "12:00", "is_error": False}
    [asked] = app.stack.asked_for(INVOKE)
    assert asked.json() == {"tool_name": "clock", "kwargs": {"n": 1}}
    assert not asked.headers.hasHeader("authorization")
    groups = app.tool_status.tools_as_json()["groups"]
    assert [each["calls"] for group in groups for each in group["tools"]] == [1, 0]


@pytest.mark.parametrize("value", [10**30, -(2**64) - 1, "\ud800"])
def test_a_tool_that_is_tried_gets_what_was_written(value: Any) -> None:
    app = inspected()
    assert app.post("/tools/try", {**TRY, "arguments": {"n": value}}).status == 200
    [asked] = app.stack.asked_for(INVOKE)
    assert asked.json()["kwargs"] == {"n": value} and isinstance(value, int | str)


def test_a_tool_that_is_tried_has_the_limits_of_a_call() -> None:
    app = inspected(tool_timeout=5, max_result=1000)
    app.stack.on(INVOKE, tool_result("x" * 5000))
    assert len(json.loads(app.post("/tools/try", TRY).body)["text"]) < 1500
    app.stack.on(INVOKE, nothing)
    page = app.opened("/tools/try", TRY)
    app.advance(5)
    [got] = page.answers()
    result = json.loads(got.body)
    assert (result["outcome"], result["is_error"]) == ("timeout", True)
    assert app.stack.open == []


def test_a_tool_that_is_tried_ends_when_the_page_leaves() -> None:
    app = inspected()
    app.stack.on(INVOKE, nothing)
    page = app.opened("/tools/try", TRY)
    assert len(app.stack.open) == 1
    page.leave()
    app.settle()
    assert app.stack.open == []
    called = [each.call for each in app.events if isinstance(each, CallEnded)]
    assert [each.outcome for each in called] == ["cancelled"]


def test_only_so_many_tools_are_tried_at_the_same_time() -> None:
    app = inspected()
    app.stack.on(INVOKE, nothing)
    pages = [app.opened("/tools/try", TRY) for _ in range(8)]
    assert app.post("/tools/try", TRY).status == 503
    pages[0].leave()
    app.stack.on(INVOKE, tool_result("12:00"))
    assert app.post("/tools/try", TRY).status == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({**TRY, "tool": "nonsense"}, 404),
        ({**TRY, "group": "mcp::web"}, 404),
        ({**TRY, "arguments": "x"}, 400),
        ({**TRY, "tool": 1}, 400),
        (["clock"], 400),
    ],
)
def test_what_cannot_be_tried_is_refused_in_words(body: Any, status: int) -> None:
    app = inspected()
    got = app.post("/tools/try", body)
    assert got.status == status and json.loads(got.body)["error"]["message"]
    assert app.stack.asked_for(INVOKE) == []


def test_a_trial_belongs_to_no_chat() -> None:
    app = inspected()
    page = app.page()
    app.post("/tools/try", TRY)
    app.advance(1)
    assert page.rows() == [[]]
    trials = Trials(app.catalogue, app.clock)
    assert app.result(trials.run("mcp::main", "nonsense", {})) is None


# --- who may ask


@pytest.mark.parametrize("path", ["/answers/1/stop", "/tools/try"])
@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ([b"Content-Type: text/plain"], 415),
        ([b"Accept: */*"], 415),
        ([JSON, b"Sec-Fetch-Site: cross-site"], 403),
        ([JSON, b"Sec-Fetch-Site: same-site"], 403),
        ([JSON, b"Origin: http://evil.example"], 403),
        ([JSON, b"Origin: null"], 403),
        ([JSON, b"Origin: http://127.0.0.1:8322"], 403),
    ],
)
def test_pages_of_other_origins_change_nothing(path: str, fields: list[bytes], status: int) -> None:
    app = inspected(nothing)
    app.chat()
    got = app.post(path, TRY, *fields)
    assert got.status == status
    assert app.stack.asked_for(INVOKE) == [] and detail(app)["status"] == 0


def test_the_page_itself_may() -> None:
    app = inspected()
    own = (JSON, b"Sec-Fetch-Site: same-origin", b"Origin: http://127.0.0.1:8323")
    assert app.post("/tools/try", TRY, *own).status == 200


@pytest.mark.parametrize("path", ["/answers/1/stop", "/tools/try"])
def test_what_is_asked_for_with_get_changes_nothing(path: str) -> None:
    app = inspected(nothing)
    app.chat()
    assert app.get(path).status == 405
    assert detail(app)["status"] == 0


def test_a_page_of_another_origin_does_not_get_an_answer() -> None:
    app = inspected()
    app.chat()
    assert app.get("/answers/1", b"Sec-Fetch-Site: cross-site").status == 403


# --- files


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's folder, with a page in it."""
    (tmp_path / "index.html").write_text("<!doctype html>")
    (tmp_path / "app.js").write_text("1")
    (tmp_path / "notes.txt").write_text("no file of the page's")
    monkeypatch.setattr(inspector_module, "file_of", lambda name: file_of(name, tmp_path))
    return tmp_path


def test_the_page_is_served_with_its_fields(folder: Path) -> None:
    app = inspected()
    got = app.get("/", b"Sec-Fetch-Site: cross-site")  # by a link
    assert (got.status, got.body) == (200, b"<!doctype html>")
    assert got.fields["content-type"] == ["text/html; charset=utf-8"]
    script = app.get("/page/app.js")
    assert script.fields["content-type"] == ["text/javascript; charset=utf-8"]
    others = [app.get("/answers/9"), app.post("/tools/try", []), app.get("/page/none.js")]
    paths = ("/status", "/metrics", "/ready", "/live", "/log-level", "/nothing", "/%ff")
    everything = [*map(app.get, paths), app.post("/live"), app.post("/log-level")]
    for each in (got, script, *others, *everything):
        [policy] = each.fields["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert policy.endswith("; require-trusted-types-for 'script'")
        assert "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert each.fields["x-content-type-options"] == ["nosniff"]
        assert each.fields["referrer-policy"] == ["no-referrer"]
        assert each.fields["cache-control"] == ["no-store"]
        assert each.fields["cross-origin-resource-policy"] == ["same-origin"]
        assert not [name for name in each.fields if name.startswith("access-control")]


@pytest.mark.parametrize(
    "name",
    [
        *("none.js", "notes.txt", "..%2fpage.py", "%2e%2e/page.py", "../page.py", "app.js%00"),
        *(".hidden.js", "app", "", "app.js/", "app.js/x", "app%2ejs%2f..%2fapp.js"),
    ],
)
def test_nothing_but_the_pages_files_is_served(folder: Path, name: str) -> None:
    assert inspected().get(f"/page/{name}").status == 404


def test_other_paths_are_still_a_json_404() -> None:
    got = inspected().get("/answers/1/stop/now")
    assert got.status == 404 and "/status" in json.loads(got.body)["error"]["message"]


@pytest.mark.parametrize("contents", [False, True])
def test_an_answer_that_is_kept_holds_nothing_but_its_record(contents: bool) -> None:
    app = inspected(contents=contents)
    for number in range(4):
        app.stack_answers(calling("clock"), saying("It is noon."))
        fields = {"X-Llamaproxy-Tools": "clock"} if number % 2 else {}
        app.chat(stream=number > 1, fields=fields, text="x" * 100_000)
        detail(app, number + 1)
    for each in app.shown.answers.kept:
        held = list(held_by(each))
        kinds = {type(one) for one in held if type(one).__module__.startswith("llamaproxy")}
        assert kinds <= {Answer, RequestRecord, ChatRecord, RoundRecord, CallRecord, Withheld}
        assert sum(map(sys.getsizeof, held)) < 8_000


def held_by(answer: Answer) -> Iterator[object]:
    """All that *answer* keeps alive but for the code, and the clock, that all have."""
    code = type, ModuleType, FunctionType, MethodType, BuiltinFunctionType
    seen: set[int] = set()
    waiting: list[object] = [answer]
    while waiting:
        each = waiting.pop()
        if id(each) not in seen and not isinstance(each, code):
            seen.add(id(each))
            yield each
            waiting += gc.get_referents(each)


def test_nothing_is_left_running() -> None:
    app = inspected(turn(None, [call("clock"), call("web", call_id="call_2")]), saying("So."))
    page = app.page()
    app.chat(stream=True)
    app.advance(1)
    page.leave()
    feed: Any = app.inspector.feed
    assert (feed._rows_call, feed._tools_call, feed._beat_call) == (None, None, None)
    assert not [each for each in pending_calls(app.clock) if "Feed" in repr(each)]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--demo"], ["demo: watch what it does at http://127.0.0.1:8323/"]),
        (["--demo", "--admin", "off"], []),
        (["--inspect-contents"], ["--inspect-contents: what chats say is kept in memory, and"]),
        (["--inspect-contents", "--admin", "off"], ["--inspect-contents keeps nothing: the admin"]),
        ([], []),
    ],
)
def test_the_log_says_where_the_page_is_and_that_it_shows_contents(
    arguments: list[str], expected: list[str]
) -> None:
    lines: list[str] = []
    observe: Any = lambda event: lines.append(formatEvent(event))  # noqa: E731
    options = Options({})
    options.parseOptions(arguments)
    globalLogPublisher.addObserver(observe)
    try:
        admin = "" if "off" in arguments else "http://127.0.0.1:8323"
        _log_start(options, options["llamastack-url"], ["http://localhost:8322"], admin)
    finally:
        globalLogPublisher.removeObserver(observe)
    assert len(lines) == 1 + len(expected)
    assert all(map(str.startswith, lines[1:], expected))


def test_what_peers_wrote_is_json_and_nothing_else() -> None:
    name = "<img src=x onerror=alert(1)>"
    app = inspected(saying("So.", model=name))
    app.chat(fields={"X-OpenWebUI-Chat-Id": name}, model=name)
    got = app.get("/answers/1")
    assert got.fields["content-type"] == ["application/json"]
    shown = json.loads(got.body)
    assert (shown["model"], shown["conversation"]) == (name, name)
    assert shown["rounds"][0]["model"] == name
    page = app.page()
    assert page.rows()[0][0]["model"] == name  # as data of an event, never as a line of its own


@pytest.mark.parametrize("model", ["m\n\nevent: gone\ndata: {}", "m\r\rdata: x", "m\u2028\x00"])
def test_no_name_can_be_an_event_of_its_own(model: str) -> None:
    app = inspected(saying("So."))
    page = app.page()
    app.chat(model=model)
    app.advance(1)
    assert {name for name, _ in page.events()} == {"hello", "rows", "tools"}
    assert page.rows()[-1][0]["model"] == model


def test_a_schema_with_what_is_no_json_costs_a_browser_nothing_else() -> None:
    def no_json(name: str) -> Any:
        raise AssertionError(f"{name} is no JSON")

    app = inspected()
    schema = b'{"type":"object","properties":{"n":{"default":NaN,"minimum":-1e999}},"x":"\\ud800"}'
    listed = b'{"data":[{"name":"odd","toolgroup_id":"mcp::main","input_schema":%b}]}' % schema
    app.stack.on("GET /v1/tools", answer(listed))
    app.chat()
    page = app.page()
    lines = [each[6:] for each in page.text().splitlines() if each.startswith(b"data: ")]
    texts = [*lines, app.get("/status").body, app.get("/answers/1").body]
    read = [json.loads(text, parse_constant=no_json) for text in texts]
    [entry] = read[2]["groups"][0]["tools"]
    assert entry["parameters"]["properties"]["n"]["default"] is None


@pytest.mark.parametrize("fails", [False, True])
def test_no_credential_is_shown_anywhere(fails: bool) -> None:
    traced, stack, mcp = Traced(), FakeStack(), FakeMcp("look")
    arguments = {"headers": {"Authorization": "Bearer hunter2hunter2"}, "url": "http://a:hunter2@b"}
    echo = "Incorrect API key: sk-hunter2hunter2hunter2, Bearer hunter2hunter2"
    stack.on(CHAT, calling("look", arguments), saying("Here: sk-hunter2hunter2hunter2"))
    if fails:
        stack.on(CHAT, calling("look", arguments), answer({"error": {"message": echo}}, 401))
        mcp.handlers["tools/call"] = error(-32000, echo)
    servers = {"web": "http://me:hunter2@mcp:9000/mcp?key=hunter2"}
    lines: list[str] = []
    observe: Any = lambda event: lines.append(repr(event) + formatEvent(event))  # noqa: E731
    globalLogPublisher.addObserver(observe)
    try:
        app = Inspected(stack, True, mcp=MemoryAgent(mcp), mcp_servers=servers, **traced.options)
        page = app.page()
        fields = {
            "Authorization": "Bearer hunter2",
            "X-LlamaStack-Provider-Data": '{"tavily_search_api_key": "hunter2"}',
            "Cookie": "session=hunter2",
        }
        app.chat(fields=fields)
        app.request("GET", "/v1/models?api_key=hunter2", fields=fields)
        app.advance(3)
    finally:
        globalLogPublisher.removeObserver(observe)
    paths = ("/answers/1", "/answers/2", "/status", "/metrics", "/ready", "/tools/try")
    shown = [page.text(), *(app.get(path).body for path in paths)]
    assert b'"key":1' in shown[0] and b'"contents"' in shown[1]
    spans = [span.to_json() for span in traced.ended]
    for text in (*(each.decode() for each in shown), *lines, *spans):
        assert "hunter2" not in text


def test_what_is_shown_of_contents_is_redacted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    app = inspected(contents=True)
    app.chat(messages=[{"role": "user", "content": "Once upon a time."}])
    texts: list[str] = []
    redacted_text = redaction._redacted_text

    def counted(text: str, nested: int, level: int) -> str:
        texts.append(text)
        return redacted_text(text, nested, level)

    monkeypatch.setattr(redaction, "_redacted_text", counted)
    assert "Once upon a time." in detail(app)["curl"]
    assert texts.count("Once upon a time.") == 2  # in each of two rounds
