"""Ports: the sockets that the daemon listens on, out of the descriptions of endpoints."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, ClassVar

from OpenSSL.crypto import Error as OpenSSLError
from twisted.internet.defer import maybeDeferred
from twisted.internet.interfaces import (
    IAddress,
    IListeningPort,
    IProtocolFactory,
    IStreamServerEndpoint,
)
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaproxy.server.places import Description, client_url
from llamaproxy.server.proxyprotocol import endpoint_of

#: Connections that may wait to be accepted; those of more clients take a second or longer.
BACKLOG = 1024


def _nothing(port: IListeningPort) -> None:
    """Nothing is done to it."""


class CannotListen(SystemExit, Exception):
    """An endpoint is unusable or taken: the daemon does not start.

    In the foreground a SystemExit is one line and no traceback; in the background twistd tells its
    parent process of an Exception, and of nothing else.
    """


class Ports:
    """Those of several endpoints, in their order; all that connect are one factory's."""

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        reactor: Any,
        descriptions: list[str],
        factory: IProtocolFactory,
        optional: bool = False,
    ) -> None:
        """:param optional: whether the daemon may do without, with a warning.

        :raises CannotListen: with one clear line, if an endpoint's description is wrong.
        """
        self._factory = factory
        self._optional = optional
        #: Those that are listening.
        self.open: list[IListeningPort] = []
        #: Where they listen, or did.
        self.addresses: list[IAddress] = []
        self._endpoints = []
        for description in descriptions:
            try:
                endpoint = endpoint_of(reactor, _with_backlog(description))
            except Exception as error:  # each endpoint parser has exceptions of its own
                reason = _reason(description, error)
                raise CannotListen(
                    f"twistd llamaproxy: cannot listen on {description!r}: {reason}"
                ) from None
            self._endpoints.append((description, endpoint))

    def listen(self) -> None:
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
        self.addresses = [port.getHost() for port in self.open]

    def _listen(self, endpoint: IStreamServerEndpoint) -> list[Failure]:
        """Listen; no failure, or the one that kept it from that."""
        failures: list[Failure] = []
        endpoint.listen(self._factory).addCallbacks(self.open.append, failures.append)
        return failures

    def urls(self) -> list[str]:
        """By which clients reach the endpoints; what only the sockets know, once they listen."""
        addresses: Sequence[IAddress | None] = self.addresses or [None] * len(self._endpoints)
        return [
            client_url(description, address)
            for (description, _), address in zip(self._endpoints, addresses, strict=True)
        ]

    def descriptors(self) -> list[int]:
        """Those of the sockets, in the order of the endpoints.

        :raises CannotListen: if one has no socket of its own, as ``stdio:`` has not.
        """
        numbers = []
        for (description, _), port in zip(self._endpoints, self.open, strict=True):
            fileno = getattr(port, "fileno", None)
            if fileno is None:
                raise CannotListen(
                    f"twistd llamaproxy: cannot listen on {description!r}: workers cannot share it"
                )
            numbers.append(fileno())
        return numbers

    async def close(self, before: Callable[[IListeningPort], object] = _nothing) -> None:
        """Listen no more.

        :param before: called with each port before it is told.
        """
        ports, self.open = self.open, []
        for port in ports:
            before(port)
            await maybeDeferred(port.stopListening)


def _with_backlog(description: str) -> str:
    """An endpoint with room for many who connect at once; Twisted's own is 50."""
    plain = description.startswith(("tcp:", "tcp6:", "ssl:", "unix:"))
    has_one = "backlog" in Description.read(description).values
    return f"{description}:backlog={BACKLOG}" if plain and not has_one else description


def _reason(description: str, error: Exception) -> str:
    """Why there is no endpoint of that *description*."""
    if isinstance(error, OpenSSLError):
        return "a file is not PEM"
    if isinstance(error, LookupError) and Description.read(description).kind == "systemd":
        return "systemd has passed on no such socket"
    return str(error)


def _clear_stale_socket(description: str) -> bool:
    """Remove the Unix socket of *description* if nobody listens on it; whether that was so.

    A process that was killed leaves its socket behind, and Twisted's lock, which goes too: that
    holds a process id, which in a container is the same for the new process.
    """
    described = Description.read(description)
    if described.kind != "unix":
        return False
    path = described.values.get("address", "")
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
