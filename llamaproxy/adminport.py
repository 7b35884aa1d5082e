"""The second port: what an operator asks, built out of options around an application."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hyperlink import DecodedURL
from twisted.application.service import MultiService, Service
from twisted.internet.interfaces import IReactorTime
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
from llamaproxy.admin.status import Status
from llamaproxy.application import Application
from llamaproxy.config.options import Options
from llamaproxy.events import Observers
from llamaproxy.jsontext import Json
from llamaproxy.records import RequestRecord
from llamaproxy.routes import LateResource
from llamaproxy.server.hosts import admin_hosts_for, open_interface
from llamaproxy.server.limits import Limits
from llamaproxy.server.listen import ListenService, client_url
from llamaproxy.server.site import ProxySite
from llamaproxy.tools.trial import Trials
from llamaproxy.upstream.dialect import ServerDialect
from llamaproxy.upstream.pool import UpstreamPool

_log = Logger()

#: What those who ask the admin port may take. The largest body is a tool's arguments. A page that
#: has not read for a minute makes room for another: it has up to megabytes waiting for it.
ADMIN_LIMITS = Limits(body=1024 * 1024, connections=256, read_timeout=60)


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

    clients = client_url(options["listen"][0])

    def hello() -> Json:
        detected = app.detector.detected
        return {
            "version": __version__,
            "upstream": url.to_text(),
            "server": None if detected is None else detected.product,
            # No client is given the URL of a Unix socket.
            "url": None if clients.startswith("http+unix:") else f"{clients}/v1",
            "contents": contents is not None,
            "time": answers.unix(),
        }

    feed = Feed(answers, app.tool_status.tools_as_json, hello, clock, app.tell)
    trials = Trials(app.catalogue, clock)
    inspector = Inspector(answers, feed, app.tool_status, contents, stop, trials.run, clients)
    inspector.listen(app.tell)
    return inspector


def add_admin(
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
        trouble=lambda: app.detector.trouble,
    )

    def pages() -> IResource:
        # Loaded when an operator asks for it first: clients need not wait for that at the start.
        from llamaproxy.admin.endpoint import AdminApp

        return AdminApp(app.metrics, status, inspector=inspector).resource()

    hosts = admin_hosts_for(endpoint, options["allowed-hosts"])
    root, tell = LateResource(pages), Observers(log_event)
    site = ProxySite(root, reactor, ADMIN_LIMITS, hosts=hosts, tell=tell)
    optional = "admin" not in options.explicit
    services.addService(ReachabilityService(reachability))
    services.addService(ListenService(reactor, [endpoint], site, 0, optional))
    services.addService(inspector.feed)
    lag = LoopLag(reactor)
    app.metrics.watch(names.LOOP_LAG, lambda: lag.seconds)
    services.addService(lag)


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
