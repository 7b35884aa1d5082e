"""ListenService: the ports that the daemon listens on, and how it leaves them."""

from __future__ import annotations

import os
import re
import socket
import stat
from contextlib import suppress
from typing import Any, ClassVar

from OpenSSL.crypto import Error as OpenSSLError
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, TimeoutError, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort, IReactorTime, IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaproxy.server.site import ProxySite
from llamaproxy.server.twistedparts import accept_before_closing

#: Connections that may wait to be accepted; those of more clients take a second or longer.
BACKLOG = 1024

#: Seconds in which clients may read the last that is sent to them when time is up.
_FLUSH_SECONDS = 0.5


class CannotListen(SystemExit, Exception):
    """An endpoint is unusable or taken: the daemon does not start.

    In the foreground a SystemExit is one line and no traceback; in the background twistd tells its
    parent process of an Exception, and of nothing else.
    """


class ListenService(Service):
    """Listens while it runs; when stopped, lets the requests in flight end first."""

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        reactor: Any,
        endpoints: list[str],
        site: ProxySite,
        drain: float,
        optional: bool = False,
    ) -> None:
        """:param drain: seconds that requests in flight are given.

        :param optional: whether the daemon may do without, with a warning.

        :raises CannotListen: with one clear line, if an endpoint's description is wrong.
        """
        self._clock: IReactorTime = reactor
        self.site = site
        self._drain = drain
        self._optional = optional
        self.draining = False
        self._stops_now = False
        self._waiting: Deferred[None] | None = None
        self._ports: list[IListeningPort] = []
        self._endpoints = []
        for description in endpoints:
            try:
                endpoint = serverFromString(reactor, _with_backlog(description))
            except Exception as error:  # each endpoint parser has exceptions of its own
                reason = "a file is not PEM" if isinstance(error, OpenSSLError) else error
                raise CannotListen(
                    f"twistd llamaproxy: cannot listen on {description!r}: {reason}"
                ) from None
            self._endpoints.append((description, endpoint))

    def privilegedStartService(self) -> None:
        """Listen on every endpoint.

        :raises CannotListen: with one clear line, if one is taken.
        """
        for description, endpoint in self._endpoints:
            failures = self._listen(endpoint)
            if failures and _clear_stale_socket(description):
                failures = self._listen(endpoint)
            if failures:
                error = failures[0].value
                reason = getattr(error, "socketError", error)
                if self._optional:
                    self._log.warn(
                        "cannot listen on {endpoint}, going on without: {reason}",
                        endpoint=description,
                        reason=str(reason),
                    )
                    continue
                raise CannotListen(f"twistd llamaproxy: cannot listen on {description!r}: {reason}")

    def _listen(self, endpoint: IStreamServerEndpoint) -> list[Failure]:
        """Listen; no failure, or the one that kept it from that."""
        failures: list[Failure] = []
        endpoint.listen(self.site).addCallbacks(self._ports.append, failures.append)
        return failures

    def startService(self) -> None:
        Service.startService(self)
        if not self._ports and not self._optional:
            self.privilegedStartService()

    def stop_now(self) -> None:
        """Do not wait any longer for what is being served."""
        self._stops_now = True
        if self._waiting is not None:
            self._waiting.cancel()

    async def _stop(self) -> None:
        ports, self._ports = self._ports, []
        for port in ports:
            accept_before_closing(self._clock, port)
            await maybeDeferred(port.stopListening)
        connections = self.site.connections
        connections.drain()
        if connections.running:
            self._log.info("waiting for {count} requests", count=connections.running)
        if await self._wait(0 if self._stops_now else self._drain):
            return
        if connections.running:
            self._log.warn("{count} requests have been cut short", count=connections.running)
        connections.cut_short()
        if not await self._wait(_FLUSH_SECONDS):
            connections.abort()

    async def _wait(self, seconds: float) -> bool:
        """Whether all connections have been closed within so many *seconds*."""
        self._waiting = self.site.connections.when_closed()
        try:
            await self._waiting.addTimeout(seconds, self._clock)
        except (TimeoutError, CancelledError):
            return False
        finally:
            self._waiting = None
        return True

    def stopService(self) -> Deferred[None]:
        Service.stopService(self)
        self.draining = True
        return Deferred.fromCoroutine(self._stop())


def _with_backlog(description: str) -> str:
    """An endpoint with room for many who connect at once; Twisted's own is 50."""
    plain = description.startswith(("tcp:", "tcp6:", "ssl:", "unix:"))
    return (
        f"{description}:backlog={BACKLOG}"
        if plain and ":backlog=" not in description
        else description
    )


def _clear_stale_socket(description: str) -> bool:
    """Remove the Unix socket of *description* if nobody listens on it; whether that was so.

    A process that was killed leaves its socket behind, and Twisted's lock, which goes too: that
    holds a process id, which in a container is the same for the new process.
    """
    kind, _, rest = description.partition(":")
    if kind != "unix":
        return False
    address = re.split(r"(?<!\\):", rest, maxsplit=1)[0].removeprefix("address=")
    path = re.sub(r"\\(.)", r"\1", address)
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return False
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1)
            probe.connect(path)
        return False
    except ConnectionRefusedError:
        pass
    except OSError:
        return False
    for stale in (path, f"{path}.lock"):
        with suppress(FileNotFoundError):
            os.unlink(stale)
    return True


def client_url(description: str) -> str:
    """The URL by which clients reach the Twisted endpoint of that *description*."""
    kind, *parts = (re.sub(r"\\(.)", r"\1", part) for part in re.split(r"(?<!\\):", description))
    named = dict(part.partition("=")[::2] for part in parts if "=" in part)
    plain = [part for part in parts if "=" not in part]
    if kind == "unix":
        return f"http+unix://{named.get('address') or ''.join(plain[:1])}"
    port = named.get("port") or "".join(plain[:1])
    host = named.get("interface") or "localhost"
    scheme = "https" if kind == "ssl" else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
