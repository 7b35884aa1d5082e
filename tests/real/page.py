"""A person at Open WebUI's page, in a real browser, operated over pipes.

Run as ``python page.py URL CHROMIUM``. Each line that comes in is a JSON list, the name of a method
of ``Chat`` and its arguments; each line that goes out is ``{"ok": VALUE}`` or ``{"error": TEXT}``.
Playwright wants an event loop of its own, which the tests' process cannot give it.
"""

# Playwright is installed where this program runs, not where it is type-checked.
# mypy: disable-error-code="import-not-found, unused-ignore"

from __future__ import annotations

import json
import sys
import tempfile
from typing import Any
from urllib.parse import quote

from playwright.sync_api import Locator, Page, sync_playwright

ARGUMENTS = (
    "--no-sandbox",  # root, as in most containers, may not use it
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)

# Times are in seconds. The page's own parts are loaded when they are first shown.
LOADING = 60.0
PATIENCE = 15.0


class Chat:
    """What a person does with the page, and sees there."""

    def __init__(self, page: Page, url: str) -> None:
        self._page = page
        self._url = url

    def arrive(self) -> None:
        """Come to a new server, which tells its first visitor what is new."""
        self._page.goto(self._url)
        okay = self._page.get_by_role("button", name="Okay, Let's Go!")
        okay.click(timeout=LOADING * 1000)

    def begin(self, model: str) -> None:
        """Begin a new chat with that model."""
        self._page.goto(f"{self._url}/?models={quote(model, safe='')}")
        self._page.get_by_label(f"Selected model: {model}").wait_for(timeout=LOADING * 1000)

    def say(self, text: str) -> None:
        """Send a message, and see that an answer begins."""
        answers = self._page.locator(".chat-assistant").count()
        self._page.locator("#chat-input").click()
        self._page.keyboard.insert_text(text)
        self._page.keyboard.press("Enter")
        self._page.locator(".chat-assistant").nth(answers).wait_for()

    def answer(self) -> str:
        """What the answer shows when it has ended: its text, and the titles of its cards."""
        message = self._page.locator("[id^=message-]:has(.chat-assistant)").last
        message.locator(".copy-response-button").wait_for(timeout=2 * PATIENCE * 1000)
        return self.text()

    def text(self) -> str:
        """What the answer shows now."""
        text: str = self._answer.inner_text()
        return text

    def wait_for(self, words: str) -> None:
        """See these words in the answer."""
        self._answer.get_by_text(words).first.wait_for()

    def open_group(self) -> None:
        """Show the cards of an answer that made several calls in a row."""
        self._answer.get_by_text("Explored").click()

    def open_card(self, tool: str) -> str:
        """Open the card of a finished call. What it shows then."""
        card = self._card(tool)
        card.get_by_text(f"View Result from {tool}").click()
        card.get_by_text("OUTPUT").wait_for()
        text: str = card.inner_text()
        return text

    def marked_as_failed(self, tool: str) -> bool:
        """Whether the card of a finished call has the red cross in front."""
        red: int = self._card(tool).locator(".text-red-500").count()
        green: int = self._card(tool).locator(".text-emerald-500").count()
        assert red + green == 1, "no mark at all, or several"
        return red == 1

    def images(self) -> list[list[int]]:
        """Width and height of every image in the answer, in pixels of its own."""
        sizes: list[list[int]] = self._answer.locator("img[data-cy=image]").evaluate_all(
            "images => images.map(image => [image.naturalWidth, image.naturalHeight])"
        )
        return sizes

    def stop(self) -> None:
        """Press the button that ends an answer."""
        self._page.locator("button[aria-label=Stop]").click()

    def screenshot(self, path: str, clip: Any = None) -> None:
        """Keep what the page shows, or the part of it with that ``x``, ``y``, width and height."""
        self._page.screenshot(path=path, clip=clip, animations="disabled")

    @property
    def _answer(self) -> Locator:
        return self._page.locator(".chat-assistant").last

    def _card(self, tool: str) -> Locator:
        return self._answer.locator("[id$=-tool-call]").filter(has_text=f"View Result from {tool}")


def main() -> None:
    url, chromium = sys.argv[1:]
    with tempfile.TemporaryDirectory() as profile, sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=chromium,
            args=ARGUMENTS,
            viewport={"width": 1280, "height": 900},
        )
        context.set_default_timeout(PATIENCE * 1000)
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
