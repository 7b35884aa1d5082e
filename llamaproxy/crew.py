"""What a daemon with workers consists of: the parent's part, and that of each worker."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

from hyperlink import DecodedURL
from twisted.application.service import MultiService
from twisted.internet.protocol import Factory
from twisted.logger import Logger, LogLevel

from llamaproxy.admin.tracing.switch import tracing_service
from llamaproxy.adminport import figures_of_clients, own_answers, this_process
from llamaproxy.application import Application
from llamaproxy.chat.shared_turns import FarTurns, NestedTurns
from llamaproxy.config import logformat
from llamaproxy.config.options import Options
from llamaproxy.events import ListsStale
from llamaproxy.parts import (
    UpstreamService,
    connected,
    listen_of,
    memory_store,
    site_of,
    take_files,
    use_store,
)
from llamaproxy.server.logturns import LogTurns
from llamaproxy.server.ports import Ports
from llamaproxy.server.services import OrderedServices
from llamaproxy.server.site import ProxySite
from llamaproxy.server.twistedparts import use_monotonic_time
from llamaproxy.upstream.pool import UpstreamPool
from llamaproxy.workers.balance import Balance, Board
from llamaproxy.workers.changes import ChangesHeard, ChangeTellers
from llamaproxy.workers.child import WorkerLife
from llamaproxy.workers.division import divide
from llamaproxy.workers.exit import end_with_failure
from llamaproxy.workers.life import STOP_SECONDS
from llamaproxy.workers.listing import SharedLists, ToolsOfParent
from llamaproxy.workers.process import BOARD_FD
from llamaproxy.workers.programs import CallsOfWorkers
from llamaproxy.workers.sockets import HeldSockets, SharedSockets, shared
from llamaproxy.workers.supervisor import Supervisor
from llamaproxy.workers.turns import ParentTurns, TurnsOfWorkers
from llamaproxy.workers.watched import worker_keys
from llamaproxy.workers.watching import Watching, watch_worker

if TYPE_CHECKING:
    from twisted.protocols.amp import CommandLocator

    from llamaproxy.workers.link import Link

_log = Logger()


def watching_of(
    services: MultiService, reactor: Any, app: Application, pool: UpstreamPool, crew: Supervisor
) -> Watching:
    """What the admin port asks of the workers."""
    watching = Watching(crew, this_process(app, pool, {}), app.tell, reactor)
    services.addService(watching.serving)
    return watching


def supervised(
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
    use_monotonic_time(reactor)
    Factory.noisy = False
    divide(options, count)
    ordered: Any = OrderedServices
    services: MultiService = ordered()
    sockets = SharedSockets(reactor)
    # The first to start and the last to stop.
    services.addService(LogTurns(sockets, lambda: logformat.current))
    url = options["llamastack-url"]
    tracing = tracing_service(os.environ, reactor, url.to_text(), options["listen"])
    if tracing is not None:
        services.addService(tracing)
    spans = None if tracing is None else tracing.spans
    tools = ToolsOfParent(link, reactor)
    store = memory_store(options, reactor)
    far: FarTurns = ParentTurns(link, reactor)
    if store is not None:
        # While the store is away workers still have each other's turns, and those of the dead.
        far = NestedTurns(reactor, far, store, options["memory-age"])
    app, pool = connected(options, url, reactor, sockets, spans, far, tools)
    if store is not None:
        use_store(store, app, services)
    services.addService(UpstreamService(pool, app))
    site = site_of(options, sockets, app, {})
    endpoints = list(map(shared, options["listen"]))
    sockets.balance = Balance(
        Board(count, BOARD_FD),
        number,
        lambda: site.connections.connected,
        site.limits.connections,
    )
    listen = listen_of(options, sockets, endpoints, site)
    if options["admin"] != "off":
        own = this_process(app, pool, figures_of_clients(options, app, site), store)
        its_keys = worker_keys(number, count)
        shown = own_answers(options, app, reactor, site.connections, listen.urls, its_keys)
        watch_worker(services, number, own, shown, app.tell, link, reactor)
    services.addService(listen)  # the last to start and the first to stop
    patience = options["drain-timeout"] + STOP_SECONDS
    take = partial(take_files, options, app)
    life = WorkerLife(reactor, services, listen.stop_now, take, patience)
    # What answers what the parent asks.
    link.answer_with(life, ChangesHeard(app.catalogue.changed))
    return life, services


def _write_lines(lines: bytes) -> None:
    """Have lines of a worker's log stand in that of the daemon."""
    text = lines.decode("utf-8", "replace")
    if logformat.current is not None:
        logformat.current.write(text)
        return
    for line in text.splitlines():  # twistd has a log of its own
        _log.emit(LogLevel.info, logformat.FORMATTED, message=line)
