"""makeService: the composition root, the only module that builds objects out of options."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from hyperlink import DecodedURL
from twisted.application.service import IService, MultiService, Service
from twisted.internet.defer import maybeDeferred
from twisted.internet.protocol import Factory
from twisted.logger import Logger

from llamaproxy import __version__
from llamaproxy.admin.tracing.switch import tracing_service
from llamaproxy.adminport import add_admin, figures_of_clients, own_answers, this_process
from llamaproxy.config import logformat
from llamaproxy.config.options import Options
from llamaproxy.greeting import GreetingService
from llamaproxy.parts import (
    UpstreamService,
    connected,
    listen_of,
    memory_store,
    rereads_of,
    site_of,
    use_store,
)
from llamaproxy.server.logturns import LogTurns
from llamaproxy.server.prompt_writes import prompt_writes
from llamaproxy.server.reload import ReloadService
from llamaproxy.server.services import OrderedServices
from llamaproxy.server.signals import SecondSignal
from llamaproxy.server.twistedparts import use_monotonic_time

if TYPE_CHECKING:
    from twisted.protocols.amp import CommandLocator

    from llamaproxy.server.listen import ListenService
    from llamaproxy.server.notify import NotifyService
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
    sockets = prompt_writes(reactor)
    # The first to start and the last to stop.
    services.addService(LogTurns(sockets, lambda: logformat.current))
    rereads: list[Callable[[], object]] = []
    reload = None
    if options["api-keys-file"] is not None or options["mcp-config"] is not None:
        # Before the others, to stop after them: SIGHUP would end a daemon that is draining.
        reload = ReloadService(reactor, rereads)
        services.addService(reload)
    url = _server_url(options, reactor, services)
    tracing = tracing_service(os.environ, reactor, url.to_text(), options["listen"])
    if tracing is not None:
        services.addService(tracing)  # it stops after those that make spans
    spans = None if tracing is None else tracing.spans
    several = options["workers"] > 1
    # Workers ask the store themselves.
    store = None if several else memory_store(options, reactor)
    app, pool = connected(options, url, reactor, sockets, spans, store)
    if store is not None:
        use_store(store, app, services)
    services.addService(UpstreamService(pool, app))
    rereads += rereads_of(options, app)
    site = site_of(options, sockets, app, fixed_limits)
    locators: list[CommandLocator] = []
    supervisor = None
    if several:
        from llamaproxy import crew

        supervisor = crew.supervised(options, reactor, url, app, site, locators)
    listen = supervisor or listen_of(options, sockets, options["listen"], site)
    admin_port = None
    if options["admin"] != "off":
        common = (services, options, sockets, app, url, lambda: listen.draining, listen.urls)
        admin = partial(add_admin, *common)
        if supervisor is None:
            own = this_process(app, pool, figures_of_clients(options, app, site), store)
            shown = own_answers(options, app, sockets, site.connections, listen.urls)
            _, admin_port = admin(own, shown)
        else:
            watching = crew.watching_of(services, reactor, app, pool, supervisor)
            watching.reachability, admin_port = admin(watching.serving, watching.shown)
            locators.append(watching)
    if by_twistd:
        services.addService(GreetingService(url.to_text(), app.detector, app.catalogue, reactor))
    # The last to start and the first to stop.
    services.addService(listen)
    services.addService(StartLines(options, url, listen, admin_port))
    if by_twistd:
        services.addService(SecondSignal(reactor, listen.stop_now))
        notify = _notify(reactor, supervisor)
        if notify is not None:
            services.addService(notify)
        if reload is not None:
            reload.on_reread = partial(_reread, supervisor, notify)
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
    app, pool = connected(options, url, reactor, reactor)
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


class StartLines(Service):
    """Says in the log, as soon as it listens, what an operator reads first there."""

    def __init__(
        self,
        options: Options,
        url: DecodedURL,
        listen: ListenService | Supervisor,
        admin: ListenService | None,
    ) -> None:
        self._options = options
        self._url = url
        self._listen = listen
        self._admin = admin

    def startService(self) -> None:
        Service.startService(self)
        admin = "" if self._admin is None else self._admin.urls()[0]
        _log_start(self._options, self._url, self._listen.urls(), admin)


def _log_start(options: Options, url: DecodedURL, clients: list[str], admin: str) -> None:
    """:param clients: the URLs where they come in; *admin* that of the admin port, if it is on."""
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
        clients=", ".join(f"{each}/v1" for each in clients),
        admin=f"{admin}/status" if admin else "off",
    )
    if not admin:
        if options["inspect-contents"]:
            _log.warn("--inspect-contents keeps nothing: the admin port is off")
        return
    page = f"{admin}/"
    if options["demo"]:
        _log.info("demo: watch what it does at {page}", page=page)
    if options["inspect-contents"]:
        _log.warn(
            "--inspect-contents: what chats say is kept in memory, and shown to whoever reaches "
            "{page}",
            page=page,
        )
