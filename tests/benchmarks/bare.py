"""The yardstick: a Twisted web server that does nothing but answer with a constant.

Run as ``python -m tests.benchmarks.bare PORT``.
"""

import sys
from typing import Any

from twisted.internet import reactor
from twisted.python import log
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


def serve(port: int, reactor: Any, root: Any = Constant) -> None:
    """Answer on 127.0.0.1 until the process is ended; `Any` where Twisted has no types.

    Site writes an access log of its own accord, as the daemon does: both to /dev/null.
    """
    log.startLogging(open("/dev/null", "w"), setStdout=False)
    site: Any = Site
    reactor.listenTCP(port, site(root()), interface="127.0.0.1")
    reactor.run()


if __name__ == "__main__":
    serve(int(sys.argv[1]), reactor)
