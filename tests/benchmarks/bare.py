"""Yardsticks: Twisted servers that do nothing but answer with a constant.

Run as ``python -m tests.benchmarks.bare PORT KIND``: the kind `resource` is a resource of
`twisted.web`, `protocol` writes its answer without looking at the request, which is the floor.
"""

import sys
from typing import Any

from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol
from twisted.python import log
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import Site

from . import canned
from .http1 import response

_HEALTH = response(canned.HEALTH)


class Constant(Resource):
    """Answers with the very bodies that the stub answers the proxied requests with."""

    isLeaf = True

    def render_GET(self, request: Request) -> bytes:
        request.responseHeaders.setRawHeaders(b"content-type", [b"application/json"])
        return canned.HEALTH

    def render_POST(self, request: Request) -> bytes:
        request.responseHeaders.setRawHeaders(b"content-type", [b"application/json"])
        return canned.ANSWER


class Parrot(Protocol):
    """Writes one answer for each read."""

    def dataReceived(self, data: bytes) -> None:
        transport: Any = self.transport
        transport.write(_HEALTH)


def serve(port: int, kind: str, reactor: Any) -> None:
    """Answer on 127.0.0.1 until the process is ended; `Any` where Twisted has no types.

    Site writes an access log of its own accord, as the daemon does: both to /dev/null.
    """
    log.startLogging(open("/dev/null", "w"), setStdout=False)
    site: Any = Site
    resource: Any = Constant
    factory = site(resource()) if kind == "resource" else Factory.forProtocol(Parrot)
    reactor.listenTCP(port, factory, backlog=1024, interface="127.0.0.1")
    reactor.run()


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2], reactor)
