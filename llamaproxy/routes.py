"""ProxyApp: every URL that llamaproxy answers, and the one place where errors become JSON."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
from klein import Klein
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource, Resource

from llamaproxy.chat.endpoint import ChatCompletions
from llamaproxy.cors import CorsMemory, origin_in
from llamaproxy.errors import ProxyError, ShuttingDown, error_response

#: Where chat completions are asked for.
CHAT_PATHS = ("/v1/chat/completions", "/openai/v1/chat/completions")


class _Root(Resource):
    """Asks Klein about the paths that it has routes for, and nothing about any other.

    Klein's routing would refuse paths that are not UTF-8, redirect those with two slashes, and
    cost as much again as the forwarding itself.
    """

    isLeaf = True

    def __init__(self, routes: IResource, passthrough: IResource, cors: CorsMemory) -> None:
        Resource.__init__(self)
        self._cors = cors
        self._routes = routes
        self._passthrough = passthrough
        rules = ProxyApp._routes.url_map.iter_rules()
        self._paths = {rule.rule.encode() for rule in rules}

    def render(self, request: Any) -> Any:
        # For an error of ours, should there be one.
        self._cors.apply(origin_in(request.requestHeaders), request.responseHeaders)
        known = request.path in self._paths
        return (self._routes if known else self._passthrough).render(request)


@attrs.frozen
class ProxyApp:
    """The URL map."""

    _chat: ChatCompletions
    _passthrough: IResource
    _cors: CorsMemory = attrs.Factory(CorsMemory)
    _routes: ClassVar[Klein] = Klein()
    _log: ClassVar[Logger] = Logger()

    def resource(self) -> IResource:
        """The root of the resource tree."""
        return _Root(self._routes.resource(), self._passthrough, self._cors)

    @_routes.route("/health", methods=["GET"])
    def health(self, request: IRequest) -> bytes:
        request.setHeader(b"content-type", b"application/json")
        return b'{"status": "healthy"}'

    @_routes.route(CHAT_PATHS[0], methods=["POST"])
    @_routes.route(CHAT_PATHS[1], methods=["POST"])
    async def chat_completions(self, request: Any) -> bytes | None:
        request.half_closable = False
        work = Deferred.fromCoroutine(self._chat.respond(request))
        request.work = work
        return await work

    @_routes.route("/", branch=True)
    def passthrough(self, request: IRequest) -> IResource:
        return self._passthrough

    @_routes.handle_errors(ProxyError)
    def refused(self, request: IRequest, failure: Failure) -> bytes:
        error = failure.value
        assert isinstance(error, ProxyError)
        return error_response(request, error)

    @_routes.handle_errors(CancelledError)
    def cancelled(self, request: IRequest, failure: Failure) -> bytes:
        # Read by a client that is still there: Klein itself cancels for those who have left.
        return error_response(request, ShuttingDown())

    @_routes.handle_errors(Exception)
    def broken(self, request: IRequest, failure: Failure) -> bytes:
        self._log.failure("a request failed", failure)
        return error_response(request, ProxyError())
