"""Traces: which spans there are, what they say, and what other servers are sent of them."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk", reason="NO TRACE IS TESTED: llamaproxy[otel] is missing")

from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased

from llamaproxy.admin.tracing import attributes
from llamaproxy.tracecontext import current_span
from tests.admin.traces import (
    MIDNIGHT,
    PARENT,
    TRACE,
    TRACEPARENT,
    Traced,
    id_of,
    parent_of,
    said_of,
    trace_of,
)
from tests.chat.script import Chat
from tests.server.door import FrontDoor
from tests.support import (
    CHAT,
    INVOKE,
    FakeStack,
    MemoryAgent,
    Proxy,
    answer,
    begin_events,
    call,
    calling,
    chunk,
    event,
    hang_up,
    nothing,
    saying,
    tool_result,
    turn,
)
from tests.tools.mcp_servers import FakeMcp

SERVER = "POST /v1/chat/completions"

USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}


def chat_of(traced: Traced, *rounds: Any, **more: Any) -> Chat:
    return Chat(*rounds, proxy=traced.options, **more)


def status_of(span: Any) -> str:
    name: str = span.status.status_code.name
    return name


# --- the tree


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_chat_is_a_tree_of_its_rounds_and_calls(stream: bool) -> None:
    traced = Traced()
    two = turn(None, [call("clock", call_id="a"), call("clock", {"of": 1}, call_id="b")])
    chat = chat_of(traced, two, saying("Noon.", usage=USAGE), stream=stream)
    assert chat.text == "Noon."
    agent = "invoke_agent"
    assert traced.tree() == sorted(
        [
            (SERVER, ""),
            (agent, SERVER),
            *[("chat m", agent)] * 2,
            *[("execute_tool clock", agent)] * 2,
        ]
    )
    assert len({trace_of(span) for span in traced.ended}) == 1
    kinds = {span.name: span.kind.name for span in traced.ended}
    assert kinds == {
        SERVER: "SERVER",
        agent: "INTERNAL",
        "chat m": "CLIENT",
        "execute_tool clock": "INTERNAL",
    }
    assert {status_of(span) for span in traced.ended} == {"UNSET"}


def test_spans_say_what_the_conventions_have_names_for() -> None:
    traced = Traced()
    fields = {"X-OpenWebUI-Chat-Id": "c-1", "X-Request-Id": "r-1"}
    chat_of(traced, calling("clock", usage=USAGE), saying("Noon.", usage=USAGE), fields=fields)
    about = {
        "gen_ai.provider.name": "llama_stack",
        "gen_ai.request.model": "m",
        "gen_ai.conversation.id": "c-1",
    }
    assert said_of(traced.named(SERVER)) == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "url.path": "/v1/chat/completions",
        "url.scheme": "http",
        "client.address": said_of(traced.named(SERVER))["client.address"],
        "llamaproxy.request.id": "r-1",
    }
    assert said_of(traced.named("invoke_agent")) == {
        "gen_ai.operation.name": "invoke_agent",
        **about,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 14,
        "gen_ai.usage.output_tokens": 4,
        "llamaproxy.tools.offered": 1,
        "llamaproxy.tools.listing_seconds": 0.0,
    }
    rounds = [said_of(span) for span in traced.ended if span.name == "chat m"]
    assert rounds == [
        {
            "gen_ai.operation.name": "chat",
            **about,
            "gen_ai.response.model": "m",
            "gen_ai.response.finish_reasons": (reason,),
            "gen_ai.usage.input_tokens": 7,
            "gen_ai.usage.output_tokens": 2,
            "server.address": "stack",
            "server.port": 8321,
        }
        for reason in ("tool_calls", "stop")
    ]
    assert said_of(traced.named("execute_tool clock")) == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "clock",
        "gen_ai.tool.type": "extension",
        "llamaproxy.tool.group": "mcp::main",
    }


def test_nothing_that_was_written_is_in_a_span() -> None:
    traced = Traced()
    chat = chat_of(
        traced,
        calling("clock", {"secret": "argument"}),
        saying("secret answer"),
        results=["secret result"],
        messages=[{"role": "user", "content": "secret question"}],
        fields={"Authorization": "Bearer secret-key", "Cookie": "secret=1"},
    )
    assert chat.text == "secret answer"
    assert len(traced.ended) == 5
    assert not [span for span in traced.ended if "secret" in span.to_json()]


@pytest.mark.parametrize("newest", [False, True])
def test_the_newest_names_are_used_where_they_are_wanted(newest: bool) -> None:
    traced = Traced(newest)
    chat_of(traced, saying("Hi."), stream=True)
    added = {"gen_ai.request.stream", "gen_ai.response.time_to_first_chunk"}
    assert added & said_of(traced.named("chat m")).keys() == (added if newest else set())


def test_times_are_those_of_the_records() -> None:
    traced = Traced()
    traced.clock.advance(100)
    chat = chat_of(traced, nothing, server=())
    # The site has a clock of its own in other tests.
    traced.clock.advance(2)
    proxy = chat.proxy
    proxy._front._agent._serverFactory.now = traced.clock.seconds
    chat.stack.on(CHAT, nothing)
    second = proxy.chat()
    traced.clock.advance(3)
    saying("Hi.")(chat.stack.open[-1])
    proxy.settle()
    assert second.status == 200
    [span] = [span for span in traced.ended if span.name == "chat m"]
    at = MIDNIGHT + 102 * 10**9
    assert (span.start_time, span.end_time) == (at, at + 3 * 10**9)
    server = traced.named(SERVER)
    assert (server.start_time, server.end_time) == (at, at + 3 * 10**9)


# --- what goes wrong


def test_a_refused_completion_is_an_error_of_all_that_wanted_it() -> None:
    traced = Traced()
    chat_of(traced, answer({"error": {"message": "secret words"}}, 503), server=())
    for name in (SERVER, "invoke_agent", "chat m"):
        span = traced.named(name)
        assert (status_of(span), said_of(span)["error.type"]) == ("ERROR", "upstream_refused")
        assert "secret" not in span.to_json()
    assert said_of(traced.named(SERVER))["http.response.status_code"] == 503


def test_an_error_of_the_clients_is_none_of_the_servers() -> None:
    traced = Traced()
    proxy = Proxy(FakeStack(), **traced.options)
    proxy.request("POST", "/v1/chat/completions", b"{")
    span = traced.named(SERVER)
    assert status_of(span) == "UNSET"
    said = said_of(span)
    assert (said["http.response.status_code"], said["error.type"]) == (400, "invalid_request")


def test_a_stream_that_breaks_is_an_error_though_its_status_is_not() -> None:
    traced = Traced()
    stack = FakeStack()
    stack.on(CHAT, begin_events)
    proxy = Proxy(stack, **traced.options)
    proxy.chat(stream=True)
    stack.open[-1].write(event(chunk({"role": "assistant", "content": "Half"})))
    proxy.settle()
    hang_up(stack.open[-1])
    proxy.settle()
    span = traced.named(SERVER)
    said = said_of(span)
    assert (status_of(span), said["http.response.status_code"]) == ("ERROR", 200)
    assert said["error.type"] == said_of(traced.named("chat m"))["error.type"] != ""


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_client_that_leaves_ends_all_spans(stream: bool) -> None:
    traced = Traced()
    chat = chat_of(traced, calling("clock"), results=[nothing], stream=stream)
    assert len(traced.spans) == 1
    chat.exchange.leave()
    errors = {span.name: said_of(span).get("error.type") for span in traced.ended}
    cancelled = "cancelled"
    assert errors == {
        SERVER: cancelled,
        "invoke_agent": cancelled,
        "chat m": None,
        "execute_tool clock": cancelled,
    }
    assert said_of(traced.named(SERVER))["http.response.status_code"] == 499
    assert len(traced.spans) == 0


@pytest.mark.parametrize(
    ("result", "error"),
    [
        (tool_result("secret", error_code=1), "tool_error"),
        (answer({"detail": "secret"}, 500), "tool_failed"),
        (hang_up, "upstream_broke"),
    ],
)
def test_a_call_that_fails_has_the_type_of_its_error(result: Any, error: str) -> None:
    traced = Traced()
    chat = chat_of(traced, calling("clock"), saying("So."), results=[result])
    assert chat.text == "So."
    span = traced.named("execute_tool clock")
    assert (status_of(span), said_of(span)["error.type"]) == ("ERROR", error)
    assert status_of(traced.named(SERVER)) == "UNSET"
    assert "secret" not in span.to_json()


def test_a_call_that_takes_too_long_is_a_timeout() -> None:
    traced = Traced()
    chat = chat_of(traced, calling("clock"), saying("So."), results=[nothing])
    chat.proxy.advance(61)
    assert said_of(traced.named("execute_tool clock"))["error.type"] == "timeout"


def test_a_call_of_no_tool_is_a_span_without_the_name_that_the_model_made_up() -> None:
    traced = Traced()
    chat_of(traced, calling("made_up"), saying("So."))
    span = traced.named("execute_tool")
    assert said_of(span) == {"gen_ai.operation.name": "execute_tool", "error.type": "unknown"}
    assert parent_of(span) == id_of(traced.named("invoke_agent"))


def test_what_is_still_open_is_ended_when_the_daemon_stops() -> None:
    traced = Traced()
    chat_of(traced, nothing, server=())
    assert not traced.ended
    traced.spans.end_all()
    assert {said_of(span)["error.type"] for span in traced.ended} == {"cancelled"}
    assert len(traced.spans) == 0 and len(traced.ended) == 3


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_can_be_sent(value: str) -> None:
    attributes.text(value).encode()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://user:secret@[::1]/mcp?key=secret", {"server.address": "::1", "server.port": 443}),
        ("http://mcp:9000", {"server.address": "mcp", "server.port": 9000}),
        ("http://mcp:port", {}),
        ("http://[broken", {}),
        ("", {}),
    ],
)
def test_a_server_is_told_by_its_address_and_port(url: str, said: dict[str, object]) -> None:
    assert attributes.server_attributes(url) == said


def test_names_that_are_not_unicode_do_not_cost_the_batch() -> None:
    traced = Traced()
    stack = FakeStack()
    stack.on(CHAT, answer(b'{"model": "\\ud800", "choices": [{"message": {"content": "Hi."}}]}'))
    Proxy(stack, **traced.options).request(
        "POST", "/v1/chat/completions", b'{"model": "m\\ud800", "messages": []}'
    )
    for span in traced.ended:
        span.name.encode()
        for value in said_of(span).values():
            str(value).encode()


# --- other requests


def test_a_request_that_is_passed_on_has_a_span_that_is_called_by_its_method() -> None:
    traced = Traced()
    stack = FakeStack()
    stack.on("GET /v1/models", answer({"data": []}))
    proxy = Proxy(stack, **traced.options)
    assert proxy.request("GET", "/v1/models?key=secret").status == 200
    span = traced.named("GET")
    assert said_of(span)["url.path"] == "/v1/models"
    assert "http.route" not in said_of(span) and "secret" not in span.to_json()
    [asked] = stack.asked_for("GET /v1/models")
    assert asked.headers.getRawHeaders("traceparent") == traced.traceparents("GET")


def test_an_error_that_is_passed_on_is_one_by_its_status() -> None:
    traced = Traced()
    stack = FakeStack()
    stack.on("GET /v1/models", answer({}, 503))
    Proxy(stack, **traced.options).request("GET", "/v1/models")
    span = traced.named("GET")
    assert (status_of(span), said_of(span)["error.type"]) == ("ERROR", "503")


def test_a_client_of_what_is_passed_on_may_leave() -> None:
    traced = Traced()
    stack = FakeStack()
    stack.on("GET /v1/models", nothing)
    Proxy(stack, **traced.options).request("GET", "/v1/models").leave()
    assert said_of(traced.named("GET"))["error.type"] == "cancelled"


def test_a_request_that_the_proxy_answers_is_called_by_its_path() -> None:
    traced = Traced()
    assert Proxy(FakeStack(), **traced.options).request("GET", "/health").status == 200
    assert said_of(traced.named("GET /health"))["http.route"] == "/health"


def test_a_method_that_nobody_knows_is_no_name() -> None:
    traced = Traced()
    Proxy(FakeStack(), **traced.options).request("FETCH", "/v1/models")
    said = said_of(traced.named("HTTP"))
    assert said["http.request.method"] == "_OTHER"
    assert said["http.request.method_original"] == "FETCH"


def test_a_request_that_is_refused_before_it_is_read_has_a_span() -> None:
    traced = Traced()
    door = FrontDoor()
    door.site._tell = traced.spans
    door.client().send(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
    [span] = traced.ended
    assert said_of(span)["http.response.status_code"] == 400
    assert len(traced.spans) == 0


def test_requests_of_one_connection_have_traces_of_their_own() -> None:
    traced = Traced()
    door = FrontDoor()
    door.site._tell = traced.spans
    door.client().send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 5)
    assert len({trace_of(span) for span in traced.ended}) == 5
    assert [span.parent for span in traced.ended] == [None] * 5
    assert current_span.get() is None


# --- what other servers are sent


def test_a_clients_trace_is_continued() -> None:
    traced = Traced()
    chat = chat_of(traced, calling("clock"), saying("Noon."), fields=TRACEPARENT)
    assert {trace_of(span) for span in traced.ended} == {TRACE}
    assert parent_of(traced.named(SERVER)) == PARENT
    stack = chat.stack
    completions = [asked.headers for asked in stack.asked_for(CHAT)]
    sent = [headers.getRawHeaders("traceparent", []) for headers in completions]
    assert [value for [value] in sent] == traced.traceparents("chat m")
    assert completions[0].getRawHeaders("tracestate") == ["vendor=1"]
    [invoked] = stack.asked_for(INVOKE)
    own = traced.traceparents("execute_tool clock")
    assert invoked.headers.getRawHeaders("traceparent") == own
    assert invoked.headers.getRawHeaders("tracestate") == ["vendor=1"]
    [listed] = stack.asked_for("GET /v1/tools")
    assert listed.headers.getRawHeaders("traceparent") == traced.traceparents("invoke_agent")


def test_calls_at_the_same_time_are_sent_on_as_one_span_each() -> None:
    traced = Traced()
    calls = [call("clock", {"n": n}, call_id=f"c{n}") for n in range(5)]
    chat = chat_of(traced, turn(None, calls), saying("So."))
    sent = [asked.headers.getRawHeaders("traceparent") for asked in chat.stack.asked_for(INVOKE)]
    assert len(sent) == 5
    own = traced.traceparents("execute_tool clock")
    assert sorted(value for values in sent if values for value in values) == sorted(own)
    [_, last] = chat.stack.asked_for(CHAT)
    assert last.headers.getRawHeaders("traceparent") == traced.traceparents("chat m")[1:]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"traceparent": "00-1-2-01"},
        {"traceparent": f"00-{'0' * 32}-{PARENT}-01"},
        {"traceparent": f"00-{TRACE}-{'0' * 16}-01"},
        {"traceparent": f"00-{TRACE}-{PARENT}-01-more"},
        {"traceparent": f"ff-{TRACE}-{PARENT}-01"},
    ],
)
def test_what_is_no_trace_is_not_continued(fields: dict[str, str]) -> None:
    traced = Traced()
    chat = chat_of(traced, saying("Hi."), fields={**fields, "tracestate": "vendor=1"})
    server = traced.named(SERVER)
    assert server.parent is None and trace_of(server) != TRACE
    [asked] = chat.stack.asked_for(CHAT)
    assert asked.headers.getRawHeaders("traceparent") == traced.traceparents("chat m")
    assert asked.headers.getRawHeaders("tracestate") is None
    [record] = {e.request for e in chat.proxy.events if hasattr(e, "request")}
    assert record.trace_id == trace_of(server)


@pytest.mark.parametrize("fields", [TRACEPARENT | {"traceparent": f"00-{TRACE}-{PARENT}-00"}, {}])
def test_what_is_not_sampled_is_sent_on_as_such(fields: dict[str, str]) -> None:
    traced = Traced(sampler=ParentBased(ALWAYS_OFF))
    chat = chat_of(traced, calling("clock"), saying("Noon."), fields=fields)
    assert not traced.ended
    for asked in (*chat.stack.asked_for(CHAT), *chat.stack.asked_for(INVOKE)):
        [sent] = asked.headers.getRawHeaders("traceparent", [])
        version, trace, span, flags = sent.split("-")
        assert (version, len(span)) == ("00", 16)
        assert not int(flags, 16) & 1
        assert trace == TRACE or not fields
        assert span != PARENT


@pytest.mark.parametrize("stateless", [False, True])
def test_an_mcp_server_is_sent_the_calls_span(stateless: bool) -> None:
    traced = Traced()
    stack, mcp = FakeStack(), FakeMcp("look")
    if stateless:
        mcp.revision = "2026-07-28"
    stack.on(CHAT, calling("look"), saying("So."))
    servers = {"web": "http://mcp:9000/mcp"}
    proxy = Proxy(stack, mcp=MemoryAgent(mcp), mcp_servers=servers, **traced.options)
    assert proxy.chat(fields=TRACEPARENT).status == 200
    span = traced.named("execute_tool look")
    called = [asked for asked in mcp.asked if b'"tools/call"' in asked.body]
    listed = [asked for asked in mcp.asked if b'"tools/list"' in asked.body]
    for asked, own in (
        (called[-1], traced.traceparents("execute_tool look")),
        (listed[-1], traced.traceparents("invoke_agent")),
    ):
        meta = asked.json()["params"]["_meta"]
        assert [meta["traceparent"]] == own
        assert meta["tracestate"] == "vendor=1"
        assert asked.headers.getRawHeaders("traceparent") == own
    said = said_of(span)
    assert said["mcp.method.name"] == "tools/call"
    assert said["jsonrpc.request.id"] == str(called[-1].json()["id"])
    assert (said["server.address"], said["server.port"]) == ("mcp", 9000)
    assert said["network.transport"] == "tcp"


def test_no_span_is_current_outside_of_a_request() -> None:
    traced = Traced()
    chat = chat_of(traced, calling("clock"), saying("Noon."))
    assert current_span.get() is None
    chat.again(saying("Hi."))
    assert current_span.get() is None


def test_without_traces_what_a_client_sends_is_sent_on() -> None:
    chat = Chat(calling("clock"), saying("Noon."), fields=TRACEPARENT)
    for asked in (*chat.stack.asked_for(CHAT), *chat.stack.asked_for(INVOKE)):
        for name, value in TRACEPARENT.items():
            assert asked.headers.getRawHeaders(name) == [value]
