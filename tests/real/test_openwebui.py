"""Open WebUI's page, in a browser, with llamaproxy and a real Llama Stack behind it.

Everything is tested with the tools that Open WebUI brings itself switched off, as the README
recommends, and on. Every test leaves a screenshot in the folder ``artifacts``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from .conftest import StartOpenWebUI
from .openwebui import Page
from .programs import OUR_TOOLS, Json, Proxy, ScriptedModel, eventually, names, results, roles

pytestmark = pytest.mark.real

TASK_MARK = "### Task:"

# What administrators may make of a prompt: nothing in it says that it is a background task's.
EDITED_PROMPT = "Think of a title for a chat."

# Seconds within which everything ends when a person presses Stop.
AT_ONCE = 2.0


@attrs.frozen
class Setting:
    """An Open WebUI as somebody may have set it up."""

    name: str
    capabilities: dict[str, bool]
    environment: dict[str, str] = attrs.Factory(dict)

    @property
    def builtin_tools(self) -> bool:
        return self.capabilities["builtin_tools"]


WITHOUT_TOOLS = Setting("builtin-off", {"builtin_tools": False})
WITH_TOOLS = Setting(
    "builtin-on",
    {"builtin_tools": True, "usage": True},
    {"TITLE_GENERATION_PROMPT_TEMPLATE": EDITED_PROMPT},
)


@pytest.fixture(
    scope="module", params=[WITHOUT_TOOLS, WITH_TOOLS], ids=["builtin-off", "builtin-on"]
)
def setting(request: pytest.FixtureRequest) -> Setting:
    chosen: Setting = request.param
    return chosen


@pytest.fixture(scope="module")
def page(
    setting: Setting, chromium: str, proxy: Proxy, start_open_webui: StartOpenWebUI
) -> Iterator[Page]:
    process = start_open_webui(proxy, setting.capabilities, **setting.environment)
    page = Page(process, chromium)
    try:
        page.arrive()
        yield page
    finally:
        page.close()
        process.stop()


@pytest.fixture
def chat(
    page: Page, proxy: Proxy, artifacts: Path, request: pytest.FixtureRequest
) -> Iterator[Page]:
    """A new chat."""
    page.begin(proxy.model)
    yield page
    name = re.sub(r"\W+", "-", request.node.name).strip("-")
    page.screenshot(str(artifacts / f"openwebui-{name}.png"))


def chats(model: ScriptedModel, marker: str) -> list[Json]:
    """The rounds of a chat: background tasks, which quote the chat, are not streamed."""
    return [body for body in model.bodies(marker) if body.get("stream")]


def tasks(model: ScriptedModel, marker: str) -> list[Json]:
    """The prompts of background tasks that quote a chat."""
    return [
        body
        for body in model.bodies(marker)
        if body["messages"][0]["content"].startswith(TASK_MARK)
    ]


def called(body: Json) -> list[str]:
    """The names of the tools that were called in a conversation."""
    return [
        call["function"]["name"]
        for message in body["messages"]
        for call in message.get("tool_calls") or ()
    ]


def test_a_tool_call_is_shown_and_remembered(
    chat: Page, setting: Setting, scripted_model: ScriptedModel
) -> None:
    marker = f"weather, {setting.name}"
    chat.say(f'{marker} [call get_text {{"city": "Oslo"}}]')
    shown, said = chat.answer().split("\n\n")
    assert shown == "View Result from get_text"
    assert said == "The tool said: Sunny in Oslo for 3 days"
    assert not chat.marked_as_failed("get_text")
    card = chat.open_card("get_text").split("\n")
    assert card == [shown, "INPUT", "city", "Oslo", "OUTPUT", "Sunny in Oslo for 3 days"]

    chat.say("and now? [plain]")
    assert chat.answer() == "Hello from the scripted model."
    first, second, later = chats(scripted_model, marker)
    for body in (first, second, later):
        assert names(body)[-len(OUR_TOOLS) :] == OUR_TOOLS
        assert ("get_current_timestamp" in names(body)) == setting.builtin_tools
    assert roles(second) == ["user", "assistant", "tool"]
    assert roles(later) == ["user", "assistant", "tool", "assistant", "user"]
    assert called(later) == ["get_text"]
    assert results(later) == ["Sunny in Oslo for 3 days"]


def test_background_tasks_get_no_tools(
    chat: Page, setting: Setting, scripted_model: ScriptedModel
) -> None:
    marker = f"background, {setting.name}"
    chat.say(f"{marker} [call ping {{}}]")
    assert chat.answer().endswith("The tool said: pong")
    kinds = ["follow-up", "tags"] if setting.builtin_tools else ["title", "follow-up", "tags"]
    eventually(lambda: len(tasks(scripted_model, marker)) == len(kinds))
    asked = tasks(scripted_model, marker)
    if setting.builtin_tools:
        asked += scripted_model.bodies(EDITED_PROMPT)
        assert len(asked) > len(kinds)
    for body in asked:
        assert not body.get("stream")
        assert names(body) == []


def test_a_failed_call_has_a_red_cross(chat: Page) -> None:
    chat.say('failure [call fail {"reason": "no tea"}]')
    assert "deliberate failure: no tea" in chat.answer()
    assert "deliberate failure: no tea" in chat.open_card("fail")
    assert chat.marked_as_failed("fail")


def test_an_image_is_shown(chat: Page) -> None:
    chat.say("picture [call get_image {}]")
    assert chat.answer().startswith("View Result from get_image")
    assert chat.images() == [[4, 4]]


def test_calls_are_shown_where_they_are_made(chat: Page) -> None:
    """While the answer streams, and when it has ended: behind the words that came before."""
    chat.say('order [text Let me look.] [call slow {"seconds": 3}]')
    chat.wait_for("Executing slow")
    assert re.search("Let me look.*Executing slow", chat.text(), re.DOTALL), chat.text()
    assert re.search("Let me look.*Result from slow.*The tool said", chat.answer(), re.DOTALL)


def test_stop_ends_a_tool_call(chat: Page, proxy: Proxy, scripted_model: ScriptedModel) -> None:
    """Llama Stack lets its own call of the tool go on: the proxy can only leave it."""

    def cancelled() -> int:
        return proxy.process.log.read_text().count("tool slow was cancelled")

    before = cancelled()
    chat.say('a long nap [call slow {"seconds": 20}]')
    chat.wait_for("Executing slow")
    chat.stop()
    eventually(lambda: cancelled() > before, AT_ONCE)

    chat.say("wake up [plain]")
    assert chat.answer() == "Hello from the scripted model."
    (body,) = chats(scripted_model, "wake up")[-1:]
    assert roles(body) == ["user", "user"]


def test_stop_ends_the_model(chat: Page, setting: Setting, scripted_model: ScriptedModel) -> None:
    marker = f"at a loss for words, {setting.name}"

    def state() -> str:
        (asked,) = [a for a in scripted_model.asked(marker) if a["body"].get("stream")]
        return str(asked["state"])

    chat.say(f"{marker} [stall] [plain]")
    chat.wait_for("Hello")
    assert state() == "running"
    chat.stop()
    eventually(lambda: state() == "gone", AT_ONCE)


@pytest.mark.parametrize("setting", [WITH_TOOLS], ids=["builtin-on"], indirect=True)
def test_tools_of_both_sides_in_one_round(chat: Page, scripted_model: ScriptedModel) -> None:
    calls = '[call get_text {"city": "Oslo"}] [call get_current_timestamp {}]'
    chat.say(f"both sides {calls}")
    answer = chat.answer()
    assert "The tool said: Sunny in Oslo for 3 days" in answer
    assert "current_timestamp" in answer
    first, second = chats(scripted_model, "both sides")
    assert {"get_text", "get_current_timestamp"} <= set(names(first))
    assert roles(second) == ["user", "assistant", "tool", "tool"]
    assert sorted(called(second)) == ["get_current_timestamp", "get_text"]
    assert any("current_timestamp" in result for result in results(second))
