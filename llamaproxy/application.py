"""assemble: all that answers requests, built out of options; without sockets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import attrs
from hyperlink import DecodedURL
from twisted.internet.interfaces import IReactorProcess, IReactorTime
from twisted.logger import Logger
from twisted.web.resource import IResource

from llamaproxy.admin import names
from llamaproxy.admin.eventlog import LOGGED, log_event
from llamaproxy.admin.metrics import Metrics
from llamaproxy.admin.toolstatus import ToolStatus
from llamaproxy.chat.body_budget import BodyBudget
from llamaproxy.chat.endpoint import ChatCompletions
from llamaproxy.chat.loop import CallSlots, ToolLoop
from llamaproxy.chat.memory import TurnMemory, TurnStore
from llamaproxy.chat.shared_turns import FarTurns, SharedTurns
from llamaproxy.chat.toolless import ToollessModels
from llamaproxy.cors import CorsMemory
from llamaproxy.events import Observers
from llamaproxy.routes import ProxyApp
from llamaproxy.server.keys import ApiKeys
from llamaproxy.tools.catalogue import Catalogue
from llamaproxy.tools.llamaserver import LlamaServerTools
from llamaproxy.tools.mcp.configured import ConfiguredServer, ConfiguredServers
from llamaproxy.tools.mcp.pool import SessionPool
from llamaproxy.tools.mcp.programs import AllSessions, ProgramPool, Programs
from llamaproxy.tools.mcp.source import Connectors, McpSource, Sessions
from llamaproxy.tools.offers import Offers
from llamaproxy.tools.source import CONFIGURED, DetectedSource, ToolSource, UnionSource
from llamaproxy.tools.toolruntime import ToolRuntime
from llamaproxy.upstream.client import LlamaStackClient
from llamaproxy.upstream.client_context import ClientContextReader
from llamaproxy.upstream.completions import Completions
from llamaproxy.upstream.dialect import Detector
from llamaproxy.upstream.inflate import InflatingAgent
from llamaproxy.upstream.passthrough import LlamaStackResource
from llamaproxy.upstream.responses import SendingAgent
from llamaproxy.upstream.secrets import Secret
from llamaproxy.upstream.treq_client import AuthorizedAgent

if TYPE_CHECKING:
    from llamaproxy.admin.tracing.spans import Spans
    from llamaproxy.config.mcpfile import McpConfig

_log = Logger()


class ToolsElsewhere(Protocol):
    """Another process, which lists the tools for this one too, and has its programs."""

    @property
    def programs(self) -> Programs: ...

    def source(self, own: ToolSource, detector: Detector) -> ToolSource:
        """The tools as that lists them, run by this process's *own* source."""

    def changed(self) -> None:
        """A server has told that its tools have changed; the catalogue is told by that process."""


@attrs.frozen(eq=False, repr=False)
class Application:
    """Everything that answers requests, from the root of the resource tree on; without sockets."""

    resource: IResource
    client: LlamaStackClient
    detector: Detector
    catalogue: Catalogue
    sessions: SessionPool
    programs: Programs
    configured: ConfiguredServers
    memory: TurnMemory
    bodies: BodyBudget
    cors: CorsMemory
    metrics: Metrics
    tool_status: ToolStatus
    tell: Observers


def assemble(
    options: Mapping[str, Any],
    url: DecodedURL,
    clock: IReactorTime,
    agent: SendingAgent,
    anywhere: SendingAgent,
    spans: Spans | None = None,
    far: FarTurns | None = None,
    elsewhere: ToolsElsewhere | None = None,
    processes: IReactorProcess | None = None,
) -> Application:
    """The application that *options* describe, in front of the server at *url*.

    :param agent: asks that server.

    :param anywhere: asks MCP servers, wherever they are.

    :param processes: starts the programs of ``--mcp-config``; with None, none can be started.

    :param spans: makes spans of requests; None if traces are off.

    :param far: remembers turns for other processes too; None if there are none.

    :param elsewhere: lists the tools; None if this process does.
    """
    keys: ApiKeys | None = options["api-keys-file"]
    server_key: bytes = options["upstream-key"] or b""
    if keys is not None:
        server_key = server_key or options["llamastack-api-key"]
    if server_key:
        agent = AuthorizedAgent(agent, server_key)
    secret = Secret(server_key)
    timeout: float = options["upstream-timeout"]
    client = LlamaStackClient(InflatingAgent(agent, clock), url, clock, timeout, secret)
    detector = Detector(client)
    metrics = Metrics(clock.seconds)
    tool_status = ToolStatus(clock)
    tell = Observers()
    if spans is not None:
        tell.listen(spans, *spans.hears)  # the first, for the others show the id of the trace
    tell.listen(log_event, *LOGGED)
    if options["admin"] != "off":
        metrics.listen(tell)
    tell.listen(tool_status, *tool_status.hears)
    changed = _changed_here(lambda: catalogue) if elsewhere is None else elsewhere.changed
    sessions = SessionPool(
        InflatingAgent(anywhere, clock), clock, changed, options["max-mcp-sessions"]
    )
    programs: Programs
    programs = ProgramPool(processes, clock, changed) if elsewhere is None else elsewhere.programs
    configured = ConfiguredServers(configured_servers(options), programs.configure)
    all_sessions = AllSessions(sessions, programs)
    source = _tool_source(options, clock, client, detector, configured, all_sessions)
    catalogue = Catalogue(
        source=source if elsewhere is None else elsewhere.source(source, detector),
        clock=clock,
        ttl=options["tools-ttl"],
        tool_timeout=options["tool-timeout"],
        max_result=options["max-tool-result"],
        offers=Offers(options["max-tools"], options["max-tool-list"]),
        max_callers=options["max-callers"],
        tell=tell,
    )
    memory = TurnMemory(
        clock, options["memory-entries"], options["memory-bytes"], options["memory-age"]
    )
    turns: TurnStore = memory
    if far is not None:
        turns = SharedTurns(clock, memory, far, options["memory-age"])
    slots = CallSlots(options["max-calls-per-chat"], options["max-calls"])
    cors = CorsMemory()
    bodies = BodyBudget(options["max-chat-bodies"])
    _watch_memory(metrics, memory, catalogue, sessions, bodies)
    chat = ChatCompletions(
        loop=ToolLoop(
            catalogue,
            turns,
            options["max-iterations"],
            slots,
            ToollessModels(clock),
            options["mcp-instructions"],
            tell,
        ),
        upstream=Completions(client, detector),
        clock=clock,
        keep_alive=options["keep-alive"],
        bodies=bodies,
        clients=ClientContextReader(options["trusted-proxies"], options["identity-headers"]),
        cors=cors,
        tell=tell,
    )
    passthrough = LlamaStackResource(
        agent, url, detector, clock, timeout, options["trusted-proxies"], secret, cors
    )
    resource = ProxyApp(chat, passthrough, cors).resource()
    return Application(
        resource=resource,
        client=client,
        detector=detector,
        catalogue=catalogue,
        sessions=sessions,
        programs=programs,
        configured=configured,
        memory=memory,
        bodies=bodies,
        cors=cors,
        metrics=metrics,
        tool_status=tool_status,
        tell=tell,
    )


def _changed_here(catalogue: Callable[[], Catalogue]) -> Callable[[], None]:
    """What a server's word that its tools have changed leads to, in the catalogue made later."""
    return lambda: catalogue().changed()


def _watch_memory(
    metrics: Metrics,
    memory: TurnMemory,
    catalogue: Catalogue,
    sessions: SessionPool,
    bodies: BodyBudget,
) -> None:
    """Have *metrics* show what is kept in memory, beside its limits."""
    # Of a store, where there is one.
    metrics.declare(names.MEMORY_STORE_UP, names.MEMORY_STORE_ERRORS, names.MEMORY_STORE_LOOKUPS)
    for series, figures, key, *labels in (
        (names.CACHE_ENTRIES, memory.figures, "turns", "turns"),
        (names.CACHE_ENTRIES_MAX, memory.figures, "max_turns", "turns"),
        (names.CACHE_BYTES, memory.figures, "bytes", "turns"),
        (names.CACHE_BYTES_MAX, memory.figures, "max_bytes", "turns"),
        (names.CACHE_ENTRIES, catalogue.figures, "callers", "tool_lists"),
        (names.CACHE_ENTRIES_MAX, catalogue.figures, "max_callers", "tool_lists"),
        (names.CACHE_ENTRIES, sessions.figures, "sessions", "mcp_sessions"),
        (names.CACHE_ENTRIES_MAX, sessions.figures, "max_sessions", "mcp_sessions"),
        (names.CHAT_BODIES, bodies.figures, "bytes"),
        (names.CHAT_BODIES_MAX, bodies.figures, "max_bytes"),
    ):
        metrics.watch_figure(series, figures, key, *labels)


def configured_servers(options: Mapping[str, Any]) -> dict[str, ConfiguredServer]:
    """The MCP servers that *options* name; what is wrong with others is logged."""
    servers = {
        name: ConfiguredServer(url, options["mcp-header"].get(url, ()))
        for name, url in options["mcp-server"].items()
    }
    config: McpConfig | None = options["mcp-config"]
    if config is None:
        return servers
    problems = dict(config.file.problems)
    for name, server in config.file.servers.items():
        if name in servers:
            problems[name] = "--mcp-server has one of this name"
        servers.setdefault(name, server)
    for name, problem in problems.items():
        _log.warn(
            "the MCP server {name} of {path} is left out: {reason}",
            name=name,
            path=config.path,
            reason=problem,
        )
    return servers


def reread_servers(options: Mapping[str, Any], app: Application) -> None:
    """Take the MCP servers that are in their file now, if it is usable, and say so in the log.

    Calls under way end on what they began with.
    """
    config: McpConfig = options["mcp-config"]
    try:
        config.reread()
    except ValueError as error:
        _log.warn("the MCP servers stay as they were: the file {reason}", reason=str(error))
    else:
        count = use_servers(options, app)
        _log.info("MCP servers read again: {count}", count=count)


def use_servers(options: Mapping[str, Any], app: Application) -> int:
    """Have *app* use the MCP servers that *options* name now; how many there are."""
    servers = configured_servers(options)
    app.configured.configure(servers)
    app.catalogue.reconfigured()
    return len(servers)


def _tool_source(
    options: Mapping[str, Any],
    clock: IReactorTime,
    client: LlamaStackClient,
    detector: Detector,
    configured: ConfiguredServers,
    sessions: Sessions,
) -> ToolSource:
    """Where tools come from: the server, and the MCP servers that the operator names."""
    connectors = McpSource(Connectors(client, detector), sessions, clock)
    plain = LlamaServerTools(client, options["builtin-tools"])
    pinned = options["tool-source"]
    source = DetectedSource(detector, ToolRuntime(client), connectors, pinned, plain)
    if not options["mcp-server"] and options["mcp-config"] is None:
        return source
    named = McpSource(configured, sessions, clock, CONFIGURED)
    return UnionSource(named, source, configured.endpoints)
