"""makeService: the composition root, the only module that builds objects out of options."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import attrs
from hyperlink import DecodedURL
from twisted.application.service import IService, MultiService, Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.web.resource import IResource

from llamaproxy import __version__
from llamaproxy.admin import names
from llamaproxy.admin.answers import Answers
from llamaproxy.admin.eventlog import LOGGED, log_event
from llamaproxy.admin.feed import Feed
from llamaproxy.admin.inspector import Inspector
from llamaproxy.admin.looplag import LoopLag
from llamaproxy.admin.metrics import Metrics
from llamaproxy.admin.reachability import Reachability
from llamaproxy.admin.status import Status
from llamaproxy.admin.toolstatus import ToolStatus
from llamaproxy.admin.tracing.switch import tracing_service
from llamaproxy.chat.body_budget import BodyBudget
from llamaproxy.chat.endpoint import ChatCompletions
from llamaproxy.chat.loop import CallSlots, ToolLoop
from llamaproxy.chat.memory import TurnMemory
from llamaproxy.config.options import Options
from llamaproxy.cors import CorsMemory
from llamaproxy.events import Observers
from llamaproxy.greeting import GreetingService
from llamaproxy.jsontext import Json
from llamaproxy.prompt_writes import prompt_writes, promptly_by
from llamaproxy.records import RequestRecord
from llamaproxy.routes import CHAT_PATHS, LateResource, ProxyApp
from llamaproxy.server.hosts import admin_hosts_for, hosts_for, open_interface
from llamaproxy.server.keys import ApiKeys, KeysService
from llamaproxy.server.limits import Limits, connections_possible
from llamaproxy.server.listen import ListenService, client_url
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
from llamaproxy.tools.trial import Trials
from llamaproxy.upstream.agent import AgentForAnywhere, UpstreamAgent
from llamaproxy.upstream.client import LlamaStackClient
from llamaproxy.upstream.client_context import ClientContextReader
from llamaproxy.upstream.completions import Completions
from llamaproxy.upstream.dialect import Detector, ServerDialect
from llamaproxy.upstream.inflate import InflatingAgent
from llamaproxy.upstream.passthrough import LlamaStackResource
from llamaproxy.upstream.pool import UpstreamPool
from llamaproxy.upstream.responses import SendingAgent
from llamaproxy.upstream.secrets import Secret
from llamaproxy.upstream.treq_client import AuthorizedAgent

if TYPE_CHECKING:
    from llamaproxy.admin.tracing.spans import Spans

_log = Logger()

#: Bytes of a request to the admin port: the largest are the arguments of a tool.
_MAX_ADMIN_BODY = 1024 * 1024


@attrs.frozen(eq=False, repr=False)
class Application:
    """Everything that answers requests, from the root of the resource tree on; without sockets."""

    resource: IResource
    client: LlamaStackClient
    detector: Detector
    catalogue: Catalogue
    sessions: SessionPool
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
) -> Application:
    """The application that *options* describe, in front of the server at *url*.

    :param agent: asks that server.

    :param anywhere: asks MCP servers, wherever they are.

    :param spans: makes spans of requests; None if traces are off.
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
    if spans is not None:
        tell.listen(spans, *spans.hears)  # the first, for the others show the id of the trace
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
        resource=resource,
        client=client,
        detector=detector,
        catalogue=catalogue,
        sessions=sessions,
        memory=memory,
        bodies=bodies,
        cors=cors,
        metrics=metrics,
        tool_status=tool_status,
        tell=tell,
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
    url = _server_url(options, reactor, services)
    sockets = prompt_writes(reactor)
    tracing = tracing_service(os.environ, reactor, url.to_text(), options["listen"])
    if tracing is not None:
        services.addService(tracing)  # it stops after those that make spans
    spans = None if tracing is None else tracing.spans
    app, pool = _connected(options, url, reactor, sockets, spans)
    services.addService(UpstreamService(pool, app.catalogue, app.sessions))
    listen = _listen_service(options, sockets, app, fixed_limits)
    if options["admin"] != "off":
        _add_admin(services, options, sockets, app, url, listen, pool)
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


def check(options: Options) -> int:
    """What ``--check`` prints, and the exit status that it comes to."""
    from twisted.internet import reactor

    from llamaproxy.check import Check, run_to_exit

    use_monotonic_time(reactor)
    Factory.noisy = False
    services = MultiService()
    url = _server_url(options, reactor, services)
    app, pool = _connected(options, url, reactor, reactor)
    services.addService(UpstreamService(pool, app.catalogue, app.sessions))

    def write(line: str) -> None:
        print(line.encode("ascii", "backslashreplace").decode("ascii"), flush=True)

    checking = Check(
        url.to_text(),
        app.client,
        app.catalogue,
        app.tell,
        write,
        named_servers=bool(options["mcp-server"]),
        runtime_tools=options["tool-source"] != "mcp",
        unused_key=bool(options["llamastack-api-key"]) and options["api-keys-file"] is None,
    )

    async def work() -> int:
        services.startService()
        try:
            return await checking.run(reactor)
        finally:
            await maybeDeferred(services.stopService)

    return run_to_exit(reactor, work(), write)


def _server_url(options: Options, reactor: Any, services: MultiService) -> DecodedURL:
    """The URL of the server, which is one of *services* if it is the stand-in."""
    url: DecodedURL = options["llamastack-url"]
    if options["demo"]:
        from llamaproxy.demo.service import DemoService  # few run it, and none in production

        demo = DemoService(reactor)
        services.addService(demo)
        url = demo.url
    return url


def _connected(
    options: Options, url: DecodedURL, reactor: Any, sockets: Any, spans: Spans | None = None
) -> tuple[Application, UpstreamPool]:
    """The application with connections to servers by *sockets*, and what keeps those."""
    pool = UpstreamPool(reactor, promptly=promptly_by(sockets))
    reaching = (options["connect-timeout"], options["upstream-ca"])
    agent = UpstreamAgent(sockets, url, pool, *reaching)
    anywhere = AgentForAnywhere(sockets, pool, *reaching)
    return assemble(options, url, reactor, agent, anywhere, spans), pool


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


def inspector_of(
    options: Mapping[str, Any],
    app: Application,
    url: DecodedURL,
    clock: IReactorTime,
    stop: Callable[[RequestRecord], bool],
) -> Inspector:
    """What the page of the admin port asks; it watches *app* from now on.

    :param stop: ends the request of a record; whether it still ran.
    """
    answers = Answers(clock)
    contents = None
    if options["inspect-contents"]:
        from llamaproxy.admin.contents import ContentsKept  # which few want

        contents = ContentsKept(answers, clock)

    def hello() -> Json:
        detected = app.detector.detected
        return {
            "version": __version__,
            "upstream": url.to_text(),
            "server": None if detected is None else detected.name,
            "contents": contents is not None,
            "time": answers.unix(),
        }

    feed = Feed(answers, app.tool_status.tools_as_json, hello, clock, app.tell)
    trials = Trials(app.catalogue, clock)
    clients = client_url(options["listen"][0])
    inspector = Inspector(answers, feed, app.tool_status, contents, stop, trials.run, clients)
    inspector.listen(app.tell)
    return inspector


def _add_admin(
    services: MultiService,
    options: Options,
    reactor: Any,
    app: Application,
    url: DecodedURL,
    listen: ListenService,
    pool: UpstreamPool,
) -> None:
    """Add the port for operators, which may be missing unless it was asked for."""
    endpoint: str = options["admin"]
    if (interface := open_interface(endpoint)) and not options["in-container"]:
        _log.warn(
            "whoever reaches {interface} may use the admin port {endpoint}: it asks for no key",
            interface=interface,
            endpoint=endpoint,
        )
    reachability = Reachability(reactor, app.detector.answers)
    app.tell.listen(reachability, *reachability.hears)
    clients = listen.site
    inspector = inspector_of(options, app, url, reactor, clients.connections.stop)

    def connections() -> Json:
        return {"open": clients.connections.connected, "max": clients.limits.connections}

    def requests() -> Json:
        return {
            "running": clients.connections.running,
            "streams": clients.connections.streams,
            "drain_timeout_seconds": options["drain-timeout"],
        }

    status = Status(
        url=url.to_text(),
        clock=reactor,
        tools=app.tool_status,
        reachability=reachability,
        draining=lambda: listen.draining,
        dialect=lambda: _dialect_shown(app.detector.detected),
        figures={
            "connections": connections,
            "requests": requests,
            "turn_memory": app.memory.figures,
            "chat_bodies": app.bodies.figures,
            "tool_lists": app.catalogue.figures,
            "mcp_sessions": app.sessions.figures,
            "upstream_pool": pool.figures,
        },
    )

    def pages() -> IResource:
        # Loaded when an operator asks for it first: clients need not wait for that at the start.
        from llamaproxy.admin.endpoint import AdminApp

        return AdminApp(app.metrics, status, inspector=inspector).resource()

    hosts = admin_hosts_for(endpoint, options["allowed-hosts"])
    limits = Limits(body=_MAX_ADMIN_BODY)
    root, tell = LateResource(pages), Observers(log_event)
    site = ProxySite(root, reactor, limits, hosts=hosts, tell=tell)
    optional = "admin" not in options.explicit
    services.addService(ReachabilityService(reachability))
    services.addService(ListenService(reactor, [endpoint], site, 0, optional))
    services.addService(inspector.feed)


def _dialect_shown(dialect: ServerDialect | None) -> Json | None:
    """What ``/status`` shows of the server's generation."""
    if dialect is None:
        return None
    return {
        "name": dialect.name,
        "version": dialect.version,
        "openai_prefix": dialect.openai_prefix,
        "runs_tools": dialect.tool_runtime,
        "connectors": list(dialect.connectors),
        "provider_data": dialect.provider_data.decode("ascii"),
    }


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
    if options["admin"] == "off":
        return
    page = f"{client_url(options['admin'])}/"
    if options["demo"]:
        _log.info("demo: watch what it does at {page}", page=page)
    if options["inspect-contents"]:
        _log.warn(
            "--inspect-contents: what chats say is kept in memory, and shown to whoever reaches "
            "{page}",
            page=page,
        )


class ReachabilityService(Service):
    """Has the server asked nothing more when the daemon stops."""

    def __init__(self, reachability: Reachability) -> None:
        self._reachability = reachability

    def stopService(self) -> None:
        Service.stopService(self)
        self._reachability.stop()


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
