"""Open WebUI's page in a real browser, operated over pipes.

Run as ``python page.py URL CHROMIUM``. Each line that comes in is a JSON list, the name of a method
of ``Chat`` and its arguments; each line that goes out is ``{"ok": value}`` or ``{"error": text}``.
The tests cannot do this themselves: Playwright wants an event loop of its own.
"""

# Playwright is installed where this program runs, not where it is type-checked.
# mypy: disable-error-code="import-not-found, unused-ignore"

from __future__ import annotations

import json
import sys
import tempfile
from typing import Any
from urllib.parse import quote

from playwright.sync_api import Page, sync_playwright

ARGUMENTS = [
    "--no-sandbox",  # it refuses to run as root with one
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


class Chat:
    """What a person does with the page, and sees there. Times are in seconds."""

    def __init__(self, page: Page, url: str) -> None:
        self._page = page
        self._url = url

    def arrive(self) -> None:
        """Come to a new server, which tells its first visitor what is new."""
        self._page.goto(self._url)
        self._page.get_by_role("button", name="Okay, Let's Go!").click(timeout=60_000)

    def begin(self, model: str) -> None:
        """Begin a new chat."""
        self._page.goto(f"{self._url}/?models={quote(model, safe='')}")
        self._page.locator("#chat-input").wait_for(timeout=30_000)

    def say(self, text: str) -> None:
        """Send a message; the answer has begun then."""
        before = self._page.locator(".chat-assistant").count()
        self._page.locator("#chat-input").click()
        self._page.keyboard.insert_text(text)
        self._page.keyboard.press("Enter")
        self._page.locator(".chat-assistant").nth(before).wait_for(timeout=10_000)

    def answer(self, seconds: float = 30.0) -> str:
        """The text of the answer, once it has ended."""
        last = self._page.locator("[id^=message-]:has(.chat-assistant)").last
        last.locator(".copy-response-button").wait_for(timeout=seconds * 1000)
        return self.text()

    def text(self) -> str:
        """The text of the answer so far, with its cards and error boxes."""
        text: str = self._page.locator(".chat-assistant").last.inner_text()
        return text

    def wait_for(self, text: str, seconds: float = 10.0) -> None:
        """Wait until the answer has these words in it."""
        answer = self._page.locator(".chat-assistant").last
        answer.get_by_text(text).first.wait_for(timeout=seconds * 1000)

    def click(self, text: str) -> None:
        """Click at these words in the answer, to open a card."""
        self._page.locator(".chat-assistant").last.get_by_text(text).first.click()

    def stop(self) -> None:
        """Press the button that ends an answer."""
        self._page.locator("button[aria-label=Stop]").click()

    def html(self) -> str:
        html: str = self._page.locator("[id^=message-]:has(.chat-assistant)").last.evaluate("e => e.outerHTML")
        return html

    def screenshot(self, path: str) -> None:
        self._page.screenshot(path=path)


def main() -> None:
    url, chromium = sys.argv[1:]
    with tempfile.TemporaryDirectory() as profile, sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=chromium, args=ARGUMENTS, viewport={"width": 1280, "height": 900}
        )
        context.set_default_timeout(10_000)
        chat = Chat(context.pages[0], url)
        for line in sys.stdin:
            method, *arguments = json.loads(line)
            reply: dict[str, Any]
            try:
                reply = {"ok": getattr(chat, method)(*arguments)}
            except Exception as error:
                reply = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(reply), flush=True)
        context.close()


if __name__ == "__main__":
    main()
