"""The inspector's back end as its page sees it: real files of the page, and a feed that is told.

Run as ``python -m tests.admin.fake_inspector PORT`` it shows answers of every kind, to look at.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from llamaproxy.admin.page import FIELDS, FOLDER

PAGE = FOLDER
POLICY = dict(FIELDS)[b"Content-Security-Policy"].decode()
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}

Json = dict[str, Any]


def round_of(number: int, began: float, ended: float | None = None, **fields: Any) -> Json:
    usual = {"first": None, "kind": "", "model": "", "finish_reason": ""}
    tokens = {"input_tokens": None, "output_tokens": None}
    return {"number": number, "began": began, "ended": ended, **usual, **tokens, **fields}


def call_of(number: int, round_number: int, tool: str, asked: float, **fields: Any) -> Json:
    usual = {"group": "builtin", "endpoint": "", "began": None, "ended": None, "outcome": ""}
    return {
        **{"number": number, "round": round_number, "tool": tool, "asked": asked},
        **{**usual, "reason": "", "cut": False, **fields},
    }


def row_of(key: int, **fields: Any) -> Json:
    """The row of a chat that has been answered well, but for *fields*."""
    usual = {
        "key": key,
        "id": f"request-{key}",
        "at": time.time() - 5,
        "client": "127.0.0.1",
        "who": "a3f2c1",
        "method": "POST",
        "path": "/v1/chat/completions",
        "model": "ollama/llama3.2:3b",
        "streamed": True,
        "conversation": "",
        "trace_id": "",
        "status": 200,
        "kind": "",
        "error": "",
        "limit": "",
        "first_byte": 0.3,
        "total": 1.0,
        "sent": 1200,
        "offered": 3,
        "not_injected": "",
        "listing": 0.0,
        "shares": {"model": 0.81, "tools": 0.17, "proxy": 0.02},
        "rounds": [],
        "calls": [],
    }
    return {**usual, **fields}


def tool_of(name: str, parameters: Json | None = None, **fields: Any) -> Json:
    usual: Json = {"description": f"Does {name}.", "annotations": {}, "calls": 0, "failed": 0}
    usual["title"] = None
    return {
        **{"name": name, "parameters": parameters or {"type": "object", "properties": {}}},
        **{**usual, "mean_seconds": None, "last_error": None, **fields},
    }


def group_of(name: str, *tools: Json, **fields: Any) -> Json:
    usual: Json = {"url": None, "origin": "", "error": None, "error_at": None}
    usual["instructions"] = None
    return {"name": name, "listed_at": time.time(), **usual, "tools": list(tools), **fields}


class FakeInspector:
    """Serves the page; what it shows is told by :meth:`rows`, :meth:`gone` and :meth:`tools`."""

    def __init__(self, port: int = 0) -> None:
        self.hello: Json = {
            "version": "1.2.3",
            "upstream": "http://localhost:8321",
            "server": "Llama Stack 0.7.3",
            "url": "http://localhost:8322/v1",
            "contents": False,
        }
        self.kept: dict[int, Json] = {}
        self.shown_tools: Json = {"error": None, "left_out": [], "groups": []}
        self.more: dict[int, Json] = {}  # what the details of a key have besides its row
        self.requests: list[tuple[str, str, str]] = []  # method, path and body
        self.refusing = False  # whether a feed is answered with an error
        self.trial: Json = {"outcome": "answered", "seconds": 0.12, "text": "42", "is_error": False}
        self._feeds: list[queue.SimpleQueue[str | None]] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def serving(self) -> Iterator[FakeInspector]:
        self._thread.start()
        try:
            yield self
        finally:
            self.break_feeds()
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    def asked(self, path: str, method: str = "GET") -> int:
        """How often the page has asked for that."""
        return sum(each[:2] == (method, path) for each in self.requests)

    def rows(self, *rows: Json) -> None:
        with self._lock:
            self.kept.update({row["key"]: row for row in rows})
            self._tell("rows", {"rows": rows})

    def gone(self, *keys: int) -> None:
        with self._lock:
            for key in keys:
                del self.kept[key]
            self._tell("gone", {"keys": keys})

    def tools(
        self, *groups: Json, error: str | None = None, left_out: list[str] | None = None
    ) -> None:
        with self._lock:
            self.shown_tools = {"error": error, "left_out": left_out or [], "groups": groups}
            self._tell("tools", self.shown_tools)

    def break_feeds(self) -> None:
        """Close the feed of each page."""
        with self._lock:
            for feed in self._feeds:
                feed.put(None)
            self._feeds.clear()

    def detail(self, key: int) -> Json:
        row = self.kept[key]
        usual: Json = {
            "offered_tools": ["calculate", "get_time", "search"],
            "called": list({call["tool"]: None for call in row["calls"]}),
            "withheld": {},
            "curl": "curl http://localhost:8322/v1/chat/completions -d @body.json",
            "curl_lacks": "the request's messages are not kept (--inspect-contents)",
            "contents": None,
        }
        return {**row, **usual, **self.more.get(key, {})}

    def _tell(self, event: str, body: Json) -> None:
        for feed in self._feeds:
            feed.put(_event(event, body))

    def follow(self) -> queue.SimpleQueue[str | None]:
        """A new feed: all there is at first."""
        feed: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        with self._lock:
            feed.put("retry: 200\n\n" + _event("hello", {**self.hello, "time": time.time()}))
            feed.put(_event("rows", {"rows": [self.kept[key] for key in sorted(self.kept)]}))
            feed.put(_event("tools", self.shown_tools))
            self._feeds.append(feed)
        return feed

    def _handler(fake: FakeInspector) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                fake.requests.append(("GET", self.path, ""))
                path, _, _ = self.path.partition("?")
                if path == "/feed":
                    self._feed()
                elif path.startswith("/answers/"):
                    self._detail(int(path.removeprefix("/answers/")))
                else:
                    self._file("index.html" if path == "/" else path.removeprefix("/page/"))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                fake.requests.append(("POST", self.path, body))
                if self.headers["Content-Type"] != "application/json":
                    self._send(HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
                elif self.path == "/tools/try":
                    self._send(HTTPStatus.OK, "application/json", json.dumps(fake.trial).encode())
                else:
                    row = fake.kept.get(int(self.path.split("/")[2]))
                    runs = row is not None and row["status"] == 0
                    self._send(HTTPStatus.NO_CONTENT if runs else HTTPStatus.NOT_FOUND)

            def _feed(self) -> None:
                if fake.refusing:
                    self._send(HTTPStatus.SERVICE_UNAVAILABLE)
                    return
                self.send_response(HTTPStatus.OK)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                feed = fake.follow()
                try:
                    while (event := feed.get()) is not None:
                        self.wfile.write(event.encode())
                except OSError:
                    pass  # the page has left

            def _detail(self, key: int) -> None:
                if key in fake.kept:
                    body = json.dumps(fake.detail(key)).encode()
                    self._send(HTTPStatus.OK, "application/json", body)
                else:
                    self._send(HTTPStatus.NOT_FOUND)

            def _file(self, name: str) -> None:
                path = PAGE / name
                if path.parent == PAGE and path.is_file():
                    self._send(HTTPStatus.OK, TYPES[path.suffix], path.read_bytes())
                else:
                    self._send(HTTPStatus.NOT_FOUND)

            def _send(
                self, status: HTTPStatus, kind: str = "text/plain", body: bytes = b""
            ) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Content-Security-Policy", POLICY)
                self.send_header("X-Content-Type-Options", "nosniff")
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler


def _event(name: str, body: Json) -> str:
    return f"event: {name}\ndata: {json.dumps(body)}\n\n"


def show_everything(fake: FakeInspector) -> None:
    """Answers and tools of every kind."""
    now = time.time()
    long_model = "meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8"
    rows = [
        row_of(
            1,
            at=now - 900,
            path="/v1/models",
            method="GET",
            model="",
            status=502,
            kind="upstream_unavailable",
            error="the server could not be reached: connection refused",
            total=0.004,
            first_byte=0.004,
            offered=0,
            who="",
            shares={"model": 0, "tools": 0, "proxy": 0.004},
        )
    ]
    for key in range(2, 26):
        tools = ["calculate", "get_current_time", "search_documents", "weather"]
        calls = [
            call_of(n + 1, 1, tools[(key + n) % 4], 1.0, began=1.0, ended=1.2, outcome="answered")
            for n in range(key % 4)
        ]
        if key % 7 == 0 and calls:
            calls[0].update(outcome="timeout", reason="no answer within 60 s")
        rows.append(
            row_of(
                key,
                at=now - 700 + key * 20,
                model=long_model if key % 5 == 0 else "ollama/llama3.2:3b",
                who=["a3f2c1", "09be77", ""][key % 3],
                conversation=f"chat-{key % 6}",
                total=0.8 + key % 9 * 0.7,
                first_byte=0.2 + key % 4 * 0.1,
                rounds=[
                    round_of(1, 0.01, 0.9, first=0.3, finish_reason="stop"),
                    *([round_of(2, 1.2, 1.9, first=1.4, finish_reason="stop")] if calls else []),
                ],
                calls=calls,
            )
        )
    rows += [
        row_of(
            30,
            at=now - 95,
            who="09be77",
            model="ollama/qwen3:8b",
            not_injected="it is a background task of Open WebUI",
            offered=0,
            total=0.62,
            rounds=[round_of(1, 0.004, 0.61, first=0.4, finish_reason="stop")],
            shares={"model": 0.606, "tools": 0, "proxy": 0.014},
        ),
        row_of(
            31,
            at=now - 80,
            status=499,
            total=3.4,
            rounds=[round_of(1, 0.01, 3.39, first=0.4, kind="cancelled")],
        ),
        row_of(
            32,
            id="7f3a-broken",
            at=now - 70,
            status=502,
            kind="upstream_broke",
            error="the server closed the connection in the middle of its answer",
            total=2.31,
            first_byte=None,
            streamed=False,
            rounds=[
                round_of(1, 0.02, 1.0, finish_reason="tool_calls"),
                round_of(2, 1.52, 2.3, kind="upstream_broke"),
            ],
            calls=[call_of(1, 1, "weather", 1.0, began=1.0, ended=1.5, outcome="answered")],
            shares={"model": 1.76, "tools": 0.5, "proxy": 0.05},
        ),
        row_of(
            33,
            id="7f3a09c2b1d84e55",
            at=now - 40,
            conversation="5b1c2d3e-chat",
            trace_id="4bf92f3577b34da6a3ce929d0e0e4736",
            total=6.42,
            first_byte=0.74,
            listing=0.06,
            offered=9,
            sent=48211,
            shares={"model": 4.61, "tools": 1.66, "proxy": 0.15},
            rounds=[
                round_of(
                    1,
                    0.08,
                    2.12,
                    first=0.74,
                    finish_reason="tool_calls",
                    input_tokens=1812,
                    output_tokens=94,
                ),
                round_of(
                    2,
                    3.74,
                    6.31,
                    first=4.35,
                    finish_reason="stop",
                    input_tokens=2466,
                    output_tokens=312,
                ),
            ],
            calls=[
                call_of(1, 1, "calculate", 2.13, began=2.13, ended=2.31, outcome="answered"),
                call_of(2, 1, "calculate", 2.13, began=2.13, ended=2.27, outcome="answered"),
                call_of(
                    3,
                    1,
                    "search_documents",
                    2.13,
                    began=2.13,
                    ended=3.7,
                    outcome="answered",
                    cut=True,
                    group="files",
                ),
                call_of(
                    4,
                    1,
                    "weather",
                    2.13,
                    began=2.32,
                    ended=3.02,
                    outcome="failed",
                    reason="mcp_broke",
                    group="outside",
                ),
                call_of(5, 1, "get_tmie", 2.13, ended=2.13, outcome="unknown"),
            ],
        ),
        row_of(
            34,
            id="<img src=x onerror=alert(1)>",
            at=now - 30,
            model="<b>bold</b>\u202egnp.exe",
            who="\u202eabc",
            limit="repetition",
            rounds=[round_of(1, 0.01, 0.4), round_of(2, 0.6, 0.98)],
            calls=[
                call_of(
                    1,
                    1,
                    "<img src=x onerror=alert(1)>" + "very_long_name_" * 12,
                    0.4,
                    began=0.41,
                    ended=0.6,
                    outcome="refused",
                    reason="<script>alert(2)</script>",
                )
            ],
        ),
        row_of(
            35,
            at=now - 8.4,
            status=0,
            total=None,
            model=long_model,
            shares={"model": 3.1, "tools": 5.2, "proxy": 0.1},
            rounds=[round_of(1, 0.05, 3.1, first=0.6, finish_reason="tool_calls")],
            calls=[
                call_of(1, 1, "calculate", 3.12, began=3.12, ended=3.3, outcome="answered"),
                call_of(2, 1, "search_documents", 3.12, began=3.4),
                call_of(3, 1, "weather", 3.12),
            ],
        ),
        row_of(
            36,
            at=now - 2,
            status=0,
            total=None,
            first_byte=None,
            shares={"model": 2, "tools": 0, "proxy": 0.0},
            rounds=[round_of(1, 0.02)],
        ),
    ]
    offered = ["calculate", "get_current_time", "search_documents", "weather", "read_file"]
    fake.more[33] = {
        "offered_tools": [*offered, "list_files", "grep", "ask_wiki", "translate"],
        "withheld": {
            "delete_file": "X-Llamaproxy-Tools does not name it",
            "write_file": "X-Llamaproxy-Tools does not name it",
            "web_search": "the client has a tool of this name",
        },
        "contents": {
            "rounds": {
                "1": {
                    "request": {
                        "model": "ollama/llama3.2:3b",
                        "messages": [
                            {"role": "system", "content": "You are terse."},
                            {"role": "user", "content": "What is 17*23, and the weather?"},
                        ],
                        "stream": True,
                    },
                    "answer": {"choices": [{"message": {"role": "assistant", "content": "Hm."}}]},
                }
            },
            "calls": {"1": {"arguments": '{"expression": "17*23"}', "result": "391"}},
            "cut": True,
        },
    }
    fake.rows(*rows)
    weather = {
        "type": "object",
        "required": ["city"],
        "properties": {
            "city": {"type": "string", "description": "Its name, in English or locally."},
            "days": {"type": "integer", "default": 3, "description": "How many, up to 10."},
            "unit": {"enum": ["celsius", "fahrenheit"], "default": "celsius"},
            "wind": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
            "place": {"type": "object", "description": "Latitude and longitude instead."},
        },
    }
    fake.tools(
        group_of(
            "builtin::maths",
            tool_of("calculate", calls=412, failed=3, mean_seconds=0.021),
            tool_of("get_current_time", calls=96, failed=0, mean_seconds=0.004),
        ),
        group_of(
            "mcp::outside",
            tool_of(
                "weather",
                weather,
                description="The weather of a city for some days.",
                calls=57,
                failed=9,
                mean_seconds=0.83,
                last_error="mcp_broke at http://weather.example/mcp",
                annotations={"readOnlyHint": True, "openWorldHint": True},
            ),
            tool_of("translate"),
            url="http://weather.example/mcp",
            origin="mcp",
        ),
        group_of(
            "mcp::files",
            url="http://files.example:9000/sse",
            origin="mcp",
            error="mcp_unavailable (connection refused)",
            error_at=now - 42,
            listed_at=now - 3000,
        ),
        left_out=["files/too_many"],
    )


if __name__ == "__main__":
    with FakeInspector(int(sys.argv[1])).serving() as shown:
        show_everything(shown)
        print(shown.url, flush=True)
        threading.Event().wait()
