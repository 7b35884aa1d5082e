"""The tools of MCP servers: those that a server names, those named by hand, and whose tokens go.

DESIGN: T1, T3, T4.
"""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest
from twisted.internet.defer import Deferred
from twisted.web.resource import Resource

from llamaproxy.errors import (
    McpBroke,
    McpTimeout,
    ProxyError,
    ToolFailed,
    ToolUnknown,
    UpstreamBroke,
    UpstreamTimeout,
)
from llamaproxy.heads import headers_of
from llamaproxy.jsontext import Json
from llamaproxy.tools.definitions import ToolDefinition
from llamaproxy.tools.mcp.configured import ConfiguredServer, ConfiguredServers
from llamaproxy.tools.mcp.pool import SessionPool
from llamaproxy.tools.mcp.source import Connectors, McpSource, definition_of
from llamaproxy.tools.results import ToolResult
from llamaproxy.tools.source import (
    BACKGROUND,
    CONFIGURED,
    PROXY_CALLED,
    DetectedSource,
    Listing,
    ListLimits,
    ToolSource,
    UnionSource,
)
from llamaproxy.tools.toolruntime import ToolRuntime
from llamaproxy.upstream.client_context import ClientContext
from llamaproxy.upstream.exchange import AnswerTaker, Exchange
from llamaproxy.upstream.responses import SendingAgent
from tests.support import (
    INVOKE,
    Answer,
    FakeStack,
    MemoryAgent,
    Upstream,
    answer,
    hang_up,
    head_with,
    nothing,
    outcome,
    recorded,
    tool,
    tool_result,
)
from tests.tools.mcp_servers import URL, Conversation, FakeMcp, error, never, raw, result, text

ONE, TWO = "http://one:9000/mcp", "http://two:9000/mcp"


class Hosts(SendingAgent):
    """An agent that finds each server by its name."""

    def __init__(self, **servers: Resource) -> None:
        self._agents = {name: MemoryAgent(each) for name, each in servers.items()}

    def send(
        self, method: bytes, target: bytes, fields: Any, body: Any, taker: AnswerTaker
    ) -> Exchange:
        host = target.split(b"/")[2].partition(b":")[0].decode()
        return self._agents[host].send(method, target, fields, body, taker)

    def flush(self) -> None:
        for agent in self._agents.values():
            agent.flush()


def caller(header: str = "X-LlamaStack-Provider-Data", **fields: Json) -> ClientContext:
    """Somebody with a key for the server, and with ``mcp_headers`` for MCP servers."""
    urls = {"one": ONE, "two": TWO, "main": "http://127.0.0.1:9102/mcp"}
    data = {"mcp_headers": {urls[name]: each for name, each in fields.items()}, "other": 1}
    own = {"Authorization": ["Bearer own"], "X-Request-Id": ["r-1"]}
    return ClientContext.of(head_with({**own, header: [json.dumps(data)]}))


class World:
    """A Llama Stack, two MCP servers, and the sources that ``tap`` would make."""

    def __init__(self, version: str = "0.7.3", **options: Any) -> None:
        self.stack = FakeStack()
        self.stack.on("GET /v1/version", answer({"version": version}))
        self.one, self.two = FakeMcp("ping"), FakeMcp("ping", "pong")
        self.upstream = Upstream(self.stack)
        # The same bookkeeping as for a single conversation.
        self.talk = Conversation(self.one)
        self.talk.agent = hosts = Hosts(one=self.one, two=self.two)  # type: ignore[assignment]
        self.talk.clock = self.upstream.clock
        self.talk.pool = pool = SessionPool(hosts, self.upstream.clock)
        client, detector = self.upstream.client, self.upstream.detector
        mcp = McpSource(Connectors(client, detector), pool, self.upstream.clock)
        self.detected = DetectedSource(
            detector, ToolRuntime(client), mcp, options.get("pinned", "auto")
        )
        configured = ConfiguredServers({"two": ConfiguredServer(TWO)})
        named = McpSource(configured, pool, self.upstream.clock, CONFIGURED)
        self.union = UnionSource(named, self.detected, configured.endpoints)
        self.source: ToolSource = self.detected

    def connect(self, route: str = "/v1beta/connectors", **urls: str) -> None:
        """The stack names these MCP servers."""
        data = [{"connector_id": name, "url": url} for name, url in urls.items()]
        self.stack.on(f"GET {route}", answer({"data": data}))

    def settle(self) -> None:
        for _ in range(3):
            self.upstream.settle()
            self.talk.settle()

    def result(self, work: Any, after: float = 0) -> Any:
        waited = self.talk.begin(work)
        self.settle()
        if after:
            self.upstream.clock.advance(after)
            self.settle()
        return self.upstream.result(waited)

    def list(self, who: ClientContext | None = None, after: float = 0) -> Listing:
        listing: Listing = self.result(self.source.list_tools(who or ClientContext()), after)
        return listing

    def run(
        self, tool: ToolDefinition, who: ClientContext | None = None, **arguments: Any
    ) -> ToolResult:
        got: ToolResult = self.result(self.source.invoke(tool, arguments, who or ClientContext()))
        return got


# --- definitions


def test_a_tool_is_described_by_its_server() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    entry = {"name": "t", "title": "T", "description": "Does.", "inputSchema": schema}
    assert definition_of("g", ONE, entry) == ToolDefinition(
        "g", "t", "Does.", schema, PROXY_CALLED, ONE, title="T"
    )


@pytest.mark.parametrize("schema", [None, [], "x", {}])
def test_a_tool_without_a_schema_takes_anything(schema: object) -> None:
    definition = definition_of("g", ONE, {"name": "t", "title": "T", "inputSchema": schema})
    assert definition is not None
    assert definition.parameters == {"type": "object", "properties": {}}
    assert definition.description == "T"


def test_a_tool_that_only_runs_as_a_task_is_not_offered() -> None:
    """Tasks (an experiment of 2025-11-25) are not spoken here."""
    entry: Json = {"name": "t", "execution": {"taskSupport": "required"}}
    assert definition_of("g", ONE, entry) is None
    entry["execution"]["taskSupport"] = "optional"
    assert definition_of("g", ONE, entry) is not None


@pytest.mark.parametrize("entry", [{}, {"name": None}, {"name": ""}, {"name": 7}])
def test_an_entry_without_a_name_is_no_tool(entry: Json) -> None:
    assert definition_of("g", ONE, entry) is None


# --- connectors


@pytest.mark.parametrize(
    ("version", "route"),
    [
        ("0.7.3", "/v1beta/connectors"),
        ("0.8.0", "/v1beta/connectors"),
        ("1.0.4", "/v1alpha/admin/connectors"),
        ("1.5.0", "/v1alpha/admin/connectors"),
        ("1.9.0", "/v1beta/connectors"),  # moved back, say
    ],
)
def test_the_servers_connectors_are_listed_and_run(version: str, route: str) -> None:
    world = World(version)
    world.connect(route, one=ONE, two=TWO)
    listing = world.list()
    assert {group: [t.name for t in tools] for group, tools in listing.groups.items()} == {
        "one": ["ping"],
        "two": ["ping", "pong"],
    }
    world.two.handlers["tools/call"] = result(text("two says pong"))
    assert world.run(listing.groups["two"][0]) == ToolResult("two says pong")
    assert not world.one.received("tools/call")
    assert not world.stack.asked_for("GET /v1/tools")
    assert not world.stack.asked_for(INVOKE)


@pytest.mark.parametrize(
    ("version", "name", "route"),
    [
        ("0.6.1", "connectors", "/v1alpha/connectors"),
        ("0.7.3", "connectors", "/v1beta/connectors"),
        ("ogx-1.5.0", "connectors", "/v1alpha/admin/connectors"),
        ("0.3.5", "toolgroups", "/v1/toolgroups"),
    ],
)
def test_every_generations_servers_are_read(version: str, name: str, route: str) -> None:
    world = World(pinned="mcp")
    world.stack.on("GET /v1/version", recorded(version, "version"))
    world.stack.on(f"GET {route}", recorded(version, name))
    client, detector = world.upstream.client, world.upstream.detector
    urls = world.result(Connectors(client, detector).named(ClientContext()))
    assert urls == {"conn-main" if name == "connectors" else "mcp::main": MAIN}


MAIN = "http://127.0.0.1:9102/mcp"


def test_a_broken_mcp_server_costs_only_its_own_tools() -> None:
    world = World()
    world.connect(one=ONE, two=TWO)
    for lie in (raw(b"<html>"), error(-32603, "no"), raw(b"", 500), raw(b"", 401)):
        world.one.handlers["tools/list"] = lie
        listing = world.list()
        assert list(listing.groups) == ["two"]
        assert list(listing.failures) == ["one"]


def test_a_silent_mcp_server_is_given_so_long_and_no_longer() -> None:
    world = World()
    world.connect(one=ONE, two=TWO)
    world.one.handlers["tools/list"] = never
    listing = world.list(after=27)
    assert list(listing.groups) == ["two"]
    assert "27 s" in str(listing.failures["one"])


def test_odd_connectors_are_skipped() -> None:
    world = World()
    data = [
        *(None, 7, {}, {"connector_id": "x"}, {"connector_id": 7, "url": ONE}),
        {"connector_id": "one", "url": ONE},
    ]
    world.stack.on("GET /v1beta/connectors", answer({"data": data}))
    assert list(world.list().groups) == ["one"]


@pytest.mark.parametrize(
    "url",
    [
        *("http://a b/", "http://one:port/mcp", "http://one:99999/mcp", "http://", "http://[::1"),
        *("file:///etc/passwd", "http://ü/mcp", "one"),
    ],
)
def test_a_connector_whose_url_is_none_costs_only_itself(url: str) -> None:
    world = World()
    world.connect(odd=url, one=ONE)
    listing = world.list()
    assert list(listing.groups) == ["one"]
    assert list(listing.failures) == ["odd"]


@pytest.mark.parametrize("user", ["user:pa55word", ":pa55word", "pa55word"])
def test_a_connector_whose_url_has_a_password_is_told_so(user: str) -> None:
    """--mcp-server refuses it too; a resolver would be asked for all of it."""
    world = World()
    world.connect(odd=f"http://{user}@two:9000/mcp", one=ONE)
    listing = world.list()
    assert list(listing.groups) == ["one"]
    failure = listing.failures["odd"]
    assert "has a user or a password in it" in str(failure)
    assert "pa55word" not in failure.logged
    assert not world.two.asked


def test_what_a_tool_adds_to_every_chat_is_bounded() -> None:
    huge = {"type": "object", "description": "x" * 2**17}
    assert definition_of("g", ONE, {"name": "t", "inputSchema": huge}) is None
    definition = definition_of("g", ONE, {"name": "t", "description": "x" * 2**20})
    assert definition is not None
    assert len(definition.description) < 2**15


def test_text_that_is_no_text_is_put_right() -> None:
    world = World()
    world.connect(one=ONE)
    body = rb'{"jsonrpc":"2.0","id":%d,"result":{"tools":[{"name":"t","description":"a\ud800"}]}}'
    world.one.handlers["tools/list"] = lambda request, message: raw(body % message["id"])(
        request, message
    )
    assert [t.description for t in world.list().groups["one"]] == ["a\ufffd"]


@pytest.mark.parametrize("status", [500, 502])
def test_where_connectors_cannot_be_listed_the_option_is_named(status: int) -> None:
    """OGX 1.0.4 answers 500, always."""
    world = World("1.0.4")
    world.stack.on("GET /v1alpha/admin/connectors", answer({"detail": "boom"}, status))
    with pytest.raises(UpstreamBroke, match=f"{status} on /v1alpha/admin/connectors.*--mcp-server"):
        world.list()


def test_a_server_without_connectors_is_told_of_the_option() -> None:
    with pytest.raises(UpstreamBroke, match="--mcp-server"):
        World().list()


def test_a_plain_openai_server_is_asked_for_nothing() -> None:
    world = World()
    world.stack.on("GET /v1/version", answer({"detail": "Not Found"}, 404))
    assert world.list() == Listing({})
    assert [each.path for each in world.stack.asked] == ["/v1/version"]


@pytest.mark.parametrize(
    "trouble",
    [
        answer(b"<html>Bad Gateway", 502),
        answer(b"<html>Log in", 200, {"Content-Type": "text/html"}),
        answer(b"", 302, {"Location": "/login"}),
        hang_up,
    ],
)
def test_a_server_that_does_not_say_what_it_is_has_tools_that_are_not_known(
    trouble: Answer,
) -> None:
    """DESIGN: L22. A server behind a gateway that is still starting is no server without tools."""
    world = World()
    world.stack.on("GET /v1/version", trouble)
    with pytest.raises(ProxyError) as raised:
        world.list()
    assert raised.value is world.upstream.detector.trouble
    world.source = world.union
    listing = world.list()
    assert list(listing.groups) == ["two"] and listing.groups_error is not None
    world.stack.on("GET /v1/version", answer({"version": "0.7.3"}))
    world.connect(one=ONE)
    assert list(world.list().groups) == ["one", "two"]
    assert world.upstream.detector.trouble is None
    world.stack.on("GET /v1/version", trouble)
    assert list(world.list().groups) == ["one", "two"]


def test_a_source_that_is_pinned_to_the_tool_runtime_asks_it_all_the_same() -> None:
    world = World(pinned="tool-runtime")
    world.stack.on("GET /v1/version", answer(b"<html>Bad Gateway", 502))
    world.stack.on("GET /v1/tools", answer({"data": []}))
    assert world.list() == Listing({}, names_all=False)


def test_the_clients_key_goes_to_the_server_and_to_no_mcp_server() -> None:
    world = World()
    world.connect(one=ONE, two=TWO)
    who = caller(one={"Authorization": "Bearer t-one", "X-Team": "blue"})
    tools = world.list(who).groups
    world.run(tools["one"][0], who)
    world.run(tools["two"][0], who)
    [asked] = world.stack.asked_for("GET /v1beta/connectors")
    assert asked.headers.getRawHeaders("Authorization") == ["Bearer own"]
    [data] = asked.headers.getRawHeaders("X-LlamaStack-Provider-Data") or []
    assert json.loads(data) == {"other": 1}
    assert set(world.one.fields("Authorization")) == {"Bearer t-one"}
    assert set(world.one.fields("X-Team")) == {"blue"}
    assert set(world.two.fields("Authorization")) == {None}
    assert set(world.two.fields("X-Team")) == {None}
    for server in (world.one, world.two):
        assert set(server.fields("X-LlamaStack-Provider-Data")) == {None}
        assert server.fields("X-Request-Id")[-1] == "r-1"


def test_the_fields_spelling_is_the_servers() -> None:
    world = World("1.5.0")
    world.connect("/v1alpha/admin/connectors", one=ONE)
    world.list(caller(one={"Authorization": "Bearer t-one"}))
    [asked] = world.stack.asked_for("GET /v1alpha/admin/connectors")
    assert asked.headers.hasHeader("X-OGX-Provider-Data")
    assert not asked.headers.hasHeader("X-LlamaStack-Provider-Data")
    assert set(world.one.fields("Authorization")) == {"Bearer t-one"}


# --- calls


def called(world: World, answering: Any) -> ToolResult:
    world.connect(one=ONE)
    [ping] = world.list().groups["one"]
    world.one.handlers["tools/call"] = answering
    return world.run(ping, n=1)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (text("hello"), ToolResult("hello")),
        (text("hello", resultType=None), ToolResult("hello")),
        (text("hello", resultType="complete"), ToolResult("hello")),
        (text("boom", isError=True), ToolResult("Error: boom", True)),
        ({"content": [], "structuredContent": {"a": 1}}, ToolResult('{"a":1}')),
        ({}, ToolResult("")),
        ({"content": "odd", "isError": "yes"}, ToolResult("odd")),
    ],
)
def test_a_result_is_understood(body: Json, expected: ToolResult) -> None:
    assert called(World(), result(body)) == expected


@pytest.mark.parametrize(
    "answering",
    [
        error(-32602, "Unknown tool: ping"),
        error(-32601, "Tool not found: ping"),
        result(text("Unknown tool: ping", isError=True)),
        result(text("MCP error -32602: Tool ping not found", isError=True)),
    ],
)
def test_a_tool_that_is_gone_is_unknown(answering: Any) -> None:
    with pytest.raises(ToolUnknown):
        called(World(), answering)


@pytest.mark.parametrize(
    ("answering", "words"),
    [
        (error(-32603, "out of paper"), "out of paper"),
        (error(-32602, "missing argument"), "missing argument"),
        # It may have run: so it must not be run again.
        (error(-32602, "file ping not found"), "file ping not found"),
        (raw(b"", 403), "wants credentials"),
        (result({"resultType": "input_required"}), "ask a person"),
    ],
)
def test_a_failure_is_told_to_the_model(answering: Any, words: str) -> None:
    with pytest.raises(ToolFailed, match=words) as failed:
        called(World(), answering)
    assert not isinstance(failed.value, ToolUnknown)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        *[(-32603, "error -32603"), (-32603.0, "error -32603"), (7, "error 7")],
        *[(code, "an error") for code in ("Bearer t-one", None, True, 1.5, 10**40, -1e300, [7])],
    ],
)
def test_of_an_error_only_its_code_is_logged(code: Any, words: str) -> None:
    """What a server sends as the code may be long, or a token that it repeats."""
    world = World()
    refusing = error(code, "no")
    with pytest.raises(ToolFailed) as failed:
        called(world, refusing)
    assert failed.value.kind == f"the MCP server answered with {words}"
    world.one.handlers["tools/list"] = refusing
    assert str(world.list().failures["one"]) == f"The MCP server answered with {words}."


# --- by hand, and which source runs a tool


def test_servers_named_by_hand_come_beside_the_servers_own() -> None:
    world = World("0.6.1")
    world.stack.on("GET /v1/tools", answer({"data": [tool("clock"), tool("odd", "two")]}))
    world.stack.on(INVOKE, tool_result("noon"))
    world.source = world.union
    listing = world.list()
    assert sorted(listing.groups) == ["mcp::main", "two"]
    assert [t.name for t in listing.groups["two"]] == ["ping", "pong"]
    assert world.run(listing.groups["mcp::main"][0]) == ToolResult("noon")
    assert world.run(listing.groups["two"][0]) == ToolResult("pong")


@attrs.frozen(eq=False)
class Fixed:
    """A source whose listing is always the same."""

    listing: Listing

    async def list_tools(self, caller: ClientContext, limits: ListLimits = BACKGROUND) -> Listing:
        return self.listing

    async def invoke(self, *_: Any) -> ToolResult:
        raise NotImplementedError


def test_a_group_of_the_operators_is_never_the_servers_of_that_name() -> None:
    """Nor is it one that cannot be listed, because the server's cannot be."""
    works: Any = ["a tool"]
    fails, other = McpBroke("fails"), McpBroke("fails too")
    named = Listing({"a": works}, {"b": fails, "c": fails})
    upstream = Listing({"b": works, "d": works}, {"a": other, "c": other, "e": other})
    union = UnionSource(Fixed(named), Fixed(upstream), lambda: dict.fromkeys("abc", ""))
    listing = outcome(Deferred.fromCoroutine(union.list_tools(ClientContext())))
    assert listing == Listing(
        {"d": works, "a": works},
        {"e": other, "b": fails, "c": fails},
        configured={"a": "", "b": "", "c": ""},
    )


def test_a_group_with_the_name_of_the_operators_is_not_even_asked() -> None:
    """It may hang, and nobody is to wait for it: that may be why the operator has named another."""
    world = World()
    world.one.handlers["tools/list"] = never
    world.connect(two=ONE)
    world.source = world.union
    listing = first_listing(world)
    assert [each.endpoint for each in listing.groups["two"]] == [TWO, TWO]
    assert listing.failures == {}
    assert not world.one.received("initialize")


@pytest.mark.parametrize("broken", [hang_up, answer({"detail": "no"}, 500)])
def test_one_half_that_fails_does_not_cost_the_other(broken: Answer) -> None:
    world = World()
    world.stack.on("GET /v1beta/connectors", broken)
    world.source = world.union
    listing = world.list()
    assert list(listing.groups) == ["two"]
    assert listing.failures == {} and listing.groups_error is not None


def test_a_pin_is_kept() -> None:
    world = World("0.6.1", pinned="mcp")
    world.connect("/v1alpha/connectors", one=ONE)
    assert list(world.list().groups) == ["one"]
    world = World("0.7.3", pinned="tool-runtime")
    world.stack.on("GET /v1/tools", answer({"data": [tool("clock")]}))
    assert list(world.list().groups) == ["mcp::main"]


def test_a_server_that_was_replaced_is_noticed_with_the_next_list() -> None:
    """0.7 still answers ``GET /v1/tools``, with what cannot be run."""
    world = World("0.6.1")
    world.stack.on("GET /v1/tools", answer({"data": [tool("clock")]}))
    assert list(world.list().groups) == ["mcp::main"]
    world.stack.on("GET /v1/version", recorded("0.7.3", "version"))
    world.stack.on("GET /v1/tools", recorded("0.7.3", "tools"))
    world.connect(one=ONE)
    assert list(world.list().groups) == ["one"]
    world.stack.on("GET /v1/version", answer({"version": "0.6.1"}))
    world.stack.on("GET /v1/tools", answer({"data": [tool("clock")]}))
    assert list(world.list().groups) == ["mcp::main"]


# --- a first chat waits five seconds for all of it (DESIGN: T3)


#: Of a first chat, when nothing has failed before.
LIMITS = ListLimits(5)


def first_listing(world: World, *steps: float | Answer, **limits: Any) -> Listing:
    """What a first chat is offered in the end; *steps* are seconds that pass, and late answers."""
    limited = ListLimits(5, until=world.upstream.clock.seconds() + 5, **limits)
    waited = world.talk.begin(world.source.list_tools(ClientContext(), limited))
    world.settle()
    for step in steps:
        if callable(step):
            step(world.stack.open[-1])
        else:
            world.upstream.clock.advance(step)
        world.settle()
    listing: Listing = world.upstream.result(waited)
    return listing


def test_a_server_that_stalls_does_not_cost_a_first_chat_the_operators_tools() -> None:
    """It has been seen to stall for 11 s after an error."""
    world = World()
    world.stack.on("GET /v1/version", nothing)
    world.source = world.union
    listing = first_listing(world, 5)
    assert list(listing.groups) == ["two"]
    assert isinstance(listing.groups_error, UpstreamTimeout)
    assert "within 5 s" in str(listing.groups_error)


def test_connectors_that_come_late_do_not_cost_a_first_chat_the_operators_tools() -> None:
    world = World()
    world.stack.on("GET /v1/version", nothing)
    world.stack.on("GET /v1beta/connectors", nothing)
    world.source = world.union
    listing = first_listing(world, 3, answer({"version": "0.7.3"}), 1.6)
    assert list(listing.groups) == ["two"]
    assert "within 1.6 s" in str(listing.groups_error)


def test_a_server_that_is_detected_twice_does_not_take_twice_as_long() -> None:
    """It does not say what it is just now, so its connectors are those of what it was."""
    world = World()
    world.connect(one=ONE)
    assert list(world.list().groups) == ["one"]
    world.upstream.detector.forget()
    world.stack.on("GET /v1/version", nothing)
    world.source = world.union
    listing = first_listing(world, 3, answer(b"<html>Bad Gateway", 502), 2)
    assert list(listing.groups) == ["two"]
    assert isinstance(listing.groups_error, UpstreamTimeout)


def test_connectors_have_as_long_as_there_is_where_nobody_waits() -> None:
    world = World()
    world.stack.on("GET /v1beta/connectors", nothing)
    waited = world.talk.begin(world.source.list_tools(ClientContext()))
    world.settle()
    world.upstream.clock.advance(11)
    answer({"data": [{"connector_id": "one", "url": ONE}]})(world.stack.open[0])
    world.settle()
    assert list(world.upstream.result(waited).groups) == ["one"]


def test_what_has_failed_before_is_listed_last_and_takes_no_more_than_there_is() -> None:
    """DESIGN: T3. Sixteen that hang would take all places."""
    world = World()
    world.one.handlers["tools/list"] = never
    suspects: dict[str, ProxyError] = {f"hangs{n:02}": McpTimeout(str(n)) for n in range(20)}
    world.connect(**{name: f"{ONE}/{name}" for name in suspects}, two=TWO, zz=f"{TWO}/zz")
    limits = ListLimits(5, until=5, suspects=suspects)
    waited = world.talk.begin(world.source.list_tools(ClientContext(), limits))
    world.settle()
    assert len(world.two.received("tools/list")) == 2
    for seconds in (4.5, 0.5):
        world.upstream.clock.advance(seconds)
        world.settle()
    listing: Listing = world.upstream.result(waited)
    assert list(listing.groups) == ["two", "zz"]
    assert list(listing.failures) == list(suspects)


def failure_beside_a_healthy_group(stall: float, left: float) -> ProxyError:
    """That of one that hangs; the server needs *stall* seconds to say what it is."""
    world = World()
    world.one.handlers["tools/list"] = never
    world.stack.on("GET /v1/version", nothing)
    world.connect(one=ONE, two=TWO)
    listing = first_listing(world, stall, answer({"version": "0.7.3"}), left)
    assert list(listing.groups) == ["two"]
    return listing.failures["one"]


def test_a_server_that_is_slow_to_say_what_it_is_leaves_its_groups_less_time() -> None:
    """Else one that hangs would cost a first chat all the others."""
    failure = failure_beside_a_healthy_group(2, 2.7)
    assert "within 2.7 s" in str(failure)
    assert LIMITS.is_new("one", failure)


def test_a_group_that_had_too_little_time_has_not_failed() -> None:
    """It may be healthy: the chats of others still ask it."""
    failure = failure_beside_a_healthy_group(4, 0.9)
    assert "too little time" in str(failure)
    assert not LIMITS.is_new("one", failure)


def test_what_is_left_of_the_time_is_for_all_steps_of_the_tool_runtime_api() -> None:
    world = World("0.6.1")
    world.stack.on("GET /v1/version", nothing)
    world.stack.on("GET /v1/tools", nothing)
    groups = [{"identifier": "good"}, {"identifier": "hangs"}]
    world.stack.on("GET /v1/toolgroups", answer({"data": groups}))
    world.stack.on("GET /v1/tools?toolgroup_id=good", answer({"data": [tool("clock", "good")]}))
    world.stack.on("GET /v1/tools?toolgroup_id=hangs", nothing)
    listing = first_listing(world, 2.4, answer({"version": "0.6.1"}), 1.3, 0.78)
    assert list(listing.groups) == ["good"]
    assert not LIMITS.is_new("hangs", listing.failures["hangs"])


@pytest.mark.parametrize(("hang", "asked"), [(20, True), (32, False)])
def test_more_that_hang_than_are_listed_at_a_time_cost_a_first_chat_no_more_than_there_is(
    hang: int, asked: bool
) -> None:
    world = World()
    world.one.handlers["tools/list"] = never
    hanging = [f"hangs{n:02}" for n in range(hang)]
    world.connect(**{name: f"{ONE}/{name}" for name in hanging}, two=TWO)
    listing = first_listing(world, 4.5, 0.5)
    assert list(listing.groups) == (["two"] if asked else [])
    assert list(listing.failures) == (hanging if asked else [*hanging, "two"])
    if not asked:
        assert "too little time" in str(listing.failures["two"])


def test_a_list_that_trickles_is_given_no_more_time() -> None:
    world = World()
    world.stack.on("GET /v1beta/connectors", nothing)
    waited = world.talk.begin(world.source.list_tools(ClientContext()))
    world.settle()
    for _ in range(24):
        world.stack.open[0].write(b" ")
        world.settle()
        world.upstream.clock.advance(1)
    world.settle()
    with pytest.raises(UpstreamTimeout, match="within 24 s"):
        world.upstream.result(waited)


# --- tokens for the tool-runtime API


LOCKED = {"main": {"Authorization": "Bearer sesame", "X-Team": "blue"}}


def sent(world: World, route: str) -> list[tuple[Json | None, Json | None]]:
    """What provider data, and what body, requests of *route* had."""
    return [
        (
            json.loads((each.headers.getRawHeaders("X-LlamaStack-Provider-Data") or ["null"])[0]),
            each.json() if each.body else None,
        )
        for each in world.stack.asked_for(route)
    ]


@pytest.mark.parametrize("header", ["X-LlamaStack-Provider-Data", "X-OGX-Provider-Data"])
def test_up_to_0_3_mcp_headers_go_as_they_are(header: str) -> None:
    world = World("0.3.5")
    who = caller(header, **LOCKED)
    world.stack.on("GET /v1/tools", recorded("0.3.5", "tools"))
    world.stack.on(INVOKE, tool_result("pong"))
    [ping] = [t for t in world.list(who).groups["mcp::main"] if t.name == "ping"]
    world.run(ping, who)
    provider_data = {"mcp_headers": {MAIN: LOCKED["main"]}, "other": 1}
    assert sent(world, "GET /v1/tools") == [(provider_data, None)]
    assert sent(world, INVOKE) == [(provider_data, {"tool_name": "ping", "kwargs": {}})]


@pytest.mark.parametrize("header", ["X-LlamaStack-Provider-Data", "X-OGX-Provider-Data"])
@pytest.mark.parametrize("version", ["0.4.7", "0.5.4", "0.6.1"])
def test_from_0_4_to_0_6_a_token_travels_apart(version: str, header: str) -> None:
    world = World(version)
    who = caller(header, **LOCKED)
    groups = recorded("0.6.1", "toolgroups_after_register")
    world.stack.on("GET /v1/toolgroups", groups)
    world.stack.on("GET /v1/tools", answer({"data": []}))
    main = "GET /v1/tools?toolgroup_id=mcp%3A%3Amain&authorization=sesame"
    world.stack.on(main, recorded("0.6.1", "tools_by_group"))
    world.stack.on(INVOKE, recorded("0.6.1", "invoke_authorization"))
    [ping] = [t for t in world.list(who).groups["mcp::main"] if t.name == "ping"]
    assert world.run(ping, who) == ToolResult("pong")
    rest = {"mcp_headers": {MAIN: {"X-Team": "blue"}}, "other": 1}
    assert [data for data, _ in sent(world, "GET /v1/tools")] == [rest] * 3
    body = {"tool_name": "ping", "kwargs": {}, "authorization": "sesame"}
    assert sent(world, INVOKE) == [(rest, body)]
    targets = [each.target for each in world.stack.asked_for("GET /v1/tools")]
    assert [target.count("sesame") for target in targets] == [1, 0, 0]


def test_a_caller_without_tokens_lists_everything_at_once() -> None:
    world = World("0.6.1")
    world.list(caller(main={"X-Team": "blue"}))
    assert len(world.stack.asked_for("GET /v1/tools")) == 1


# --- how a caller's words are translated


def translated(
    value: str, mcp_headers: str, header: str = "X-LlamaStack-Provider-Data"
) -> ClientContext:
    who = ClientContext.of(head_with({header: [value], "Authorization": ["Bearer own"]}))
    return who.translated(b"x-ogx-provider-data", mcp_headers)


@pytest.mark.parametrize("broken", ["{", "[]", "7", "null", '"x"', "\xff"])
def test_broken_provider_data_is_sent_to_nobody(broken: str) -> None:
    fields = headers_of(translated(broken, "apart").fields())
    assert not fields.hasHeader("X-OGX-Provider-Data")
    assert fields.getRawHeaders("Authorization") == ["Bearer own"]


@pytest.mark.parametrize(
    "provider_data",
    [
        {"mcp_headers": 7},
        {"mcp_headers": {"u": 7}},
        {"mcp_headers": {"u": {"Authorization": 7}}},
        {"mcp_headers": None, "a": 1},
    ],
)
@pytest.mark.parametrize("what", ["kept", "apart", "dropped"])
def test_odd_mcp_headers_break_nothing(provider_data: Json, what: str) -> None:
    who = translated(json.dumps(provider_data), what)
    assert who.mcp_headers("u") == ()
    assert who.token("u") is None


@pytest.mark.parametrize(
    ("value", "token"),
    [("Bearer t", "t"), ("bearer  t ", "t"), ("t", "t"), ("Basic abc", "Basic abc")],
)
def test_a_bare_token_is_made_of_the_field(value: str, token: str) -> None:
    who = translated(json.dumps({"mcp_headers": {"http://u/": {"authorization": value}}}), "apart")
    assert who.token("http://u") == token
    assert who.token("http://v") is None
    assert b'authorization": "' not in repr(who.fields()).encode()


def test_one_without_provider_data_stays_who_he_is() -> None:
    who = ClientContext.of(head_with({"Authorization": ["Bearer own"]}))
    assert who.translated(b"x-ogx-provider-data", "apart") is who


def test_both_spellings_together() -> None:
    who = ClientContext.of(
        head_with(
            {
                "X-LlamaStack-Provider-Data": [
                    json.dumps({"a": 1, "mcp_headers": {"u": {"A": "1"}}})
                ],
                "X-OGX-Provider-Data": [json.dumps({"b": 2, "mcp_headers": {"v": {"B": "2"}}})],
            }
        )
    )
    assert who.mcp_headers("u") == (("A", "1"),)
    assert who.mcp_headers("v/") == (("B", "2"),)
    [(name, data)] = who.translated(b"x-ogx-provider-data", "dropped").fields()
    assert name == b"x-ogx-provider-data"
    assert json.loads(data) == {"a": 1, "b": 2}


def test_a_lost_upstream_is_asked_again_what_it_is() -> None:
    world = World()
    world.connect(one=ONE)
    world.list()
    world.stack.on("GET /v1beta/connectors", hang_up)
    with pytest.raises(ProxyError):
        world.list()
    assert world.upstream.detector.detected is None


def test_a_long_list_is_whole_all_the_same() -> None:
    talk = Conversation(FakeMcp(*(f"t{number}" for number in range(2000))))
    source = McpSource(
        ConfiguredServers({"one": ConfiguredServer(URL)}), talk.pool, talk.clock, CONFIGURED
    )
    listing = talk.result(source.list_tools(ClientContext()), after=1)
    assert [tool.name for tool in listing.groups["one"]] == [f"t{n}" for n in range(2000)]
