"""The inspector's page in a real browser, before a real daemon."""

# Playwright is not installed where only the product is type-checked.
# mypy: disable-error-code="import-not-found, unused-ignore"

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.admin.test_page import browser, opened
from tests.test_twistd import Daemon, environment, free_port

if TYPE_CHECKING:
    from playwright.sync_api import Browser

__all__ = ["browser", "environment"]


class Shown:
    """A daemon with the stand-in for a server, and its page."""

    def __init__(self, log: Path, browser: Browser, at: int, admin: int) -> None:
        self.daemon = Daemon(
            log,
            "--demo",
            "--inspect-contents",
            at=at,
            LLAMAPROXY_ADMIN=f"tcp:{admin}:interface=127.0.0.1",
        )
        self.url = f"http://127.0.0.1:{admin}/"
        self.page = opened(browser)
        self.asked: list[str] = []
        self._connections: list[http.client.HTTPConnection] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self.complaints.append(message.text))

    def chat(self, text: str, id: str, **more: Any) -> http.client.HTTPResponse:
        """The answer, of which the head has come."""
        connection = http.client.HTTPConnection("127.0.0.1", self.daemon.port, timeout=30)
        self._connections.append(connection)
        body = {"model": "demo/scripted", "messages": [{"role": "user", "content": text}], **more}
        fields = {"Content-Type": "application/json", "X-Request-Id": id}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), fields)
        return connection.getresponse()

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
        self.page.close()
        self.daemon.process.kill()
        self.daemon.process.wait()

    def opened(self, id: str) -> Any:
        """The pane with the answer to the request *id*."""
        self.page.goto(f"{self.url}#{id}")
        return self.page.locator("#answer")


@pytest.fixture
def shown(tmp_path: Path, browser: Browser) -> Iterator[Shown]:
    shown = Shown(tmp_path / "log", browser, free_port(), free_port())
    yield shown
    shown.close()


def sees(pane: Any, *texts: str) -> None:
    for text in texts:
        pane.get_by_text(text).first.wait_for()


def test_the_page_of_a_daemon_shows_what_its_chats_do(shown: Shown) -> None:
    assert f"watch what it does at {shown.url}" in shown.daemon.log.read_text()
    page = shown.page
    page.goto(shown.url)
    page.locator("#feed[data-state=live]").wait_for()
    body = json.loads(shown.chat("What is 6*7?", "a-1").read())
    assert body["choices"][0]["message"]["content"] == "6*7 = 42."
    page.locator("#rows [role=option]").first.click()
    pane = page.locator("#answer")
    sees(pane, "The model was asked twice", "calculate")
    pane.get_by_text("Round 2: what it answered").click()
    sees(pane, "6*7 = 42.")
    assert page.evaluate("location.hash") == "#a-1"
    # One that runs is stopped.
    answer = shown.chat("wait 60 seconds", "a-2", stream=True)
    pane = shown.opened("a-2")
    pane.get_by_role("button", name="Stop").click()
    assert b'"code":"stopped"' in answer.read()
    sees(pane, "stopped")
    # A client leaves.
    question = {"role": "user", "content": "wait 60 seconds"}
    text = json.dumps({"model": "demo/scripted", "messages": [question]})
    with socket.create_connection(("127.0.0.1", shown.daemon.port)) as client:
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Request-Id: a-3\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (len(text), text.encode())
        )
        pane = shown.opened("a-3")
        pane.get_by_role("button", name="Stop").wait_for()
    sees(pane, "The client left")
    assert sum(url.endswith("/feed") for url in shown.asked) == 1
    assert shown.complaints == []


def test_a_tool_of_a_daemon_is_tried(shown: Shown) -> None:
    page = shown.page
    page.goto(f"{shown.url}#/tools")
    page.locator("#groups").get_by_role("button", name="calculate").click()
    pane = page.locator("#tool")
    pane.get_by_label("expression").fill("6*7")
    pane.get_by_role("button", name="Run it").click()
    sees(pane, "42")
    assert shown.complaints == []
