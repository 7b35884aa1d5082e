"""The inspector's page in a real browser, with a stand-in for its back end."""

# Playwright is not installed where only the product is type-checked.
# mypy: disable-error-code="import-not-found, unused-ignore"

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from tests.admin.fake_inspector import (
    PAGE,
    POLICY,
    FakeInspector,
    call_of,
    group_of,
    round_of,
    row_of,
    show_everything,
    tool_of,
)
from tests.real.openwebui import ChromiumMissing, find_chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

HOSTILE = "<img src=x onerror=document.title='run'>"

HERE = Path(__file__).parent

#: Expressions that list what is wrong with a page: controls without a name and their like, and
#: text whose contrast with what is behind it is below 4.5 to 1.
FAULTS, FAINT = ((HERE / name).read_text("utf-8") for name in ("faults.js", "faint.js"))

#: Milliseconds for which anything is waited for.
PATIENCE = 10_000

ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")


def _do_without(missing: Exception) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(str(missing))
    pytest.skip(f"THE INSPECTOR'S PAGE IS NOT TESTED: {missing}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    try:
        from playwright.sync_api import sync_playwright

        chromium = find_chromium()
    except (ImportError, ChromiumMissing) as missing:
        _do_without(missing)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture
def fake() -> Iterator[FakeInspector]:
    with FakeInspector().serving() as fake:
        yield fake


def opened(browser: Browser, width: int = 1280, **options: Any) -> Page:
    page = browser.new_page(viewport={"width": width, "height": 800}, **options)
    page.set_default_timeout(PATIENCE)
    return page


@pytest.fixture
def page(browser: Browser, fake: FakeInspector) -> Iterator[Page]:
    """A page that is to go to the inspector; whatever its console says is an error."""
    page = opened(browser)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    page.close()
    assert complaints == []


def arrive(page: Page, fake: FakeInspector, address: str = "/") -> None:
    page.goto(fake.url + address)
    page.locator("#feed[data-state=live]").wait_for()


def rows(page: Page) -> Locator:
    return page.locator("#rows [role=option]:visible")


def answer(page: Page) -> Locator:
    return page.locator("#answer")


def sees(place: Locator, words: str | re.Pattern[str]) -> None:
    place.get_by_text(words).first.wait_for()


def chat(key: int, **fields: Any) -> dict[str, Any]:
    """An answer of two rounds with calls of every kind."""
    return row_of(
        key,
        **{
            "total": 6.0,
            "rounds": [
                round_of(1, 0.0, 2.0, first=0.5, finish_reason="tool_calls", input_tokens=1812),
                round_of(2, 4.0, 6.0, kind="upstream_broke"),
            ],
            "calls": [
                call_of(1, 1, "calculate", 2.0, began=2.0, ended=2.2, outcome="answered"),
                call_of(2, 1, "weather", 2.0, began=2.5, ended=4.0, outcome="failed", reason="no"),
            ],
            **fields,
        },
    )


def test_without_answers_it_says_what_to_do(page: Page, fake: FakeInspector) -> None:
    arrive(page, fake)
    sees(page.locator("#empty"), "No answers yet.")
    sees(page.locator("#empty"), "http://localhost:8322/v1")
    sees(page.locator("#upstream"), "Llama Stack 0.7.3")


def test_one_row_an_answer_the_newest_first(page: Page, fake: FakeInspector) -> None:
    fake.rows(row_of(1), chat(2, model="qwen3", who="09be77", first_byte=0.74))
    arrive(page, fake)
    first, second = rows(page).all()
    assert first.locator(".model").inner_text() == "qwen3"
    assert first.locator(".who").inner_text() == "09be77"
    assert first.locator(".total").inner_text() == "6.00 s"
    assert first.locator(".first").inner_text() == "740 ms"
    sees(first, "2 rounds")
    assert first.locator(".dot.answered").count() == first.locator(".dot.failed").count() == 1
    # Not by colour alone: in words for who cannot see the shapes.
    assert "calculate answered; weather failed: no" in (first.text_content() or "")
    assert second.locator(".model").inner_text() == "ollama/llama3.2:3b"


def test_what_began_first_is_below_whenever_it_was_found(page: Page, fake: FakeInspector) -> None:
    now = time.time()
    fake.rows(row_of(1, model="quick", at=now - 5), row_of(2, model="slow", at=now - 60))
    arrive(page, fake)
    assert page.locator("#rows .model").all_inner_texts() == ["quick", "slow"]
    fake.rows(row_of(3, model="slower", at=now - 70), row_of(4, model="last", at=now))
    names = ["last", "quick", "slow", "slower"]
    sees(page.locator("#rows .model").nth(3), "slower")
    assert page.locator("#rows .model").all_inner_texts() == names
    # A daemon that has started anew gives the same keys to others.
    fake.kept = {1: row_of(1, model="first", at=now + 1), 2: row_of(2, model="second", at=now + 2)}
    fake.break_feeds()
    sees(page.locator("#row-2"), "second")
    assert page.locator("#rows .model").all_inner_texts() == ["second", "first"]


def test_what_changes_is_seen_at_once(page: Page, fake: FakeInspector) -> None:
    running = row_of(1, status=0, total=None, first_byte=None, at=time.time() - 100)
    fake.rows(running)
    arrive(page, fake)
    row = page.locator("#row-1")
    sees(row.locator(".total"), re.compile(r"^1 min 4\d s$"))  # its time counts on
    sees(page.locator("#count"), "1 running")
    fake.rows({**running, "status": 200, "total": 101.0}, row_of(2))
    sees(row.locator(".total"), "1 min 41 s")
    page.locator("#row-2").wait_for()
    assert "running" not in page.locator("#count").inner_text()
    fake.gone(1)
    row.wait_for(state="detached")


def test_time_of_what_runs_counts_on(page: Page, fake: FakeInspector) -> None:
    fake.rows(row_of(1, status=0, total=None))
    arrive(page, fake)
    total = page.locator("#row-1 .total")
    before = total.inner_text()
    page.wait_for_function(
        "before => document.querySelector('#row-1 .total').textContent !== before", arg=before
    )


@pytest.mark.parametrize("part", ["tools", "model"])
def test_where_the_time_goes_counts_on_for_what_runs(
    page: Page, fake: FakeInspector, part: str
) -> None:
    """A row comes when something begins or ends; a slow tool would be the model's fault else."""
    call = call_of(1, 1, "clock", 2.0, began=2.0, ended=2.1 if part == "model" else None)
    rounds = [round_of(1, 0.1, 2.0), *([round_of(2, 2.1)] if part == "model" else [])]
    shares = {"model": 1.9, "tools": 0.1, "proxy": 0.1}
    at = time.time() - 20
    parts = {"rounds": rounds, "calls": [call], "shares": shares}
    fake.rows(row_of(1, status=0, total=None, first_byte=None, at=at, **parts))
    arrive(page, fake)
    rows(page).click()
    expected = "model 9 % · tools 90 % · proxy 1 %" if part == "tools" else "model 99 %"
    line = answer(page).locator(".share-line")
    assert line.inner_text().startswith(expected)
    note = answer(page).locator(".shares + .note")
    before = note.inner_text()
    page.wait_for_function(
        "before => document.querySelector('.shares + .note').textContent !== before", arg=before
    )


def test_an_answer_is_explained(page: Page, fake: FakeInspector) -> None:
    fake.rows(
        chat(
            7, listing=0.06, status=502, kind="upstream_broke", error="upstream_broke (it hung up)"
        )
    )
    fake.more[7] = {
        "withheld": {"delete_file": "the choice of the client", "rm": "the choice of the client"}
    }
    arrive(page, fake)
    rows(page).click()
    place = answer(page)
    notice = place.locator(".notice.bad").inner_text()
    assert notice == "Error 502 upstream_broke (it hung up)"
    assert place.locator(".share-line").inner_text() == "model 81 % · tools 17 % · proxy 2 %"
    bar = "e => [...e.children].reduce((sum, child) => sum + child.offsetWidth, 0) / e.offsetWidth"
    assert place.locator(".shares").evaluate(bar) > 0.95  # though they are less than a second
    lanes = [lane.inner_text() for lane in place.locator(".words").all()]
    assert lanes == [
        "list of tools · waited 60 ms for it",
        "model · waited 500 ms, streamed 1.50 s · 1,812 tokens in · asked for tools",
        "calculate · ran 200 ms · answered",
        "weather · waited 500 ms for a slot · ran 1.50 s · failed: no",
        "model · waited 2.00 s · upstream_broke",
    ]
    assert place.locator(".lane.wrong").count() == 2
    bars = [bar.get_attribute("class") for bar in place.locator(".bar").all()]
    assert bars == [
        *("bar list", "bar wait", "bar stream", "bar tool"),
        *("bar slot", "bar tool", "bar wait"),
    ]
    tool = place.locator(".lane.of-tool .bar.tool").last
    assert [tool.evaluate(f"bar => bar.style.{side}") for side in ("left", "width")] == [
        "41.6667%",
        "25%",
    ]
    sees(place, "3 tools.")
    sees(place.locator(".withheld"), "the choice of the client")
    assert place.locator(".withheld .chip").all_inner_texts() == ["delete_file", "rm"]
    sees(place, "--inspect-contents")


def test_tools_of_one_name_are_told_apart_by_their_groups(page: Page, fake: FakeInspector) -> None:
    began = {"began": 1.0, "ended": 1.2, "outcome": "answered"}
    calls = [
        call_of(1, 1, "big", 1.0, group="mcp::a", **began),
        call_of(2, 1, "big", 1.0, group="mcp::b", **began),
        call_of(3, 1, "small", 1.0, group="mcp::b", ended=1.5, outcome="refused"),
    ]
    fake.rows(chat(1, calls=calls))
    names = ["mcp__a__big_01234567", "mcp__b__big_89abcdef", "other", "small"]
    fake.more[1] = {"offered_tools": names, "called": [names[0], names[1], "small"]}
    arrive(page, fake, "/#request-1")
    place = answer(page)
    sees(place.locator(".story"), "big of mcp::a, big of mcp::b and small")
    place.locator(".chip.called").first.wait_for()
    assert place.locator(".chips .chip:not(.called)").all_inner_texts() == ["other"]
    lanes = place.locator(".lane.of-tool .words").all_inner_texts()
    assert [lane.partition(" ·")[0] for lane in lanes] == [
        "big of mcp::a",
        "big of mcp::b",
        "small",
    ]
    assert lanes[2] == "small · refused", "it has waited for no slot"
    assert "big of mcp::b answered" in (rows(page).first.text_content() or "")


def test_why_there_are_no_tools(page: Page, fake: FakeInspector) -> None:
    fake.rows(chat(1, offered=0, not_injected="its tool_choice is none", calls=[]))
    arrive(page, fake, "/#request-1")
    sees(answer(page).locator(".notice"), "its tool_choice is none")


def test_contents_are_shown_if_they_are_kept(page: Page, fake: FakeInspector) -> None:
    fake.rows(chat(1))
    fake.more[1] = {
        "contents": {
            "rounds": {"1": {"request": {"messages": [{"role": "user", "content": HOSTILE}]}}},
            "calls": {"1": {"arguments": '{"a":1}', "result": "391"}},
            "cut": True,
        }
    }
    arrive(page, fake, "/#request-1")
    place = answer(page)
    place.get_by_text("Round 1: what the model was sent").click()
    assert place.locator("details[open] pre").first.inner_text() == HOSTILE
    place.get_by_text("Call of calculate").click()
    sees(place, "391")
    sees(place, "Some of it was too large")


def test_filters(page: Page, fake: FakeInspector) -> None:
    fake.rows(
        row_of(1, model="a", conversation="c1"),
        chat(2, model="b", conversation="c1"),
        row_of(3, model="b", status=502, kind="upstream_broke"),
        row_of(4, model="b", status=0, total=None, offered=0),
    )
    arrive(page, fake)

    def shown() -> list[str]:
        return [str(row.get_attribute("data-key")) for row in rows(page).all()]

    page.get_by_label("Model", exact=True).select_option("b")
    assert shown() == ["4", "3", "2"]
    page.get_by_label("Tool", exact=True).select_option("calculate")
    assert shown() == ["2"]
    page.get_by_role("button", name="Clear filters").click()
    page.get_by_label("Chat", exact=True).select_option("c1")
    assert shown() == ["2", "1"]
    sees(page.locator("#count"), "2 of 4")
    page.get_by_role("button", name="Clear filters").click()
    for outcome, keys in {
        "running": ["4"],
        "ok": ["2", "1"],
        "error": ["3"],
        "left": [],
        "tool-failed": ["2"],
        "no-tools": ["4"],
    }.items():
        page.get_by_label("Outcome", exact=True).select_option(outcome)
        assert shown() == keys
    page.get_by_label("Outcome", exact=True).select_option("running")
    fake.rows(row_of(5), row_of(6, status=0, total=None))
    page.locator("#row-6").wait_for()
    assert shown() == ["6", "4"]


def test_only_one_chat(page: Page, fake: FakeInspector) -> None:
    fake.rows(row_of(1, conversation="c1"), row_of(2))
    arrive(page, fake, "/#request-1")
    page.get_by_role("button", name="Show only this chat").click()
    assert rows(page).count() == 1


def test_a_link_opens_the_newest_of_that_id(page: Page, fake: FakeInspector) -> None:
    fake.rows(row_of(1, id="same", model="old"), row_of(2, id="same", model="new"), row_of(3))
    arrive(page, fake, "/#same")
    sees(answer(page).locator("h2"), "new")
    assert page.locator("#row-2").get_attribute("aria-selected") == "true"


def test_a_link_opens_what_comes_later(page: Page, fake: FakeInspector) -> None:
    arrive(page, fake, "/#later%2F1")
    sees(answer(page), "No answer to the request later/1 is kept.")
    fake.rows(row_of(1, id="later/1", model="come"))
    sees(answer(page).locator("h2"), "come")


def test_what_is_opened_has_a_link_and_a_way_back(page: Page, fake: FakeInspector) -> None:
    fake.rows(row_of(1, id="a b"))
    arrive(page, fake)
    rows(page).click()
    assert page.evaluate("location.hash") == "#a%20b"
    page.go_back()
    sees(answer(page), "Choose an answer")
    page.go_forward()
    answer(page).locator("h2").wait_for()


def test_what_is_opened_stays_when_it_is_kept_no_longer(page: Page, fake: FakeInspector) -> None:
    fake.rows(chat(1, status=0, total=None))
    with page.expect_response(f"{fake.url}/answers/1"):  # else it might be asked for in vain
        arrive(page, fake, "/#request-1")
    answer(page).get_by_role("button", name="Stop").wait_for()
    fake.gone(1)
    sees(answer(page), "keeps this answer no longer")
    assert answer(page).locator(".lane").count() == 4
    assert not answer(page).get_by_role("button", name="Stop").is_visible()


def test_of_many_rounds_the_feed_tells_the_last(page: Page, fake: FakeInspector) -> None:
    """All of them are in the details."""
    every = [round_of(number, number * 0.1, number * 0.1 + 0.1) for number in range(1, 61)]
    fake.rows(row_of(1, total=6.2, rounds=every[-50:]))
    fake.more[1] = {"rounds": every}
    arrive(page, fake, "/#request-1")
    sees(page.locator("#row-1"), "60 rounds")
    sees(answer(page).locator(".story"), "The model was asked 60 times")
    page.wait_for_function("() => document.querySelectorAll('.lane').length === 60")
    assert answer(page).locator(".lane h4").first.inner_text() == "Round 1"


def test_answers_of_a_daemon_that_started_anew_are_others(page: Page, fake: FakeInspector) -> None:
    """Their keys count from 1 again; what is opened stays, and says that it is history."""
    fake.rows(row_of(1, id="before", model="old"))
    arrive(page, fake, "/#before")
    sees(answer(page).locator("h2"), "old")
    fake.kept[1] = row_of(1, id="after", model="new")
    fake.break_feeds()
    sees(page.locator("#row-1"), "new")
    sees(answer(page), "keeps this answer no longer")
    sees(answer(page).locator("h2"), "old")
    assert page.locator("#row-1").get_attribute("aria-selected") == "false"


def test_between_the_pages_what_is_opened_stays(page: Page, fake: FakeInspector) -> None:
    fake.rows(row_of(1, model="mine"))
    arrive(page, fake, "/#request-1")
    page.get_by_role("link", name="Tools").click()
    page.get_by_role("link", name="Answers").click()
    sees(answer(page).locator("h2"), "mine")
    assert answer(page).is_visible()


def test_a_tool_of_which_nothing_is_known(page: Page, fake: FakeInspector) -> None:
    unknown = tool_of("odd", description=None, annotations=None) | {"parameters": None}
    fake.tools(group_of("one", unknown, origin=""))
    arrive(page, fake, "/#/tools")
    page.get_by_role("button", name="odd").click()
    sees(page.locator("#tool"), "It is not known.")
    page.get_by_role("button", name="Run it").click()
    sees(page.locator(".result"), "42")


def test_nothing_of_a_request_is_markup(page: Page, fake: FakeInspector) -> None:
    """The stand-in's policy allows no HTML text anywhere, which is told to the console."""
    hostile = chat(1, id=HOSTILE, model=HOSTILE, who=HOSTILE, error=HOSTILE, kind=HOSTILE)
    hostile |= {"not_injected": HOSTILE, "conversation": HOSTILE, "limit": HOSTILE, "status": 502}
    hostile["calls"][0] |= {"tool": HOSTILE + "long_" * 50, "reason": HOSTILE, "outcome": HOSTILE}
    hostile["rounds"][0] |= {"finish_reason": HOSTILE, "model": "\u202egnp.exe"}
    fake.rows(hostile)
    fake.more[1] = {"withheld": {HOSTILE: HOSTILE}, "offered_tools": [HOSTILE]}
    schema = {
        "type": "object",
        "properties": {HOSTILE: {"type": "string", "description": HOSTILE, "enum": [HOSTILE]}},
    }
    tool = tool_of(HOSTILE, schema, description=HOSTILE, last_error=HOSTILE, calls=1, failed=1)
    fake.tools(group_of(HOSTILE, tool, error=HOSTILE, origin=HOSTILE, url=HOSTILE), error=HOSTILE)
    arrive(page, fake)
    rows(page).click()
    sees(answer(page).locator("h2"), HOSTILE)
    sees(answer(page).locator(".words"), HOSTILE)
    page.get_by_role("link", name="Tools").click()
    page.locator("button.tool").click()
    sees(page.locator("#tool h2"), HOSTILE)
    assert page.locator("img").count() == 1  # the mark of the page itself
    assert page.title() == "llamaproxy"
    assert fake.asked("/x") == 0


def test_the_keyboard_is_enough(page: Page, fake: FakeInspector) -> None:
    fake.rows(*(row_of(key, model=f"model-{key}") for key in range(1, 5)))
    arrive(page, fake)
    listbox = page.get_by_role("listbox", name="Answers, newest first")
    for keys, cursor in [("j", 4), ("j", 3), ("ArrowDown", 2), ("k", 3), ("End", 1), ("Home", 4)]:
        page.keyboard.press(keys)
        assert listbox.get_attribute("aria-activedescendant") == f"row-{cursor}", keys
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    sees(answer(page).locator("h2"), "model-3")
    assert page.evaluate("document.activeElement.id") == "answer"
    page.keyboard.press("Escape")
    sees(answer(page), "Choose an answer")
    assert page.evaluate("document.activeElement.id") == "rows"
    page.keyboard.press("Enter")
    sees(answer(page).locator("h2"), "model-3")


def test_stop_says_what_it_did(browser: Browser, fake: FakeInspector) -> None:
    page = opened(browser)  # whose console tells of the 404
    running = row_of(1, status=0, total=None)
    fake.rows(running)
    arrive(page, fake, "/#request-1")
    stop = answer(page).get_by_role("button", name="Stop")
    stop.click()
    sees(answer(page).locator("[role=status]"), re.compile("^Stopped"))
    assert fake.asked("/answers/1/stop", "POST") == 1
    fake.kept[1] = row_of(1)  # it has ended, and the page has not heard of it
    stop.click()
    sees(answer(page).locator("[role=status]"), "It had ended before it could be stopped.")
    fake.rows(row_of(1))
    stop.wait_for(state="hidden")
    page.close()


def test_copy_and_download(page: Page, fake: FakeInspector) -> None:
    fake.rows(row_of(1))
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    arrive(page, fake, "/#request-1")
    copy = answer(page).get_by_role("button", name="Copy as curl")
    copy.click()
    sees(answer(page).locator("[role=status]"), re.compile("^Copied"))
    assert page.evaluate("navigator.clipboard.readText()").startswith("curl http")
    link = answer(page).get_by_role("link", name="Download JSON")
    assert link.get_attribute("href") == "/answers/1?download"


def test_where_pages_may_not_copy_the_text_is_shown(page: Page, fake: FakeInspector) -> None:
    fake.rows(row_of(1))
    page.add_init_script(
        "Object.defineProperty(navigator, 'clipboard', {value: undefined});"
        "document.execCommand = () => false;"
    )
    arrive(page, fake, "/#request-1")
    answer(page).get_by_role("button", name="Copy as curl").click()
    assert page.get_by_label("curl command").input_value().startswith("curl http")


SCHEMA = {
    "type": "object",
    "required": ["city", "days"],
    "properties": {
        "city": {"type": "string", "description": "Where."},
        "days": {"type": "integer"},
        "unit": {"enum": ["celsius", "kelvin"], "default": "celsius"},
        "wind": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
        "place": {"$ref": "#/$defs/Place"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "note": {"type": "string"},
    },
    "$defs": {"Place": {"type": "object"}},
}


def try_weather(page: Page, fake: FakeInspector) -> None:
    fake.tools(group_of("mcp::outside", tool_of("weather", SCHEMA), tool_of("other")))
    arrive(page, fake, "/#/tools")
    page.get_by_role("button", name="weather").click()


def test_a_tool_is_tried(page: Page, fake: FakeInspector) -> None:
    try_weather(page, fake)
    page.get_by_label("city string required").fill("Oslo")
    page.get_by_label("days integer").fill("12345678901234567890")
    page.get_by_label("wind boolean").select_option("true")
    page.get_by_label("place object, as JSON").fill('{"lat": 59.9}')
    page.get_by_label("tags array, as JSON").fill('["a"]')
    fake.tools(group_of("mcp::outside", tool_of("weather", SCHEMA, calls=7)))
    sees(page.locator("#tool .figures"), "7")  # and what was filled in stays
    page.get_by_role("button", name="Run it").click()
    sees(page.locator(".result"), "42")
    sees(page.locator(".result"), "answered in 120 ms")
    [body] = [body for method, path, body in fake.requests if path == "/tools/try"]
    assert json.loads(body) == {
        "group": "mcp::outside",
        "tool": "weather",
        "arguments": {
            "city": "Oslo",
            "days": 12345678901234567890,
            "unit": "celsius",
            "wind": True,
            "place": {"lat": 59.9},
            "tags": ["a"],
        },
    }
    fake.trial = {"outcome": "failed", "seconds": 1.0, "text": HOSTILE, "is_error": True}
    page.get_by_role("button", name="Run it").click()
    sees(page.locator(".result"), "the tool says that it failed")
    assert page.locator(".result pre").inner_text() == HOSTILE


def test_what_is_wrong_in_the_form_is_said_beside_it(page: Page, fake: FakeInspector) -> None:
    try_weather(page, fake)
    page.get_by_label("days integer").fill("1.5")
    page.get_by_label("place object, as JSON").fill("[]")
    page.get_by_role("button", name="Run it").click()
    assert [each for each in page.locator(".field-error").all_inner_texts() if each] == [
        "A value is needed.",
        "A whole number is needed.",
        "A JSON object is needed: { … }",
    ]
    assert page.locator("[aria-invalid=true]").count() == 3
    assert page.evaluate("document.activeElement.id") == "argument-0"
    assert fake.asked("/tools/try", "POST") == 0


def test_arguments_may_be_written_as_json(page: Page, fake: FakeInspector) -> None:
    try_weather(page, fake)
    page.get_by_label("city string required").fill("Oslo")
    page.get_by_label("JSON", exact=True).check()
    area = page.get_by_label("Arguments, a JSON object")
    assert json.loads(area.input_value()) == {"city": "Oslo", "unit": "celsius"}
    area.fill("{")
    page.get_by_role("button", name="Run it").click()
    sees(page.locator(".field-error"), re.compile("^This is no JSON"))
    area.fill('{"anything": [1]}')
    page.get_by_role("button", name="Run it").click()
    sees(page.locator(".result"), "42")
    assert '"arguments":{"anything": [1]}' in fake.requests[-1][2]


def test_arguments_are_the_same_text_as_json_that_were_filled_in(
    page: Page, fake: FakeInspector
) -> None:
    try_weather(page, fake)
    page.get_by_label("JSON", exact=True).check()
    page.get_by_label("Form", exact=True).check()
    page.get_by_label("city string required").fill('Os"lo\n')
    page.get_by_label("days integer").fill("12345678901234567890")
    page.get_by_label("place object, as JSON").fill('{"lat": 59.90000000000000000001}')
    page.get_by_label("JSON", exact=True).check()
    text = page.get_by_label("Arguments, a JSON object").input_value()
    for written in ('"days": 12345678901234567890', '{"lat": 59.90000000000000000001}'):
        assert written in text
    assert json.loads(text)["city"] == 'Os"lo\n'
    page.get_by_role("button", name="Run it").click()
    sees(page.locator(".result"), "42")
    assert f'"arguments":{text}' in fake.requests[-1][2]


def test_the_tools_and_what_is_wrong_with_them(page: Page, fake: FakeInspector) -> None:
    fake.tools(
        group_of("maths", tool_of("calculate", calls=200, failed=3, mean_seconds=0.02)),
        group_of("files", error="refused", error_at=time.time() - 300, listed_at=None),
        left_out=["files/rm"],
    )
    arrive(page, fake, "/#/tools")
    sees(page.locator("#tools-count"), "1 tool in 2 groups")
    tool = page.get_by_role("button", name="calculate")
    for words in ("200 calls", "1.5 % errors", "20 ms"):
        sees(tool, words)
    sees(page.locator("#groups"), "refused")
    sees(page.locator("#groups"), "5 min ago")
    sees(page.locator("#groups"), "files/rm")
    page.get_by_label("Find a tool").fill("nothing")
    tool.wait_for(state="detached")


def test_one_feed_and_no_polling(page: Page, fake: FakeInspector) -> None:
    fake.rows(row_of(1, status=0, total=None))
    arrive(page, fake, "/#request-1")
    answer(page).locator(".chip").first.wait_for()
    before = len(fake.requests)
    files = {path for _, path, _ in fake.requests} - {"/", "/feed", "/answers/1"}
    assert files <= {f"/page/{path.name}" for path in PAGE.iterdir()}
    assert fake.asked("/feed") == fake.asked("/answers/1") == 1
    first = page.locator("#row-1 .total").inner_text()
    page.wait_for_function(
        "first => document.querySelector('#row-1 .total').textContent !== first", arg=first
    )
    assert len(fake.requests) == before


def test_a_feed_that_breaks_is_told_and_followed_anew(page: Page, fake: FakeInspector) -> None:
    fake.rows(row_of(1), row_of(2))
    arrive(page, fake)
    page.evaluate("window.second = document.querySelector('#row-2')")
    page.evaluate(
        "window.states = []; new MutationObserver(() => states.push("
        "document.querySelector('#feed').dataset.state + '/' + !document.querySelector('#banner')"
        ".hidden)).observe(document.querySelector('#banner'), {attributes: true})"
    )
    with fake._lock:
        del fake.kept[1]
        fake.kept[3] = row_of(3)
    fake.break_feeds()
    page.locator("#row-3").wait_for()
    assert page.evaluate("states") == ["lost/true", "live/false"]
    assert [row.get_attribute("data-key") for row in rows(page).all()] == ["3", "2"]
    assert page.evaluate("window.second === document.querySelector('#row-2')")
    assert fake.asked("/feed") == 2


def test_a_daemon_that_stops_says_so_and_one_that_is_back_does_not(
    page: Page, fake: FakeInspector
) -> None:
    fake.rows(row_of(1, status=0, total=None))
    arrive(page, fake)
    banner = page.locator("#banner")
    banner.wait_for(state="hidden")
    with fake._lock:
        fake._tell("draining", {"seconds": 30})
    sees(banner, "is stopping")
    sees(banner, "up to 30 s")
    page.evaluate(
        "window.words = []; new MutationObserver(() => words.push("
        "document.querySelector('#banner').textContent)).observe("
        "document.querySelector('#banner'), {childList: true})"
    )
    fake.break_feeds()
    banner.wait_for(state="hidden")
    assert page.evaluate("words[0]").startswith("llamaproxy has stopped.")


def test_a_feed_that_is_refused_is_asked_for_again(browser: Browser, fake: FakeInspector) -> None:
    page = opened(browser)  # whose console tells of the refusal
    page.clock.install()
    fake.refusing = True
    page.goto(fake.url)
    page.locator("#feed[data-state=lost]").wait_for()
    fake.refusing = False
    page.clock.run_for(3000)
    page.locator("#feed[data-state=live]").wait_for()
    assert fake.asked("/feed") == 2
    page.close()


def test_only_errors_are_spoken(page: Page, fake: FakeInspector) -> None:
    fake.rows(*(row_of(key, status=0, total=None) for key in (1, 2)))
    arrive(page, fake)
    page.locator("#row-2").wait_for()
    alerts = page.locator("#alerts")
    fake.rows(row_of(1))
    sees(page.locator("#count"), "1 running")
    assert alerts.text_content() == ""
    fake.rows(row_of(2, status=502, kind="upstream_broke"))
    page.wait_for_function("() => document.querySelector('#alerts').textContent.includes('broke')")
    assert alerts.get_attribute("aria-live") == "polite"


def test_many_changes_touch_few_rows_and_the_list_is_bounded(
    page: Page, fake: FakeInspector
) -> None:
    arrive(page, fake)
    for batch in range(6):
        fake.rows(*(row_of(batch * 200 + n, at=1.8e9) for n in range(200)))
    page.locator("#row-1199").wait_for()
    assert page.locator("#rows > *").count() == 500
    page.evaluate(
        "window.touched = new Set(); new MutationObserver((all) => all.forEach(({target}) => "
        "touched.add((target.closest ? target : target.parentElement).closest('.row')?.id))"
        ").observe(document.querySelector('#rows'),"
        "{subtree: true, childList: true, characterData: true, attributes: true})"
    )
    fake.rows(row_of(1100, at=1.8e9, total=9.0), row_of(1101, at=1.8e9))
    sees(page.locator("#row-1100 .total"), "9.00 s")
    assert page.evaluate("[...touched]") == ["row-1100"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_everything_can_be_read_and_reached(
    browser: Browser, fake: FakeInspector, width: int, scheme: Any
) -> None:
    show_everything(fake)
    page = opened(browser, width, color_scheme=scheme)
    arrive(page, fake)
    page.locator("#row-33").wait_for()
    for address in ("/#/", "/#7f3a09c2b1d84e55", "/#7f3a-broken", "/#request-35", "/#/tools"):
        arrive(page, fake, address)
        if address not in ("/#/", "/#/tools"):
            page.locator("#answer .chip").first.wait_for()
            page.evaluate("document.querySelectorAll('details').forEach((d) => d.open = true)")
        if address == "/#/tools":
            page.get_by_role("button", name="weather").click()
        assert page.evaluate(FAULTS) == [], address
        assert page.evaluate(FAINT) == [], address
        for part in ("html", "#answer", "#tool", "#rows", "#groups"):
            wider = "part => (e => e.scrollWidth - e.clientWidth)(document.querySelector(part))"
            assert page.evaluate(wider, part) == 0, (address, part)
    page.close()


def test_a_narrow_page_has_two_screens(browser: Browser, fake: FakeInspector) -> None:
    fake.rows(chat(1))
    page = opened(browser, 390)
    arrive(page, fake)
    rows(page).click()
    assert answer(page).is_visible() and not page.locator("#rows").is_visible()
    page.get_by_role("button", name="All answers").click()
    assert page.locator("#rows").is_visible() and not answer(page).is_visible()
    page.close()


def test_who_wants_no_motion_gets_none(browser: Browser, fake: FakeInspector) -> None:
    fake.rows(row_of(1, status=0, total=None, calls=[call_of(1, 1, "x", 0, began=0)]))
    page = opened(browser, reduced_motion="reduce")
    arrive(page, fake, "/#request-1")
    page.locator("#answer .lasted").wait_for()
    assert page.evaluate("document.getAnimations().length") == 0
    page.close()


def test_the_files_need_nothing_from_elsewhere() -> None:
    """The policy of the page holds for its files as they are."""
    assert "unsafe" not in POLICY
    for path in PAGE.iterdir():
        text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)
        assert not re.search(r"""(src|href|url|import|from)\s*[=(]?\s*["'(]https?:""", text)
        if path.suffix == ".html":
            assert not re.search(r"\sstyle=|\son\w+=|<style", text)
            assert re.findall(r"<script[^>]*></script>", text) == re.findall(r"<script.*", text)
