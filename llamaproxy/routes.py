"""ProxyApp: every URL that llamaproxy answers."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, ClassVar

import attrs
from klein import Klein
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET

from llamaproxy.chat.endpoint import ChatCompletions
from llamaproxy.cors import CorsMemory
from llamaproxy.request import ProxyRequest

#: Where chat completions are asked for.
CHAT_PATHS = ("/v1/chat/completions", "/openai/v1/chat/completions")


class _Root(Resource):
    """Has every request rendered by the endpoint of Klein's for its method and path.

    All routes but the last are one path each, so they are looked up in a table of Klein's rules.
    Klein's own way through them would refuse paths that are not UTF-8, redirect those with two
    slashes, answer and cancel in ways of its own, and take a tenth of the time of a chat.
    """

    isLeaf = True

    def __init__(self, routes: Klein, cors: CorsMemory) -> None:
        Resource.__init__(self)
        self._cors = cors
        self._routes = routes
        self._endpoints = {
            (method.encode(), rule.rule.encode()): rule.endpoint
            for rule in routes.url_map.iter_rules()
            for method in rule.methods or ()
        }

    def render(self, request: ProxyRequest) -> int:
        if (origin := request.head.origin) is not None:
            # For an error of ours, should there be one.
            self._cors.apply(origin, request.responseHeaders)
        endpoint = self._endpoints.get((request.method, request.path), "passthrough")
        request.record.route = endpoint
        answer: Any = self._routes.execute_endpoint(endpoint, request)
        return answer.render(request)  # type: ignore[no-any-return]


class _Constant(Resource):
    """Answers with JSON that is always the same."""

    isLeaf = True

    def __init__(self, body: bytes) -> None:
        Resource.__init__(self)
        self._body = body

    def render(self, request: ProxyRequest) -> int:
        request.setHeader(b"content-type", b"application/json")
        request.setHeader(b"content-length", b"%d" % len(self._body))
        request.write(self._body)
        request.finish()
        return NOT_DONE_YET


class _CoroutineResource(Resource):
    """Answers one request with what a coroutine comes to."""

    isLeaf = True

    def __init__(self, work: Coroutine[Any, Any, bytes | None]) -> None:
        Resource.__init__(self)
        self._work = work

    def render(self, request: ProxyRequest) -> int:
        return request.respond(self._work)


_HEALTHY = _Constant(b'{"status": "healthy"}')


@attrs.frozen(eq=False, repr=False)
class ProxyApp:
    """The URL map."""

    _chat: ChatCompletions
    _passthrough: IResource
    _cors: CorsMemory = attrs.Factory(CorsMemory)
    _routes: ClassVar[Klein] = Klein()

    def resource(self) -> IResource:
        """The root of the resource tree."""
        return _Root(self._routes, self._cors)

    @_routes.route("/health", methods=["GET"])
    def health(self, request: ProxyRequest) -> IResource:
        return _HEALTHY

    @_routes.route(CHAT_PATHS[0], methods=["POST"])
    @_routes.route(CHAT_PATHS[1], methods=["POST"])
    def chat_completions(self, request: ProxyRequest) -> IResource:
        request.half_closable = False
        return _CoroutineResource(self._chat.respond(request))

    @_routes.route("/", branch=True)
    def passthrough(self, request: ProxyRequest) -> IResource:
        return self._passthrough
