"""What one user, or a page, does to others: with real servers and a real browser."""

from __future__ import annotations

import http.server
import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from .conftest import StartProxy, StartServer
from .openwebui import PLAYWRIGHT
from .programs import Proxy, ScriptedModel, user

pytestmark = pytest.mark.real


@pytest.mark.parametrize("version", ["0.6.1", "ogx-1.5.0"])
def test_an_error_of_ones_model_costs_nobody_elses_chat(
    version: str, start_server: StartServer, llamaproxy: StartProxy
) -> None:
    """The server closes the connection seconds after the error, though it says that it will not."""
    proxy = llamaproxy(start_server(version))
    for status in (401, 403, 404, 422, 429, 500):
        with pytest.raises(openai.APIStatusError):
            proxy.create(messages=user(f"refused [fail {status}]"))
        for _ in range(3):
            answer = proxy.create(messages=user("anybody [plain]"))
            assert answer.choices[0].message.content == "Hello from the scripted model."


#: A page of another origin, which tries to have a tool run in three ways that ask nobody first.
PAGE = """<!doctype html><title>evil</title>
<iframe name="nowhere"></iframe>
<form id="f" method="post" enctype="text/plain" target="nowhere" action="URL">
<input name='BODY_BEFORE' value='BODY_AFTER'>
</form>
<script>
const body = 'BODY_BEFORE=BODY_AFTER';
const ask = (mode, type) => fetch("URL", {
  method: "POST", mode, body, headers: type ? {"Content-Type": type} : {},
}).then(answer => answer.type, () => "refused");
(async () => {
  const results = [
    await ask("no-cors", null),
    await ask("no-cors", "application/x-www-form-urlencoded"),
    await ask("cors", "application/json"),
  ];
  document.getElementById("f").submit();
  const frame = document.querySelector("iframe");
  await new Promise(done => frame.addEventListener("load", done));
  document.title = "done " + results.join(" ");
})();
</script>
"""

DRIVER = """
import sys, tempfile
from playwright.sync_api import sync_playwright
url, chromium = sys.argv[1:]
with tempfile.TemporaryDirectory() as profile, sync_playwright() as playwright:
    context = playwright.chromium.launch_persistent_context(
        profile,
        executable_path=chromium,
        args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"],
    )
    page = context.pages[0]
    page.goto(url)
    page.wait_for_function("document.title.startsWith('done')", timeout=30000)
    print(page.title())
    context.close()
"""


@pytest.fixture
def evil(proxy: Proxy) -> Iterator[str]:
    """The URL of the page."""
    text = {"role": "user", "content": "a page asks [call ping {}]"}
    asked = json.dumps({"model": proxy.model, "messages": [text], "x": "="})
    before, _, after = asked.rpartition("=")
    url = f"{proxy.process.url}/v1/chat/completions"
    page = PAGE.replace("URL", url).replace("BODY_BEFORE", before).replace("BODY_AFTER", after)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


def test_no_page_of_another_origin_has_a_tool_run(
    evil: str, proxy: Proxy, chromium: str, scripted_model: ScriptedModel, tmp_path: Path
) -> None:
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    ran = subprocess.run(
        [str(PLAYWRIGHT.python()), str(driver), evil, chromium],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout.strip() == "done opaque opaque refused"
    assert scripted_model.bodies("a page asks") == []
    refused = [line for line in proxy.process.log.read_text().splitlines() if " 415 " in line]
    assert len(refused) == 3 and json.dumps("a page asks") not in "".join(refused)
