"""makeService: the composition root, the only module that builds objects out of options."""

from __future__ import annotations

import os
from collections.abc import Mapping
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
from llamaproxy.adminport import add_admin
from llamaproxy.application import Application, assemble
from llamaproxy.config import logformat
from llamaproxy.config.options import Options
from llamaproxy.greeting import GreetingService
from llamaproxy.routes import CHAT_PATHS
from llamaproxy.server.hosts import hosts_for
from llamaproxy.server.keys import KeysService
from llamaproxy.server.limits import Limits, connections_possible
from llamaproxy.server.listen import ListenService, client_url
from llamaproxy.server.ports import Ports
from llamaproxy.server.prompt_writes import prompt_writes
from llamaproxy.server.services import OrderedServices
from llamaproxy.server.signals import SecondSignal
from llamaproxy.server.site import ProxySite
from llamaproxy.server.twistedparts import use_monotonic_time
from llamaproxy.tools.catalogue import Catalogue
from llamaproxy.tools.mcp.pool import SessionPool
from llamaproxy.upstream.agent import AgentForAnywhere, UpstreamAgent
from llamaproxy.upstream.pool import UpstreamPool

if TYPE_CHECKING:
    from twisted.protocols.amp import CommandLocator

    from llamaproxy.admin.tracing.spans import Spans
    from llamaproxy.server.notify import NotifyService
    from llamaproxy.workers.child import WorkerLife
    from llamaproxy.workers.link import Link
    from llamaproxy.workers.process import Worker
    from llamaproxy.workers.supervisor import Supervisor

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
    keys = None
    if options["api-keys-file"] is not None:
        # Before the others, to stop after them: SIGHUP would end a daemon that is draining.
        keys = KeysService(options["api-keys-file"], reactor)
        services.addService(keys)
    url = _server_url(options, reactor, services)
    sockets = prompt_writes(reactor)
    tracing = tracing_service(os.environ, reactor, url.to_text(), options["listen"])
    if tracing is not None:
        services.addService(tracing)  # it stops after those that make spans
    spans = None if tracing is None else tracing.spans
    app, pool = _connected(options, url, reactor, sockets, spans)
    services.addService(UpstreamService(pool, app.catalogue, app.sessions))
    site = _site(options, sockets, app, fixed_limits)
    supervisor = _supervisor(options, reactor, site) if options["workers"] > 1 else None
    listen = supervisor or ListenService(sockets, options["listen"], site, options["drain-timeout"])
    if options["admin"] != "off":
        add_admin(services, options, sockets, app, url, listen, pool)
    if by_twistd:
        services.addService(GreetingService(url.to_text(), app.detector, app.catalogue, reactor))
    # The last to start and the first to stop.
    services.addService(listen)
    if by_twistd:
        services.addService(SecondSignal(reactor, listen.stop_now))
        notify = _notify(reactor, supervisor)
        if notify is not None:
            services.addService(notify)
        if keys is not None:
            keys.on_reread = partial(_reread, supervisor, notify)
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
    pool = UpstreamPool(reactor)
    reaching = (options["connect-timeout"], options["upstream-ca"])
    agent = UpstreamAgent(sockets, url, pool, *reaching)
    anywhere = AgentForAnywhere(sockets, pool, *reaching)
    return assemble(options, url, reactor, agent, anywhere, spans), pool


def _supervisor(options: Options, reactor: Any, site: ProxySite) -> Supervisor:
    """The ports for clients, and the workers who serve them.

    :param site: that of a daemon without workers: here no client ever gets to it.
    """
    from llamaproxy.workers.exit import end_with_failure
    from llamaproxy.workers.sockets import HeldSockets
    from llamaproxy.workers.supervisor import Supervisor

    def locators(worker: Worker) -> list[CommandLocator]:
        """What answers what *worker* asks its parent."""
        return []

    return Supervisor(
        reactor,
        Ports(HeldSockets(reactor), options["listen"], site),
        options,
        _write_lines,
        lambda: end_with_failure(reactor),
        locators,
        site,
    )


def make_worker(
    options: Options, number: int, count: int, reactor: Any, link: Link
) -> tuple[WorkerLife, MultiService]:
    """One worker of so many: its part in its life, and what it consists of.

    :param link: where the parent is asked, and asks.
    """
    from llamaproxy.workers.balance import Balance, Board
    from llamaproxy.workers.child import WorkerLife
    from llamaproxy.workers.division import divide
    from llamaproxy.workers.life import STOP_SECONDS
    from llamaproxy.workers.process import BOARD_FD
    from llamaproxy.workers.sockets import SharedSockets, shared

    use_monotonic_time(reactor)
    Factory.noisy = False
    divide(options, count)
    ordered: Any = OrderedServices
    services: MultiService = ordered()
    url = _server_url(options, reactor, services)
    sockets = SharedSockets(reactor)
    tracing = tracing_service(os.environ, reactor, url.to_text(), options["listen"])
    if tracing is not None:
        services.addService(tracing)
    spans = None if tracing is None else tracing.spans
    app, pool = _connected(options, url, reactor, sockets, spans)
    services.addService(UpstreamService(pool, app.catalogue, app.sessions))
    site = _site(options, sockets, app, {})
    endpoints = list(map(shared, options["listen"]))
    sockets.balance = Balance(
        Board(count, BOARD_FD),
        number,
        lambda: site.connections.connected,
        site.limits.connections,
    )
    listen = ListenService(sockets, endpoints, site, options["drain-timeout"])
    services.addService(listen)
    keys = options["api-keys-file"]
    rereads = [] if keys is None else [KeysService(keys, reactor).reread]
    patience = options["drain-timeout"] + STOP_SECONDS
    life = WorkerLife(reactor, services, listen.stop_now, rereads, patience)
    # What answers what the parent asks.
    link.answer_with(life)
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
