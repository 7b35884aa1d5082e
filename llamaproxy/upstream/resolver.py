"""Resolver: looks up the addresses of names, in few threads.

The system's resolver is called in one of the reactor's ten threads, and cannot be cancelled: names
that are slow to resolve must not take them all.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from functools import partial
from socket import AF_INET6, AF_UNSPEC, SOCK_STREAM, getaddrinfo
from typing import Any

import attrs
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import DNSLookupError
from twisted.internet.interfaces import IReactorPluggableNameResolver
from twisted.internet.threads import deferToThreadPool
from zope.interface import implementer

#: Seconds for which addresses are kept, and for which it is that there are none.
FRESH_SECONDS, MISSING_SECONDS = 5.0, 1.0

#: Names that are kept.
MAX_NAMES = 256

Addresses = tuple[Any, ...]


@attrs.frozen(eq=False, repr=False)
class _Answer:
    addresses: Addresses
    until: float


class Resolver:
    """Looks names up, each in one thread at a time, and at most *max_running* at a time."""

    def __init__(self, reactor: Any, max_running: int) -> None:
        self._reactor = reactor
        self._max_running = max_running
        self._answers: OrderedDict[str, _Answer] = OrderedDict()
        #: The requests for each name; empty for a look-up under way that nobody waits for any more.
        self._waiters: dict[str, list[Deferred[Addresses]]] = {}
        self._queue: deque[str] = deque()
        self._running: set[str] = set()

    def addresses(self, name: str) -> Deferred[Addresses]:
        """The addresses of *name*, at least one; cancelling leaves others who wait alone.

        Fails with :class:`DNSLookupError` if there is none.
        """
        answer = self._answers.get(name)
        if answer is not None and self._reactor.seconds() < answer.until:
            waiter: Deferred[Addresses] = succeed(answer.addresses)
        else:
            waiter = Deferred(lambda waiter: self._leave(name, waiter))
            if name not in self._waiters:
                self._waiters[name] = []
                self._queue.append(name)
            self._waiters[name].append(waiter)
            self._start()
        return waiter.addCallback(_at_least_one, name)

    def _start(self) -> None:
        while self._queue and len(self._running) < self._max_running:
            name = self._queue.popleft()
            self._running.add(name)
            # Not by the reactor's nameResolver, which never tells the end of a look-up that fails
            # as no other has: without a free descriptor, or for a name that IDNA does not allow.
            pool = self._reactor.getThreadPool()
            looking_up = deferToThreadPool(self._reactor, pool, _look_up, name)
            looking_up.addErrback(lambda _: ())
            looking_up.addCallback(partial(self._ended, name))

    def _ended(self, name: str, addresses: Addresses) -> None:
        self._running.discard(name)
        seconds = FRESH_SECONDS if addresses else MISSING_SECONDS
        self._answers[name] = _Answer(addresses, self._reactor.seconds() + seconds)
        self._answers.move_to_end(name)
        if len(self._answers) > MAX_NAMES:
            self._answers.popitem(last=False)
        waiters = self._waiters.pop(name)
        self._start()
        for waiter in waiters:
            if not waiter.called:  # else: it has left just now, because of another
                waiter.callback(addresses)

    def _leave(self, name: str, waiter: Deferred[Addresses]) -> None:
        waiters = self._waiters.get(name, [])
        if waiter in waiters:
            waiters.remove(waiter)
        if not waiters and name in self._queue:
            self._queue.remove(name)
            del self._waiters[name]


def _look_up(name: str) -> Addresses:
    """What the system knows of *name*.

    :raises Exception: whatever it fails by.
    """
    found = getaddrinfo(name, 0, AF_UNSPEC, SOCK_STREAM)
    return tuple(
        (IPv6Address if family == AF_INET6 else IPv4Address)("TCP", *place)
        for family, _, _, _, place in found
    )


def _at_least_one(addresses: Addresses, name: str) -> Addresses:
    if not addresses:
        raise DNSLookupError(f"there is no address of {name!r}")
    return addresses


@implementer(IReactorPluggableNameResolver)
class Resolved:
    """A reactor that resolves every name to *addresses*, at once."""

    def __init__(self, reactor: Any, addresses: Addresses) -> None:
        self._reactor = reactor
        self._addresses = addresses
        self.nameResolver = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def installNameResolver(self, resolver: Any) -> Any:
        raise NotImplementedError("there is but this one")

    def resolveHostName(
        self, receiver: Any, hostName: str, portNumber: int = 0, *more: object
    ) -> None:
        for address in self._addresses:
            receiver.addressResolved(attrs.evolve(address, port=portNumber))
        receiver.resolutionComplete()
