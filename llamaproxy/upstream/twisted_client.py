"""What the proxy uses of Twisted's HTTP client beyond its documentation, all in one place.

A release of Twisted that behaves otherwise fails ``tests/upstream/test_twisted_client.py``.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol, IStreamClientEndpoint
from twisted.web.client import HTTPConnectionPool, ProxyAgent
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer, IResponse

from llamaproxy.upstream.bodies import Upload

#: Bytes written at a time.
_ZEROS = bytes(128 * 1024)


class TargetAgent:
    """Sends requests to one server with targets as they are.

    :class:`twisted.web.client.Agent` takes a URL apart and writes another one. A ``ProxyAgent``
    sends the URL that it is given, so this is one that is given a target in its place.
    """

    def __init__(
        self, endpoint: IStreamClientEndpoint, reactor: Any, pool: HTTPConnectionPool
    ) -> None:
        self._agent = ProxyAgent(endpoint, reactor=reactor, pool=pool)

    def request(
        self, method: bytes, target: bytes, headers: Headers, body: IBodyProducer | None
    ) -> Deferred[IResponse]:
        """The response to a request for *target*, a path and query; *headers* have a ``Host``."""
        response: Deferred[IResponse] = self._agent.request(method, target, headers, body)
        return response


def is_idle(client: IProtocol) -> bool:
    """Whether no request is under way on the connection of *client*."""
    protocol: Any = client
    return bool(protocol.state == "QUIESCENT")


def end_upload(upload: Upload) -> None:
    """End an *upload* whose response is there, on a transport that discards what is written.

    Twisted's client delivers a response only after the request has been sent, and fails a request
    whose body is shorter than announced. So zeros are written in place of what is left.
    """
    consumer = upload.consumer
    upload.stopProducing()
    while upload.bytes_left and consumer is not None:
        upload.write(consumer, _ZEROS[: upload.bytes_left])
    upload.complete()


def set_tunnel(response: IResponse, tunnel: object) -> None:
    """Make *response*, to a request to switch protocols, that of a *tunnel*.

    Twisted's client waits for another response after a 101, and so was given a 200.
    """
    switched: Any = response
    switched.code, switched.tunnel = 101, tunnel
