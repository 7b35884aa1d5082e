"""The second port: what an operator asks, built out of options around an application."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hyperlink import DecodedURL
from twisted.application.service import MultiService, Service
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.logger import Logger
from twisted.web.resource import IResource

from llamaproxy import __version__
from llamaproxy.admin import names
from llamaproxy.admin.answers import Answers
from llamaproxy.admin.eventlog import log_event
from llamaproxy.admin.feed import Feed
from llamaproxy.admin.inspector import Inspector
from llamaproxy.admin.looplag import LoopLag
from llamaproxy.admin.reachability import Reachability
from llamaproxy.admin.serving import Serving, ThisProcess
from llamaproxy.admin.shown import OwnAnswers, Shown
from llamaproxy.admin.status import Status
from llamaproxy.application import Application
from llamaproxy.config.options import Options
from llamaproxy.events import Observers
from llamaproxy.jsontext import Json
from llamaproxy.routes import LateResource
from llamaproxy.server.connections import Connections
from llamaproxy.server.hosts import admin_hosts_at, open_interface
from llamaproxy.server.limits import Limits
from llamaproxy.server.listen import ListenService
from llamaproxy.server.site import ProxySite
from llamaproxy.tools.trial import Trials
from llamaproxy.upstream.dialect import ServerDialect
from llamaproxy.upstream.pool import UpstreamPool

if TYPE_CHECKING:
    from llamaproxy.memory.turns import RedisTurns

_log = Logger()

#: What those who ask the admin port may take. The largest body is a tool's arguments. A page that
#: has not read for a minute makes room for another: it has up to megabytes waiting for it.
ADMIN_LIMITS = Limits(body=1024 * 1024, connections=256, read_timeout=60)


def own_answers(
    options: Mapping[str, Any],
    app: Application,
    clock: IReactorTime,
    connections: Connections,
    urls: Callable[[], list[str]],
    keys: Iterator[int] | None = None,
) -> OwnAnswers:
    """The answers of *app*, which it watches from now on.

    :param connections: have the requests that are answered; *urls* returns where clients come in.

    :param keys: of the answers, those that they have; 1, 2, 3 and so on if there are no others.
    """
    answers = Answers(clock, connections.served, keys=keys)
    contents = None
    if options["inspect-contents"]:
        from llamaproxy.admin.contents import ContentsKept  # which few want

        contents = ContentsKept(answers, clock)
    return OwnAnswers(
        answers, app.tool_status, contents, connections.stop, lambda: urls()[0], app.tell
    )


def inspector_of(
    options: Mapping[str, Any],
    app: Application,
    url: DecodedURL,
    clock: IReactorTime,
    shown: Shown,
    serving: Serving,
    draining: Callable[[], bool],
    urls: Callable[[], list[str]],
) -> Inspector:
    """What the page of the admin port asks; it shows the answers *shown*.

    :param draining: returns whether the daemon is stopping; *urls* where clients come in.
    """

    def hello() -> Json:
        server = app.detector.last
        clients = urls()[0]
        return {
            "version": __version__,
            "upstream": url.to_text(),
            "server": None if server is None else server.product,
            # No client is given the URL of a Unix socket.
            "url": None if clients.startswith("http+unix:") else f"{clients}/v1",
            "contents": bool(options["inspect-contents"]),
            "time": time.time(),
        }

    def tools() -> Json:
        return app.tool_status.tools_as_json(serving.calls)

    def drain() -> Json | None:
        return {"seconds": options["drain-timeout"]} if draining() else None

    feed = Feed(shown, tools, hello, drain, clock)
    return Inspector(shown, feed, Trials(app.catalogue, clock).run)


def this_process(
    app: Application,
    pool: UpstreamPool,
    clients: Mapping[str, Callable[[], Json]],
    store: RedisTurns | None = None,
) -> ThisProcess:
    """What the admin port asks of this process.

    :param clients: the figures of those that it serves.

    :param store: is asked for turns too.
    """
    figures = {
        **clients,
        "turn_memory": app.memory.figures,
        **({} if store is None else {"memory_store": store.figures}),
        "tool_lists": app.catalogue.figures,
        "mcp_sessions": app.sessions.figures,
        "upstream_pool": pool.figures,
    }
    return ThisProcess(app.metrics, app.tool_status.calls, figures)


def figures_of_clients(
    options: Mapping[str, Any], app: Application, site: ProxySite
) -> dict[str, Callable[[], Json]]:
    """The figures of the clients that *app* serves through *site*."""

    def connections() -> Json:
        return {"open": site.connections.connected, "max": site.limits.connections}

    def requests() -> Json:
        return {
            "running": site.connections.running,
            "streams": site.connections.streams,
            "drain_timeout_seconds": options["drain-timeout"],
        }

    return {"connections": connections, "requests": requests, "chat_bodies": app.bodies.figures}


def add_admin(
    services: MultiService,
    options: Options,
    reactor: Any,
    app: Application,
    url: DecodedURL,
    draining: Callable[[], bool],
    urls: Callable[[], list[str]],
    serving: Serving,
    shown: Shown,
) -> tuple[Reachability, ListenService]:
    """Add the port for operators, which may be missing unless it was asked for.

    :param urls: returns where clients come in.

    :return: what knows whether the server can be reached, and the port.
    """
    reachability = Reachability(reactor, app.detector.answers)
    reachability.listen(app.tell)
    inspector = inspector_of(options, app, url, reactor, shown, serving, draining, urls)
    status = Status(
        url=url.to_text(),
        clock=reactor,
        tools=app.tool_status,
        reachability=reachability,
        draining=draining,
        dialect=lambda: _dialect_shown(app.detector.last),
        serving=serving,
        trouble=lambda: app.detector.trouble,
    )

    def pages() -> IResource:
        # Loaded when an operator asks for it first: clients need not wait for that at the start.
        from llamaproxy.admin.endpoint import AdminApp

        return AdminApp(status, inspector).resource()

    site = ProxySite(LateResource(pages), reactor, ADMIN_LIMITS, tell=Observers(log_event))

    def listening(addresses: Sequence[IAddress]) -> None:
        site.hosts = admin_hosts_at(addresses, options["allowed-hosts"])
        for interface in filter(None, map(open_interface, addresses)):
            if not options["in-container"]:
                _log.warn(
                    "whoever reaches {interface} may use the admin port {endpoint}: "
                    "it asks for no key",
                    interface=interface,
                    endpoint=options["admin"],
                )

    optional = "admin" not in options.explicit
    listen = ListenService(reactor, [options["admin"]], site, 0, optional, listening)
    services.addService(ReachabilityService(reachability))
    services.addService(listen)
    services.addService(inspector.feed)
    lag = LoopLag(reactor)
    app.metrics.watch(names.LOOP_LAG, lambda: lag.seconds)
    services.addService(lag)
    return reachability, listen


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


class ReachabilityService(Service):
    """Has the server asked nothing more when the daemon stops."""

    def __init__(self, reachability: Reachability) -> None:
        self._reachability = reachability

    def stopService(self) -> None:
        Service.stopService(self)
        self._reachability.stop()
