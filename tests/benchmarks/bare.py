"""The yardstick: a Twisted web server that does nothing but answer with a constant.

Run as ``python -m tests.benchmarks.bare PORT``.
"""

import sys
from typing import Any

from twisted.internet import reactor
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import Site

from . import canned


class Constant(Resource):
    """Answers with the very bodies that the stub answers the proxied requests with."""

    isLeaf = True

    def render_GET(self, request: Request) -> bytes:
        request.responseHeaders.setRawHeaders(b"content-type", [b"application/json"])
        return canned.ANSWER if request.path == b"/answer" else canned.HEALTH

    def render_POST(self, request: Request) -> bytes:
        request.responseHeaders.setRawHeaders(b"content-type", [b"application/json"])
        return canned.ANSWER


class QuietSite(Site):
    """A site without an access log: the hardest yardstick for a daemon that writes one."""

    def log(self, request: Request) -> None:
        """Write nothing."""


def serve(port: int, reactor: Any, site: Any = QuietSite, root: Any = Constant) -> None:
    """Answer on 127.0.0.1 until the process is ended; `Any` where Twisted has no types."""
    reactor.listenTCP(port, site(root()), interface="127.0.0.1")
    reactor.run()


if __name__ == "__main__":
    serve(int(sys.argv[1]), reactor)
