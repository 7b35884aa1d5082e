"""One listing serves all workers: with real processes, counted at the server."""

from __future__ import annotations

import http.client
import json
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support import completion, logged, tool
from tests.test_twistd import Daemon, question

#: Chats until all workers have served one, at most: the kernel has each connection go to either.
_MANY = 200


class CountingStack(ThreadingHTTPServer):
    """A Llama Stack with one tool, which counts what it is asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        ThreadingHTTPServer.__init__(self, ("127.0.0.1", 0), Handler)
        #: By route, and by the credentials.
        self.asked = Counter[tuple[str, str | None]]()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def count(self, handler: BaseHTTPRequestHandler) -> None:
        route = f"{handler.command} {handler.path.partition('?')[0]}"
        with self.lock:
            self.asked[route, handler.headers["Authorization"]] += 1


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: CountingStack

    def do_GET(self) -> None:
        answers: dict[str, object] = {
            "/v1/version": {"version": "0.6.1"},
            "/v1/tools": {"data": [tool("ping")]},
        }
        self._answer(answers.get(self.path, {}))

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        names = ",".join(each["function"]["name"] for each in asked.get("tools", []))
        self._answer(completion({"role": "assistant", "content": names}))

    def _answer(self, body: object) -> None:
        self.server.count(self)
        text = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:
        """It keeps no log."""


@pytest.fixture
def stack() -> Iterator[CountingStack]:
    with CountingStack() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def offered(port: int) -> str:
    """The tools that the model is offered in one chat, on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        fields = {"Authorization": "Bearer a", "Content-Type": "application/json"}
        body = json.dumps(question("Hello."))
        connection.request("POST", "/v1/chat/completions", body, fields)
        answer = json.loads(connection.getresponse().read())
        names: str = answer["choices"][0]["message"]["content"]
        return names
    finally:
        connection.close()


def serving(log: Path) -> set[int]:
    """The workers that have served a chat, by the daemon's log."""
    return {
        line["worker"]
        for line in logged(log)
        if "worker" in line and "chat/completions" in str(line)
    }


def test_two_workers_list_once_for_a_caller(stack: CountingStack, tmp_path: Path) -> None:
    daemon = Daemon(
        tmp_path / "log",
        *("--llamastack-url", stack.url, "--workers", "2", "--log-format", "json"),
        *("--tools-ttl", "600"),
    )
    try:
        for _ in range(_MANY):
            assert offered(daemon.port) == "ping"
            if serving(daemon.log) == {1, 2}:
                break
        assert serving(daemon.log) == {1, 2}
        assert stack.asked["GET /v1/tools", "Bearer a"] == 1
        assert stack.asked["GET /v1/tools", None] <= 1, "for the parent's greeting"
        assert daemon.stop() in (0, -signal.SIGTERM)
    finally:
        daemon.process.kill()
        daemon.process.wait()
