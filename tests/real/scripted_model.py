"""A language model that does as it is told, behind an OpenAI-compatible API.

Run as ``python scripted_model.py [PORT]``; it prints one line, ``listening on 127.0.0.1:PORT``.
It needs nothing but the standard library, so any Python can run it.

The model calls the first tool that it is offered as long as no tool message follows the last user
message, and then quotes the results. Directives in the last user message make it do otherwise:

``[call NAME {json}]``
    call this tool with these arguments; given several times, call them all in parallel
``[calls N]``
    call N tools in parallel, going round the offered ones
``[text SOME TEXT]``
    say this before calling tools
``[plain]``
    call nothing
``[loop]``
    call tools in every round, whatever came back
``[bad-args]``
    send arguments that are not JSON
``[reason]``
    send ``reasoning_content`` first
``[long]``
    answer with 200 words
``[pause]``
    wait half a second before every delta but the first
``[stall]``
    say the first word (nothing, if not streaming), then hang until the client leaves
``[fail STATUS]``
    answer with this HTTP status
``[die]``
    cut the connection in mid-stream (in the midst of a call's arguments, if it calls tools)
``[err]``
    send an error event in mid-stream

In a prompt of Open WebUI's own (``### Task: ...``, a conversation quoted in it), directives say
nothing; unless it is offered tools, the model answers with the title, tags and follow-up questions
that such prompts ask for.

``GET /_log`` tells what the model was asked, oldest first, and how each request ended: ``running``,
``done``, or ``gone`` when the client left before the answer was complete.
"""

from __future__ import annotations

import itertools
import json
import re
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

Json = dict[str, Any]

MODELS = ("scripted-1", "scripted-2", "embed-1")
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
GREETING = "Hello from the scripted model."
TASK_MARK = "### Task:"
TASK_ANSWER = json.dumps({"title": "A scripted chat", "tags": ["Script"], "follow_ups": ["And?"]})
LONG_ANSWER = " ".join(f"w{number}" for number in range(200))

# A stalled request ends by itself after this many seconds: no test should wait longer.
LONGEST_STALL = 120.0

_serial = itertools.count(
    time.time_ns() // 10**8 % 10**9
)  # servers that store completions want ids unique


class ClientLeft(Exception):
    """The client closed its connection before the answer was complete."""


@dataclass
class Asked:
    """One request, as ``/_log`` shows it."""

    path: str
    headers: dict[str, str]
    body: Json
    state: str = "running"


@dataclass
class Script:
    """What the directives of a user message ask for."""

    calls: list[tuple[str, str]] = field(default_factory=list)
    count: int = 1
    text: str | None = None
    status: int | None = None
    flags: frozenset[str] = frozenset()

    @classmethod
    def read(cls, text: str) -> Script:
        count = re.search(r"\[calls (\d+)\]", text)
        says = re.search(r"\[text ([^\]]*)\]", text)
        status = re.search(r"\[fail (\d+)\]", text)
        return cls(
            calls=list(_named_calls(text)),
            count=int(count[1]) if count else 1,
            text=says[1] if says else None,
            status=int(status[1]) if status else None,
            flags=frozenset(re.findall(r"\[([a-z-]+)\]", text)),
        )


def _named_calls(text: str) -> Iterator[tuple[str, str]]:
    """Each ``[call NAME {json}]``. The JSON is parsed, because it may hold brackets of its own."""
    decoder = json.JSONDecoder()
    for start in re.finditer(r"\[call (\S+) (?=\{)", text):
        try:
            _, end = decoder.raw_decode(text, start.end())
        except json.JSONDecodeError:
            continue
        yield start[1], text[start.end() : end]


def plain_text(content: Any) -> str:
    """The text of a message's content, be it a string, a list of parts, or absent."""
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content if isinstance(part, dict))
    return content or ""


def example(schema: Json) -> Any:
    """A value that the schema allows, roughly."""
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type")
    match kind[0] if isinstance(kind, list) else kind:
        case "integer":
            return 1
        case "number":
            return 1.5
        case "boolean":
            return True
        case "array":
            return [example(schema.get("items") or {"type": "string"})]
        case "object":
            return {key: example(sub) for key, sub in (schema.get("properties") or {}).items()}
        case _:
            return "x"


@dataclass
class Turn:
    """What the model says in one completion."""

    script: Script
    content: str | None
    calls: list[Json]

    @property
    def finish_reason(self) -> str:
        return "tool_calls" if self.calls else "stop"

    def deltas(self) -> Iterator[Json]:
        """What a stream sends, bit by bit."""
        yield {"role": "assistant", "content": None if self.content is None else ""}
        if "reason" in self.script.flags:
            yield {"reasoning_content": "thinking..."}
        for word in re.findall(r"\S+\s*", self.content or ""):
            yield {"content": word}
        for index, call in enumerate(self.calls):
            arguments = call["function"]["arguments"]
            half = len(arguments) // 2
            yield _call_delta(index, {**call, "function": {**call["function"], "arguments": ""}})
            yield _call_delta(index, {"function": {"arguments": arguments[:half]}})
            yield _call_delta(index, {"function": {"arguments": arguments[half:]}})


def _call_delta(index: int, call: Json) -> Json:
    return {"tool_calls": [{"index": index, **call}]}


def take_turn(body: Json) -> Turn:
    """Decide what to say to this conversation."""
    messages = body.get("messages") or []
    last_user = max((i for i, m in enumerate(messages) if m.get("role") == "user"), default=-1)
    asked = messages[last_user].get("content") if last_user >= 0 else None
    is_task = plain_text(asked).lstrip().startswith(TASK_MARK)
    script = Script() if is_task else Script.read(plain_text(asked))
    results = [m for m in messages[last_user + 1 :] if m.get("role") == "tool"]
    tools = body.get("tools") or []
    may_call = tools and body.get("tool_choice") != "none" and "plain" not in script.flags
    if may_call and (not results or "loop" in script.flags):
        return Turn(script, script.text, _calls(script, tools))
    if results:
        quoted = " | ".join(plain_text(result.get("content")) for result in results)
        return Turn(script, "The tool said: " + quoted, [])
    if is_task:
        return Turn(script, TASK_ANSWER, [])
    return Turn(script, LONG_ANSWER if "long" in script.flags else GREETING, [])


def _calls(script: Script, tools: list[Json]) -> list[Json]:
    wanted = script.calls
    if not wanted:
        offered = (tools[i % len(tools)]["function"] for i in range(script.count))
        wanted = [
            (tool["name"], json.dumps(example(tool.get("parameters") or {"type": "object"})))
            for tool in offered
        ]
    return [
        {
            "id": f"call_{next(_serial)}",
            "type": "function",
            "function": {
                "name": name,
                "arguments": '{"oops": ' if "bad-args" in script.flags else arguments,
            },
        }
        for name, arguments in wanted
    ]


class Handler(BaseHTTPRequestHandler):
    """One client connection."""

    protocol_version = "HTTP/1.1"
    log: ClassVar[deque[Asked]] = deque(maxlen=100)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: ``/_log`` holds more than an access line would."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.endswith("/models"):
            entry = {"object": "model", "created": 1700000000, "owned_by": "scripted"}
            self._reply({"object": "list", "data": [{"id": name, **entry} for name in MODELS]})
        elif path == "/_log":
            self._reply({"data": [vars(asked) for asked in list(self.log)]})
        elif path.endswith("/health"):
            self._reply({"status": "ok"})
        else:
            self._reply(_error(f"no such path {path}"), 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or b"{}")
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.path, headers, body)
        self.log.append(asked)
        try:
            self._answer(self.path.partition("?")[0], body)
        except (ClientLeft, ConnectionError):
            asked.state = "gone"
            self.close_connection = True
        else:
            asked.state = "done"

    def _answer(self, path: str, body: Json) -> None:
        if path.endswith("/embeddings"):
            self._reply(_embeddings(body))
        elif not path.endswith("/chat/completions"):
            self._reply(_error(f"no such path {path}"), 404)
        else:
            turn = take_turn(body)
            if turn.script.status is not None:
                self._reply(_error("scripted failure"), turn.script.status)
            elif body.get("stream"):
                self._stream(body, turn)
            else:
                self._complete(body, turn)

    def _complete(self, body: Json, turn: Turn) -> None:
        if "stall" in turn.script.flags:
            self._wait(LONGEST_STALL)
        message: Json = {"role": "assistant", "content": turn.content}
        if turn.calls:
            message["tool_calls"] = turn.calls
        if "reason" in turn.script.flags:
            message["reasoning_content"] = "thinking..."
        choice = {"index": 0, "message": message, "finish_reason": turn.finish_reason}
        self._reply(
            {
                **_heading(body, "chat.completion"),
                "choices": [{**choice, "logprobs": None}],
                "usage": USAGE,
            }
        )

    def _stream(self, body: Json, turn: Turn) -> None:
        heading = _heading(body, "chat.completion.chunk")
        flags = turn.script.flags

        def send(delta: Json, finish_reason: str | None = None) -> None:
            choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
            self._event({**heading, "choices": [choice]})

        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number, delta in enumerate(turn.deltas()):
            if number == 3 and "die" in flags:
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            if number == 2 and "err" in flags:
                self._event({"error": {"message": "scripted mid-stream error", "code": 500}})
                self._end_stream()
                return
            if number == 2 and "stall" in flags:
                self._wait(LONGEST_STALL)
            if number > 0 and "pause" in flags:
                self._wait(0.5)
            send(delta)
        send({}, turn.finish_reason)
        if (body.get("stream_options") or {}).get("include_usage"):
            self._event({**heading, "choices": [], "usage": USAGE})
        self._end_stream()

    def _event(self, event: Json) -> None:
        self._chunk(f"data: {json.dumps(event)}\n\n".encode())

    def _end_stream(self) -> None:
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _chunk(self, chunk: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))

    def _reply(self, body: Json, status: int = 200) -> None:
        encoded = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    def _wait(self, seconds: float) -> None:
        """Sleep, but notice at once when the client leaves."""
        readable, _, _ = select.select([self.connection], [], [], seconds)
        if readable and not self.connection.recv(1, socket.MSG_PEEK):
            raise ClientLeft


def _heading(body: Json, kind: str) -> Json:
    return {
        "id": f"chatcmpl-scripted-{next(_serial)}",
        "object": kind,
        "created": 1700000000,
        "model": body.get("model"),
        "system_fingerprint": "fp_scripted",
    }


def _embeddings(body: Json) -> Json:
    texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
    return {
        "object": "list",
        "model": body["model"],
        "data": [
            {"object": "embedding", "index": index, "embedding": [0.1] * 8}
            for index, _ in enumerate(texts)
        ],
        "usage": {"prompt_tokens": 1, "total_tokens": 1},
    }


def _error(message: str) -> Json:
    return {"error": {"message": message, "type": "invalid_request_error", "code": "scripted"}}


def main() -> None:
    server = ThreadingHTTPServer(
        ("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 0), Handler
    )
    server.daemon_threads = True
    print(f"listening on 127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
