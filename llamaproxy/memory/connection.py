"""StoreConnection: what is asked of Redis or Valkey; Connector: makes connections to it.

Only the protocol is txredisapi's. What it has for connections gives up for good when AUTH fails
once, waits for sentinels without a limit, has no TLS behind them, and runs on the global reactor.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import attrs
from cryptography.x509 import load_pem_x509_certificates
from OpenSSL.crypto import X509
from OpenSSL.SSL import Error as TLSError
from service_identity import CertificateError, VerificationError
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError, ConnectingCancelledError, DNSLookupError
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates
from twisted.python.failure import Failure
from txredisapi import BaseRedisProtocol, RedisError, ResponseError
from txredisapi import ConnectionError as LostConnection

from llamaproxy.config.storeaddress import StoreAddress
from llamaproxy.deferreds import within

#: Bytes of one reply, which may be many values.
MAX_REPLY = 4 * 1024 * 1024

#: Bytes that the protocol is given at once: what is left of them is copied for each line in them.
_SLICE = 4096

#: Seconds in which a sentinel must say where the master is.
_SENTINEL_SECONDS = 1.0

#: What errors begin with (redis.io, "RESP protocol spec", and its source). The rest of one may
#: repeat what was asked.
_ERRORS = frozenset(
    {
        *("BUSY", "CLUSTERDOWN", "DENIED", "ERR", "LOADING", "MASTERDOWN", "MISCONF", "MOVED"),
        *("NOAUTH", "NOPERM", "NOREPLICAS", "OOM", "READONLY", "WRONGPASS", "WRONGTYPE"),
    }
)


class StoreError(Exception):
    """The store cannot be used.

    *kind* is a word for the metric, *reason* a clause for the log, without what a peer says: that
    may repeat a name or a password.
    """

    def __init__(self, kind: str, reason: str) -> None:
        Exception.__init__(self, kind, reason)
        self.kind = kind
        self.reason = reason


class StoreConnection(BaseRedisProtocol):  # type: ignore[misc]
    """A connection that is asked, by any number at a time, and answers in their order.

    A peer that sends what is no answer, or too much of one, is left.
    """

    def __init__(self, clock: Any) -> None:
        BaseRedisProtocol.__init__(self, charset=None, convertNumbers=False)
        self.callLater = clock.callLater  # the global reactor's otherwise
        #: Fires, with None, when the connection is gone.
        self.lost: Deferred[None] = Deferred()
        self._received = 0
        self._error = StoreError("unreachable", "the connection was closed")

    async def ask(self, *command: bytes | str | int) -> Any:
        """The reply to *command*: bytes, a string, a number, None, or a list of them.

        :raises StoreError: if there is none, or it is an error.
        """
        try:
            return await self.execute_command(*command)
        except ResponseError as error:
            word = str(error).partition(" ")[0]
            what = word if word in _ERRORS else "an error"
            raise StoreError("refused", f"it answers {command[0]!s} with {what}") from None
        except LostConnection:
            raise self._error from None
        except RedisError:
            raise StoreError("broken", "it sends what is no answer") from None

    def tell(self, *command: bytes | str | int) -> None:
        """Send *command*; nobody waits for what becomes of it."""
        if self.connected:
            self.execute_command(*command).addErrback(lambda _: None)

    def abort(self) -> None:
        """Close the connection at once; whoever waits for a reply hears it."""
        self.transport.abortConnection()

    def connectionMade(self) -> None:
        """It signs in by what it is asked."""

    def dataReceived(self, data: bytes, unpause: bool = False) -> None:
        whole = unpause or len(data) <= _SLICE
        if not unpause:
            self._received += len(data)
        pieces = [data] if whole else [data[i : i + _SLICE] for i in range(0, len(data), _SLICE)]
        try:
            if self._received > MAX_REPLY:
                raise ValueError
            for piece in pieces:
                if self.connected and not self.transport.disconnecting:
                    BaseRedisProtocol.dataReceived(self, piece, unpause)
        except ValueError:  # among them what cannot be decoded
            self._leave()

    def replyReceived(self, reply: Any) -> None:
        self._received = 0
        if self.replyQueue.waiting:
            BaseRedisProtocol.replyReceived(self, reply)
        else:
            self._leave()

    def lineLengthExceeded(self, line: bytes) -> None:
        self._leave()

    def connectionLost(self, why: Failure = connectionDone) -> None:
        self.connected = 0
        if why.check(TLSError, VerificationError, CertificateError):
            self._error = StoreError("tls", _tls_reason(why.value))
        while self.replyQueue.waiting:
            BaseRedisProtocol.replyReceived(self, LostConnection())
        self.lost.callback(None)

    def _leave(self) -> None:
        self._error = StoreError("broken", "it sends what is no answer")
        self.abort()


def _tls_reason(error: BaseException | None) -> str:
    """What is wrong, in words: OpenSSL's, which are not the peer's."""
    if isinstance(error, TLSError):
        reasons = error.args[0] if error.args else None
        if isinstance(reasons, list) and reasons:
            return f"the TLS handshake failed ({reasons[0][-1]})"
        return "it closed the connection during the TLS handshake"
    return "its certificate is another host's"


def _connecting_error(error: Exception) -> StoreError:
    described = isinstance(error, ConnectError | DNSLookupError)
    reason = (type(error).__doc__ or "").strip().rstrip(".") if described else ""
    return StoreError("unreachable", reason or type(error).__name__)


@lru_cache(maxsize=8)
def _tls_options(host: str, authorities: str | None) -> Any:
    """How connections to *host* are secured; to read the system's authorities takes a while."""
    if authorities is None:
        return optionsForClientTLS(host)
    found = load_pem_x509_certificates(Path(authorities).read_bytes())
    trusted = [Certificate(X509.from_cryptography(each)) for each in found]
    return optionsForClientTLS(host, trustRootFromCertificates(trusted))


@attrs.frozen(eq=False, repr=False)
class Connector:
    """Makes connections to the server at *address*, or to the master that sentinels there name.

    *authorities* is a PEM file, instead of the system's.
    """

    _reactor: Any
    _address: StoreAddress
    _authorities: str | None = None

    async def connect(self) -> StoreConnection:
        """A connection that has signed in.

        :raises StoreError: if there is none.
        """
        address = self._address
        if address.path:
            connection = await self._open(UNIXClientEndpoint(self._reactor, address.path))
        elif address.service:
            connection = await self._open_host(*await self._master())
        else:
            connection = await self._open_host(*address.hosts[0])
        try:
            await self._sign_in(connection)
            if address.database:
                await connection.ask("SELECT", address.database)
        except BaseException:
            connection.abort()
            raise
        return connection

    async def _sign_in(self, connection: StoreConnection) -> None:
        address = self._address
        if address.password:
            user = [address.user] if address.user else []
            await connection.ask("AUTH", *user, address.password)

    async def _master(self) -> tuple[str, int]:
        """The host and port that the first of the sentinels that answers has for the master."""
        error = StoreError("unreachable", "no sentinel answers")
        for host, port in random.sample(self._address.hosts, len(self._address.hosts)):
            asking = self._ask_sentinel(host, port)
            try:
                return await within(_SENTINEL_SECONDS, self._reactor, asking)
            except TimeoutError:
                continue
            except StoreError as failure:
                error = StoreError(failure.kind, f"of its sentinels, {failure.reason}")
        raise error

    async def _ask_sentinel(self, host: str, port: int) -> tuple[str, int]:
        query = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._address.service)
        sentinel = await self._open_host(host, port)
        try:
            try:
                answer = await sentinel.ask(*query)
            except StoreError as error:
                if error.kind != "refused":
                    raise
                await self._sign_in(sentinel)  # few have a password, which is the server's then
                answer = await sentinel.ask(*query)
        finally:
            sentinel.abort()
        if not _is_place(answer):
            raise StoreError("unreachable", "none knows a master of that name")
        return answer[0].decode("ascii"), int(answer[1])

    async def _open_host(self, host: str, port: int) -> StoreConnection:
        endpoint: Any = HostnameEndpoint(self._reactor, host, port)
        if self._address.tls:
            try:
                secured = _tls_options(host, self._authorities)
            except (OSError, ValueError):
                raise StoreError("tls", "its name or its authorities cannot be used") from None
            endpoint = wrapClientTLS(secured, endpoint)
        return await self._open(endpoint)

    async def _open(self, endpoint: Any) -> StoreConnection:
        factory = Factory()
        factory.noisy = False
        factory.protocol = lambda: StoreConnection(self._reactor)
        try:
            connection: StoreConnection = await endpoint.connect(factory)
        except ConnectingCancelledError:
            raise CancelledError from None
        except (OSError, ConnectError, DNSLookupError) as error:
            raise _connecting_error(error) from None
        return connection


def _is_place(answer: object) -> bool:
    """Whether it is a host and a port, as bytes."""
    if not isinstance(answer, Iterable) or isinstance(answer, str | bytes):
        return False
    match [*answer]:
        case [bytes(host), bytes(port)]:
            return host.isascii() and port.isdigit() and len(port) <= 5
    return False
