"""makeService: the composition root, the only module that builds objects out of options."""

from __future__ import annotations

import socket
import time
from typing import Any

from hyperlink import DecodedURL
from treq.client import HTTPClient
from treq.cookies import IndexableCookieJar
from twisted.application.service import IService, MultiService, Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.web.client import HTTPConnectionPool
from twisted.web.iweb import IAgent
from twisted.web.server import Site

from llamaproxy import __version__
from llamaproxy.admin.endpoint import AdminApp
from llamaproxy.admin.metrics import Metrics
from llamaproxy.chat.budget import BodyBudget
from llamaproxy.chat.endpoint import ChatCompletions
from llamaproxy.chat.loop import CallSlots, ToolLoop
from llamaproxy.chat.memory import TurnMemory
from llamaproxy.config.options import Options
from llamaproxy.cors import CorsMemory
from llamaproxy.demo import DemoStack
from llamaproxy.greeting import GreetingService
from llamaproxy.jsontext import Json
from llamaproxy.routes import CHAT_PATHS, ProxyApp
from llamaproxy.server.clock import use_monotonic_time
from llamaproxy.server.hosts import hosts_for
from llamaproxy.server.keys import AuthorizedAgent, KeysService
from llamaproxy.server.limits import Limits, connections_possible
from llamaproxy.server.listen import ListenService, client_url
from llamaproxy.server.signals import SecondSignal
from llamaproxy.server.site import ProxySite
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
from llamaproxy.upstream.inflate import InflatingAgent
from llamaproxy.upstream.passthrough import LlamaStackResource
from llamaproxy.upstream.secrets import Secret

_log = Logger()


def makeService(options: Options, reactor: Any = None) -> IService:
    """The daemon that *options* describe."""
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
        metrics=metrics,
        ttl=options["tools-ttl"],
        tool_timeout=options["tool-timeout"],
        max_result=options["max-tool-result"],
        offers=Offers(options["max-tools"], options["max-tool-list"]),
        max_callers=options["max-callers"],
    )
    memory = TurnMemory(
        reactor, options["memory-entries"], options["memory-bytes"], options["memory-age"]
    )
    slots = CallSlots(options["max-calls-per-chat"], options["max-calls"])
    cors = CorsMemory()
    chat = ChatCompletions(
        loop=ToolLoop(catalogue, memory, metrics, options["max-iterations"], slots),
        upstream=Completions(client, detector),
        clock=reactor,
        keep_alive=options["keep-alive"],
        bodies=BodyBudget(options["max-chat-bodies"]),
        callers=Callers(options["trusted-proxies"], options["identity-headers"]),
        cors=cors,
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
    )
    site = ProxySite(
        ProxyApp(chat, passthrough, cors).resource(),
        reactor,
        limits,
        keys,
        cors,
        hosts_for(options["listen"], options["allowed-hosts"]),
    )
    services.addService(UpstreamService(pool, catalogue, sessions))
    metrics.watch(site.connections)
    listen = ListenService(reactor, options["listen"], site, options["drain-timeout"])
    if options["admin"] != "off":
        admin = AdminApp(
            metrics, lambda: listen.draining, lambda: _upstream(url, detector), catalogue.status
        )
        services.addService(
            ListenService(
                reactor,
                [options["admin"]],
                ProxySite(
                    admin.resource(),
                    reactor,
                    hosts=hosts_for([options["admin"]], options["allowed-hosts"]),
                ),
                drain=0,
                optional="admin" not in options.given,
            )
        )
    if by_twistd:
        services.addService(GreetingService(url.to_text(), detector, catalogue, reactor))
    # The last to start and the first to stop.
    services.addService(listen)
    if by_twistd:
        services.addService(SecondSignal(reactor, listen.hurry))
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


def treq_client(agent: IAgent) -> HTTPClient:
    """A treq client that is no browser: it keeps no cookie that one caller could get of another.

    Nor does it ask for anything compressed: treq would inflate it without any limit.
    """
    inflating: Any = InflatingAgent(agent)
    return HTTPClient(inflating, cookiejar=_NoCookies())


class _NoCookies(IndexableCookieJar):
    """A jar that nothing is put into: a policy that allows no domain would still read them all."""

    def add_cookie_header(self, request: Any) -> None:
        pass

    def extract_cookies(self, response: Any, request: Any) -> None:
        pass


class OrderedServices(MultiService):
    """Stops its services one after the other, the last first.

    MultiService stops all at once, and with the demo's server what is still being answered.
    """

    def stopService(self) -> Deferred[None]:
        Service.stopService(self)
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        for service in reversed(list(self)):
            await maybeDeferred(service.stopService)


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


class _QuietSite(Site):
    """Logs nothing: every request of the stand-in's is one of the proxy's own."""

    def log(self, request: Any) -> None:
        pass


class DemoService(Service):
    """Runs the stand-in for Llama Stack on a loopback port of the system's choice."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        # Bound now, because the rest of the daemon must know the port before anything runs.
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.setblocking(False)
        self.url = DecodedURL.from_text(f"http://127.0.0.1:{self._socket.getsockname()[1]}")
        self._port: Any = None

    def startService(self) -> None:
        Service.startService(self)
        quiet: Any = _QuietSite
        site = quiet(DemoStack(self._reactor, now=time.time).resource())
        self._port = self._reactor.adoptStreamPort(self._socket.fileno(), socket.AF_INET, site)
        self._socket.close()
        _log.warn("demo: the model is scripted, a stand-in that knows a few words; the tools run")

    def stopService(self) -> Deferred[None] | None:
        Service.stopService(self)
        stopped: Deferred[None] | None = self._port.stopListening()
        return stopped
