"""Endpoints behind a load balancer that names the client first (PROXY protocol: ``haproxy:``)."""

from __future__ import annotations

from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.protocols.haproxy import proxyEndpoint
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from zope.interface import implementer

_PREFIX = "haproxy:"

#: The line of a balancer that speaks for itself, such as in a health check (HAProxy's
#: "The PROXY protocol", section 2.1); and as Twisted wants it, with a blank before what there is
#: none of.
_SHORT, _READABLE = b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN \r\n"


def endpoint_of(reactor: Any, description: str) -> IStreamServerEndpoint:
    """The endpoint of that *description*.

    What is wrong with it is raised as :func:`serverFromString` does.
    """
    if description.startswith(_PREFIX):
        return proxyEndpoint(_Spelled(endpoint_of(reactor, description.removeprefix(_PREFIX))))
    endpoint: IStreamServerEndpoint = serverFromString(reactor, description)
    return endpoint


class _SpellingProtocol(ProtocolWrapper):
    """Hands on what comes, that line as it can be read."""

    #: What has come of the line; None when it is known what it is.
    _line: bytes | None = b""

    def dataReceived(self, data: bytes) -> None:
        if self._line is not None:
            line = self._line + data
            if len(line) < len(_SHORT) and _SHORT.startswith(line):
                self._line = line
                return
            self._line = None
            data = _READABLE + line[len(_SHORT) :] if line.startswith(_SHORT) else line
        self.wrappedProtocol.dataReceived(data)


class _SpellingFactory(WrappingFactory):
    protocol = _SpellingProtocol
    noisy = False

    def logPrefix(self) -> str:
        prefix: str = self.wrappedFactory.logPrefix()
        return prefix


@implementer(IStreamServerEndpoint)
@attrs.frozen(eq=False, repr=False)
class _Spelled:
    """An endpoint whose connections are :class:`_SpellingProtocol`'s."""

    _endpoint: IStreamServerEndpoint

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        factory: Any = _SpellingFactory
        return self._endpoint.listen(factory(protocolFactory))
