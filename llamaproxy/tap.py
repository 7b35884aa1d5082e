"""makeService: the composition root, the only module that builds objects out of options."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from hyperlink import DecodedURL
from twisted.application.service import IService, MultiService, Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.protocol import Factory
from twisted.logger import Logger, LogLevel

from llamaproxy import __version__
from llamaproxy.admin import names
from llamaproxy.admin.tracing.switch import tracing_service
from llamaproxy.adminport import add_admin, figures_of_clients, own_answers, this_process
from llamaproxy.application import Application, ToolsElsewhere, assemble, reread_servers
from llamaproxy.config import logformat
from llamaproxy.config.options import Options
from llamaproxy.deferreds import all_of
from llamaproxy.events import ListsStale
from llamaproxy.greeting import GreetingService
from llamaproxy.routes import CHAT_PATHS
from llamaproxy.server.hosts import hosts_for
from llamaproxy.server.keys import reread_keys
from llamaproxy.server.limits import Limits, connections_possible
from llamaproxy.server.listen import ListenService, client_url
from llamaproxy.server.ports import Ports
from llamaproxy.server.prompt_writes import prompt_writes
from llamaproxy.server.reload import ReloadService
from llamaproxy.server.services import OrderedServices
from llamaproxy.server.signals import SecondSignal
from llamaproxy.server.site import ProxySite
from llamaproxy.server.twistedparts import use_monotonic_time
from llamaproxy.upstream.agent import AgentForAnywhere, UpstreamAgent
from llamaproxy.upstream.pool import UpstreamPool

if TYPE_CHECKING:
    from twisted.protocols.amp import CommandLocator

    from llamaproxy.admin.tracing.spans import Spans
    from llamaproxy.chat.shared_turns import FarTurns
    from llamaproxy.memory.turns import RedisTurns
    from llamaproxy.server.notify import NotifyService
    from llamaproxy.workers.child import WorkerLife
    from llamaproxy.workers.link import Link
    from llamaproxy.workers.supervisor import Supervisor
    from llamaproxy.workers.watching import Watching

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
    rereads: list[Callable[[], object]] = []
    reload = None
    if options["api-keys-file"] is not None or options["mcp-config"] is not None:
        # Before the others, to stop after them: SIGHUP would end a daemon that is draining.
        reload = ReloadService(reactor, rereads)
        services.addService(reload)
    url = _server_url(options, reactor, services)
    sockets = prompt_writes(reactor)
    tracing = tracing_service(os.environ, reactor, url.to_text(), options["listen"])
    if tracing is not None:
        services.addService(tracing)  # it stops after those that make spans
    spans = None if tracing is None else tracing.spans
    several = options["workers"] > 1
    # Workers ask the store themselves.
    store = None if several else _memory_store(options, reactor)
    app, pool = _connected(options, url, reactor, sockets, spans, store)
    if store is not None:
        _use_store(store, app, services)
    services.addService(UpstreamService(pool, app))
    rereads += _rereads(options, app)
    site = _site(options, sockets, app, fixed_limits)
    locators: list[CommandLocator] = []
    supervisor = None
    if several:
        supervisor = _supervisor(options, reactor, url, app, site, locators)
    listen = supervisor or ListenService(sockets, options["listen"], site, options["drain-timeout"])
    if options["admin"] != "off":
        admin = partial(add_admin, services, options, sockets, app, url, lambda: listen.draining)
        if supervisor is None:
            own = this_process(app, pool, figures_of_clients(options, app, site))
            admin(own, own_answers(options, app, sockets, site.connections.stop))
        else:
            watching = _watching(services, reactor, app, pool, supervisor)
            watching.reachability = admin(watching.serving, watching.shown)
            locators.append(watching)
    if by_twistd:
        services.addService(GreetingService(url.to_text(), app.detector, app.catalogue, reactor))
    # The last to start and the first to stop.
    services.addService(listen)
    if by_twistd:
        services.addService(SecondSignal(reactor, listen.stop_now))
        notify = _notify(reactor, supervisor)
        if notify is not None:
            services.addService(notify)
        if reload is not None:
            reload.on_reread = partial(_reread, supervisor, notify)
    _log_start(options, url)
    return services


def check(options: Options) -> int:
    """What ``--check`` prints, and the exit status that it comes to."""
    from twisted.internet import reactor

    from llamaproxy.check import Check
    from llamaproxy.foreground import Lines, run_to_exit

    use_monotonic_time(reactor)
    Factory.noisy = False
    services = MultiService()
    url = _server_url(options, reactor, services)
    app, pool = _connected(options, url, reactor, reactor)
    services.addService(UpstreamService(pool, app))

    write = Lines(sys.stdout)
    checking = Check(
        url.to_text(),
        app.client,
        app.catalogue,
        app.tell,
        write,
        named_servers=bool(options["mcp-server"] or options["mcp-config"]),
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


def _memory_store(options: Options, reactor: Any) -> RedisTurns | None:
    """The store that is asked for turns too; None if there is none."""
    if options["memory"] is None:
        return None
    from llamaproxy.memory.turns import redis_turns  # what it needs is an extra

    return redis_turns(options, reactor)


def _use_store(store: RedisTurns, app: Application, services: MultiService) -> None:
    """Have *app* show what becomes of the *store*, and *services* see to it."""
    store.watch(app.metrics)
    store.refill_from(app.memory)
    services.addService(store.keeper)


def _connected(
    options: Options,
    url: DecodedURL,
    reactor: Any,
    sockets: Any,
    spans: Spans | None = None,
    far: FarTurns | None = None,
    elsewhere: ToolsElsewhere | None = None,
) -> tuple[Application, UpstreamPool]:
    """The application with connections to servers by *sockets*, and what keeps those."""
    pool = UpstreamPool(reactor)
    reaching = (options["connect-timeout"], options["upstream-ca"])
    agent = UpstreamAgent(sockets, url, pool, *reaching)
    anywhere = AgentForAnywhere(sockets, pool, *reaching)
    processes = reactor if elsewhere is None else None
    app = assemble(options, url, reactor, agent, anywhere, spans, far, elsewhere, processes)
    return app, pool


def _watching(
    services: MultiService, reactor: Any, app: Application, pool: UpstreamPool, crew: Supervisor
) -> Watching:
    """What the admin port asks of the workers."""
    from llamaproxy.workers.watching import Watching

    watching = Watching(crew, this_process(app, pool, {}), app.tell, reactor)
    services.addService(watching.serving)
    return watching


def _supervisor(
    options: Options,
    reactor: Any,
    url: DecodedURL,
    app: Application,
    site: ProxySite,
    locators: list[CommandLocator],
) -> Supervisor:
    """The ports for clients, and the workers who serve them.

    :param site: that of a daemon without workers: here no client ever gets to it.

    :param locators: answer what any worker asks its parent; more may be added.
    """
    from llamaproxy.workers.changes import ChangesHeard, ChangeTellers
    from llamaproxy.workers.exit import end_with_failure
    from llamaproxy.workers.listing import SharedLists
    from llamaproxy.workers.programs import CallsOfWorkers
    from llamaproxy.workers.sockets import HeldSockets
    from llamaproxy.workers.supervisor import Supervisor
    from llamaproxy.workers.turns import TurnsOfWorkers

    if options["demo"]:
        # The stand-in is one for all; the last value of an option counts.
        options.arguments += ["--llamastack-url", url.to_text()]

    tellers = ChangeTellers(reactor)
    calls = CallsOfWorkers(app.programs)
    app.tell.listen(tellers, ListsStale)
    locators += [
        SharedLists(app.catalogue, app.detector, options["max-tool-list"]),
        ChangesHeard(app.catalogue.changed),
        TurnsOfWorkers(app.memory),
    ]
    supervisor = Supervisor(
        reactor,
        Ports(HeldSockets(reactor), options["listen"], site),
        options,
        _write_lines,
        lambda: end_with_failure(reactor),
        lambda worker: [*locators, calls.joined(worker.link)],
        site,
    )
    supervisor.on_ready.append(lambda worker: tellers.joined(worker.link))
    supervisor.on_gone.append(lambda worker: tellers.left(worker.link))
    supervisor.on_gone.append(lambda worker: calls.left(worker.link))
    return supervisor


def make_worker(
    options: Options, number: int, count: int, reactor: Any, link: Link
) -> tuple[WorkerLife, MultiService]:
    """The worker *number* of so many, which has a *link* to its parent; what it consists of."""
    from llamaproxy.workers.changes import ChangesHeard
    from llamaproxy.workers.child import WorkerLife
    from llamaproxy.workers.division import divide
    from llamaproxy.workers.life import STOP_SECONDS
    from llamaproxy.workers.listing import ToolsOfParent
    from llamaproxy.workers.sockets import SharedSockets, shared
    from llamaproxy.workers.turns import ParentTurns

    use_monotonic_time(reactor)
    Factory.noisy = False
    divide(options, count)
    ordered: Any = OrderedServices
    services: MultiService = ordered()
    url = options["llamastack-url"]
    sockets = SharedSockets(reactor)
    tracing = tracing_service(os.environ, reactor, url.to_text(), options["listen"])
    if tracing is not None:
        services.addService(tracing)
    spans = None if tracing is None else tracing.spans
    tools = ToolsOfParent(link, reactor)
    store = _memory_store(options, reactor)
    far = store or ParentTurns(link, reactor)
    app, pool = _connected(options, url, reactor, sockets, spans, far, tools)
    if store is not None:
        _use_store(store, app, services)
    services.addService(UpstreamService(pool, app))
    site = _site(options, sockets, app, {})
    endpoints = list(map(shared, options["listen"]))
    sockets.is_full = lambda: site.connections.connected >= site.limits.connections
    listen = ListenService(sockets, endpoints, site, options["drain-timeout"])
    services.addService(listen)
    if options["admin"] != "off":
        from llamaproxy.workers.watched import worker_keys
        from llamaproxy.workers.watching import watch_worker

        own = this_process(app, pool, figures_of_clients(options, app, site))
        its_keys = worker_keys(number, count)
        shown = own_answers(options, app, reactor, site.connections.stop, its_keys)
        watch_worker(services, number, own, shown, app.tell, link, reactor)
    patience = options["drain-timeout"] + STOP_SECONDS
    life = WorkerLife(reactor, services, listen.stop_now, _rereads(options, app), patience)
    # What answers what the parent asks.
    link.answer_with(life, ChangesHeard(app.catalogue.changed))
    return life, services


def _site(
    options: Options, reactor: Any, app: Application, fixed_limits: Mapping[str, float]
) -> ProxySite:
    """What serves clients."""
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
    return site


def _rereads(options: Options, app: Application) -> list[Callable[[], object]]:
    """What reads again what is read again on SIGHUP."""
    rereads: list[Callable[[], object]] = []
    if options["api-keys-file"] is not None:
        rereads.append(partial(reread_keys, options["api-keys-file"]))
    if options["mcp-config"] is not None:
        rereads.append(partial(reread_servers, options, app))
    return rereads


def _write_lines(lines: bytes) -> None:
    """Have lines of a worker's log stand in that of the daemon."""
    text = lines.decode("utf-8", "replace")
    if logformat.write_lines is not None:
        logformat.write_lines(text)
        return
    for line in text.splitlines():  # twistd has a log of its own
        _log.emit(LogLevel.info, logformat.FORMATTED, message=line)


def _reread(supervisor: Supervisor | None, notify: NotifyService | None) -> None:
    """Have the workers read again what was read again here; the service manager hears of it."""
    done = None if supervisor is None else supervisor.reload()
    if notify is not None:
        notify.reloading(done)


def _notify(reactor: Any, supervisor: Supervisor | None) -> NotifyService | None:
    """What tells the service manager what the daemon is doing, if there is one."""
    if "NOTIFY_SOCKET" not in os.environ:
        return None
    from llamaproxy.server.notify import NotifyService

    return NotifyService(reactor, os.environ, None if supervisor is None else supervisor.started)


def _log_start(options: Options, url: DecodedURL) -> None:
    """What an operator reads first in the log."""
    if options["llamastack-api-key"] and options["api-keys-file"] is None:
        _log.warn("LLAMASTACK_API_KEY is not used: that needs --api-keys-file")
    if options["upstream-key"] and options["api-keys-file"] is None:
        _log.warn("whoever reaches the proxy uses the key of --upstream-key: there are no API keys")
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
        if options["inspect-contents"]:
            _log.warn("--inspect-contents keeps nothing: the admin port is off")
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


class UpstreamService(Service):
    """Ends, when the daemon stops, what would go on without a client."""

    def __init__(self, pool: UpstreamPool, app: Application) -> None:
        self._pool = pool
        self._app = app

    def stopService(self) -> Deferred[None]:
        Service.stopService(self)
        self._app.catalogue.stop()
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        await all_of([self._app.sessions.close(), self._app.programs.close()])
        self._pool.close()
