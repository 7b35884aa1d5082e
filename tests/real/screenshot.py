"""The picture in the README: Open WebUI's page with the embedded stand-in's tools.

Run as ``python -m tests.real.screenshot`` from the project's folder; it writes ``docs/chat.png``.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path
from tempfile import TemporaryDirectory

from . import openwebui
from .openwebui import Page, find_chromium
from .processes import Process

ROOT = Path(__file__).parents[2]
QUESTION = "What time is it in Tokyo, and what is 17*23?"
MODEL = "demo/scripted"

#: The part of the page that is kept, in pixels.
CLIP = {"x": 190, "y": 60, "width": 940, "height": 385}


def main() -> None:
    twistd = str(Path(sysconfig.get_path("scripts"), "twistd"))

    def demo(port: int) -> list[str]:
        listen = f"tcp:{port}:interface=127.0.0.1"
        options = ("--demo", "--admin", "off", "--listen", listen)
        return [twistd, "-n", "--pidfile=", "llamaproxy", *options]

    with TemporaryDirectory() as folder:
        store = Path(folder)
        environment = {"PYTHONPATH": str(ROOT)}
        proxy = Process("demo", demo, "/health", store / "proxy.log", environment=environment)
        page_server = Process("open-webui", openwebui.serve, "/health", store / "openwebui.log")
        page_server.environment = openwebui.settings(
            page_server.port, store, proxy.url + "/v1", {"builtin_tools": False, "usage": True}
        )
        page: Page | None = None
        try:
            proxy.start()
            page_server.start()
            page = Page(page_server, find_chromium())
            page.arrive()
            page.begin(MODEL)
            page.say(QUESTION)
            page.answer()
            page.open_group()
            page.open_card("calculate")
            page.screenshot(str(ROOT / "docs" / "chat.png"), CLIP)
        finally:
            if page is not None:
                page.close()
            page_server.stop()
            proxy.stop()


if __name__ == "__main__":
    main()
