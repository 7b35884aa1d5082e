"""The page, the log, the metrics and the traces of the same requests, side by side.

Each scenario is played in memory, and what each of the four says of it is compared with that of the
others, with what happened, and with what it said at the moment at which the request ended.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import attrs
import pytest

pytest.importorskip("opentelemetry.sdk", reason="NO TRACE IS TESTED: llamaproxy[otel] is missing")

from opentelemetry.sdk.trace import ReadableSpan
from twisted.logger import ILogObserver, globalLogPublisher

from llamaproxy.admin.rows import row
from llamaproxy.events import Event, RequestEnded
from llamaproxy.jsontext import Json
from llamaproxy.server.keys import ApiKeys
from tests.admin.inspected import Inspected
from tests.admin.traces import MIDNIGHT, Traced, said_of
from tests.server.door import Client
from tests.support import (
    CHAT,
    INVOKE,
    Exchange,
    FakeStack,
    answer,
    begin_events,
    call,
    calling,
    chunk,
    completion,
    event,
    events,
    hang_up,
    nothing,
    saying,
    tool,
    tool_result,
    turn,
)
from tests.tools.mcp_servers import FakeMcp, never
from tests.tools.test_mcp_source import TWO, Hosts

USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}

#: Seconds that a scenario lets pass; sums of them are compared as far as pages show them.
NEAR = 0.0003

SECONDS = "llamaproxy_request_duration_seconds"


class World(Inspected):
    """The whole application, and all who watch it."""

    def __init__(self, *answers: Any, stream: bool = False, **more: Any) -> None:
        """:param stream: whether chats are streamed whose scenario says nothing of it."""
        self.stream = stream
        stack = FakeStack()
        stack.on("GET /v1/tools", answer({"data": [tool("clock"), tool("web", "mcp::web")]}))
        stack.on(CHAT, *(answers or (calling("clock"), saying("It is noon."))))
        stack.on(INVOKE, tool_result("12:00"))
        self.traced = Traced()
        Inspected.__init__(self, stack, **self.traced.options, **more)
        self.log: list[dict[str, Any]] = []
        self.lines: list[dict[str, Any]] = []
        #: What the page would have been shown when each request ended.
        self.at_once: list[dict[str, Any]] = []
        self.app.tell.listen(self._note_end, RequestEnded)
        self.open_page = self.page()
        self.counted = self.count()

    def chat(
        self, body: Json | None = None, fields: Mapping[str, str] | None = None, **more: Any
    ) -> Exchange:
        """A chat, streamed as all of the scenario are unless it says itself."""
        if more.get("stream") is None:
            more["stream"] = self.stream
        return super().chat(body, fields, **more)

    def _note_end(self, event: Event) -> None:
        assert isinstance(event, RequestEnded)
        self.at_once.append(row(0, 0.0, event.request, self.clock.seconds()))

    def count(self) -> dict[tuple[str, tuple[str, ...]], float]:
        """All samples, by name and labels."""
        return {
            (sample.name, tuple(sample.labels.values())): sample.value
            for family in self.metrics.collect()
            for sample in family.samples
        }

    def counts(self, name: str) -> dict[tuple[str, ...], float]:
        """By how much the samples of that *name* have grown, those that have."""
        before = self.counted
        return {
            labels: value - before.get((series, labels), 0.0)
            for (series, labels), value in self.count().items()
            if series == name and value != before.get((series, labels), 0.0)
        }

    def upstream_sends(self, *chunks: Any) -> None:
        for each in chunks:
            self.stack.open[-1].write(event(each))
            self.settle()

    def speaker(self) -> Client:
        """One who speaks to the front itself."""
        front: Any = self
        site, self.site = self.site, self.front
        try:
            return Client(front)
        finally:
            self.site = site


def chat_bytes(*fields: bytes, **more: Any) -> bytes:
    """A request for a chat."""
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], **more}
    text = json.dumps(body).encode()
    head = [b"POST /v1/chat/completions HTTP/1.1", b"Host: proxy", *fields]
    head += [b"Content-Type: application/json", b"Content-Length: %d" % len(text)]
    return b"\r\n".join([*head, b"", text])


@attrs.frozen
class Truth:
    """What happened in a scenario."""

    status: int = 200
    kind: str = ""
    #: The kind of error of each round; tool and outcome of each call.
    rounds: tuple[str, ...] = ()
    calls: tuple[tuple[str, str], ...] = ()
    limit: str = ""
    #: Seconds for the model, and for tools.
    model: float = 0.0
    tools: float = 0.0
    total: float | None = None
    tokens: tuple[int, int] | None = None
    left: bool = False
    first_byte: bool = True
    #: Errors of the upstream's, by kind.
    upstream: tuple[str, ...] = ()


# --- the scenarios: what happens, and what is true then


def a_chat(world: World) -> None:
    world.chat()


def slow_rounds(stream: bool) -> Callable[[World], None]:
    def play(world: World) -> None:
        world.stack_answers(nothing, nothing)
        world.stack.on(INVOKE, nothing)
        world.chat(stream=stream)
        world.clock.advance(2)
        calling("clock", usage=USAGE)(world.stack.open[-1])
        world.settle()
        world.advance(3)
        tool_result("12:00")(world.stack.open[-1])
        world.settle()
        world.advance(1)
        saying("Noon.", usage=USAGE)(world.stack.open[-1])
        world.settle()

    return play


def leaves(world: World, exchange: Exchange) -> None:
    world.advance(1)
    exchange.leave()
    world.settle()


def leaves_while_the_model_thinks(world: World) -> None:
    world.stack_answers(nothing)
    leaves(world, world.chat())


def leaves_in_the_stream(world: World) -> None:
    world.stack_answers(begin_events)
    exchange = world.chat(stream=True)
    world.upstream_sends(chunk({"content": "Once"}))
    leaves(world, exchange)


def leaves_while_tools_run(stream: bool) -> Callable[[World], None]:
    def play(world: World) -> None:
        world.stack_answers(turn(None, [call("clock"), call("web", call_id="call_2")]))
        world.stack.on(INVOKE, nothing)
        leaves(world, world.chat(stream=stream))

    return play


def leaves_while_a_call_waits(world: World) -> None:
    world.stack_answers(turn(None, [call("clock"), call("web", call_id="call_2")]))
    world.stack.on(INVOKE, nothing)
    leaves(world, world.chat())


def leaves_while_tools_are_listed(world: World) -> None:
    world.stack.on("GET /v1/tools", nothing)
    world.stack.on("GET /v1/toolgroups", nothing)
    leaves(world, world.chat())


def leaves_when_calls_are_too_many(world: World) -> None:
    world.stack_answers(turn(None, [call("clock", {"n": n}, f"c{n}") for n in range(130)]))
    world.stack.on(INVOKE, nothing)
    leaves(world, world.chat())


def leaves_without_having_read(world: World) -> None:
    """The client does not read when it is to be shown a call."""
    world.stack_answers(begin_events)
    speaker = world.speaker().send(chat_bytes(b"X-OpenWebUI-Message-Id: 1", stream=True))
    world.settle()
    world.upstream_sends(chunk({"content": "Once"}))
    speaker.channel.pauseProducing()
    for index, name in enumerate(("clock", "web")):
        entry = {"index": index, **call(name, call_id=name)}
        world.upstream_sends(chunk({"tool_calls": [entry]}))
    world.upstream_sends(chunk({}, "tool_calls"))
    world.stack.open[-1].finish()
    world.settle()
    world.advance(1)
    speaker.leave()
    world.settle()


def reads_slowly(calls: bool) -> Callable[[World], None]:
    """The client does not read before the answer's last is there, or a call is to be shown."""

    def play(world: World) -> None:
        world.stack_answers(begin_events, saying("Noon."))
        speaker = world.speaker().send(chat_bytes(b"X-OpenWebUI-Message-Id: 1", stream=True))
        world.settle()
        world.upstream_sends(chunk({"content": "Once"}))
        speaker.channel.pauseProducing()
        if calls:
            world.upstream_sends(chunk({"tool_calls": [{"index": 0, **call("clock")}]}))
        world.upstream_sends(chunk({}, "tool_calls" if calls else "stop"))
        world.stack.open[-1].finish()
        world.settle()
        world.advance(3)
        speaker.channel.resumeProducing()
        world.settle()

    return play


def is_stopped(world: World) -> None:
    leaves_nobody = turn(None, [call("clock"), call("web", call_id="call_2")])
    world.stack_answers(leaves_nobody)
    world.stack.on(INVOKE, nothing)
    world.chat()
    world.advance(1)
    key = max(world.shown.keys)
    assert world.post(f"/answers/{key}/stop").status == 204
    world.settle()


def is_stopped_while_tools_are_listed(world: World) -> None:
    world.stack.on("GET /v1/tools", nothing)
    world.stack.on("GET /v1/toolgroups", nothing)
    world.chat()
    world.advance(1)
    world.post(f"/answers/{max(world.shown.keys)}/stop")
    world.settle()


def drains(world: World) -> None:
    world.stack_answers(begin_events)
    world.chat(stream=True)
    world.upstream_sends(chunk({"content": "Once"}))
    world.advance(1)
    world.front.connections.drain()
    world.front.connections.cut_short()
    world.settle()


def is_silent(world: World) -> None:
    world.stack_answers(nothing)
    world.chat()
    world.advance(9)
    world.advance(1)


def is_slow(world: World) -> None:
    world.stack.on(INVOKE, nothing)
    world.chat()
    world.advance(4)
    world.advance(1)


def repeats(world: World) -> None:
    world.stack_answers(*[calling("clock")] * 3, saying("Enough."))
    world.chat()


def goes_on(world: World) -> None:
    entries = [calling("clock", {"n": n}) for n in range(3)]
    world.stack_answers(*entries, saying("Enough."))
    world.chat()


def breaks_in_the_stream(world: World) -> None:
    world.stack_answers(begin_events)
    world.chat(stream=True)
    world.upstream_sends(chunk({"content": "Once"}))
    world.advance(1)
    hang_up(world.stack.open[-1])
    world.settle()


def breaks_after_its_usage(world: World) -> None:
    world.stack_answers(begin_events)
    world.chat(stream=True)
    world.upstream_sends(chunk({"content": "Once"}, usage=USAGE))
    hang_up(world.stack.open[-1])
    world.settle()


def leaves_after_its_usage(world: World) -> None:
    world.stack_answers(begin_events)
    exchange = world.chat(stream=True)
    world.upstream_sends(chunk({"content": "Once"}, usage=USAGE))
    leaves(world, exchange)


def model_answers(reply: Any, stream: bool | None = None) -> Callable[[World], None]:
    def play(world: World) -> None:
        world.stack_answers(reply)
        world.chat(stream=stream)

    return play


def tool_answers(reply: Any) -> Callable[[World], None]:
    def play(world: World) -> None:
        world.stack.on(INVOKE, reply)
        world.chat()

    return play


def calls_first(*entries: Any, reason: str = "tool_calls") -> Callable[[World], None]:
    def play(world: World) -> None:
        message = {"content": None, "tool_calls": [*entries]}
        world.stack_answers(answer(completion(message, reason)), saying("So."))
        world.chat()

    return play


def mixed(stream: bool) -> Callable[[World], None]:
    def play(world: World) -> None:
        both = turn(None, [call("clock"), call("mine", call_id="call_2")])
        world.stack_answers(both)
        own = {"type": "function", "function": {"name": "mine", "parameters": {}}}
        world.chat(stream=stream, tools=[own])

    return play


def is_malformed(world: World) -> None:
    world.request("POST", "/v1/chat/completions", b"[")


def is_refused(world: World) -> None:
    world.speaker().send(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")


def leaves_in_the_upload(half_closed: bool) -> Callable[[World], None]:
    def play(world: World) -> None:
        speaker = world.speaker().send(chat_bytes()[:-1])
        world.advance(1)
        if half_closed:
            speaker.half_close()
        speaker.leave()

    return play


def is_too_large(world: World) -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    speaker = world.speaker().send(head, b"3\r\nabc\r\n", b"nonsense\r\n")
    speaker.leave()


def half_closes(world: World) -> None:
    world.stack_answers(nothing)
    speaker = world.speaker().send(chat_bytes())
    world.settle()
    world.advance(1)
    speaker.half_close()
    speaker.leave()
    world.settle()


def passes(*replies: Any, then: Callable[[World, Exchange], None] | None = None) -> Any:
    def play(world: World) -> None:
        world.stack.on("GET /v1/models", *replies)
        exchange = world.request("GET", "/v1/models")
        world.advance(1)
        if then is not None:
            then(world, exchange)
        world.settle()

    return play


def half(request: Any) -> None:
    request.setHeader(b"Content-Type", b"text/plain")
    request.write(b"half")


def breaks(world: World, _: Exchange) -> None:
    hang_up(world.stack.open[-1])


CLOCK = ("clock", "answered")
BOTH = ("", "")

SCENARIOS: dict[str, tuple[Callable[[World], None], Truth]] = {
    "a chat": (a_chat, Truth(rounds=BOTH, calls=(CLOCK,))),
    "slow": (
        slow_rounds(False),
        Truth(rounds=BOTH, calls=(CLOCK,), model=3, tools=3, total=6, tokens=(14, 4)),
    ),
    "slow, streamed": (
        slow_rounds(True),
        Truth(rounds=BOTH, calls=(CLOCK,), model=3, tools=3, total=6, tokens=(14, 4)),
    ),
    "left while the model thinks": (
        leaves_while_the_model_thinks,
        Truth(499, rounds=("cancelled",), model=1, total=1, left=True, first_byte=False),
    ),
    "left in the stream": (
        leaves_in_the_stream,
        Truth(499, rounds=("cancelled",), model=1, total=1, left=True),
    ),
    "left while tools run": (
        leaves_while_tools_run(False),
        Truth(
            499,
            rounds=("",),
            calls=(("clock", "cancelled"), ("web", "cancelled")),
            tools=1,
            total=1,
            left=True,
            first_byte=False,
        ),
    ),
    "left while tools run, streamed": (
        leaves_while_tools_run(True),
        Truth(
            499,
            rounds=("",),
            calls=(("clock", "cancelled"), ("web", "cancelled")),
            tools=1,
            total=1,
            left=True,
        ),
    ),
    "left while a call waits": (
        leaves_while_a_call_waits,
        Truth(
            499,
            rounds=("",),
            calls=(("clock", "cancelled"), ("web", "cancelled")),
            tools=1,
            total=1,
            left=True,
            first_byte=False,
        ),
    ),
    "left when calls are too many": (
        leaves_when_calls_are_too_many,
        Truth(
            499,
            rounds=("",),
            calls=(("clock", "cancelled"),) * 128 + (("clock", "refused"),) * 2,
            tools=1,
            total=1,
            left=True,
            first_byte=False,
        ),
    ),
    "left without having read": (
        leaves_without_having_read,
        Truth(
            499,
            rounds=("",),
            calls=(("clock", "cancelled"), ("web", "cancelled")),
            model=1,
            total=1,
            left=True,
        ),
    ),
    "read slowly": (reads_slowly(False), Truth(rounds=("",), model=3, total=3)),
    "read slowly, with cards": (
        reads_slowly(True),
        Truth(rounds=BOTH, calls=(CLOCK,), model=3, total=3),
    ),
    "left while tools are listed": (
        leaves_while_tools_are_listed,
        Truth(499, tools=1, total=1, left=True, first_byte=False),
    ),
    "stopped": (
        is_stopped,
        Truth(
            403,
            "stopped",
            rounds=("",),
            calls=(("clock", "cancelled"), ("web", "cancelled")),
            tools=1,
            total=1,
        ),
    ),
    "stopped while tools are listed": (
        is_stopped_while_tools_are_listed,
        Truth(403, "stopped", tools=1, total=1),
    ),
    "drained": (drains, Truth(200, "shutting_down", rounds=("cancelled",), model=1, total=1)),
    "silent": (
        is_silent,
        Truth(
            504,
            "upstream_timeout",
            rounds=("upstream_timeout",),
            model=10,
            total=10,
            upstream=("upstream_timeout",),
        ),
    ),
    "a slow tool": (
        is_slow,
        Truth(rounds=BOTH, calls=(("clock", "timeout"),), tools=5, total=5),
    ),
    "repetition": (
        repeats,
        Truth(rounds=("",) * 4, calls=(CLOCK,) * 3, limit="repetition"),
    ),
    "rounds": (goes_on, Truth(rounds=("",) * 4, calls=(CLOCK,) * 3, limit="rounds")),
    "broken stream": (
        breaks_in_the_stream,
        Truth(
            200,
            "upstream_broke",
            rounds=("upstream_broke",),
            model=1,
            total=1,
            upstream=("upstream_broke",),
        ),
    ),
    "no head": (
        model_answers(hang_up),
        Truth(502, "upstream_broke", rounds=("upstream_broke",), upstream=("upstream_broke",)),
    ),
    **{
        f"{status}": (
            model_answers(answer({"detail": "no"}, status), stream),
            Truth(
                status,
                "upstream_refused",
                rounds=("upstream_refused",),
                upstream=("upstream_refused",),
            ),
        )
        for status, stream in ((429, None), (500, True), (422, True))
    },
    "HTML": (
        model_answers(answer(b"<html>", 200, {"Content-Type": "text/html"})),
        Truth(502, "upstream_broke", rounds=("upstream_broke",), upstream=("upstream_broke",)),
    ),
    "an error event": (
        model_answers(
            events(chunk({"content": "Once"}), {"error": {"message": "no", "code": 500}}), True
        ),
        Truth(
            200, "upstream_refused", rounds=("upstream_refused",), upstream=("upstream_refused",)
        ),
    ),
    **{
        f"ends with an error, {stream}": (
            model_answers(
                events(chunk({}, "error"), {**chunk({}), "choices": [], "usage": USAGE})
                if stream
                else answer(completion({"content": None}, "error", usage=USAGE)),
                stream,
            ),
            Truth(
                200 if stream else 502,
                "upstream_broke",
                rounds=("upstream_broke",),
                tokens=(7, 2),
                upstream=("upstream_broke",),
            ),
        )
        for stream in (False, True)
    },
    "broken after its usage": (
        breaks_after_its_usage,
        Truth(
            200,
            "upstream_broke",
            rounds=("upstream_broke",),
            tokens=(7, 2),
            upstream=("upstream_broke",),
        ),
    ),
    "left after its usage": (
        leaves_after_its_usage,
        Truth(499, rounds=("cancelled",), model=1, total=1, tokens=(7, 2), left=True),
    ),
    "a tool's own error": (
        tool_answers(tool_result("no", 1)),
        Truth(rounds=BOTH, calls=(("clock", "failed"),)),
    ),
    "a tool that breaks": (
        tool_answers(hang_up),
        Truth(rounds=BOTH, calls=(("clock", "failed"),), upstream=("upstream_broke",)),
    ),
    "no such tool": (
        calls_first(call("nonsense_of_the_models")),
        Truth(rounds=BOTH, calls=(("", "unknown"),)),
    ),
    "bad arguments": (
        calls_first(call("clock", "{nonsense")),
        Truth(rounds=BOTH, calls=(("clock", "refused"),)),
    ),
    "cut off": (
        calls_first(call("clock", '{"a": '), reason="length"),
        Truth(rounds=BOTH, calls=(("clock", "refused"),)),
    ),
    "too many": (
        calls_first(*[call("clock", {"n": n}, f"c{n}") for n in range(200)]),
        Truth(rounds=BOTH, calls=(CLOCK,) * 128 + (("clock", "refused"),) * 72),
    ),
    "mixed": (mixed(False), Truth(rounds=("",), calls=(CLOCK,))),
    "mixed, streamed": (mixed(True), Truth(rounds=("",), calls=(CLOCK,))),
    "malformed": (is_malformed, Truth(400, "invalid_request")),
    "refused": (is_refused, Truth(400, "malformed_request")),
    "left in the upload": (
        leaves_in_the_upload(False),
        Truth(499, left=True, first_byte=False),
    ),
    "left in the upload, half-closed": (
        leaves_in_the_upload(True),
        Truth(499, left=True, first_byte=False),
    ),
    "refused in the upload": (is_too_large, Truth(400, "malformed_request")),
    "half-closed": (
        half_closes,
        Truth(499, rounds=("cancelled",), model=1, total=1, left=True, first_byte=False),
    ),
    "passed": (passes(answer({"data": []})), Truth()),
    "passed, broken": (
        passes(half, then=breaks),
        Truth(499, "upstream_broke", total=1, upstream=("upstream_broke",)),
    ),
    "passed, no head": (
        passes(nothing, then=breaks),
        Truth(502, "upstream_broke", total=1, upstream=("upstream_broke",)),
    ),
    "passed, left": (
        passes(half, then=lambda _, exchange: exchange.leave()),
        Truth(499, total=1, left=True),
    ),
    "passed, 500": (passes(answer({"detail": "no"}, 500)), Truth(500)),
}

OPTIONS: dict[str, dict[str, Any]] = {
    "left while a call waits": {"max_calls": (1, 1)},
    "silent": {"timeout": 10},
    "a slow tool": {"tool_timeout": 5},
    "rounds": {"max_rounds": 3},
}


#: Scenarios that are played once more with a stream, and what is true then instead.
STREAMED: dict[str, dict[str, Any]] = {
    "a chat": {},
    "left while the model thinks": {},
    "left while a call waits": {"first_byte": True},
    "left when calls are too many": {"first_byte": True},
    "left while tools are listed": {},
    "stopped": {"status": 200},
    "stopped while tools are listed": {},
    "silent": {},
    "a slow tool": {},
    "repetition": {},
    "rounds": {},
    "no head": {},
    "429": {},
    "HTML": {},
    "a tool's own error": {},
    "a tool that breaks": {},
    "no such tool": {},
    "bad arguments": {},
    "cut off": {},
    "too many": {},
}

PLAYED = [*((name, False) for name in SCENARIOS), *((name, True) for name in STREAMED)]


@pytest.mark.parametrize(("name", "stream"), PLAYED)
def test_all_who_watch_say_the_same_and_it_is_true(name: str, stream: bool) -> None:
    play, truth = SCENARIOS[name]
    if stream:
        truth = attrs.evolve(truth, **STREAMED[name])
    world = World(stream=stream, **OPTIONS.get(name, {}))
    lines: list[Any] = []
    observer = cast(ILogObserver, lines.append)
    globalLogPublisher.addObserver(observer)
    try:
        play(world)
        world.settle()
    finally:
        globalLogPublisher.removeObserver(observer)
    compare(world, truth, lines)


def compare(world: World, truth: Truth, lines: list[Any]) -> None:
    [at_once] = world.at_once
    [fields] = [line for line in lines if "status" in line]
    assert not [line for line in lines if "log_failure" in line]
    is_chat = bool(truth.rounds or at_once["model"])
    expected_calls = list(truth.calls)

    # --- the record, as it was when the request ended
    assert (at_once["status"], at_once["kind"]) == (truth.status, truth.kind)
    of_server = truth.kind and truth.upstream and "The model" not in at_once["error"]
    assert (" at http://" in at_once["error"]) == bool(of_server)
    assert [each["kind"] for each in at_once["rounds"]] == list(truth.rounds)
    outcomes = [(each["tool"], each["outcome"]) for each in at_once["calls"]]
    assert outcomes == expected_calls[-100:]
    assert at_once["limit"] == truth.limit
    assert (at_once["first_byte"] is not None) == truth.first_byte
    assert at_once["total"] == pytest.approx(truth.total or at_once["total"], abs=NEAR)
    for part in (*at_once["rounds"], *at_once["calls"]):
        assert part["ended"] is not None and part["ended"] <= at_once["total"] + NEAR
    shares = at_once["shares"]
    if is_chat:
        assert sum(shares.values()) == pytest.approx(at_once["total"], abs=NEAR)
        assert shares["model"] == pytest.approx(truth.model, abs=NEAR)
        assert shares["tools"] == pytest.approx(truth.tools, abs=NEAR)

    # --- the page: the same, later and in its feed
    world.clock.advance(1)
    world.settle()
    shown = {each["key"]: each for rows in world.open_page.rows() for each in rows}
    if is_chat or truth.kind or truth.status >= 500:
        [last] = shown.values()
        detail = json.loads(world.get(f"/answers/{last['key']}").body)
        for name, value in last.items():
            if name not in ("key", "at"):
                assert at_once[name] == value, name
                if name != "calls":
                    assert detail[name] == value, name
        assert len(detail["calls"]) == len(expected_calls)
    else:
        assert shown == {}

    # --- the log
    for name in ("status", "sent", "kind", "model", "limit"):
        assert fields.get(name, "") == at_once[name], name
    assert fields["request"] == at_once["id"] and fields["trace"] == at_once["trace_id"]
    assert fields["seconds"] == pytest.approx(at_once["total"], abs=NEAR)
    assert fields.get("first_byte") == pytest.approx(at_once["first_byte"], abs=NEAR)
    assert fields.get("rounds", 0) == len(truth.rounds)
    assert fields.get("calls", 0) == len(expected_calls)
    ran = [(each["tool"], each["outcome"]) for each in fields.get("ran", [])]
    assert ran == expected_calls[: len(ran)] and len(ran) == min(32, len(expected_calls))
    failed = [outcome for _, outcome in expected_calls if outcome not in ("answered", "cancelled")]
    assert fields.get("failed", 0) == len(failed)
    counted = (fields.get("input_tokens"), fields.get("output_tokens"))
    assert counted == (truth.tokens or (None, None))
    said = [line for line in lines if "outcome" in line]
    for line in said:
        assert (line["tool"], line["outcome"]) in expected_calls

    # --- the metrics
    metrics = world.counts
    route = {"chat_completions": "chat", "": "refused"}.get(fields.get("route", ""), "passthrough")
    assert metrics("llamaproxy_requests_total") == {(route, str(truth.status)): 1}
    assert metrics(SECONDS + "_count") == {(route,): 1}
    assert sum(metrics(SECONDS + "_sum").values()) == pytest.approx(at_once["total"], abs=NEAR)
    assert metrics("llamaproxy_errors_total") == ({(truth.kind,): 1} if truth.kind else {})
    assert metrics("llamaproxy_clients_left_total") == ({(): 1} if truth.left else {})
    upstream = Counter((kind,) for kind in truth.upstream)
    assert metrics("llamaproxy_upstream_errors_total") == upstream
    calls = Counter(
        (
            *(
                {"clock": ("mcp::main", "clock"), "web": ("mcp::web", "web")}.get(
                    tool, ("other",) * 2
                )
            ),
            o,
        )
        for tool, o in expected_calls
    )
    assert metrics("llamaproxy_tool_calls_total") == calls
    parts = {
        labels[0]: value for labels, value in metrics("llamaproxy_chat_part_seconds_sum").items()
    }
    for part, seconds in shares.items():
        assert parts.get(part, 0.0) == pytest.approx(seconds, abs=NEAR), part
    assert sum(metrics("llamaproxy_chat_rounds_sum").values()) == len(truth.rounds)
    assert sum(metrics("llamaproxy_chat_tool_calls_sum").values()) == len(expected_calls)
    tokens = {
        labels[-1]: value for labels, value in metrics("gen_ai_client_token_usage_sum").items()
    }
    assert (tokens.get("input"), tokens.get("output")) == (truth.tokens or (None, None))
    run = [outcome for outcome in outcomes_of_run(at_once) if outcome != "cancelled"]
    if len(expected_calls) <= len(at_once["calls"]):
        groups = world.tool_status.as_json()["tool_groups"].values()
        assert sum(group["calls"] for group in groups) == len(run)
        assert sum(group["failed_calls"] for group in groups) == len(run) - run.count("answered")
        tools = [
            each for group in world.tool_status.tools_as_json()["groups"] for each in group["tools"]
        ]
        assert sum(each["calls"] for each in tools) == len(run)
        assert sum(each["failed"] for each in tools) == len(run) - run.count("answered")
    limits = metrics("llamaproxy_limits_hit_total")
    timeouts = sum(outcome == "timeout" for _, outcome in expected_calls)
    assert (
        limits == Counter({(truth.limit,): bool(truth.limit), ("tool_time",): timeouts}) + Counter()
    )
    durations = metrics("gen_ai_server_request_duration_seconds_count")
    ended_by: Counter[str] = Counter()
    for labels, value in durations.items():
        ended_by[labels[-1]] += int(value)
    assert ended_by == Counter(truth.rounds)
    assert metrics("llamaproxy_listener_failures_total") == {} and world.app.tell.failures == 0

    # --- the trace
    compare_spans(world, truth, at_once, fields)

    # --- what is left
    connections = world.front.connections
    assert (connections.running, connections.streams, len(world.traced.spans)) == (0, 0, 0)
    # A list is for all who wait for it, and is not given up with one of them.
    assert [each for each in world.stack.open if each.path != b"/v1/tools"] == []


def compare_spans(world: World, truth: Truth, at_once: Any, fields: Any) -> None:
    spans = world.traced.ended
    [server] = [span for span in spans if span.kind.name == "SERVER"]
    started = (server.start_time or 0) - MIDNIGHT

    def since(time: int | None) -> float:
        return ((time or 0) - MIDNIGHT - started) / 1e9

    assert f"{server.context.trace_id:032x}" == at_once["trace_id"]
    assert since(server.end_time) == pytest.approx(at_once["total"], abs=NEAR)
    said = said_of(server)
    assert said["http.response.status_code"] == truth.status
    fallback = "cancelled" if truth.left else str(truth.status) if truth.status >= 500 else None
    assert said.get("error.type") == (truth.kind or fallback)
    rounds = [span for span in spans if span.name.startswith("chat")]
    assert [error_of(span) for span in rounds] == list(truth.rounds)
    for span, part in zip(rounds, at_once["rounds"], strict=True):
        assert since(span.start_time) == pytest.approx(part["began"], abs=NEAR)
        assert since(span.end_time) == pytest.approx(part["ended"], abs=NEAR)
        assert said_of(span).get("gen_ai.usage.input_tokens") == part["input_tokens"]
        assert said_of(span).get("gen_ai.response.model", "") == part["model"]
    calls = [span for span in spans if span.name.startswith("execute_tool")]
    shown = Counter(
        (span.name.removeprefix("execute_tool").strip(), bool(error_of(span))) for span in calls
    )
    assert shown == Counter((tool, outcome != "answered") for tool, outcome in truth.calls)
    for agent in [span for span in spans if span.name == "invoke_agent"]:
        assert since(agent.end_time) == pytest.approx(at_once["total"], abs=NEAR)
        usage = "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"
        counted = tuple(said_of(agent).get(name) for name in usage)
        assert counted == (truth.tokens or (None, None))


def outcomes_of_run(shown: Any) -> list[str]:
    """The outcomes of the calls that have begun to run."""
    return [each["outcome"] for each in shown["calls"] if each["began"] is not None]


def error_of(span: ReadableSpan) -> str:
    error: str = said_of(span).get("error.type", "")
    return error


# --- several requests, and those that run


def test_requests_of_one_id_on_one_connection_are_kept_apart() -> None:
    world = World(calling("clock"), saying("Noon."), answer({"detail": "no"}, 500), nothing)
    speaker = world.speaker()
    speaker.send(chat_bytes(b"X-Request-Id: same") * 3)
    world.settle()
    world.advance(1)
    speaker.leave()
    world.settle()
    rows = world.at_once
    assert [(each["id"], each["status"]) for each in rows] == [
        ("same", 200),
        ("same", 500),
        ("same", 499),
    ]
    assert [(len(each["rounds"]), len(each["calls"])) for each in rows] == [(2, 1), (1, 0), (1, 0)]
    assert [each["total"] for each in rows] == pytest.approx([0, 0, 1])
    assert len({each["trace_id"] for each in rows}) == 3
    world.advance(1)
    shown = {each["key"]: each for told in world.open_page.rows() for each in told}
    assert [each["trace_id"] for each in shown.values()] == [each["trace_id"] for each in rows]
    statuses = world.counts("llamaproxy_requests_total")
    assert statuses == {("chat", "200"): 1, ("chat", "500"): 1, ("chat", "499"): 1}


def test_who_asks_is_the_same_everywhere_and_no_key(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("right-key\n")
    world = World(saying("Hi."), keys=ApiKeys.read(str(tmp_path / "keys")))
    lines: list[Any] = []
    observer = cast(ILogObserver, lines.append)
    globalLogPublisher.addObserver(observer)
    try:
        for fields in (
            [b"Authorization: Bearer right-key"],
            [b"Authorization: Bearer wrong-key"],
            [b"Authorization: Bearer right-key", b"Api-Key: wrong-key"],
            [],
        ):
            world.speaker().send(chat_bytes(*fields))
            world.settle()
    finally:
        globalLogPublisher.removeObserver(observer)
    right, wrong = (hashlib.sha256(key).hexdigest()[:8] for key in (b"right-key", b"wrong-key"))
    rows = [(each["who"], each["status"], each["kind"]) for each in world.at_once]
    assert rows == [
        (right, 200, ""),
        (wrong, 401, "invalid_api_key"),
        (right, 400, "invalid_request"),
        ("", 401, "invalid_api_key"),
    ]
    logged = [line for line in lines if "status" in line]
    assert [(line.get("who", ""), line["status"]) for line in logged] == [row[:2] for row in rows]
    assert world.counts("llamaproxy_errors_total") == {
        ("invalid_api_key",): 2,
        ("invalid_request",): 1,
    }
    assert "-key" not in f"{world.open_page.text()!r}{[line['message'] for line in logged]}"


def test_a_call_of_an_mcp_server_ends_with_its_client() -> None:
    server = FakeMcp("ping")
    server.handlers["tools/call"] = never
    hosts = Hosts(two=server)
    world = World(calling("ping"), mcp=hosts, mcp_servers={"two": TWO})
    exchange = world.chat()
    world.settle()
    leaves(world, exchange)
    [shown] = world.at_once
    [call] = shown["calls"]
    assert (call["tool"], call["outcome"], call["ended"]) == ("ping", "cancelled", 1)
    assert shown["shares"] == {"model": 0, "tools": 1, "proxy": 0}
    assert world.counts("llamaproxy_tool_calls_total") == {("two", "ping", "cancelled"): 1}
    assert len(world.traced.spans) == 0
    assert [each["method"] for each in server.messages][-1] == "notifications/cancelled"


def test_what_runs_is_shown_as_it_is() -> None:
    world = World(nothing)
    for path in ("tools", "toolgroups"):
        world.stack.on(f"GET /v1/{path}", nothing)
    world.chat()

    def now() -> Any:
        key = max(world.shown.keys)
        return json.loads(world.get(f"/answers/{key}").body)

    world.advance(1)
    listing = now()
    assert (listing["listing"], listing["shares"]["tools"], listing["status"]) == (1, 1, 0)
    for request in list(world.stack.open):
        answer({"data": [tool("clock")]})(request)
    world.settle()
    world.advance(2)
    thinking = now()
    assert thinking["shares"] == {"model": 2, "tools": 1, "proxy": 0}
    assert [(each["kind"], each["ended"]) for each in thinking["rounds"]] == [("", None)]
    world.stack.on(INVOKE, nothing)
    turn(None, [call("clock")])(world.stack.open[-1])
    world.settle()
    world.advance(4)
    running = now()
    assert running["shares"] == {"model": 2, "tools": 5, "proxy": 0}
    [run] = running["calls"]
    assert (run["tool"], run["outcome"], run["began"], run["ended"]) == ("clock", "", 3, None)


def test_nothing_is_said_of_tools_that_no_chat_got_as_far_as() -> None:
    world = World(saying("Hi."))
    for path in ("tools", "toolgroups"):
        world.stack.on(f"GET /v1/{path}", answer({"detail": "dead"}, 500))
    world.chat()
    world.request("POST", "/v1/chat/completions", b"[")
    reasons = [json.loads(world.get(f"/answers/{key}").body)["withheld"] for key in (1, 2)]
    assert list(reasons[0]) == ["(all groups)"] and reasons[1] == {}
