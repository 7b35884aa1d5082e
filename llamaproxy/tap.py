"""makeService: the composition root, the only module that builds objects out of options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from hyperlink import DecodedURL
from twisted.application.service import IService, MultiService, Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.web.resource import IResource

from llamaproxy import __version__
from llamaproxy.admin import names
from llamaproxy.admin.endpoint import AdminApp
from llamaproxy.admin.eventlog import LOGGED, log_event
from llamaproxy.admin.looplag import LoopLag
from llamaproxy.admin.metrics import Metrics
from llamaproxy.admin.toolstatus import ToolStatus
from llamaproxy.chat.body_budget import BodyBudget
from llamaproxy.chat.endpoint import ChatCompletions
from llamaproxy.chat.loop import CallSlots, ToolLoop
from llamaproxy.chat.memory import TurnMemory
from llamaproxy.config.options import Options
from llamaproxy.cors import CorsMemory
from llamaproxy.events import Observers
from llamaproxy.greeting import GreetingService
from llamaproxy.jsontext import Json
from llamaproxy.routes import CHAT_PATHS, ProxyApp
from llamaproxy.server.hosts import hosts_for
from llamaproxy.server.keys import ApiKeys, KeysService
from llamaproxy.server.limits import Limits, connections_possible
from llamaproxy.server.listen import ListenService, client_url
from llamaproxy.server.prompt_writes import prompt_writes
from llamaproxy.server.services import OrderedServices
from llamaproxy.server.signals import SecondSignal
from llamaproxy.server.site import ProxySite
from llamaproxy.server.twistedparts import use_monotonic_time
from llamaproxy.tools.catalogue import Catalogue
from llamaproxy.tools.mcp.pool import SessionPool
from llamaproxy.tools.mcp.source import Connectors, FixedServers, McpSource
from llamaproxy.tools.offers import Offers
from llamaproxy.tools.source import DetectedSource, ToolSource, UnionSource
from llamaproxy.tools.toolruntime import ToolRuntime
from llamaproxy.upstream.agent import AgentForAnywhere, UpstreamAgent
from llamaproxy.upstream.client import LlamaStackClient
from llamaproxy.upstream.client_context import ClientContextReader
from llamaproxy.upstream.completions import Completions
from llamaproxy.upstream.dialect import Detector
from llamaproxy.upstream.inflate import InflatingAgent
from llamaproxy.upstream.passthrough import LlamaStackResource
from llamaproxy.upstream.pool import UpstreamPool
from llamaproxy.upstream.responses import SendingAgent
from llamaproxy.upstream.secrets import Secret
from llamaproxy.upstream.treq_client import AuthorizedAgent

_log = Logger()


@attrs.frozen(eq=False, repr=False)
class Application:
    """Everything that answers requests, from the root of the resource tree on; without sockets."""

    resource: IResource
    detector: Detector
    catalogue: Catalogue
    sessions: SessionPool
    memory: TurnMemory
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
) -> Application:
    """The application that *options* describe, in front of the server at *url*.

    :param agent: asks that server.

    :param anywhere: asks MCP servers, wherever they are.
    """
    keys: ApiKeys | None = options["api-keys-file"]
    server_key: bytes = options["llamastack-api-key"] if keys is not None else b""
    if server_key:
        agent = AuthorizedAgent(agent, server_key)
    secret = Secret(server_key)
    timeout: float = options["upstream-timeout"]
    client = LlamaStackClient(InflatingAgent(agent, clock), url, clock, timeout, secret)
    detector = Detector(client)
    metrics = Metrics(clock.seconds, CHAT_PATHS)
    tool_status = ToolStatus(clock)
    tell = Observers()
    tell.listen(log_event, *LOGGED)
    if options["admin"] != "off":
        tell.listen(metrics, *metrics.hears)
    tell.listen(tool_status, *tool_status.hears)
    sessions = SessionPool(
        InflatingAgent(anywhere, clock),
        clock,
        lambda: catalogue.changed(),
        options["max-mcp-sessions"],
    )
    catalogue = Catalogue(
        source=_tool_source(options, clock, client, detector, sessions),
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
    slots = CallSlots(options["max-calls-per-chat"], options["max-calls"])
    cors = CorsMemory()
    bodies = BodyBudget(options["max-chat-bodies"])
    _watch_memory(metrics, memory, catalogue, sessions, bodies)
    chat = ChatCompletions(
        loop=ToolLoop(catalogue, memory, options["max-iterations"], slots, tell),
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
        resource, detector, catalogue, sessions, memory, cors, metrics, tool_status, tell
    )


def _watch_memory(
    metrics: Metrics,
    memory: TurnMemory,
    catalogue: Catalogue,
    sessions: SessionPool,
    bodies: BodyBudget,
) -> None:
    """Have *metrics* show what is kept in memory, beside its limits."""
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


def _tool_source(
    options: Mapping[str, Any],
    clock: IReactorTime,
    client: LlamaStackClient,
    detector: Detector,
    sessions: SessionPool,
) -> ToolSource:
    """Where tools come from: the server, and the MCP servers that the operator names."""
    connectors = McpSource(Connectors(client, detector), sessions, clock)
    source = DetectedSource(detector, ToolRuntime(client), connectors, options["tool-source"])
    if not options["mcp-server"]:
        return source
    servers = FixedServers(options["mcp-server"])
    return UnionSource(McpSource(servers, sessions, clock, options["mcp-header"]), source)


def makeService(options: Options, reactor: Any = None, **fixed_limits: float) -> IService:
    """The daemon that *options* describe.

    :param fixed_limits: those of :class:`Limits` that are no option.
    """
    by_twistd = reactor is None  # which passes options alone
    if by_twistd:
        from twisted.internet import reactor

        use_monotonic_time(reactor)
    Factory.noisy = False  # "Starting factory", for every connection that is made
    ordered: Any = OrderedServices
    services: MultiService = ordered()
    if options["api-keys-file"] is not None:
        # Before the others, to stop after them: SIGHUP would end a daemon that is draining.
        services.addService(KeysService(options["api-keys-file"], reactor))
    url: DecodedURL = options["llamastack-url"]
    if options["demo"]:
        from llamaproxy.demo.service import DemoService  # few run it, and none in production

        demo = DemoService(reactor)
        services.addService(demo)
        url = demo.url
    sockets = prompt_writes(reactor)
    pool = UpstreamPool(reactor)
    reaching = (options["connect-timeout"], options["upstream-ca"])
    agent = UpstreamAgent(sockets, url, pool, *reaching)
    anywhere = AgentForAnywhere(sockets, pool, *reaching)
    app = assemble(options, url, reactor, agent, anywhere)
    services.addService(UpstreamService(pool, app.catalogue, app.sessions))
    listen = _listen_service(options, sockets, app, fixed_limits)
    if options["admin"] != "off":
        services.addService(_admin_service(options, sockets, app, url, listen))
        lag = LoopLag(reactor)
        app.metrics.watch(names.LOOP_LAG, lambda: lag.seconds)
        services.addService(lag)
    if by_twistd:
        services.addService(GreetingService(url.to_text(), app.detector, app.catalogue, reactor))
    # The last to start and the first to stop.
    services.addService(listen)
    if by_twistd:
        services.addService(SecondSignal(reactor, listen.stop_now))
    _log_start(options, url)
    return services


def _listen_service(
    options: Options, reactor: Any, app: Application, fixed_limits: Mapping[str, float]
) -> ListenService:
    """The ports for clients."""
    limits = Limits(
        body=options["max-body"],
        bodies={path.encode(): options["max-chat-body"] for path in CHAT_PATHS},
        connections=connections_possible(options["max-connections"]),
        header_timeout=options["header-timeout"],
        client_timeout=options["client-timeout"],
        **fixed_limits,  # type: ignore[arg-type]
    )
    site = ProxySite(
        app.resource,
        reactor,
        limits,
        options["api-keys-file"],
        app.cors,
        hosts_for(options["listen"], options["allowed-hosts"]),
        app.tell,
    )
    connections, watch = site.connections, app.metrics.watch
    watch(names.CONNECTIONS, lambda: connections.connected)
    watch(names.CONNECTIONS_MAX, lambda: limits.connections)
    watch(names.RUNNING, lambda: connections.running)
    watch(names.STREAMS_OPEN, lambda: connections.streams)
    watch(names.LISTENER_FAILURES, lambda: app.tell.failures)
    return ListenService(reactor, options["listen"], site, options["drain-timeout"])


def _admin_service(
    options: Options, reactor: Any, app: Application, url: DecodedURL, listen: ListenService
) -> ListenService:
    """The port for operators, which may be missing unless it was asked for."""

    def upstream() -> Json:
        detected = app.detector.detected
        return {"url": url.to_text(), "server": None if detected is None else detected.name}

    admin = AdminApp(app.metrics, lambda: listen.draining, upstream, app.tool_status.as_json)
    hosts = hosts_for([options["admin"]], options["allowed-hosts"])
    site = ProxySite(admin.resource(), reactor, hosts=hosts, tell=Observers(log_event))
    optional = "admin" not in options.explicit
    return ListenService(reactor, [options["admin"]], site, drain=0, optional=optional)


def _log_start(options: Options, url: DecodedURL) -> None:
    """What an operator reads first in the log."""
    if options["llamastack-api-key"] and options["api-keys-file"] is None:
        _log.warn("LLAMASTACK_API_KEY is not used: that needs --api-keys-file")
    if options.shortened_url:
        _log.warn(
            "--llamastack-url without the path of clients at its end: {url}", url=url.to_text()
        )
    _log.info(
        "llamaproxy {version} gives the tools of {url} to clients, which use {clients}; "
        "the admin port is {admin}",
        version=__version__,
        url=url.to_text(),
        clients=", ".join(f"{each}/v1" for each in map(client_url, options["listen"])),
        admin="off" if options["admin"] == "off" else f"{client_url(options['admin'])}/status",
    )


class UpstreamService(Service):
    """Ends, when the daemon stops, what would go on without a client."""

    def __init__(self, pool: UpstreamPool, catalogue: Catalogue, sessions: SessionPool) -> None:
        self._pool = pool
        self._catalogue = catalogue
        self._sessions = sessions

    def stopService(self) -> Deferred[None]:
        Service.stopService(self)
        self._catalogue.stop()
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        await self._sessions.close()
        self._pool.close()
