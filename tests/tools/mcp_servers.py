"""An MCP server in memory, in either transport, that behaves as it is told to."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, ClassVar

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from llamaproxy.jsontext import Json
from llamaproxy.tools.mcp.http import Fields
from llamaproxy.tools.mcp.pool import SessionPool
from llamaproxy.tools.mcp.session import Session
from llamaproxy.upstream.client_context import ClientContext
from tests.support import Asked, MemoryAgent, answer, outcome, read

URL = "http://mcp:9000/mcp"

#: Answers one JSON-RPC request.
Handler = Callable[[Request, Json], object]


def result(body: Json) -> Handler:
    """*body* as the result, in JSON."""

    def write(request: Request, message: Json) -> None:
        answer({"jsonrpc": "2.0", "id": message["id"], "result": body})(request)

    return write


def error(code: int, text: str = "no", status: int = 200, **more: Any) -> Handler:
    """A JSON-RPC error."""

    def write(request: Request, message: Json) -> None:
        error_object = {"code": code, "message": text, **more}
        answer({"jsonrpc": "2.0", "id": message["id"], "error": error_object}, status)(request)

    return write


def raw(body: bytes, status: int = 200, kind: str = "application/json") -> Handler:
    """Any bytes."""

    def write(request: Request, message: Json) -> None:
        answer(body, status, {"Content-Type": kind})(request)

    return write


def never(request: Request, message: Json) -> None:
    """No answer."""


def frame(message: Json | str, number: str | None = None, retry: int | None = None) -> bytes:
    """One server-sent event."""
    text = message if isinstance(message, str) else json.dumps(message)
    head = f"id: {number}\n" if number is not None else ""
    head += f"retry: {retry}\n" if retry is not None else ""
    return f"{head}event: message\ndata: {text}\n\n".encode()


def begin(request: Request) -> None:
    """The head of an event stream."""
    request.setHeader(b"Content-Type", b"text/event-stream")
    request.write(b"")


def streamed(*before: bytes, last: Json | None, end: bool = True) -> Handler:
    """An event stream with these frames and *last* as the result."""

    def write(request: Request, message: Json) -> None:
        begin(request)
        for each in before:
            request.write(each)
        if last is not None:
            request.write(frame({"jsonrpc": "2.0", "id": message["id"], "result": last}, "last"))
        if end:
            request.finish()

    return write


def text(content: str, **more: Any) -> Json:
    """A tool's result."""
    return {"content": [{"type": "text", "text": content}], **more}


def described(name: str, **more: Any) -> Json:
    """A tool in a list."""
    return {"name": name, "description": f"Does {name}.", "inputSchema": {"type": "object"}, **more}


class FakeMcp(Resource):
    """Speaks streamable HTTP at any path; or if *old*, HTTP+SSE."""

    isLeaf = True

    def __init__(self, *tools: str, old: bool = False, capabilities: Json | None = None) -> None:
        Resource.__init__(self)
        self.asked: list[Asked] = []
        self.open: list[Request] = []
        self.old = old
        self.session = "s-1"
        #: Whether it leaves notifications and answers without one.
        self.ignores_notifications = False
        #: The status with which it answers notifications.
        self.notification_status = 202
        #: A session that it does not know any more, and how it says so.
        self.unknown: tuple[str, Handler] | None = None
        #: What it makes of the numbers of requests.
        self.number: Callable[[Any], object] = lambda number: number
        self.revision: object = "2025-11-25"
        self.capabilities = {"tools": {}} if capabilities is None else capabilities
        #: What it says of how its tools are to be used.
        self.instructions: object = None
        self.stream: Request | None = None
        self.get: Callable[[Request], object] = answer(b"", 405)
        listed = [described(name) for name in tools or ("ping",)]
        self.handlers: dict[str, Handler] = {
            "initialize": self._initialize,
            "tools/list": result({"tools": listed}),
            "tools/call": result(text("pong")),
        }

    def received(self, method: str) -> list[Json]:
        """The messages of that method so far."""
        return [each for each in self.messages if each.get("method") == method]

    @property
    def messages(self) -> list[Json]:
        return [each.json() for each in self.asked if each.method == "POST"]

    def fields(self, name: str) -> list[str | None]:
        """That field of every POST so far."""
        posts = [each for each in self.asked if each.method == "POST"]
        return [next(iter(each.headers.getRawHeaders(name, [])), None) for each in posts]

    def say(self, message: Json) -> None:
        """Say something on the stream that a GET has opened."""
        assert self.stream is not None
        self.stream.write(frame(message))

    def render(self, request: Request) -> int:
        asked = read(request)
        self.asked.append(asked)
        self.open.append(request)
        request.notifyFinish().addBoth(lambda _: self.open.remove(request))
        if request.method == b"GET":
            self._listen(request)
        elif request.method == b"DELETE":
            answer(b"", 204)(request)
        elif self.old and asked.path != "/messages":
            answer(b"Method Not Allowed", 405, {"Content-Type": "text/plain"})(request)
        else:
            self._post(request, asked.json())
        return NOT_DONE_YET

    def _listen(self, request: Request) -> None:
        if not self.old:
            self.get(request)
            return
        begin(request)
        request.write(b"event: endpoint\ndata: /messages?session_id=1\n\n")
        self.stream = request

    def _post(self, request: Request, message: Json) -> None:
        method = message.get("method")
        if method is not None and "id" in message:
            message = {**message, "id": self.number(message["id"])}
        session_id = request.getHeader("mcp-session-id")
        if self.unknown is not None and session_id == self.unknown[0]:
            self.unknown[1](request, message)
        elif (
            not self.old and self.session and method != "initialize" and session_id != self.session
        ):
            answer({"jsonrpc": "2.0", "id": None, "error": {"code": -32001}}, 404)(request)
        elif "id" not in message or method is None:
            if not self.ignores_notifications:
                answer(b"", self.notification_status)(request)
        elif self.old:
            answer(b"Accepted", 202)(request)
            self.handlers[str(method)](_Captured(self), message)  # type: ignore[arg-type]
        else:
            self.handlers.get(str(method), error(-32601, "Method not found"))(request, message)

    def _initialize(self, request: Request, message: Json) -> None:
        if self.session and not self.old:
            request.setHeader("Mcp-Session-Id", self.session)
        result(
            {
                "protocolVersion": self.revision,
                "capabilities": self.capabilities,
                "serverInfo": {"name": "fake", "version": "1"},
                **({} if self.instructions is None else {"instructions": self.instructions}),
            }
        )(request, message)


class _Captured:
    """Sends as an event what a handler answers a POST with."""

    def __init__(self, server: FakeMcp) -> None:
        self._server = server

    def setResponseCode(self, code: int) -> None: ...
    def setHeader(self, name: bytes, value: bytes) -> None: ...
    def finish(self) -> None: ...

    def write(self, body: bytes) -> None:
        assert self._server.stream is not None
        self._server.stream.write(frame(body.decode()))


class Conversation:
    """Our side, with a clock of its own."""

    going_on: ClassVar[list[Conversation]] = []

    def __init__(self, server: Resource) -> None:
        self.clock = Clock()
        self.agent = MemoryAgent(server)
        self.changes: list[float] = []
        self._running: list[Deferred[Any]] = []
        self.going_on.append(self)
        self.pool = SessionPool(
            self.agent, self.clock, lambda: self.changes.append(self.clock.seconds())
        )

    def session(self, *credentials: tuple[str, str], url: str = URL) -> Session:
        fields: Fields = credentials
        return self.pool.session(url, fields, ClientContext())

    def settle(self) -> None:
        for _ in range(12):
            self.agent.flush()

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.settle()

    def begin(self, work: Any) -> Deferred[Any]:
        running: Deferred[Any] = Deferred.fromCoroutine(work)
        self._running.append(running)
        self.settle()
        return running

    def result(self, work: Any, after: float = 0) -> Any:
        waited = work if isinstance(work, Deferred) else self.begin(work)
        self.settle()
        if after:
            self.advance(after)
        return outcome(waited)

    def end(self) -> None:
        """Leave, whatever is going on."""
        for each in self._running:
            each.addErrback(lambda _: None)
            each.cancel()
        self.settle()
        Deferred.fromCoroutine(self.pool.close()).addErrback(lambda _: None)
        self.settle()
        for _ in range(3):
            self.advance(60)

    def call(self, name: str = "ping", **arguments: Any) -> Any:
        """The work of calling a tool without credentials."""
        return self.session().call(name, arguments, {})
