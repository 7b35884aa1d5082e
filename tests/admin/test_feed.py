"""The feed of the page: what has changed, made into text once, for pages that read."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
from twisted.internet.task import Clock

from llamaproxy import jsontext
from llamaproxy.admin import shown as shown_module
from llamaproxy.admin.answers import MAX_ANSWERS
from llamaproxy.admin.feed import MAX_PAGES
from llamaproxy.events import CallBegan, RequestEnded, RoundBegan
from llamaproxy.records import CallRecord, ChatRecord, RequestRecord, RoundRecord
from tests.admin.inspected import Inspected
from tests.support import (
    CHAT,
    INVOKE,
    FakeStack,
    answer,
    call,
    calling,
    chunk,
    events,
    nothing,
    pending_calls,
    saying,
    tool,
    tool_result,
)


def inspected(**more: Any) -> Inspected:
    stack = FakeStack()
    stack.on("GET /v1/tools", answer({"data": [tool("clock")]}))
    stack.on(CHAT, calling("clock"), saying("It is noon."))
    stack.on(INVOKE, tool_result("12:00"))
    return Inspected(stack, **more)


#: Records of requests that are being answered, which those of their chats do not keep.
_answered: list[RequestRecord] = []


def begin(app: Inspected, number: int = 0) -> ChatRecord:
    """A chat that has just begun."""
    path = "/v1/chat/completions"
    request = RequestRecord(f"id-{number}", "::1", "POST", path, app.clock.seconds())
    _answered.append(request)
    request.chat = ChatRecord(request, app.clock.seconds)
    app.front.connections.began(Mock(record=request))
    return request.chat


def end(app: Inspected, chat: ChatRecord) -> None:
    assert chat.request is not None
    chat.request.status, chat.request.ended = 200, app.clock.seconds()
    app.app.tell(RequestEnded(chat.request))


class Counted:
    """How many rows have been made, and how many texts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows = self.texts = 0
        module: Any = shown_module
        row, dumps = module.row, jsontext.dumps

        def counted_row(*arguments: Any) -> Any:
            self.rows += 1
            return row(*arguments)

        def counted_dumps(value: Any) -> bytes:
            self.texts += 1
            return dumps(value)

        monkeypatch.setattr(shown_module, "row", counted_row)
        monkeypatch.setattr(jsontext, "dumps", counted_dumps)


def test_a_page_is_told_all_at_first_and_then_what_changes() -> None:
    app = inspected()
    app.chat()
    page = app.page()
    assert [name for name, _ in page.events()] == ["hello", "rows", "tools"]
    hello, rows, tools = (data for _, data in page.events())
    assert hello["server"] == "Llama Stack 0.6.1" and hello["contents"] is False
    assert hello["upstream"] == "http://stack:8321"
    assert hello["url"] == "http://localhost:8322/v1"
    assert page.text().startswith(b"retry: 1000\n"), "a daemon that comes back is seen at once"
    [row] = rows["rows"]
    assert (row["status"], row["model"], row["offered"]) == (200, "m", 1)
    assert [each["finish_reason"] for each in row["rounds"]] == ["tool_calls", "stop"]
    [called] = row["calls"]
    assert (called["tool"], called["group"], called["outcome"]) == (
        "clock",
        "mcp::main",
        "answered",
    )
    [group] = tools["groups"]
    assert (group["name"], group["tools"][0]["calls"]) == ("mcp::main", 1)
    app.chat()
    app.advance(0.2)
    [[_], [second]] = page.rows()
    assert second["key"] == row["key"] + 1
    assert b"text/event-stream" in page.head and b"access-control" not in page.head.lower()
    assert b"Content-Security-Policy: default-src 'none'" in page.head


def test_a_running_answer_is_told_as_it_goes_on() -> None:
    app = inspected()
    app.stack_answers(nothing)
    page = app.page()
    app.chat()
    app.advance(0.2)
    [[], [row]] = page.rows()
    assert (row["status"], row["total"]) == (0, None)
    assert [(each["ended"], each["kind"]) for each in row["rounds"]] == [(None, "")]


def test_a_comment_that_keeps_a_stream_alive_is_no_first_byte() -> None:
    app = inspected(keep_alive=15)
    app.stack_answers(nothing)
    page = app.page()
    app.chat(stream=True)
    for _ in range(40):
        app.advance(1)
    assert page.rows()[-1][0]["first_byte"] is None
    [request] = app.stack.open
    saying("Late.")(request)
    app.settle()
    app.advance(1)
    row = page.rows()[-1][0]
    assert (row["status"], row["first_byte"]) == (200, 40)
    assert row["rounds"][0]["first"] == 40


def test_a_head_that_waits_for_a_tool_is_no_first_byte() -> None:
    app = inspected()
    app.stack.on(INVOKE, nothing)
    asked = chunk({"tool_calls": [{**call("clock"), "index": 0}]})  # which nobody is shown
    app.stack_answers(events(asked, chunk({}, "tool_calls")), saying("It is noon."))
    page = app.page()
    app.chat(stream=True)
    for _ in range(8):
        app.advance(1)
    [request] = app.stack.open
    tool_result("12:00")(request)
    app.settle()
    app.advance(1)
    row = page.rows()[-1][0]
    assert (row["status"], row["first_byte"], len(row["rounds"])) == (200, 8, 2)


def test_changes_are_told_at_most_five_times_a_second_each_row_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = inspected()
    pages = [app.page() for _ in range(3)]
    chat = begin(app)
    app.advance(0.2)
    assert [len(page.rows()) for page in pages] == [2, 2, 2]
    counted = Counted(monkeypatch)
    for _ in range(50):
        chat.rounds.append(RoundRecord(chat, 1, 0.0))
    assert (counted.rows, counted.texts) == (0, 0)
    app.advance(0.1)
    assert (counted.rows, counted.texts) == (0, 0)
    app.advance(0.1)
    assert (counted.rows, counted.texts) == (1, 1)
    assert [len(page.rows()) for page in pages] == [3, 3, 3]


def test_what_a_page_costs_does_not_grow_with_the_number_of_chats(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = inspected()
    app.page()
    counted = Counted(monkeypatch)
    for _ in range(100):  # ten seconds with 1,000 chats in each
        for number in range(100):
            end(app, begin(app, number))
        app.advance(0.1)
    assert counted.rows <= 10 * 100 + MAX_ANSWERS


def test_while_no_rows_are_due_the_answers_that_run_are_not_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = inspected()
    page = app.page()
    chat = begin(app)
    for number in range(1, 100):
        end(app, begin(app, number))
    app.advance(0.2)
    told = len(page.rows())
    look = Mock(wraps=app.shown.answers.note_running)
    monkeypatch.setattr(app.shown.answers, "note_running", look)
    chat.rounds.append(RoundRecord(chat, 1, 0.0))
    for _ in range(3):  # a hundred rows have been told, and no more are for a second
        app.advance(0.2)
    assert (look.call_count, len(page.rows())) == (0, told)
    for _ in range(2):
        app.advance(0.2)
    assert (look.call_count, len(page.rows())) == (2, told + 1)
    assert page.rows()[-1][-1]["rounds"][0]["began"] == 0.0


def test_what_a_page_is_told_at_first_is_bounded() -> None:
    app = inspected()
    for number in range(MAX_ANSWERS):
        chat = begin(app, number)
        chat.rounds += [RoundRecord(chat, n, 0.0) for n in range(60)]
        chat.calls += [CallRecord(chat, n, 1, 0.0) for n in range(120)]
        end(app, chat)
    page = app.page()
    [rows] = page.rows()
    assert len(rows) == MAX_ANSWERS
    assert sum(len(row["rounds"]) for row in rows) == 10_000
    assert [call["number"] for call in rows[0]["calls"]] == list(range(100, 120))
    end(app, begin(app))
    app.advance(3)
    chat.calls.clear()
    end(app, chat)
    app.advance(3)
    assert len(page.rows()[-1][0]["rounds"]) == 50


def test_what_has_changed_holds_no_answers_that_are_kept_no_longer() -> None:
    app = inspected()
    app.page()
    for number in range(5 * MAX_ANSWERS):  # between two flushes
        chat = begin(app, number)
        assert chat.request is not None
        chat.request.kind = "upstream_broke"  # of those that end well some would be left out
        end(app, chat)
        if number % 10 == 0:
            begin(app, number)  # those that run are found while others end
    assert len(app.shown._changed) <= 2 * MAX_ANSWERS
    assert app.app.tell.failures == 0


def test_with_no_page_open_nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    app = inspected()
    page = app.page()
    page.leave()
    before = pending_calls(app.clock)
    counted = Counted(monkeypatch)
    heard = app.app.tell._listeners
    assert heard[CallBegan] == heard[RoundBegan] == [app.events.append]
    end(app, begin(app))
    assert (counted.rows, counted.texts) == (0, 0)
    assert pending_calls(app.clock) == before


def test_a_page_that_does_not_read_gets_how_things_stand_when_it_reads_again() -> None:
    app = inspected()
    chats = [begin(app, number) for number in range(3)]
    slow, quick = app.page(), app.page()
    slow.channel.pauseProducing()
    for chat in chats:
        end(app, chat)
        app.advance(0.3)
    late = [begin(app, number) for number in range(3, MAX_ANSWERS + 2)]
    for _ in range(30):
        app.advance(0.2)
    assert len(slow.rows()) == 1 and len(quick.rows()) > 3
    slow.channel.resumeProducing()
    app.advance(0.2)
    names = [name for name, _ in slow.events() if name != "tools"]
    assert names == ["hello", "rows", "gone", "rows"]
    gone = [data["keys"] for name, data in slow.events() if name == "gone"]
    assert gone == [[1, 2]]
    assert [row["key"] for row in slow.rows()[-1]] == list(range(3, MAX_ANSWERS + 3))
    assert late[0].request is not None
    for client in (slow, quick):
        client.leave()


def test_a_page_that_has_not_read_for_a_minute_makes_room() -> None:
    app = inspected()
    pages = [app.page() for _ in range(MAX_PAGES)]
    pages[0].channel.pauseProducing()
    app.advance(59)
    assert app.get("/feed").status == 503
    for _ in range(3):
        app.advance(1)
    assert pages[0].line.disconnected
    pages[0].leave()  # as the reactor says then
    assert app.page().rows() == [[]]
    assert not pages[1].ended


def test_a_silent_feed_has_comments() -> None:
    app = inspected()
    page, stalled = app.page(), app.page()
    stalled.channel.pauseProducing()
    for _ in range(5 * 31):
        app.advance(0.2)
    assert page.text().count(b": keep-alive\n\n") == 2
    assert b": keep-alive" not in stalled.text()


def test_that_the_model_answers_is_told_though_no_event_is() -> None:
    app = inspected()
    page = app.page()
    chat = begin(app)
    chat.rounds.append(RoundRecord(chat, 1, 0.0))
    app.advance(0.5)
    chat.rounds[0].note_first()
    app.advance(0.5)
    app.advance(0.2)
    assert page.rows()[-1][0]["rounds"][0]["first"] == 0.5
    app.advance(5)
    assert len(page.rows()) == 3


def test_too_many_pages_are_refused() -> None:
    app = inspected()
    pages = [app.page() for _ in range(MAX_PAGES)]
    refused = app.get("/feed")
    assert refused.status == 503 and b"close one" in refused.body
    pages[0].leave()
    assert app.page().rows() == [[]]


def test_a_page_of_another_origin_gets_no_feed() -> None:
    app = inspected()
    assert app.get("/feed", b"Sec-Fetch-Site: cross-site").status == 403
    assert app.page(b"Sec-Fetch-Site: same-origin").rows() == [[]]


def test_a_page_is_told_that_the_daemon_stops_and_how_the_last_answers_end() -> None:
    app = inspected()
    app.stack_answers(nothing)
    page = app.page()
    app.chat()
    app.advance(0.2)
    app.draining = True
    app.advance(0.2)
    app.advance(5)
    assert [data for name, data in page.events() if name == "draining"] == [{"seconds": 30}]
    late = app.page()
    assert late.events()[-1] == ("draining", {"seconds": 30})
    app.front.connections.cut_short()
    app.inspector.feed.stopService()
    for each in (page, late):
        assert each.rows()[-1][0]["kind"] == "shutting_down" and each.ended
    assert not [call for call in pending_calls(app.clock) if "feed" in repr(call)]


def test_a_feed_ends_when_the_daemon_stops() -> None:
    app = inspected()
    stalled, page = app.page(), app.page()
    stalled.channel.pauseProducing()
    app.inspector.feed.stopService()
    assert page.ended and page.line.value().endswith(b"\r\n0\r\n\r\n")
    assert app.site.connections.running == 0
    assert app.get("/feed").status == 503
    assert not [call for call in pending_calls(app.clock) if "feed" in repr(call)]


def test_tools_are_told_at_most_once_in_two_seconds() -> None:
    app = inspected()
    page = app.page()

    def count() -> int:
        return [name for name, _ in page.events()].count("tools")

    app.chat()
    app.advance(0)
    assert count() == 2
    app.stack_answers(calling("clock"), saying("So."))
    app.chat()
    app.advance(1.9)
    assert count() == 2
    app.advance(0.1)
    assert count() == 3
    [group] = page.events()[-1][1]["groups"]
    assert group["tools"][0]["calls"] == 2


def test_a_head_request_leaves_no_page_open() -> None:
    app = inspected()
    assert app.ask("/feed", method="HEAD").status == 200
    assert isinstance(app.clock, Clock) and app.site.connections.running == 0
