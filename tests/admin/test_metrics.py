"""What is counted of what has happened, under which names, and that names are never too many."""

from __future__ import annotations

import gc
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from twisted.internet.task import Clock

from llamaproxy.admin import names
from llamaproxy.admin.answermetrics import AnswerMetrics
from llamaproxy.admin.looplag import INTERVAL, LoopLag
from llamaproxy.admin.metrics import Metrics
from llamaproxy.admin.tallies import Histogram, Named
from llamaproxy.errors import McpTimeout, ProxyError, UpstreamTimeout
from llamaproxy.events import (
    MANY,
    CallEnded,
    Event,
    GroupListed,
    ListRefreshed,
    LoopLimited,
    Observers,
    RequestEnded,
    RoundEnded,
)
from llamaproxy.records import CallRecord, ChatRecord, Outcome, RequestRecord, RoundRecord
from tests.chat.script import Chat
from tests.support import calling, saying

CHAT_PATH = "/v1/chat/completions"


class Counted:
    """Metrics on a clock, and what they export."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.metrics = Metrics(self.clock.seconds)
        self._observers = Observers()
        self.metrics.listen(self._observers)

    def tell(self, *events: Event) -> None:
        for event in events:
            self._observers(event)
        assert not self._observers.failures

    def deliver(self) -> None:
        """What has happened is counted now, and not when somebody asks."""
        self._observers.deliver()
        assert not self._observers.failures

    def value(self, name: str, **labels: str) -> float | None:
        value: float | None = self.metrics.registry.get_sample_value(name, labels)
        return value

    def values(self, label: str, *series: names.Series) -> set[str]:
        """All values of *label* in these *series*."""
        return {
            sample.labels[label]
            for family in self.metrics.collect()
            for sample in family.samples
            if any(sample.name.startswith(one.name.removesuffix("_total")) for one in series)
            and label in sample.labels
        }

    def lines(self) -> int:
        return len(generate_latest(self.metrics.registry).splitlines())


def request(
    status: int = 200,
    kind: str = "",
    method: str = "POST",
    path: str = CHAT_PATH,
    route: str = "chat_completions",
    first_byte: float | None = 0.5,
    seconds: float = 1.0,
) -> RequestRecord:
    record = RequestRecord("id", "127.0.0.1", method, path, 0.0)
    record.status, record.kind, record.first_byte = status, kind, first_byte
    record.ended, record.route = seconds, route
    return record


#: Records of requests, which those of their chats do not keep.
_kept: list[RequestRecord] = []


def chat(model: str = "m", streamed: bool = False) -> ChatRecord:
    record = request(seconds=10.0)
    _kept.append(record)
    record.chat = ChatRecord(record, model=model, streamed=streamed)
    return record.chat


def round_of(chat: ChatRecord, began: float, ended: float, **more: Any) -> RoundRecord:
    record = RoundRecord(chat, len(chat.rounds) + 1, began, ended=ended, **more)
    chat.rounds.append(record)
    return record


def call_of(
    chat: ChatRecord, tool: str, outcome: Outcome, asked: float = 0.0, ended: float = 1.0
) -> CallRecord:
    record = CallRecord(chat, len(chat.calls) + 1, 1, asked, tool, "g" if tool else "")
    record.outcome, record.ended = outcome, ended
    if outcome not in ("unknown", "refused"):
        record.began = asked
    chat.calls.append(record)
    return record


def ended(chat: ChatRecord) -> RequestEnded:
    assert chat.request is not None
    return RequestEnded(chat.request)


# --- requests


@pytest.mark.parametrize(
    ("record", "route", "status"),
    [
        (request(), "chat", "200"),
        (request(401, "invalid_api_key", route=""), "refused", "401"),
        (request(499), "chat", "499"),
        (request(499, first_byte=None), "chat", "499"),
        (request(method="GET", route="passthrough"), "passthrough", "200"),
        (request(method="GET", path="/health", route="health"), "health", "200"),
        (request(413, "body_too_large", route="", first_byte=None), "refused", "413"),
        (request(400, "malformed_request", "-", "-", "", None), "refused", "400"),
        (request(799, path="/v1/models", route="passthrough"), "passthrough", "7xx"),
        (request(101, path="/ws", route="passthrough"), "passthrough", "101"),
    ],
)
def test_requests_are_counted_by_route_and_status(
    record: RequestRecord, route: str, status: str
) -> None:
    counted = Counted()
    counted.tell(RequestEnded(record))
    assert counted.value("llamaproxy_requests_total", route=route, status=status) == 1
    assert counted.value("llamaproxy_request_duration_seconds_count", route=route) == 1
    assert counted.value("llamaproxy_request_duration_seconds_sum", route=route) == 1


def test_a_server_makes_no_status_that_there_is_not() -> None:
    counted = Counted()
    for status in range(100, 1000):
        counted.tell(RequestEnded(request(status, path="/v1/models", route="passthrough")))
    assert len(counted.values("status", names.REQUESTS)) < 80


def test_a_client_that_left_is_told_from_an_answer_that_was_cut_short() -> None:
    counted = Counted()
    counted.tell(RequestEnded(request(499)), RequestEnded(request(499, "upstream_broke")))
    assert counted.value("llamaproxy_clients_left_total") == 1
    assert counted.value("llamaproxy_errors_total", kind="upstream_broke") == 1


def test_errors_of_the_server_count_once_for_each_time_that_it_was_asked() -> None:
    counted = Counted()
    of_chat = chat()
    assert of_chat.request is not None
    of_chat.request.kind = "upstream_timeout"
    counted.tell(RoundEnded(round_of(of_chat, 0.0, 1.0, kind="upstream_timeout")), ended(of_chat))
    counted.tell(
        RequestEnded(request(504, "upstream_timeout", path="/v1/models", route="passthrough"))
    )
    counted.tell(RoundEnded(round_of(chat(), 0.0, 1.0, kind="cancelled")))
    assert counted.value("llamaproxy_upstream_errors_total", kind="upstream_timeout") == 2
    assert counted.value("llamaproxy_upstream_errors_total", kind="upstream_broke") == 0
    assert counted.value("llamaproxy_upstream_errors_total", kind="cancelled") is None


@pytest.mark.parametrize(
    ("status", "kind", "limit"),
    [
        (413, "body_too_large", "body"),
        (503, "overloaded", "chat_bodies"),
        (503, "too_many_connections", "connections"),
        (408, "request_timeout", "request_time"),
        (431, "head_too_large", "head"),
        (414, "head_too_large", "head"),
        (400, "malformed_request", None),
        (413, "upstream_refused", None),
    ],
)
def test_a_limit_that_refuses_is_counted(status: int, kind: str, limit: str | None) -> None:
    counted = Counted()
    counted.tell(RequestEnded(request(status, kind, first_byte=None)))
    hit = {
        each: counted.value("llamaproxy_limits_hit_total", limit=each)
        for each in counted.values("limit", names.LIMITS_HIT)
    }
    assert {each for each, count in hit.items() if count} == ({limit} - {None})


def test_a_limit_that_ends_a_loop_or_a_call_is_counted() -> None:
    counted = Counted()
    limited = chat()
    limited.limit = "repetition"
    counted.tell(LoopLimited(limited), CallEnded(call_of(limited, "t", "timeout")))
    assert counted.value("llamaproxy_limits_hit_total", limit="repetition") == 1
    assert counted.value("llamaproxy_limits_hit_total", limit="rounds") == 0
    assert counted.value("llamaproxy_limits_hit_total", limit="tool_time") == 1


# --- chats


def test_one_series_says_who_was_slow() -> None:
    counted = Counted()
    slow = chat(streamed=True)
    slow.listing = 0.5
    round_of(slow, 0.5, 4.5)
    call_of(slow, "t", "answered", 4.5, 6.5)
    call_of(slow, "t", "answered", 4.5, 5.5)
    round_of(slow, 6.5, 9.0)
    counted.tell(ended(slow))
    parts = {
        part: counted.value("llamaproxy_chat_part_seconds_sum", part=part)
        for part in ("model", "tools", "proxy")
    }
    assert parts == {"model": 6.5, "tools": 2.5, "proxy": 1.0}
    assert counted.value("llamaproxy_chat_first_byte_seconds_sum", streamed="yes") == 0.5
    assert counted.value("llamaproxy_chat_first_byte_seconds_count", streamed="no") == 0
    assert counted.value("llamaproxy_chat_rounds_sum") == 2
    assert counted.value("llamaproxy_chat_tool_calls_sum") == 2
    assert counted.value("llamaproxy_chat_tool_calls_bucket", le="1.0") == 0


def test_a_chat_that_was_refused_has_waited_for_nobody() -> None:
    counted = Counted()
    counted.tell(ended(chat()))
    assert counted.value("llamaproxy_chat_part_seconds_count", part="model") == 0
    assert counted.value("llamaproxy_chat_first_byte_seconds_count", streamed="no") == 0
    assert counted.value("llamaproxy_requests_total", route="chat", status="200") == 1


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_chat_is_counted_as_it_was(stream: bool) -> None:
    proxy = Chat(calling("clock"), saying("Noon."), stream=stream).proxy
    value = proxy.metrics.registry.get_sample_value
    assert value("llamaproxy_requests_total", {"route": "chat", "status": "200"}) == 1
    tool = {"group": "mcp::main", "tool": "clock", "outcome": "answered"}
    assert value("llamaproxy_tool_calls_total", tool) == 1
    assert value("llamaproxy_chat_rounds_sum") == 2
    assert value("llamaproxy_tool_lists_total", {"outcome": "complete"}) == 1
    assert value("llamaproxy_tool_group_missing", {"group": "mcp::main"}) == 0
    lines = generate_latest(proxy.metrics.registry).decode().splitlines()
    first = "gen_ai_server_time_to_first_token_seconds_count"
    firsts = [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(first)]
    assert sum(firsts) == (2 if stream else 0), "what comes whole has no first token"


# --- models


def test_completions_are_measured_as_the_conventions_say() -> None:
    counted = Counted()
    streamed = chat("m", streamed=True)
    one = round_of(streamed, 1.0, 4.0, first=2.0, model="m-7b", input_tokens=40, output_tokens=21)
    counted.tell(RoundEnded(one))
    labels = {
        "gen_ai_operation_name": "chat",
        "gen_ai_provider_name": "llama_stack",
        "gen_ai_request_model": "m",
        "gen_ai_response_model": "m-7b",
    }
    tokens = {
        kind: counted.value("gen_ai_client_token_usage_sum", **labels, gen_ai_token_type=kind)
        for kind in ("input", "output")
    }
    assert tokens == {"input": 40, "output": 21}
    duration = "gen_ai_server_request_duration_seconds"
    assert counted.value(f"{duration}_sum", **labels, error_type="") == 3.0
    assert counted.value("gen_ai_server_time_to_first_token_seconds_sum", **labels) == 1.0
    per_token = counted.value("gen_ai_server_time_per_output_token_seconds_sum", **labels)
    assert per_token == pytest.approx(2.0 / 20)
    counted.tell(RoundEnded(round_of(streamed, 1.0, 2.0, first=1.5, kind="upstream_broke")))
    failed = {**labels, "gen_ai_response_model": "", "error_type": "upstream_broke"}
    assert counted.value(f"{duration}_count", **failed) == 1
    assert counted.value("gen_ai_server_time_to_first_token_seconds_count", **labels) == 1


def test_buckets_are_those_of_the_conventions() -> None:
    assert names.TOKEN_USAGE.bounds == (
        *(1, 4, 16, 64, 256, 1024, 4096, 16384, 65536),
        *(262144, 1048576, 4194304, 16777216, 67108864),
    )
    assert names.REQUEST_DURATION.bounds == (
        *(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64),
        *(1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
    )
    assert len(names.TIME_TO_FIRST_TOKEN.bounds) == 16
    assert len(names.TIME_PER_OUTPUT_TOKEN.bounds) == 13


# --- names


def test_a_model_that_never_answered_is_no_label() -> None:
    counted = Counted()
    for number in range(10_000):
        of_chat = chat(f"made-up-{number}")
        counted.tell(RoundEnded(round_of(of_chat, 0.0, 1.0, kind="upstream_refused")))
    assert counted.values("gen_ai_request_model", names.REQUEST_DURATION) == {"other"}


def test_models_are_never_too_many() -> None:
    counted = Counted()
    before = counted.lines()
    for number in range(10_000):
        of_chat = chat(f"asked-{number}")
        counted.tell(RoundEnded(round_of(of_chat, 0.0, 1.0, model=f"answered-{number}")))
    for number in range(10_000):
        of_chat = chat(f"asked-{number}")
        kind = f"kind-{number}"
        counted.tell(RoundEnded(round_of(of_chat, 0.0, 1.0, kind=kind)))
    models = counted.values("gen_ai_request_model", names.REQUEST_DURATION)
    assert len(models) == 101 and "asked-99" in models and "other" in models
    assert counted.lines() - before < 12_000


def test_tools_are_never_too_many_and_what_is_no_tool_has_no_name() -> None:
    counted = Counted()
    before = counted.lines()
    many = chat()
    counted.tell(CallEnded(call_of(many, "", "unknown")))
    for number in range(10_000):
        counted.tell(CallEnded(call_of(many, f"tool-{number}", "answered")))
    tools = counted.values("tool", names.TOOL_CALLS, names.TOOL_SECONDS)
    assert len(tools) == 100 and "tool-98" in tools and "tool-99" not in tools
    others = counted.value(
        "llamaproxy_tool_calls_total", group="other", tool="other", outcome="answered"
    )
    assert others == 10_000 - 99
    assert counted.lines() - before < 3_000


def test_groups_are_never_too_many() -> None:
    counted = Counted()
    before = counted.lines()
    for number in range(2_000):
        listed = {f"listed-{number}": GroupListed(("x",), "")}
        counted.tell(ListRefreshed(1, listed, {f"failed-{number}": McpTimeout()}))
    assert counted.lines() - before < 400
    assert counted.value("llamaproxy_tool_groups_missing") == 500


@pytest.mark.parametrize("name", ["\ud800", "a\nb", 'a"b\\', "<img onerror=x>", "é", "other", ""])
def test_whatever_a_name_is_what_is_exported_can_be_read(name: str) -> None:
    counted = Counted()
    odd = chat(name)
    counted.tell(
        RoundEnded(round_of(odd, 0.0, 1.0, model=name)), CallEnded(call_of(odd, name, "failed"))
    )
    counted.tell(ListRefreshed(1, {name: GroupListed((name,), "")}, {}))
    text = generate_latest(counted.metrics.registry).decode()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(line.count(" ") >= 1 and float(line.rsplit(" ", 1)[1]) >= 0 for line in lines)
    assert len({line.rsplit(" ", 1)[0] for line in lines}) == len(lines), "each series is once"


# --- lists


def listed(*groups: str, failed: tuple[str, ...] = (), error: ProxyError | None = None) -> Event:
    there = {group: GroupListed(("x", "y"), "") for group in groups}
    return ListRefreshed(1, there, dict.fromkeys(failed, McpTimeout()), error, ("g/z",), 0.5)


def test_what_is_missing_now_is_what_the_last_list_missed() -> None:
    counted = Counted()
    counted.tell(listed("a", failed=("b",)))
    assert counted.value("llamaproxy_tool_group_missing", group="a") == 0
    assert counted.value("llamaproxy_tool_group_missing", group="b") == 1
    assert counted.value("llamaproxy_tool_groups_missing") == 1
    assert counted.value("llamaproxy_tool_group_tools", group="a") == 2
    assert counted.value("llamaproxy_tools_left_out") == 1
    counted.clock.advance(30)
    counted.tell(listed("b", failed=("a",)))
    assert counted.value("llamaproxy_tool_group_missing", group="a") == 1
    assert counted.value("llamaproxy_tool_group_tools", group="a") == 2, "those that it last had"
    assert counted.value("llamaproxy_tool_group_age_seconds", group="a") == 30
    assert counted.value("llamaproxy_tool_group_missing", group="b") == 0
    assert counted.value("llamaproxy_tool_listing_failures_total") == 2


def test_a_group_that_was_removed_is_not_missing_for_ever() -> None:
    counted = Counted()
    counted.tell(listed("a", failed=("removed",)))
    counted.clock.advance(3600)
    assert counted.value("llamaproxy_tool_groups_missing") == 1, "nobody has asked since"
    counted.tell(listed("a"))
    assert counted.value("llamaproxy_tool_groups_missing") == 0
    assert counted.value("llamaproxy_tool_group_missing", group="removed") is None


def test_what_was_left_out_is_what_the_list_says_that_there_is() -> None:
    """It may be empty now, for the operator has removed the last server of his."""
    counted = Counted()
    counted.tell(listed("a"))
    counted.tell(ListRefreshed(1, {}, {}, UpstreamTimeout(), late=True))
    assert counted.value("llamaproxy_tools_left_out") == 1
    counted.tell(ListRefreshed(1, {}, {}, UpstreamTimeout(), ()))
    assert counted.value("llamaproxy_tools_left_out") == 0


def test_lists_are_counted_by_outcome_and_have_an_age() -> None:
    counted = Counted()
    assert counted.value("llamaproxy_tool_list_age_seconds") is None
    counted.tell(listed("a"), listed("a", failed=("b",)))
    counted.clock.advance(5)
    counted.tell(listed(error=UpstreamTimeout()))
    outcomes = {
        each: counted.value("llamaproxy_tool_lists_total", outcome=each)
        for each in ("complete", "partial", "failed")
    }
    assert outcomes == {"complete": 1, "partial": 1, "failed": 1}
    assert counted.value("llamaproxy_tool_list_age_seconds") == 5
    assert counted.value("llamaproxy_tool_groups_unknown") == 1
    assert counted.value("llamaproxy_tools_left_out") == 1, "those of the last list"
    counted.tell(listed("a", error=UpstreamTimeout()))
    assert counted.value("llamaproxy_tool_lists_total", outcome="partial") == 2


def test_calls_are_counted_by_outcome() -> None:
    counted = Counted()
    of_chat = chat()
    cut = call_of(of_chat, "t", "answered", 1.0, 3.0)
    cut.cut = True
    events = [CallEnded(cut), CallEnded(call_of(of_chat, "t", "refused"))]
    counted.tell(*events, CallEnded(call_of(of_chat, "t", "failed")))
    for outcome in ("answered", "refused", "failed"):
        labels = {"group": "g", "tool": "t", "outcome": outcome}
        assert counted.value("llamaproxy_tool_calls_total", **labels) == 1
    assert counted.value("llamaproxy_tool_call_duration_seconds_sum", group="g", tool="t") == 3.0
    assert counted.value("llamaproxy_tool_call_duration_seconds_count", group="g", tool="t") == 2
    assert counted.value("llamaproxy_tool_results_cut_total") == 1


# --- what counting is made of


@given(st.lists(st.floats(0, 100)))
def test_each_value_is_in_the_first_bucket_that_holds_it(values: list[float]) -> None:
    series = names.Series("s", "histogram", "", (), (0.1, 1.0, 10.0))
    histogram = Histogram(series)
    for value in values:
        histogram.add(value)
    for index, bound in enumerate(series.bounds):
        assert sum(histogram.counts[: index + 1]) == sum(value <= bound for value in values)
    assert sum(histogram.counts) == len(values)
    assert bisect_left(series.bounds, 0.1) == 0
    at_once = Histogram(series)
    at_once.add_all(values[:])
    assert at_once.counts == histogram.counts
    assert at_once.total == pytest.approx(histogram.total)


@given(st.lists(st.tuples(st.text(max_size=3)), max_size=30))
def test_names_that_are_kept_are_never_too_many(given_names: list[tuple[str]]) -> None:
    named: Named[list[int]] = Named(list, 4, ("other",))
    for name in given_names:
        named.of(name).append(1)
    assert len(named.kept) <= 5
    assert sum(map(len, named.kept.values())) == len(given_names)


def test_the_lag_of_the_loop_is_how_late_it_looks() -> None:
    clock = Clock()
    lag = LoopLag(clock)
    lag.startService()
    clock.advance(INTERVAL)
    clock.advance(INTERVAL + 0.3)
    clock.pump([INTERVAL] * 3)
    assert sum(lag.seconds.counts) == 5
    assert lag.seconds.total == pytest.approx(0.3)
    lag.stopService()
    assert clock.getDelayedCalls() == []


# --- what it costs


@pytest.fixture
def families(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of all that is made of prometheus_client's."""
    made: list[str] = []
    original = Metric.__init__

    def init(self: Metric, name: str, *arguments: Any, **more: Any) -> None:
        made.append(name)
        original(self, name, *arguments, **more)

    monkeypatch.setattr(Metric, "__init__", init)
    yield made


def test_nothing_of_prometheus_is_made_while_chats_run(families: list[str]) -> None:
    proxy = Chat(calling("clock"), saying("Noon."), stream=True).proxy
    assert families == []
    generate_latest(proxy.metrics.registry)
    assert len(families) > 30


def python_calls(work: Callable[[], None]) -> int:
    """Functions of Python that *work* calls."""
    count = 0

    def note(frame: object, what: str, argument: object) -> None:
        nonlocal count
        count += what == "call"

    before = sys.getprofile()
    gc.disable()  # what it ends would be counted
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
        gc.enable()
    return count


def events_of(number: int) -> list[Event]:
    """What is counted of a chat with one round and one call."""
    one = chat(f"m-{number}")
    return [
        RoundEnded(round_of(one, 0.0, 1.0, first=0.5, input_tokens=1, output_tokens=2)),
        CallEnded(call_of(one, f"t-{number}", "answered")),
        ended(one),
    ]


def test_the_work_for_a_chat_does_not_grow_with_what_was_counted_before() -> None:
    counted = Counted()

    def calls(number: int) -> int:
        """Those for a chat of many that are counted at once, of one model and tool."""
        events = [event for _ in range(MANY) for event in events_of(number)]
        return python_calls(lambda: counted.tell(*events)) // MANY

    calls(0)
    first = calls(0)
    assert first <= 25
    for number in range(1000):
        counted.tell(*events_of(number))
    counted.deliver()
    assert calls(0) == first
    assert calls(5000) == calls(5001) <= first + 15


def test_a_chat_is_not_counted_before_it_is_looked_at_or_there_are_many() -> None:
    counted = Counted()
    chats = [events_of(1) for _ in range(MANY + 1)]
    for events in chats[: MANY - 1]:
        # Observers, for each event; and what looks how many have ended.
        assert python_calls(lambda events=events: counted.tell(*events)) <= 6  # type: ignore[misc]
    counted.tell(*chats[MANY - 1])
    assert counted.metrics._answers._rounds.counts[0] == MANY
    counted.tell(*chats[MANY])
    assert counted.metrics._answers._rounds.counts[0] == MANY
    assert counted.value("llamaproxy_chat_rounds_count") == MANY + 1


def test_of_a_chat_whose_record_is_broken_nothing_is_counted() -> None:
    metrics = AnswerMetrics(Counter())
    request = RequestRecord("id", "client", "POST", "/", 1.0, first_byte=2.0, ended=3.0)
    request.chat = ChatRecord(request)
    broken: Any = None
    request.chat.rounds.append(RoundRecord(request.chat, 1, broken))
    with pytest.raises(TypeError):
        metrics.ended([RequestEnded(request)])
    for series, samples in metrics.measured():
        for _, value in samples:
            assert (sum(value.counts) if isinstance(value, Histogram) else value) == 0, series.name
