"""The whole application in memory, and a scripted Llama Stack behind it: no socket, no real time.

stack = FakeStack()
stack.on("GET /v1/tools", answer({"data": [tool("clock")]}))
stack.on("POST /v1/chat/completions", calling("clock"), saying("It is noon."))
stack.on("POST /v1/tool-runtime/invoke", tool_result("12:00"))
assert Proxy(stack).chat().json()["choices"][0]["message"]["content"] == "It is noon."
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

import attrs
from hyperlink import DecodedURL
from treq.testing import StubTreq
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.test import iosim
from twisted.web.client import URI, ResponseDone
from twisted.web.http import Request
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET, Site

from llamaproxy.application import ToolsElsewhere, assemble
from llamaproxy.config.options import Options
from llamaproxy.events import Event
from llamaproxy.heads import RequestHead, RequestLine
from llamaproxy.jsontext import Json
from llamaproxy.server.keys import ApiKeys
from llamaproxy.server.site import ProxySite
from llamaproxy.upstream.agent import AgentForAnywhere
from llamaproxy.upstream.client import LlamaStackClient
from llamaproxy.upstream.connection import UpstreamConnection
from llamaproxy.upstream.dialect import Detector
from llamaproxy.upstream.inflate import InflatingAgent
from llamaproxy.upstream.pool import UpstreamPool
from llamaproxy.upstream.secrets import Secret
from llamaproxy.upstream.sse import EventDecoder
from llamaproxy.upstream.treq_client import AuthorizedAgent
from llamaproxy.watchdog import Watchdog, watched

T = TypeVar("T")

#: Writes an answer to a request that the fake stack has got; it need not finish it.
Answer = Callable[[Request], object]

FIXTURES = Path(__file__).parent / "fixtures"

CHAT = "POST /v1/chat/completions"
INVOKE = "POST /v1/tool-runtime/invoke"


# --- what a Llama Stack answers


def answer(body: object, status: int = 200, fields: Mapping[str, str] | None = None) -> Answer:
    """*body* as JSON, or as it is if it is bytes."""
    text = body if isinstance(body, bytes) else json.dumps(body).encode()

    def write(request: Request) -> None:
        request.setResponseCode(status)
        for name, value in {"Content-Type": "application/json", **(fields or {})}.items():
            request.setHeader(name.encode(), value.encode())
        request.write(text)
        request.finish()

    return write


def recording(version: str, name: str) -> Json:
    """What a real server of *version* answered, with the request: a file in ``fixtures``."""
    recorded: Json = json.loads((FIXTURES / version / f"{name}.json").read_text())
    return recorded


def recorded(version: str, name: str) -> Answer:
    """The recorded answer *name* of a real server."""
    response = recording(version, name)["response"]
    body = response["body"] if "body" in response else response["text"].encode()
    return answer(body, response["status"], {"Content-Type": response["headers"]["content-type"]})


def event(chunk: Json | bytes) -> bytes:
    """One server-sent event."""
    return b"data: " + (chunk if isinstance(chunk, bytes) else json.dumps(chunk).encode()) + b"\n\n"


def begin_events(request: Request) -> None:
    """The head of a streamed answer; the test writes the rest to ``stack.open[-1]``."""
    request.setHeader(b"Content-Type", b"text/event-stream; charset=utf-8")
    request.write(b"")


def events(*chunks: Json | bytes) -> Answer:
    """A streamed answer; like every Llama Stack it sends no ``[DONE]`` of itself."""

    def write(request: Request) -> None:
        begin_events(request)
        request.write(b"".join(map(event, chunks)))
        request.finish()

    return write


def nothing(request: Request) -> None:
    """No answer at all, for now: the request waits in ``stack.open``."""


def hang_up(request: Request) -> None:
    """The connection is lost, in the middle of an answer if one has begun."""
    request.loseConnection()


def chunk(delta: Json, finish_reason: str | None = None, **fields: Any) -> Json:
    """One chunk of a streamed completion."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return {**head, "choices": [choice], **fields}


def completion(message: Json, finish_reason: str | None = "stop", **fields: Any) -> Json:
    """One completion that is not streamed."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", **message},
        "finish_reason": finish_reason,
    }
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m"}
    return {**head, "choices": [choice], **fields}


def call(name: str, arguments: Json | str | None = None, call_id: str = "call_1") -> Json:
    """A tool call in a message."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments or {})
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": text}}


def turn(content: str | None, calls: list[Json], **fields: Any) -> Answer:
    """One turn of the model, whole or streamed as the request wants it."""
    reason = "tool_calls" if calls else "stop"

    def write(request: Request) -> None:
        if not read(request).json().get("stream"):
            message: Json = {"content": content} | ({"tool_calls": calls} if calls else {})
            answer(completion(message, reason, **fields))(request)
            return
        chunks = [chunk({"role": "assistant", "content": ""})]
        chunks += [chunk({"content": word}) for word in re.findall(r"\s*\S+", content or "")]
        for index, entry in enumerate(calls):
            chunks.append(chunk({"tool_calls": [{"index": index, **entry}]}))
        chunks.append(chunk({}, reason))
        if fields:
            chunks.append({**chunk({}), "choices": [], **fields})
        events(*chunks)(request)

    return write


def saying(text: str, **fields: Any) -> Answer:
    """The model answers with *text* (streamed: word by word)."""
    return turn(text, [], **fields)


def calling(name: str, arguments: Json | str | None = None, **fields: Any) -> Answer:
    """The model calls one tool."""
    return turn(None, [call(name, arguments)], **fields)


def tool(name: str, group: str = "mcp::main", **fields: Any) -> Json:
    """A tool as ``GET /v1/tools`` lists it since 0.3."""
    schema = {"type": "object", "properties": {}}
    described = {"toolgroup_id": group, "name": name, "description": f"The {name} tool."}
    return {**described, "input_schema": schema, **fields}


def tool_result(text: str, error_code: int = 0) -> Answer:
    """What ``POST /v1/tool-runtime/invoke`` answers."""
    content = [{"type": "text", "text": text}]
    return answer({"content": content, "error_message": None, "error_code": error_code})


# --- the Llama Stack


@attrs.frozen
class Asked:
    """A request that the fake stack got."""

    method: str
    target: str
    headers: Headers
    body: bytes

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    def json(self) -> Any:
        return json.loads(self.body)


def read(request: Request) -> Asked:
    """*request* as it came."""
    assert request.content is not None
    request.content.seek(0)
    target = request.uri.decode("latin-1")
    method = request.method.decode("latin-1")
    return Asked(method, target, request.requestHeaders.copy(), request.content.read())


class FakeStack(Resource):
    """Answers as it is told to: 404 as a Llama Stack does, if it is told nothing.

    It says that it is 0.6.1, and that it has no tools, until it is told otherwise.
    """

    isLeaf = True

    def __init__(self) -> None:
        Resource.__init__(self)
        self.asked: list[Asked] = []
        #: Requests that have not been answered whole yet, and whose client is still there.
        self.open: list[Request] = []
        self._answers: dict[str, list[Answer]] = {}
        self.on("GET /v1/version", answer({"version": "0.6.1"}))
        self.on("GET /v1/tools", answer({"data": []}))

    def on(self, route: str, *answers: Answer) -> None:
        """Answer requests of *route* (``"GET /v1/tools"``, or with a query) so.

        Each answer is used once, the last one ever after.
        """
        self._answers[route] = list(answers)

    def asked_for(self, route: str) -> list[Asked]:
        """The requests of *route* so far."""
        return [each for each in self.asked if f"{each.method} {each.path}" == route]

    def render(self, request: Request) -> int:
        asked = read(request)
        self.asked.append(asked)
        self.open.append(request)
        request.notifyFinish().addBoth(lambda _: self.open.remove(request))
        for target in (asked.target, unquote(asked.target), asked.path):
            if answers := self._answers.get(f"{asked.method} {target}"):
                (answers.pop(0) if len(answers) > 1 else answers[0])(request)
                return NOT_DONE_YET
        answer({"detail": "Not Found"}, 404)(request)
        return NOT_DONE_YET


# --- the application


class _MemoryServer:
    """Serves a resource, each request on a connection of its own."""

    def __init__(self, url: URI, site: Site, pumps: list[Any]) -> None:
        self.host = url.netloc
        self.kept_by = b"%b://%b" % (url.scheme, url.netloc)
        self._site = site
        self._pumps = pumps

    def connect(self) -> Deferred[UpstreamConnection]:
        address = IPv4Address("TCP", "127.0.0.1", 31337)
        server: Any = self._site.buildProtocol(address)
        client = UpstreamConnection()
        here = iosim.FakeTransport(client, isServer=False, peerAddress=address)
        there = iosim.FakeTransport(server, isServer=True, peerAddress=address)
        self._pumps.append(iosim.connect(server, there, client, here))
        return succeed(client)


class MemoryAgent(AgentForAnywhere):
    """The agent in front of a resource that answers under every name: no socket.

    Data is moved by :meth:`flush`.
    """

    def __init__(self, resource: IResource) -> None:
        clock: Any = MemoryReactorClock()
        AgentForAnywhere.__init__(self, clock, UpstreamPool(clock, max_idle=0))
        self._site = Site(resource, reactor=clock)
        self._pumps: list[Any] = []

    def flush(self) -> None:
        """Move what has been written."""
        for pump in self._pumps:  # and those of requests that are made meanwhile
            pump.flush()
        self._pumps[:] = [
            pump
            for pump in self._pumps
            if not (pump.clientIO.disconnected and pump.serverIO.disconnected)
        ]

    def _server(self, url: URI) -> _MemoryServer:
        return _MemoryServer(url, self._site, self._pumps)


class Upstream:
    """The client's side of a Llama Stack in memory: for the tests of a single class."""

    def __init__(
        self,
        stack: IResource,
        clock: Clock | None = None,
        timeout: float = 600,
        key: bytes = b"",
        url: str = "http://stack:8321",
    ) -> None:
        self.clock = clock or Clock()
        self.agent = MemoryAgent(stack)
        self.asking = AuthorizedAgent(self.agent, key) if key else self.agent
        self.url = DecodedURL.from_text(url)
        self.secret = Secret(key)
        self.client = LlamaStackClient(
            InflatingAgent(self.asking, self.clock), self.url, self.clock, timeout, self.secret
        )
        self.detector = Detector(self.client)

    def settle(self) -> None:
        """Let everything happen that is under way."""
        for _ in range(_ENOUGH):
            self.agent.flush()

    def result(self, waited: Any, after: float = 0) -> Any:
        """What a coroutine returns, or raises, *after* so many seconds."""
        got = waited if isinstance(waited, Deferred) else Deferred.fromCoroutine(waited)
        self.settle()
        if after:
            self.clock.advance(after)
            self.settle()
        return outcome(got)


@attrs.frozen
class Chunks:
    """A handler of chunks that puts each into a list, and takes none for like the one before."""

    into: list[Json | None]

    def handle_alike(self, *_: object) -> int:
        return 0

    def handle(self, chunk: Json | None, _: bytes) -> None:
        self.into.append(chunk)

    def flush(self) -> None:
        """Nothing is held back."""


#: Times that data is moved between the connections in memory: more than any exchange needs.
_ENOUGH = 12


def logged(log: Path) -> list[Json]:
    """The lines of JSON in a *log* that is still written: the last may be half a one."""
    lines = log.read_text("utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines if line.startswith("{")]


def outcome(waited: Deferred[T]) -> T:
    """What *waited* has come to by now: its result, or its exception."""
    results: list[T | Failure] = []
    waited.addBoth(results.append)
    assert results, "nothing has come of it yet"
    if isinstance(results[0], Failure):
        results[0].raiseException()
    got: Any = results[0]
    return got  # type: ignore[no-any-return]


class Exchange(Protocol):
    """One request of a client's, and as much of the answer as has come."""

    def __init__(self, request: Deferred[IResponse], settle: Callable[[], None]) -> None:
        self._request = request
        self._settle = settle
        self._response: IResponse | None = None
        self.failure: Failure | None = None
        self.body = b""
        #: Whether the answer has come to an orderly end.
        self.complete = False
        #: Whether the answer has come to any end.
        self.ended = False
        request.addCallbacks(self._answered, self._failed)

    @property
    def response(self) -> IResponse:
        assert self._response is not None, "no answer yet"
        return self._response

    @property
    def answered(self) -> bool:
        return self._response is not None

    @property
    def status(self) -> int:
        return int(self.response.code)

    def field(self, name: str) -> str | None:
        """A field of the answer, repetitions joined."""
        values = self.response.headers.getRawHeaders(name)
        return None if values is None else ", ".join(values)

    def json(self) -> Any:
        assert self.ended, "the answer has not ended yet"
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """The events so far; the end mark is the text ``[DONE]``."""
        decoder = EventDecoder()
        texts = [each.data for each in decoder.feed(self.body)]
        return ["[DONE]" if text == b"[DONE]" else json.loads(text) for text in texts]

    def text(self) -> str:
        """The content deltas so far, joined."""
        choices = [c for e in self.events() if e != "[DONE]" for c in e.get("choices", ())]
        return "".join(c["delta"].get("content") or "" for c in choices)

    def leave(self) -> None:
        """The client closes its connection."""
        if self._response is None:
            self._request.cancel()
        else:
            transport: Any = self.transport
            transport.loseConnection()
        self._settle()

    def dataReceived(self, data: bytes) -> None:
        self.body += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ended = True
        self.complete = reason.check(ResponseDone) is not None

    def _answered(self, response: IResponse) -> None:
        self._response = response
        response.deliverBody(self)

    def _failed(self, failure: Failure) -> None:
        self.failure = failure
        self.ended = True


_DEFAULTS = Options()
_DEFAULTS.parseOptions([])


class Proxy(Upstream):
    """llamaproxy, whole but for its sockets, in front of *stack*; built as ``tap`` builds it."""

    def __init__(
        self,
        stack: IResource,
        clock: Clock | None = None,
        timeout: float = 600,
        *,
        ttl: float = 60,
        tool_timeout: float = 60,
        max_result: int = 65536,
        max_rounds: int = 10,
        keep_alive: float = 15,
        memory_entries: int = 1000,
        memory_bytes: int = 1024 * 1024,
        memory_age: float = 3600,
        mcp: Any = None,
        mcp_servers: Mapping[str, str] | None = None,
        tool_source: str = "auto",
        keys: ApiKeys | None = None,
        server_key: bytes = b"",
        upstream_key: bytes | None = None,
        max_calls: tuple[int, int] = (16, 256),
        max_bodies: int = 1024 * 1024,
        identity_names: tuple[bytes, ...] = (),
        spans: Any = None,
        url: str = "http://stack:8321",
        mcp_instructions: bool = False,
        elsewhere: ToolsElsewhere | None = None,
        far: Any = None,
    ) -> None:
        """:param mcp: an agent that finds MCP servers."""
        Upstream.__init__(self, stack, clock, timeout, server_key, url)
        self._mcp = mcp
        options = {
            **_DEFAULTS,
            "upstream-timeout": timeout,
            "tools-ttl": ttl,
            "tool-timeout": tool_timeout,
            "max-tool-result": max_result,
            "max-iterations": max_rounds,
            "keep-alive": keep_alive,
            "memory-entries": memory_entries,
            "memory-bytes": memory_bytes,
            "memory-age": memory_age,
            "mcp-server": dict(mcp_servers or {}),
            "mcp-instructions": mcp_instructions,
            "tool-source": tool_source,
            "api-keys-file": keys,
            "llamastack-api-key": server_key,
            "upstream-key": upstream_key,
            "max-calls-per-chat": max_calls[0],
            "max-calls": max_calls[1],
            "max-chat-bodies": max_bodies,
            "identity-headers": identity_names,
        }
        anywhere = mcp or self.agent
        app = assemble(
            options, self.url, self.clock, self.agent, anywhere, spans, far, elsewhere=elsewhere
        )
        self.detector = app.detector
        self.catalogue = app.catalogue
        self.sessions = app.sessions
        self.memory = app.memory
        self.cors = app.cors
        self.metrics = app.metrics
        self.tool_status = app.tool_status
        self.app = app
        self.events: list[Event] = []
        app.tell.listen(self.events.append)
        self._front: Any = StubTreq(app.resource)
        # Treq's stub has a site of Twisted's.
        site: Any = ProxySite(app.resource, Clock(), keys=keys, tell=app.tell)
        self._front._agent._serverFactory = site

    def settle(self) -> None:
        for _ in range(_ENOUGH):
            if self._mcp is not None:
                self._mcp.flush()
            self.agent.flush()
            self._front.flush()

    def advance(self, seconds: float) -> None:
        """Let time pass, and everything happen that is then due."""
        self.clock.advance(seconds)
        self.settle()

    def request(
        self,
        method: str,
        target: str,
        body: object = None,
        fields: Mapping[str, str] | None = None,
    ) -> Exchange:
        """Ask the application; *body* is sent as JSON unless it is bytes."""
        sent = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        headers = {} if sent is None else {"Content-Type": "application/json"}
        answered = self._front.request(
            method,
            f"http://proxy:8322{target}",
            headers={**headers, **(fields or {})},
            data=sent,
            allow_redirects=False,
            unbuffered=True,
        )
        exchange = Exchange(answered, self.settle)
        self.settle()
        return exchange

    def chat(
        self,
        body: Json | None = None,
        fields: Mapping[str, str] | None = None,
        **more: Any,
    ) -> Exchange:
        """Ask for a chat completion; what *body* and *more* leave out is made up."""
        asked = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
        return self.request(
            "POST", "/v1/chat/completions", {**asked, **(body or {}), **more}, fields
        )


def head_with(fields: Headers | Mapping[Any, Any]) -> RequestHead:
    """The head of a request with *fields*, names with their values."""
    headers = fields if isinstance(fields, Headers) else Headers(dict(fields))
    pairs = headers.getAllRawHeaders()
    return RequestHead(
        RequestLine(b"POST", b"/", 1), [(name, value) for name, values in pairs for value in values]
    )


def pending_calls(clock: Clock) -> list[Any]:
    """What *clock* will still call: nothing should be left of a request that has ended.

    The sweep of watchdogs is left where it is scheduled, and calls nothing if none is watched.
    """
    calls = [call for call in clock.getDelayedCalls() if not _is_sweep(call)]
    return [*calls, *watched(clock)]


def _is_sweep(call: Any) -> bool:
    return type(getattr(call.func, "__self__", None)).__module__ == Watchdog.__module__
