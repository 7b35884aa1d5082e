"""The programs of these tests, seen from a test: where each is, and what it can tell."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from http.client import HTTPConnection, HTTPResponse
from typing import Any, TypeVar

import attrs
import openai

from .processes import Process

Json = dict[str, Any]
T = TypeVar("T")

# What the MCP server offers, in the proxy's order.
OUR_TOOLS = [
    *("big", "fail", "get_image", "get_mixed", "get_structured", "get_text"),
    *("headers", "nested", "ping", "slow"),
]


def eventually(look: Callable[[], T | None], seconds: float = 5.0) -> T:
    """What ``look`` sees as soon as it sees something."""
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)
    return seen


@attrs.frozen
class ScriptedModel:
    """A model that does as the last user message says: see ``scripted_model.py``."""

    process: Process

    @property
    def url(self) -> str:
        return self.process.url + "/v1"

    def asked(self, marker: str) -> list[Json]:
        """The requests with these words in a user's message, oldest first."""
        _, log = self.process.get("/_log")
        return [
            asked
            for asked in json.loads(log)["data"]
            for message in asked["body"].get("messages", [])
            if message["role"] == "user" and marker in message["content"]
        ]

    def bodies(self, marker: str) -> list[Json]:
        return [asked["body"] for asked in self.asked(marker)]

    def states(self, marker: str) -> list[str]:
        return [asked["state"] for asked in self.asked(marker)]


@attrs.frozen
class McpServer:
    """A real MCP server with the tools of ``mcp_tools.py``."""

    process: Process
    path: str

    @property
    def url(self) -> str:
        return self.process.url + self.path

    def calls(self, tool: str, outcome: str = "finished") -> int:
        """How many calls of the tool were ``started``, ``finished``, ``failed``, ``cancelled``."""
        _, counts = self.process.get("/_calls")
        count: int = json.loads(counts).get(tool, {}).get(outcome, 0)
        return count


@attrs.frozen
class Server:
    """A real Llama Stack or OGX server."""

    process: Process
    version: str
    model: str  # as its chat completions name it

    @property
    def url(self) -> str:
        return self.process.url


@attrs.frozen
class SseReply:
    """A streamed answer as it came over the wire."""

    status: int
    headers: Mapping[str, str]
    lines: list[str]

    @property
    def payloads(self) -> list[str]:
        return [line.removeprefix("data: ") for line in self.lines if line.startswith("data: ")]

    @property
    def chunks(self) -> list[Json]:
        """The events but the last, which has to be ``[DONE]``."""
        *events, last = self.payloads
        assert last == "[DONE]"
        return [json.loads(event) for event in events]


@attrs.frozen
class Proxy:
    """A running llamaproxy."""

    process: Process
    server: Server
    client: openai.OpenAI

    @property
    def model(self) -> str:
        return self.server.model

    @property
    def create(self) -> Any:
        """The official client's ``chat.completions.create``; untyped, as test messages are."""
        return partial(self.client.chat.completions.create, model=self.model)

    def connect(self) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", self.process.port, timeout=60.0)

    def chat(self, text: str, headers: Mapping[str, str] | None = None, **fields: Any) -> SseReply:
        """A streamed chat completion of one user message."""
        connection = self.connect()
        try:
            response = self.open_chat(connection, text, headers, **fields)
            lines = [line.decode().rstrip("\r\n") for line in response]
            return SseReply(response.status, dict(response.getheaders()), lines)
        finally:
            connection.close()

    def open_chat(
        self,
        connection: HTTPConnection,
        text: str,
        headers: Mapping[str, str] | None = None,
        **fields: Any,
    ) -> HTTPResponse:
        """The same, before its body is read."""
        body = {"model": self.model, "messages": user(text), "stream": True, **fields}
        sent = {"Content-Type": "application/json", **(headers or {})}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), sent)
        return connection.getresponse()


def user(text: str) -> list[Json]:
    return [{"role": "user", "content": text}]


def spoken(chunks: list[Json]) -> str:
    """The content of a stream's deltas, joined."""
    return "".join(delta.get("content") or "" for delta in deltas(chunks))


def deltas(chunks: list[Json]) -> Iterator[Json]:
    for chunk in chunks:
        for choice in chunk["choices"]:
            yield choice["delta"]


def names(body: Json) -> list[str]:
    """The tools that the model was offered."""
    return [tool["function"]["name"] for tool in body.get("tools", [])]


def roles(body: Json) -> list[str]:
    return [message["role"] for message in body["messages"]]


def results(body: Json) -> list[str]:
    """The tool results that the model was told."""
    return [message["content"] for message in body["messages"] if message["role"] == "tool"]
