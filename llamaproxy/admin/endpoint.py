"""AdminApp: the URLs of the second port, for an operator and his monitoring."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import attrs
from klein import Klein
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource

from llamaproxy import __version__, jsontext
from llamaproxy.admin.metrics import Metrics
from llamaproxy.errors import error_object
from llamaproxy.jsontext import Json

_PATHS = ("/live", "/ready", "/metrics", "/status")


@attrs.frozen(eq=False, repr=False)
class AdminApp:
    """Every URL of the admin port.

    *draining* returns whether the daemon is stopping; *upstream* and *tools* return what
    ``/status`` shows of the server and of its tools.
    """

    _metrics: Metrics
    _draining: Callable[[], bool]
    _upstream: Callable[[], Json]
    _tools: Callable[[], Json]
    #: Answers what the page asks for; None if there is no page.
    _inspector: IResource | None = None
    _routes: ClassVar[Klein] = Klein()

    def resource(self) -> IResource:
        """The root of the resource tree."""
        return self._routes.resource()

    @_routes.route("/live", methods=["GET"])
    def live(self, request: IRequest) -> bytes:
        return _json(request, {"status": "live"})

    @_routes.route("/ready", methods=["GET"])
    def ready(self, request: IRequest) -> bytes:
        if self._draining():
            request.setResponseCode(503)
            return _json(request, {"status": "draining"})
        return _json(request, {"status": "ready"})

    @_routes.route("/metrics", methods=["GET"])
    def metrics(self, request: IRequest) -> bytes:
        # Loaded in some 10 ms, when they are first asked for.
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        request.setHeader(b"content-type", CONTENT_TYPE_LATEST.encode())
        return generate_latest(self._metrics.registry)

    @_routes.route("/status", methods=["GET"])
    def status(self, request: IRequest) -> bytes:
        status = {
            "version": __version__,
            "draining": self._draining(),
            "upstream": self._upstream(),
            **self._tools(),
        }
        return _json(request, status)

    @_routes.route("/", methods=["GET"])
    @_routes.route("/page/<name>", methods=["GET"])
    @_routes.route("/feed", methods=["GET"])
    @_routes.route("/answers/<key>", methods=["GET"])
    @_routes.route("/answers/<key>/stop", methods=["POST"])
    @_routes.route("/tools/try", methods=["POST"])
    def inspector(self, request: IRequest, **_: str) -> IResource | bytes:
        return self.not_found(request) if self._inspector is None else self._inspector

    @_routes.route("/", branch=True)
    def not_found(self, request: IRequest) -> bytes:
        request.setResponseCode(404)
        return _json(request, error_object(404, f"There are: {', '.join(_PATHS)}."))


def _json(request: Any, body: Json) -> bytes:
    request.setHeader(b"content-type", b"application/json")
    return jsontext.dumps(body)
