"""What a daemon without workers consists of, and each worker of one that has some."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from hyperlink import DecodedURL
from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.logger import Logger

from llamaproxy.admin import names
from llamaproxy.application import (
    Application,
    ToolsElsewhere,
    assemble,
    reread_servers,
    use_servers,
)
from llamaproxy.config.options import Options
from llamaproxy.deferreds import all_of
from llamaproxy.jsontext import Json
from llamaproxy.routes import CHAT_PATHS
from llamaproxy.server.hosts import hosts_at
from llamaproxy.server.keys import reread_keys
from llamaproxy.server.limits import Limits, connections_possible
from llamaproxy.server.listen import ListenService
from llamaproxy.server.site import ProxySite
from llamaproxy.upstream.agent import AgentForAnywhere, UpstreamAgent
from llamaproxy.upstream.pool import UpstreamPool

if TYPE_CHECKING:
    from llamaproxy.admin.tracing.spans import Spans
    from llamaproxy.chat.shared_turns import FarTurns
    from llamaproxy.memory.turns import RedisTurns


_log = Logger()


def memory_store(options: Options, reactor: Any) -> RedisTurns | None:
    """The store that is asked for turns too; None if there is none."""
    if options["memory"] is None:
        return None
    from llamaproxy.memory.turns import redis_turns  # what it needs is an extra

    return redis_turns(options, reactor)


def use_store(store: RedisTurns, app: Application, services: MultiService) -> None:
    """Have *app* show what becomes of the *store*, and *services* see to it."""
    store.watch(app.metrics)
    store.refill_from(app.memory)
    services.addService(store.keeper)


def connected(
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


def site_of(
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
        tell=app.tell,
    )
    connections, watch = site.connections, app.metrics.watch
    watch(names.CONNECTIONS, lambda: connections.connected)
    watch(names.CONNECTIONS_MAX, lambda: limits.connections)
    watch(names.RUNNING, lambda: connections.running)
    watch(names.STREAMS_OPEN, lambda: connections.streams)
    watch(names.LISTENER_FAILURES, lambda: app.tell.failures)
    return site


def listen_of(
    options: Options, reactor: Any, endpoints: list[str], site: ProxySite
) -> ListenService:
    """What has clients come to *site* by these *endpoints*."""

    def listening(addresses: Sequence[IAddress]) -> None:
        site.hosts = hosts_at(addresses, options["allowed-hosts"])

    return ListenService(reactor, endpoints, site, options["drain-timeout"], listening=listening)


def rereads_of(options: Options, app: Application) -> list[Callable[[], object]]:
    """What reads again what is read again on SIGHUP."""
    rereads: list[Callable[[], object]] = []
    if options["api-keys-file"] is not None:
        rereads.append(partial(reread_keys, options["api-keys-file"]))
    if options["mcp-config"] is not None:
        rereads.append(partial(reread_servers, options, app))
    return rereads


def take_files(options: Options, app: Application, files: Json) -> None:
    """Take what another process has read of *files* that are read again on SIGHUP."""
    for name, contents in files.items():
        options[name].take(contents)
    if "mcp-config" in files:
        use_servers(options, app)
    _log.info("what counts in the parent counts here too: {names}", names=", ".join(files))


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
