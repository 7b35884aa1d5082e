"""What an operator sees of several workers: as if they were one process."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any
from unittest.mock import Mock

import pytest
from twisted.internet.task import Clock

from llamaproxy.admin.answers import MAX_ANSWERS
from llamaproxy.config.logformat import threshold
from llamaproxy.records import ChatRecord, RequestRecord
from llamaproxy.workers.serving import REFRESH_SECONDS
from llamaproxy.workers.watched import number_of, worker_keys
from tests.admin.inspected import Inspected, Page
from tests.support import answer, call, calling, nothing, pending_calls, saying, turn
from tests.workers.crews import MemoryWorker, Parent, stack

JSON = b"Content-Type: application/json"
CHATS = "llamaproxy_requests_total{route=chat,status=200}"


def chat(worker: MemoryWorker, **more: Any) -> Any:
    """A chat that *worker* answers with one call of a tool."""
    worker.answers(calling("clock"), saying("It is noon.", usage=USAGE))
    return worker.chat(**more)


USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}


def shown(page: Page) -> dict[int, Any]:
    """The rows that *page* has by now, by their keys."""
    rows: dict[int, Any] = {}
    for name, data in page.events():
        if name == "rows":
            rows |= {row["key"]: row for row in data["rows"]}
        elif name == "gone":
            for key in data["keys"]:
                del rows[key]
    return rows


def later(parent: Parent, seconds: float) -> None:
    """So much later, at the pace of pages."""
    for _ in range(round(seconds / 0.2)):
        parent.advance(0.2)


# --- metrics


def test_what_clients_saw_is_what_the_sums_say() -> None:
    parent = Parent(3)
    saw: Counter[str] = Counter()
    for number in range(30):
        worker = parent.workers[number * number % 3]
        parent.advance(0.01)
        if number % 7 == 3:
            worker.answers(answer({"detail": "no"}, 400))
            saw[f"status {worker.chat(stream=True).status}"] += 1
            continue
        exchange = chat(worker, stream=number % 2 == 0)
        assert exchange.status == 200 and exchange.complete
        saw["status 200"] += 1
    counted, status = parent.counted(), parent.status()
    assert saw.total() == 30 and len(saw) == 2
    assert counted[CHATS] == saw["status 200"]
    assert counted["llamaproxy_requests_total{route=chat,status=400}"] == saw["status 400"]
    assert counted["llamaproxy_request_duration_seconds_count{route=chat}"] == 30
    name = "llamaproxy_tool_calls_total{group=mcp::main,outcome=answered,tool=clock}"
    assert counted[name] == saw["status 200"]
    assert counted["llamaproxy_chat_rounds_sum{}"] == 2 * saw["status 200"] + saw["status 400"]
    tokens = sum(
        value
        for name, value in counted.items()
        if name.startswith("gen_ai_client_token_usage_sum") and "type=input" in name
    )
    assert tokens == 7 * saw["status 200"]
    assert status["tool_groups"]["mcp::main"]["calls"] == saw["status 200"]
    page = parent.page()
    later(parent, 3)
    rows = shown(page).values()
    assert Counter(f"status {row['status']}" for row in rows) == saw
    [tools] = [data for name, data in page.events() if name == "tools"][-1:]
    [called] = [t for g in tools["groups"] for t in g["tools"] if t["name"] == "clock"]
    assert called["calls"] == saw["status 200"]
    ids = {exchange.field("X-Request-Id") for exchange in [chat(parent.workers[0])]}
    later(parent, 1)
    assert ids <= {row["id"] for row in shown(page).values()}


def test_what_a_killed_worker_had_counted_stays_counted() -> None:
    parent = Parent()
    for worker in parent.workers:
        chat(worker)
    before = parent.counted()
    parent.crew.kill(parent.workers[0])
    after = parent.counted()
    for name, value in before.items():
        if name.split("{")[0].endswith(("_total", "_count", "_sum", "_bucket")):
            assert after[name] >= value, name
    assert after["llamaproxy_workers{}"] == 1
    assert after["llamaproxy_workers_max{}"] == 2
    assert after["llamaproxy_worker_restarts_total{worker=1}"] == 1
    assert "llamaproxy_worker_resident_memory_bytes{worker=1}" not in after
    chat(parent.crew.start(1))
    again = parent.counted()
    assert again[CHATS] == 3 and again["llamaproxy_workers{}"] == 2
    assert parent.status()["tool_groups"]["mcp::main"]["calls"] == 3


def test_workers_that_end_with_the_daemon_are_not_replaced() -> None:
    parent = Parent()
    parent.crew.draining = True
    parent.crew.kill(parent.workers[0])
    assert parent.counted()["llamaproxy_worker_restarts_total{worker=1}"] == 0


def test_one_that_does_not_answer_counts_with_what_it_said_last() -> None:
    parent = Parent()
    stuck, well = parent.workers
    for worker in parent.workers:
        chat(worker)
    parent.counted()
    stuck.is_stuck = True
    chat(well)
    asked = parent.page_of("/metrics")
    assert not asked.ended
    for _ in range(4):
        parent.advance(0.5)
    text = asked.line.value().decode()
    assert 'llamaproxy_requests_total{route="chat",status="200"} 3.0' in text
    assert "llamaproxy_workers_answered 1.0" in text
    assert "llamaproxy_workers 2.0" in text
    # Its late answer counts, and it was asked once.
    parent.page_of("/metrics")
    assert parent.crew.asked.count("Figures") == 5
    stuck.is_stuck = False
    parent.advance(0.1)
    assert parent.counted()["llamaproxy_workers_answered{}"] == 2


def test_a_worker_that_nobody_asks_tells_nothing_and_has_nothing_to_call() -> None:
    parent = Parent()
    before = len(pending_calls(parent.clock))
    for worker in parent.workers:
        chat(worker)
    parent.advance(10)
    assert parent.crew.asked == []
    assert len(pending_calls(parent.clock)) == before


def test_a_worker_has_no_more_listeners_than_a_process_that_is_alone() -> None:
    """Nothing that a chat does costs it more."""
    worker, alone = Parent().workers[0], Inspected(stack())
    alone.reachability.listen(alone.app.tell)
    for kind, listeners in alone.app.tell._listeners.items():
        assert len(worker.app.tell._listeners[kind]) <= len(listeners), kind


def test_what_is_counted_is_asked_for_now_and_then_so_that_little_is_lost() -> None:
    parent = Parent()
    serving = parent.watching.serving
    serving.startService()
    chat(parent.workers[0])
    parent.advance(REFRESH_SECONDS)
    parent.crew.kill(parent.workers[0])
    assert parent.counted()[CHATS] == 1
    serving.stopService()
    assert not [each for each in pending_calls(parent.clock) if "Serving" in repr(each)]


# --- status


def test_the_status_has_sums_and_each_worker() -> None:
    parent = Parent()
    first, second = parent.workers
    for worker in parent.workers:
        worker.answers(nothing)
    first.chat(stream=True)
    first.chat(stream=True)
    second.chat()
    status = parent.status()
    assert (status["requests"]["running"], status["requests"]["streams"]) == (3, 2)
    assert status["requests"]["drain_timeout_seconds"] == 30
    one = first.front.limits.connections
    assert status["connections"]["max"] == 2 * one
    assert [each["running"] for each in status["workers"]] == [2, 1]
    assert [each["pid"] for each in status["workers"]] == [1001, 1002]
    resident = [each["resident_bytes"] for each in status["workers"]]
    assert status["memory"]["resident_bytes"] > sum(resident) > 0
    parent.crew.kill(first)
    parent.crew.start(1)
    status = parent.status()
    assert status["requests"]["running"] == 1
    assert {each["worker"]: each["restarts"] for each in status["workers"]} == {1: 1, 2: 0}


def test_the_last_error_of_a_tool_is_the_latest_whichever_worker_met_it() -> None:
    parent = Parent()
    for worker, text in zip(parent.workers[::-1], ("earlier", "later"), strict=True):
        worker.stack.on("POST /v1/tool-runtime/invoke", answer({"detail": text}, 400))
        worker.answers(calling("clock"), saying("Well."))
        worker.chat()
        later(parent, 0.2)
    page = parent.page()
    later(parent, 3)
    tools = [data for name, data in page.events() if name == "tools"][-1]
    [group] = [group for group in tools["groups"] if group["name"] == "mcp::main"]
    [clock] = group["tools"]
    assert (clock["calls"], clock["failed"]) == (2, 2)
    assert clock["last_error"]


def test_without_a_worker_that_is_ready_the_daemon_is_not() -> None:
    parent = Parent()
    assert parent.get("/ready").status == 200
    for worker in parent.workers:
        parent.crew.kill(worker)
    got = parent.get("/ready")
    assert got.status == 503
    assert json.loads(got.body)["reason"] == "no worker is ready"
    parent.crew.start(2)
    assert parent.get("/ready").status == 200


def test_the_parent_hears_when_a_worker_meets_a_server_that_fails() -> None:
    parent = Parent()
    worker = parent.workers[1]
    for _ in range(5):
        worker.answers(answer(b"x" * 10, 200, {"Content-Length": "99"}))
        worker.chat()
        worker.stack.on("POST /v1/chat/completions", hangs_up)
        worker.chat()
    assert parent.status()["upstream"]["last_error"].startswith("upstream_broke")
    assert parent.status()["upstream"]["errors_in_a_row"] == 1, "it is told once a second"


def test_the_parent_hears_when_a_worker_is_answered() -> None:
    """What stands in front of the server may answer chats, and not the parent's own question."""
    parent = Parent()
    parent.stack.on("GET /v1/version", hangs_up)
    first, second = parent.workers
    for _ in range(40):
        chat(first)
        parent.get("/ready")
        parent.advance(2)
    upstream = parent.status()["upstream"]
    assert len(parent.stack.asked_for("GET /v1/version")) > 1
    assert upstream["answered_seconds_ago"] <= 4 and upstream["last_error"]
    assert parent.get("/ready").status == 200

    first.stack.on("POST /v1/chat/completions", hangs_up)
    for _ in range(20):
        first.chat()
        chat(second)
        parent.advance(2)
    assert parent.get("/ready").status == 200, "the other one is answered"
    for _ in range(20):
        first.chat()
        parent.advance(2)
    assert parent.get("/ready").status == 503


def test_news_of_the_server_comes_in_order_and_once_a_second() -> None:
    parent = Parent()
    reachability = parent.watching.reachability = Mock()
    worker = parent.workers[0]
    for _ in range(10):
        chat(worker)
        parent.advance(0.125)
        worker.answers(hangs_up)
        worker.chat()
        parent.advance(0.125)
    parent.advance(5)
    heard = [(name, at, *error[:1]) for name, (at, *error), _ in reachability.method_calls]
    assert heard == [
        ("answered", 0.0),
        ("failed", 0.875, "upstream_broke"),
        ("answered", 1.0),
        ("failed", 1.875, "upstream_broke"),
        ("answered", 2.0),
        ("answered", 2.25),
        ("failed", 2.375, "upstream_broke"),
    ]


def hangs_up(request: Any) -> None:
    request.loseConnection()


# --- log level


def test_the_level_of_the_log_is_that_of_all_and_of_those_that_come_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threshold, "in_use", True)
    parent = Parent()
    try:
        assert parent.post("/log-level", {"level": "debug"}).status == 200
        assert parent.crew.asked.count("SetLogLevel") == 2
        threshold.level = "info"
        parent.crew.kill(parent.workers[0])
        parent.crew.start(1)
        assert threshold.level == "debug"
        assert parent.post("/log-level", {"level": "loud"}).status == 400
        assert parent.crew.asked.count("SetLogLevel") == 3
    finally:
        threshold.level = "info"


# --- the page


def test_a_page_shows_the_rows_of_all_workers() -> None:
    parent = Parent()
    for number in range(6):
        parent.advance(0.01)
        chat(parent.workers[number % 2])
    page = parent.page()
    later(parent, 0.4)
    names = [name for name, _ in page.events()]
    assert names[:3] == ["hello", "tools", "rows"], "the first rows are all that there are"
    [rows] = page.rows()
    assert [number_of(row["key"], 2) for row in rows] == [1, 2, 1, 2, 1, 2]
    assert [row["key"] for row in rows] == sorted(row["key"] for row in rows)
    assert all(len(row["rounds"]) == 2 and row["status"] == 200 for row in rows)
    parent.workers[1].answers(nothing)
    parent.workers[1].chat()
    later(parent, 1)
    newest = max(shown(page))
    assert shown(page)[newest]["status"] == 0
    [request] = parent.workers[1].stack.open
    saying("Late.")(request)
    later(parent, 1)
    assert shown(page)[newest]["status"] == 200


def test_rows_are_asked_for_while_a_page_is_open_and_reads() -> None:
    parent = Parent()
    page = parent.page()
    later(parent, 2)
    asked = parent.crew.asked.count("Rows")
    assert 2 <= asked <= 22
    page.channel.pauseProducing()
    later(parent, 4)
    assert parent.crew.asked.count("Rows") == asked
    page.channel.resumeProducing()
    later(parent, 1)
    assert parent.crew.asked.count("Rows") > asked
    page.leave()
    asked = parent.crew.asked.count("Rows")
    later(parent, 16)
    assert parent.crew.asked.count("Rows") == asked
    assert all(worker.shown.answers.on_change is None for worker in parent.workers)
    parent.reachability.stop()
    assert not [each for each in pending_calls(parent.clock) if "orker" in repr(each)]


def test_a_worker_that_ends_tells_its_last_rows_at_once_however_many_there_were() -> None:
    parent = Parent()
    worker = parent.workers[0]
    for _ in range(300):
        chat(worker)
        parent.advance(0.02)
    worker.answers(nothing)
    worker.chat()
    page = parent.page()
    later(parent, 0.6)
    saying("Late.")(worker.stack.open[0])
    worker.settle()
    ended = worker.last_rows.stopService()
    parent.settle()
    assert ended.called, "it waits for nothing else"
    parent.crew.kill(worker)
    parent.inspector.feed.stopService()
    assert len(shown(page)) == 301
    assert {row["status"] for row in shown(page).values()} == {200}


@pytest.mark.parametrize("looks", [True, False])
def test_a_worker_that_ends_waits_a_second_for_its_parent_if_somebody_looks(looks: bool) -> None:
    parent = Parent()
    worker = parent.workers[0]
    if looks:
        parent.page()
        later(parent, 0.6)
    worker.is_stuck = True  # for the link too: nothing is carried
    ended = worker.last_rows.stopService()
    assert ended.called == (not looks)
    parent.clock.advance(1)
    assert ended.called


@pytest.mark.parametrize("workers", [1, 2])
def test_nothing_is_told_again_however_many_rows_there_are(workers: int) -> None:
    parent = Parent(workers)
    for number in range(MAX_ANSWERS):
        chat(parent.workers[number % workers])
        parent.advance(0.02)
    page = parent.page()
    later(parent, 1)
    told = len(page.rows())
    later(parent, 30)
    assert len(page.rows()) == told
    chat(parent.workers[0])
    later(parent, 0.6)
    assert [len(rows) for rows in page.rows()[told:]] == [1]


def test_a_page_that_reads_again_gets_what_has_happened_since() -> None:
    parent = Parent()
    page = parent.page()
    later(parent, 1)
    page.channel.pauseProducing()
    for _ in range(100):  # longer than workers believe that somebody looks
        later(parent, 0.2)
        chat(parent.workers[0])
    page.channel.resumeProducing()
    later(parent, 2)
    assert len(shown(page)) == 100


def test_a_worker_that_is_slow_holds_up_no_other_and_is_asked_once() -> None:
    parent = Parent()
    stuck, well = parent.workers
    stuck.is_stuck = True
    chat(well)
    page = parent.page()
    assert page.rows() == []
    later(parent, 1.4)
    assert len(shown(page)) == 1
    chat(well)
    later(parent, 1)
    assert len(shown(page)) == 2
    asked = parent.crew.asked.count("Rows")
    stuck.is_stuck = False
    later(parent, 0.4)
    chat(stuck)
    later(parent, 0.6)
    assert len(shown(page)) == 3 and asked < 20


def test_no_more_rows_are_kept_than_of_one_process_and_none_that_runs_goes_first() -> None:
    parent = Parent()
    running = []
    for number, worker in enumerate(parent.workers):
        for each in range(MAX_ANSWERS):
            request = RequestRecord(f"{number}-{each}", "::1", "POST", "/x", worker.clock.seconds())
            request.chat = ChatRecord(request, worker.clock.seconds)
            running.append(request)
            worker.front.connections.began(Mock(record=request))
    for _ in range(5):
        chat(parent.workers[0])
    page = parent.page()
    later(parent, 2)
    rows = shown(page)
    assert len(rows) == MAX_ANSWERS == len(parent.shown.keys)
    assert all(row["status"] == 0 for row in rows.values())


def test_errors_of_workers_are_not_pushed_out_by_what_goes_well() -> None:
    parent = Parent()
    page = parent.page()
    for worker in parent.workers:
        worker.answers(answer({"detail": "no"}, 500))
        worker.chat()
    later(parent, 1)
    for _ in range(MAX_ANSWERS // 2 + 5):
        for worker in parent.workers:
            worker.answers(saying("Noon.", usage=USAGE))
            worker.chat()
        later(parent, 0.2)
    later(parent, 5)
    rows = shown(page)
    assert len(rows) == MAX_ANSWERS
    assert [row["status"] for row in rows.values()].count(500) == len(parent.workers)


def test_an_answer_is_asked_for_where_it_is_given() -> None:
    parent = Parent(contents=True)
    exchanges = {worker.number: chat(worker) for worker in parent.workers}
    page = parent.page()
    later(parent, 1)
    for row in shown(page).values():
        got = parent.get(f"/answers/{row['key']}?download")
        detail = json.loads(got.body)
        number = number_of(row["key"], 2)
        assert detail["id"] == row["id"] == exchanges[number].field("X-Request-Id")
        assert detail["offered_tools"] == ["clock", "web"]
        assert detail["contents"]["calls"]["1"]["result"] == "12:00"
        assert row["id"] in got.fields["content-disposition"][0]
        assert json.loads(parent.get(f"/answers/{row['key']}").body)["curl"].startswith("curl")
    page.leave()
    for key in shown(page):
        assert parent.get(f"/answers/{key}").status == 200, "though no page is open"
    assert parent.get("/answers/1").status == 404


def test_an_answer_is_stopped_where_it_is_given() -> None:
    parent = Parent()
    worker = parent.workers[1]
    worker.answers(nothing)
    exchange = worker.chat()
    page = parent.page()
    later(parent, 1)
    [key] = shown(page)
    assert parent.post(f"/answers/{key}/stop").status == 204
    assert exchange.json()["error"]["code"] == "stopped"
    assert parent.post(f"/answers/{key}/stop").status == 404
    assert parent.post("/answers/2/stop").status == 404


def test_that_a_worker_says_nothing_is_told() -> None:
    parent = Parent()
    chat(parent.workers[0])
    page = parent.page()
    later(parent, 1)
    [key] = shown(page)
    parent.workers[0].is_stuck = True
    asked = parent.page_of(f"/answers/{key}")
    for _ in range(40):
        parent.advance(1)
    assert b" 504 " in asked.head and b"worker_silent" in asked.line.value()


def test_rows_of_a_worker_that_is_gone_end_and_are_not_lost() -> None:
    parent = Parent()
    first = parent.workers[0]
    chat(first)
    first.answers(turn(None, [call("clock")]))
    first.stack.on("POST /v1/tool-runtime/invoke", nothing)
    parent.advance(0.1)
    first.chat(stream=True)
    parent.advance(0.1)
    first.answers(nothing)
    first.chat()
    page = parent.page()
    later(parent, 2)
    done, calls, asks = sorted(shown(page))
    assert [shown(page)[key]["status"] for key in (done, calls, asks)] == [200, 0, 0]
    parent.crew.kill(first)
    later(parent, 1)
    rows = shown(page)
    assert rows[done]["status"] == 200
    for key in (calls, asks):
        row = rows[key]
        assert (row["status"], row["kind"]) == (499, "worker_gone")
        assert row["total"] == pytest.approx(2.1, abs=0.2)
        assert all(each["ended"] is not None for each in row["rounds"] + row["calls"])
    assert [each["outcome"] for each in rows[calls]["calls"]] == ["cancelled"]
    assert rows[asks]["rounds"][0]["kind"] == "worker_gone"
    assert parent.get(f"/answers/{calls}").status == 404
    # They are there for pages that are opened later, beside those of who came in its place.
    page.leave()
    newcomer = parent.crew.start(1)
    parent.advance(0.1)
    chat(newcomer)
    page = parent.page()
    later(parent, 1)
    assert set(shown(page)) > {done, calls, asks} and len(shown(page)) == 4


def test_rows_of_a_worker_that_is_gone_are_told_to_a_later_page_once() -> None:
    parent = Parent(2)
    page = parent.page()
    later(parent, 1)
    for _ in range(5):
        chat(parent.workers[0])
        later(parent, 0.6)
    parent.crew.kill(parent.workers[0])
    page.leave()
    page = parent.page()
    later(parent, 1)
    told = len(page.rows())
    for _ in range(3):
        chat(parent.workers[1])
        later(parent, 0.6)
    assert [len(rows) for rows in page.rows()[told:]] == [1, 1, 1]


def test_a_worker_that_comes_while_a_page_is_open_is_shown() -> None:
    parent = Parent()
    page = parent.page()
    later(parent, 1)
    parent.crew.kill(parent.workers[0])
    chat(parent.crew.start(1))
    later(parent, 1)
    assert len(shown(page)) == 1


def test_without_any_worker_a_page_opens() -> None:
    parent = Parent()
    for worker in parent.workers:
        parent.crew.kill(worker)
    page = parent.page()
    parent.advance(0.2)
    assert page.rows() == [[]]


def test_tools_are_tried_in_the_parent() -> None:
    parent = Parent()
    body = {"group": "mcp::main", "tool": "clock", "arguments": {}}
    got = parent.post("/tools/try", body)
    assert json.loads(got.body)["text"] == "12:00"
    assert parent.status()["tool_groups"]["mcp::main"]["calls"] == 1
    name = "llamaproxy_tool_calls_total{group=mcp::main,outcome=answered,tool=clock}"
    assert parent.counted()[name] == 1


# --- keys


def test_keys_tell_whose_they_are_and_grow_with_time_whoever_gives_them() -> None:
    clock = Clock()
    keys = {number: worker_keys(number, 3, clock.seconds) for number in (1, 2, 3)}
    given = []
    for step in range(60):
        number = step % 3 + 1
        key = next(keys[number])
        assert number_of(key, 3) == number
        given.append(key)
        if step % 5 == 4:
            clock.advance(0.1)
    assert len(set(given)) == 60
    late = worker_keys(1, 3, clock.seconds)
    assert next(late) > max(given)
    assert next(late) > next(keys[2]) - 3
