"""AdminApp: the URLs of the second port, for an operator and his monitoring."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar
from urllib.parse import unquote_to_bytes

import attrs
from klein import Klein
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource, Resource
from werkzeug.exceptions import HTTPException

from llamaproxy import jsontext
from llamaproxy.admin.exposition import exposed
from llamaproxy.admin.loglevel import LogLevels
from llamaproxy.admin.page import add_fields
from llamaproxy.admin.status import Status
from llamaproxy.errors import ProxyError, error_object, error_response
from llamaproxy.jsontext import Json
from llamaproxy.request import ProxyRequest


@attrs.frozen(eq=False, repr=False)
class AdminApp:
    """Every URL of the admin port."""

    _status: Status
    #: Answers what the page asks for; None if there is no page.
    _inspector: IResource | None = None
    _log_levels: LogLevels = attrs.field(init=False)
    _routes: ClassVar[Klein] = Klein()

    @_log_levels.default
    def _levels(self) -> LogLevels:
        return LogLevels(self._status.serving)

    def resource(self) -> IResource:
        """The root of the resource tree."""
        return _Root(self._routes)

    @_routes.route("/live", methods=["GET"])
    def live(self, request: IRequest) -> bytes:
        return _json(request, {"status": "live"})

    @_routes.route("/ready", methods=["GET"])
    def ready(self, request: IRequest) -> bytes:
        ready, answer = self._status.readiness()
        return _json(request, answer, 200 if ready else 503)

    @_routes.route("/status", methods=["GET"])
    async def status(self, request: IRequest) -> bytes:
        return _json(request, await self._status.as_json())

    @_routes.route("/log-level", methods=["GET"])
    def log_level(self, request: IRequest) -> bytes:
        return _json(request, self._log_levels.as_json())

    @_routes.route("/log-level", methods=["POST"])
    def set_log_level(self, request: ProxyRequest) -> bytes:
        return _json(request, self._log_levels.set(request))

    @_routes.route("/metrics", methods=["GET"])
    async def metrics(self, request: IRequest) -> bytes:
        media_type, text = exposed(await self._status.serving.measured())
        request.setHeader(b"content-type", media_type.encode())
        return text

    @_routes.handle_errors(ProxyError)
    def refused(self, request: IRequest, failure: Failure) -> bytes:
        error: Any = failure.value
        return error_response(request, error)

    @_routes.route("/", methods=["GET"])
    @_routes.route("/page/<name>", methods=["GET"])
    @_routes.route("/feed", methods=["GET"])
    @_routes.route("/answers/<key>", methods=["GET"])
    @_routes.route("/answers/<key>/stop", methods=["POST"])
    @_routes.route("/tools/try", methods=["POST"])
    def inspector(self, request: IRequest, **_: str) -> IResource | bytes:
        return self._inspector or _not_found(request, self._routes)

    @_routes.handle_errors(HTTPException)
    def no_route(self, request: IRequest, failure: Failure) -> bytes:
        """No such path, or not for that method; no redirects to what is like it."""
        methods: list[str] = sorted(getattr(failure.value, "valid_methods", None) or ())
        if methods:
            request.setHeader(b"allow", ", ".join(methods).encode("ascii"))
            return _json(request, error_object(405, f"Here are: {', '.join(methods)}."), 405)
        return _not_found(request, self._routes)


class _Root(Resource):
    """Gives every answer the fields of the page's, and then has Klein's table look for it."""

    isLeaf = True

    def __init__(self, routes: Klein) -> None:
        Resource.__init__(self)
        self._routes = routes
        self._render: Callable[[Any], Any] = routes.resource().render

    def render(self, request: ProxyRequest) -> Any:
        add_fields(request)
        try:
            unquote_to_bytes(request.path).decode("utf-8")
        except UnicodeDecodeError:  # Klein would answer in a way of its own
            return _not_found(request, self._routes)
        return self._render(request)


def _not_found(request: Any, routes: Klein) -> bytes:
    paths = sorted({rule.rule for rule in routes.url_map.iter_rules()})
    return _json(request, error_object(404, f"There are: {', '.join(paths)}."), 404)


def _json(request: Any, body: Json, status: int = 200) -> bytes:
    request.setResponseCode(status)
    request.setHeader(b"content-type", b"application/json")
    return jsontext.dumps_strictly(body)
