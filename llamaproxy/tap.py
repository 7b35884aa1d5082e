"""makeService: the composition root, the only module that builds objects out of options."""

from __future__ import annotations

from typing import Any

from hyperlink import DecodedURL
from twisted.application.service import IService, MultiService, Service
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.web.client import HTTPConnectionPool
from twisted.web.iweb import IAgent

from llamaproxy import __version__
from llamaproxy.admin.endpoint import AdminApp
from llamaproxy.admin.eventlog import log_event
from llamaproxy.admin.metrics import Metrics
from llamaproxy.admin.toolstatus import ToolStatus
from llamaproxy.chat.budget import BodyBudget
from llamaproxy.chat.endpoint import ChatCompletions
from llamaproxy.chat.loop import CallSlots, ToolLoop
from llamaproxy.chat.memory import TurnMemory
from llamaproxy.config.options import Options
from llamaproxy.cors import CorsMemory
from llamaproxy.demo.service import DemoService
from llamaproxy.events import Observers
from llamaproxy.greeting import GreetingService
from llamaproxy.jsontext import Json
from llamaproxy.routes import CHAT_PATHS, ProxyApp
from llamaproxy.server.hosts import hosts_for
from llamaproxy.server.keys import KeysService
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
from llamaproxy.upstream.agent import UpstreamAgent, agent_for_anywhere, connection_pool
from llamaproxy.upstream.caller import Callers
from llamaproxy.upstream.client import LlamaStackClient
from llamaproxy.upstream.completions import Completions
from llamaproxy.upstream.generation import Detector
from llamaproxy.upstream.http import AuthorizedAgent, treq_client
from llamaproxy.upstream.inflate import InflatingAgent
from llamaproxy.upstream.passthrough import LlamaStackResource
from llamaproxy.upstream.secrets import Secret

_log = Logger()


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
    keys = options["api-keys-file"]
    if keys is not None:
        # Before the others, to stop after them: SIGHUP would end a daemon that is draining.
        services.addService(KeysService(keys, reactor))
    url: DecodedURL = options["llamastack-url"]
    if options["demo"]:
        demo = DemoService(reactor)
        services.addService(demo)
        url = demo.url
    pool = connection_pool(reactor)
    reaching = (options["connect-timeout"], options["upstream-ca"])
    agent: IAgent = UpstreamAgent(reactor, url, pool, *reaching)
    if options["llamastack-api-key"]:
        if keys is not None:
            agent = AuthorizedAgent(agent, options["llamastack-api-key"])
        else:
            _log.warn("LLAMASTACK_API_KEY is not used: that needs --api-keys-file")
    metrics = Metrics()
    tool_status = ToolStatus(reactor)
    tell = Observers(log_event, metrics, tool_status)
    metrics.watch(
        "llamaproxy_listener_failures", "Events that a listener failed over.", lambda: tell.failures
    )
    secret = Secret(options["llamastack-api-key"] if keys is not None else b"")
    client = LlamaStackClient(treq_client(agent), url, reactor, options["upstream-timeout"], secret)
    detector = Detector(client)
    sessions = SessionPool(
        InflatingAgent(agent_for_anywhere(reactor, pool, *reaching)),
        reactor,
        lambda: catalogue.changed(),
        options["max-mcp-sessions"],
    )
    source: ToolSource = DetectedSource(
        detector,
        ToolRuntime(client),
        McpSource(Connectors(client, detector), sessions, reactor),
        options["tool-source"],
    )
    if options["mcp-server"]:
        named = McpSource(
            FixedServers(options["mcp-server"]), sessions, reactor, options["mcp-header"]
        )
        source = UnionSource(named, source)
    catalogue = Catalogue(
        source=source,
        clock=reactor,
        ttl=options["tools-ttl"],
        tool_timeout=options["tool-timeout"],
        max_result=options["max-tool-result"],
        offers=Offers(options["max-tools"], options["max-tool-list"]),
        max_callers=options["max-callers"],
        tell=tell,
    )
    memory = TurnMemory(
        reactor, options["memory-entries"], options["memory-bytes"], options["memory-age"]
    )
    slots = CallSlots(options["max-calls-per-chat"], options["max-calls"])
    cors = CorsMemory()
    chat = ChatCompletions(
        loop=ToolLoop(catalogue, memory, options["max-iterations"], slots, tell),
        upstream=Completions(client, detector),
        clock=reactor,
        keep_alive=options["keep-alive"],
        bodies=BodyBudget(options["max-chat-bodies"]),
        callers=Callers(options["trusted-proxies"], options["identity-headers"]),
        cors=cors,
        tell=tell,
    )
    passthrough = LlamaStackResource(
        agent,
        url,
        detector,
        reactor,
        options["upstream-timeout"],
        options["trusted-proxies"],
        secret,
        cors,
    )
    limits = Limits(
        body=options["max-body"],
        bodies={path.encode(): options["max-chat-body"] for path in CHAT_PATHS},
        connections=connections_possible(options["max-connections"]),
        header_timeout=options["header-timeout"],
        client_timeout=options["client-timeout"],
        **fixed_limits,  # type: ignore[arg-type]
    )
    site = ProxySite(
        ProxyApp(chat, passthrough, cors).resource(),
        reactor,
        limits,
        keys,
        cors,
        hosts_for(options["listen"], options["allowed-hosts"]),
        tell,
    )
    services.addService(UpstreamService(pool, catalogue, sessions))
    connections = site.connections
    metrics.watch("llamaproxy_connections", "Client connections.", lambda: connections.connected)
    metrics.watch(
        "llamaproxy_requests_running", "Requests served now.", lambda: connections.running
    )
    listen = ListenService(reactor, options["listen"], site, options["drain-timeout"])
    if options["admin"] != "off":
        admin = AdminApp(
            metrics, lambda: listen.draining, lambda: _upstream(url, detector), tool_status.as_json
        )
        services.addService(
            ListenService(
                reactor,
                [options["admin"]],
                ProxySite(
                    admin.resource(),
                    reactor,
                    hosts=hosts_for([options["admin"]], options["allowed-hosts"]),
                    tell=log_event,
                ),
                drain=0,
                optional="admin" not in options.explicit,
            )
        )
    if by_twistd:
        services.addService(GreetingService(url.to_text(), detector, catalogue, reactor))
    # The last to start and the first to stop.
    services.addService(listen)
    if by_twistd:
        services.addService(SecondSignal(reactor, listen.stop_now))
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
    return services


def _upstream(url: DecodedURL, detector: Detector) -> Json:
    """What the status says of the server."""
    known = detector.known
    return {"url": url.to_text(), "server": None if known is None else known.name}


class UpstreamService(Service):
    """Ends, when the daemon stops, what would go on without a client."""

    def __init__(
        self, pool: HTTPConnectionPool, catalogue: Catalogue, sessions: SessionPool
    ) -> None:
        self._pool = pool
        self._catalogue = catalogue
        self._sessions = sessions

    def stopService(self) -> Deferred[None]:
        Service.stopService(self)
        self._catalogue.stop()
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        await self._sessions.close()
        await self._pool.closeCachedConnections()
