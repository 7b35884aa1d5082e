"""StoreKeeper: has a store asked while it answers in time, and not at all for a while if not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, ClassVar, Protocol, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from llamaproxy.deferreds import within
from llamaproxy.memory.connection import StoreError

T = TypeVar("T")

#: Seconds that a chat waits for the store, each time; it asks twice at most.
ASK_SECONDS = 0.025

#: Asks in a row that may come too late until the store is left alone: one may be this process's
#: own, or a breath that the store takes.
_MAX_LATE = 3

#: Seconds of a trial: until there is a connection that can be asked.
TRIAL_SECONDS = 5.0

#: Seconds without the store before a trial: the first, and the last, each twice the one before.
FIRST_REST, LAST_REST = 1.0, 8.0

#: Seconds between two looks whether it is still there: many close what is idle, or forget it, and
#: nobody may ask for hours.
BEAT_SECONDS = 30.0

#: Seconds that it must be well for, so that the next rest is short again.
_WELL_SECONDS = 60.0

#: What can go wrong, for the metric.
KINDS = ("unreachable", "tls", "refused", "slow", "broken", "undecipherable")


class Connection(Protocol):
    """What can be asked until it is lost: :class:`StoreConnection`."""

    lost: Deferred[None]

    async def ask(self, *command: bytes | str | int) -> Any: ...

    def tell(self, *command: bytes | str | int) -> None: ...

    def abort(self) -> None: ...


async def _in_time(clock: IReactorTime, work: Awaitable[T]) -> T:
    """What *work* returns within :data:`ASK_SECONDS`; it is cancelled otherwise.

    :raises TimeoutError: Twisted's, in that case.
    """
    limits: list[IDelayedCall] = []

    async def running() -> T:
        return await work

    def due() -> None:
        # Where this process was busy, what has come meanwhile is read first.
        limits.append(clock.callLater(0, asking.cancel))

    asking = Deferred.fromCoroutine(running())
    # A watchdog is less exact where there are thousands of them.
    limits.append(clock.callLater(ASK_SECONDS, due))
    try:
        return await asking
    except CancelledError:
        if not limits[-1].active():
            raise TimeoutError(ASK_SECONDS) from None
        raise
    finally:
        if limits[-1].active():
            limits[-1].cancel()


class StoreKeeper(Service):
    """Keeps one connection to the store at *url*, made by *connect*.

    A store that is away or late is left alone for a while; then there is one trial, which no chat
    waits for: *probe* asks whatever will be asked. The log says when it goes and comes, once.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        url: str,
        connect: Callable[[], Coroutine[Any, Any, Connection]],
        probe: Callable[[Connection], Coroutine[Any, Any, None]],
    ) -> None:
        self._clock = clock
        self.url = url
        #: Called when the store is there, at first or again.
        self.here: Callable[[], object] = lambda: None
        self._connect = connect
        self._probe = probe
        #: How often each kind of error has happened.
        self.errors = Counter(dict.fromkeys(KINDS, 0))
        self._connection: Connection | None = None
        self._late = 0
        self._rest = FIRST_REST
        self._up_since = 0.0
        self._away_told = False
        self._trial: Deferred[None] | None = None
        #: The next trial, or the next look at a store that is there.
        self._next: IDelayedCall | None = None

    @property
    def up(self) -> bool:
        """Whether the store is asked."""
        return self._connection is not None

    def startService(self) -> None:
        Service.startService(self)
        self._later(0, self._begin_trial)

    def stopService(self) -> Deferred[None] | None:
        Service.stopService(self)
        if self._next is not None:
            self._next.cancel()
            self._next = None
        if self._trial is not None:
            self._trial.cancel()
        connection, self._connection = self._connection, None
        if connection is None:
            return None
        connection.abort()
        return connection.lost

    async def ask(self, work: Callable[[Connection], Awaitable[T]]) -> T | None:
        """What *work* has of the store; None if that is away, or does not answer in time."""
        connection = self._connection
        if connection is None:
            return None
        try:
            answer = await _in_time(self._clock, work(connection))
        except TimeoutError:
            self._late += 1
            self.errors["slow"] += 1
            if self._late >= _MAX_LATE and connection is self._connection:
                self._leave(f"it has not answered within {ASK_SECONDS:g} s")
            return None
        except StoreError as error:
            if connection is self._connection:
                self.errors[error.kind] += 1
                self._leave(error.reason)
            return None
        self._late = 0
        return answer

    def tell(self, *command: bytes | str | int) -> None:
        """Send the store *command* if it is there."""
        if self._connection is not None:
            self._connection.tell(*command)

    def _later(self, seconds: float, do: Callable[[], None]) -> None:
        """Do that next, after so many *seconds*, and nothing else."""

        def begin() -> None:
            self._next = None
            do()

        if self._next is not None:
            self._next.cancel()
        self._next = self._clock.callLater(seconds, begin)

    def _beat(self) -> None:
        self._later(BEAT_SECONDS, self._beat)
        Deferred.fromCoroutine(self.ask(self._probe))

    def _begin_trial(self) -> None:
        self._trial = Deferred.fromCoroutine(self._try())

    async def _try(self) -> None:
        try:
            connection = await self._tried()
        except CancelledError:
            return  # stopped
        except StoreError as error:
            self.errors[error.kind] += 1
            self._away(error.reason)
        except Exception as error:
            self._log.failure("a trial of the store failed")
            self.errors["broken"] += 1
            self._away(type(error).__name__)
        else:
            self._come(connection)

    async def _tried(self) -> Connection:
        """A connection that has been asked all that it will be.

        :raises StoreError: if there is none.
        """
        try:
            connection = await within(TRIAL_SECONDS, self._clock, self._connected())
        except TimeoutError:
            reason = f"it has let nobody in within {TRIAL_SECONDS:g} s"
            raise StoreError("unreachable", reason) from None
        try:
            for _ in range(_MAX_LATE):
                with suppress(TimeoutError):
                    await _in_time(self._clock, self._probe(connection))
                    return connection
            raise StoreError("slow", f"it does not answer within {ASK_SECONDS:g} s")
        except BaseException:
            connection.abort()
            raise

    async def _connected(self) -> Connection:
        """A connection that has answered once: that may take longer, as TLS is agreed on first."""
        connection = await self._connect()
        try:
            await self._probe(connection)
        except BaseException:
            connection.abort()
            raise
        return connection

    def _come(self, connection: Connection) -> None:
        self._connection, self._late = connection, 0
        self._up_since = self._clock.seconds()
        self._away_told = False
        self._log.info("turns are shared in {url}", url=self.url)
        self._later(BEAT_SECONDS, self._beat)
        connection.lost.addCallback(lambda _: self._gone(connection))
        self.here()

    def _gone(self, connection: Connection) -> None:
        """The connection was lost, unless it was left."""
        if connection is self._connection:
            self.errors["unreachable"] += 1
            self._leave("the connection was closed")

    def _leave(self, reason: str) -> None:
        connection, self._connection = self._connection, None
        assert connection is not None
        connection.abort()
        if self._clock.seconds() - self._up_since >= _WELL_SECONDS:
            self._rest = FIRST_REST
        self._away(reason)

    def _away(self, reason: str) -> None:
        if not self._away_told:
            self._away_told = True
            self._log.warn(
                "turns are not shared: {url} cannot be used: {reason}", url=self.url, reason=reason
            )
        if self.running:
            self._later(self._rest, self._begin_trial)
            self._rest = min(2 * self._rest, LAST_REST)
