"""Page, metrics, log and trace: each tells the same of an answer, and what has happened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import pytest

pytest.importorskip(
    "opentelemetry.sdk", reason="AGREEMENT IS NOT TESTED: llamaproxy[otel] is missing"
)

from tests.admin.inspected import Inspected
from tests.admin.test_eventlog import logged
from tests.admin.traces import Traced, said_of
from tests.support import (
    CHAT,
    INVOKE,
    FakeStack,
    answer,
    begin_events,
    call,
    calling,
    chunk,
    event,
    hang_up,
    nothing,
    saying,
    tool,
    tool_result,
    turn,
)

Act = Callable[[Inspected, Any], None]

USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}


def half(request: Any) -> None:
    """A stream that breaks off."""
    begin_events(request)
    request.write(event(chunk({"role": "assistant", "content": "Half"})))
    request.loseConnection()


def leave(app: Inspected, exchange: Any) -> None:
    exchange.leave()
    app.settle()


def stop(app: Inspected, exchange: Any) -> None:
    assert app.post("/answers/1/stop").status == 204
    app.settle()


def wait(seconds: float) -> Act:
    return lambda app, exchange: app.advance(seconds)


@attrs.frozen
class Case:
    """What happens, and the truth of it: status and kind of the answer, whole or streamed; of each
    round the kind; of each call its outcome."""

    rounds: tuple[Any, ...]
    status: int = 200
    streamed_status: int = 200
    kind: str = ""
    round_kinds: tuple[str, ...] = ("",)
    outcomes: tuple[str, ...] = ()
    limit: str = ""
    results: tuple[Any, ...] = (tool_result("12:00"),)
    act: Act | None = None
    more: Mapping[str, Any] = {}


TWO = ("", "")

CASES = {
    "an answer": Case((saying("Hi.", usage=USAGE),)),
    "a call": Case((calling("clock"), saying("Noon.")), round_kinds=TWO, outcomes=("answered",)),
    "a tool that fails": Case(
        (calling("clock"), saying("No.")),
        round_kinds=TWO,
        outcomes=("failed",),
        results=(tool_result("no", 1),),
    ),
    "a tool that is too slow": Case(
        (calling("clock"), saying("No.")),
        round_kinds=TWO,
        outcomes=("timeout",),
        results=(nothing,),
        act=wait(60),
    ),
    "a tool that there is not": Case(
        (calling("nonsense"), saying("No.")), round_kinds=TWO, outcomes=("unknown",)
    ),
    "arguments that are none": Case(
        (calling("clock", "[1"), saying("No.")), round_kinds=TWO, outcomes=("refused",)
    ),
    "several calls": Case(
        (
            turn(None, [call("clock"), call("x", call_id="c2"), call("clock", call_id="c3")]),
            saying("So."),
        ),
        round_kinds=TWO,
        outcomes=("answered", "unknown", "failed"),
        results=(tool_result("12:00"), tool_result("no", 1)),
    ),
    "rounds without end": Case(
        (*(calling("clock", {"n": n}) for n in range(2)), saying("So.")),
        round_kinds=("", "", ""),
        outcomes=("answered", "answered"),
        limit="rounds",
        more={"max_rounds": 2},
    ),
    "a call that is repeated": Case(
        (*(calling("clock") for _ in range(3)), saying("So.")),
        round_kinds=("",) * 4,
        outcomes=("answered",) * 3,
        limit="repetition",
    ),
    "an error of the server's": Case(
        (answer({"error": {"message": "no"}}, 429),),
        status=429,
        streamed_status=429,
        kind="upstream_refused",
        round_kinds=("upstream_refused",),
    ),
    "a page of the server's": Case(
        (answer(b"<html>", 200, {"Content-Type": "text/html"}),),
        status=502,
        streamed_status=502,
        kind="upstream_broke",
        round_kinds=("upstream_broke",),
    ),
    "a server that hangs up": Case(
        (hang_up,),
        status=502,
        streamed_status=502,
        kind="upstream_broke",
        round_kinds=("upstream_broke",),
    ),
    "a server that dies after a call": Case(
        (calling("clock"), hang_up),
        status=502,
        kind="upstream_broke",
        round_kinds=("", "upstream_broke"),
        outcomes=("answered",),
    ),
    "a server that is silent": Case(
        (nothing,),
        status=504,
        streamed_status=200,
        kind="upstream_timeout",
        round_kinds=("upstream_timeout",),
        act=wait(600),
    ),
    "a client that leaves the model": Case(
        (nothing,), status=499, streamed_status=499, round_kinds=("cancelled",), act=leave
    ),
    "a client that leaves a tool": Case(
        (calling("clock"), saying("No.")),
        status=499,
        streamed_status=499,
        outcomes=("cancelled",),
        results=(nothing,),
        act=leave,
    ),
    "an operator who stops the model": Case(
        (nothing,),
        status=403,
        streamed_status=403,
        kind="stopped",
        round_kinds=("cancelled",),
        act=stop,
    ),
    "an operator who stops a tool": Case(
        (calling("clock"), saying("No.")),
        status=403,
        kind="stopped",
        outcomes=("cancelled",),
        results=(nothing,),
        act=stop,
    ),
}

STREAMED_ONLY = {
    "a stream that breaks off": Case(
        (half,), kind="upstream_broke", round_kinds=("upstream_broke",)
    ),
}

ALL = [
    *((name, case, stream) for name, case in CASES.items() for stream in (False, True)),
    *((name, case, True) for name, case in STREAMED_ONLY.items()),
]


def counted(app: Inspected) -> Counter[tuple[str, ...]]:
    """What the metrics have counted: each sample that is not nothing, by name and labels."""
    return Counter(
        {
            (sample.name, *map(str, sorted(sample.labels.items()))): sample.value
            for family in app.metrics.collect()
            for sample in family.samples
            if sample.value and family.type in ("counter", "histogram")
        }
    )


def of(counts: Counter[tuple[str, ...]], name: str, **labels: str) -> float:
    """The sum of all samples of *name* with these *labels*."""
    wanted = {str(each) for each in labels.items()}
    return sum(n for (each, *more), n in counts.items() if each == name and wanted <= set(more))


@pytest.mark.parametrize(
    ("case", "stream"),
    [(case, stream) for _, case, stream in ALL],
    ids=[f"{name}-{'streamed' if stream else 'whole'}" for name, _, stream in ALL],
)
def test_page_metrics_log_and_trace_agree(case: Case, stream: bool) -> None:
    traced, stack = Traced(), FakeStack()
    stack.on("GET /v1/tools", answer({"data": [tool("clock")]}))
    stack.on(INVOKE, *case.results)
    stack.on(CHAT, *case.rounds)
    with logged() as lines:
        app = Inspected(stack, **traced.options, **case.more)
        page = app.page()
        exchange = app.chat({"stream": stream}, {"Authorization": "Bearer sk-1"})
        if case.act is not None:
            case.act(app, exchange)
        app.settle()
        app.advance(1)
        app.advance(1)
    status = case.streamed_status if stream else case.status
    assert not app.app.tell.failures

    # The page.
    rows = {row["key"]: row for each in page.rows() for row in each}
    row = rows[1]
    assert (row["status"], row["kind"], row["limit"]) == (status, case.kind, case.limit)
    assert [round["kind"] for round in row["rounds"]] == [*case.round_kinds]
    assert [call["outcome"] for call in row["calls"]] == [*case.outcomes]
    assert row["offered"] == 1 and row["model"] == "m" and len(row["who"]) == 8
    assert sum(row["shares"].values()) == pytest.approx(row["total"], abs=0.001)

    # The log.
    [line] = [each for each in lines if each.get("path") == "/v1/chat/completions"]
    assert (line["status"], line.get("kind", ""), line.get("limit", "")) == (
        *(status, case.kind, case.limit),
    )
    assert (line["who"], line["model"], line["sent"]) == (row["who"], row["model"], row["sent"])
    assert (line["rounds"], line["calls"]) == (len(row["rounds"]), len(row["calls"]))
    assert [call["outcome"] for call in line.get("ran", ())] == [*case.outcomes]
    assert line["seconds"] == pytest.approx(row["total"], abs=0.001)
    for key in ("input_tokens", "output_tokens"):
        tokens = [round[key] for round in row["rounds"] if round[key] is not None]
        assert line.get(key) == (sum(tokens) if tokens else None)

    # The metrics.
    counts = counted(app)
    assert of(counts, "llamaproxy_requests_total") == 1
    assert of(counts, "llamaproxy_requests_total", route="chat", status=str(status)) == 1
    assert of(counts, "llamaproxy_errors_total") == bool(case.kind)
    assert of(counts, "llamaproxy_errors_total", kind=case.kind) == bool(case.kind)
    assert of(counts, "llamaproxy_clients_left_total") == (status == 499)
    for outcome, count in Counter(case.outcomes).items():
        assert of(counts, "llamaproxy_tool_calls_total", outcome=outcome) == count
    assert of(counts, "llamaproxy_tool_calls_total") == len(case.outcomes)
    assert of(counts, "llamaproxy_chat_rounds_sum") == len(case.round_kinds)
    assert of(counts, "gen_ai_server_request_duration_seconds_count") == len(case.round_kinds)
    for part, seconds in row["shares"].items():
        total = of(counts, "llamaproxy_chat_part_seconds_sum", part=part)
        assert total == pytest.approx(seconds, abs=0.001)
    if case.limit:
        assert of(counts, "llamaproxy_limits_hit_total", limit=case.limit) == 1

    # The trace.
    spans = [span for span in traced.ended if span.name == "POST /v1/chat/completions"]
    [server] = spans
    said = said_of(server)
    assert said["http.response.status_code"] == status
    errors = {case.kind} if case.kind else {"cancelled"} if status == 499 else {None}
    assert said.get("error.type") in errors
    assert f"{server.context.trace_id:032x}" == row["trace_id"] == line["trace"]
    rounds = [span for span in traced.ended if span.name == "chat m"]
    assert [said_of(span).get("error.type", "") for span in rounds] == [*case.round_kinds]
    tools = [span for span in traced.ended if span.name.startswith("execute_tool")]
    assert len(tools) == len(case.outcomes)
    failed = sum("error.type" in said_of(span) for span in tools)
    assert failed == sum(outcome != "answered" for outcome in case.outcomes)
    assert server.start_time is not None and server.end_time is not None
    took = (server.end_time - server.start_time) / 1e9
    assert took == pytest.approx(row["total"], abs=0.001)
