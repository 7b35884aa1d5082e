"""ProxyApp: every URL that llamaproxy answers."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, ClassVar

import attrs
from klein import Klein
from klein.interfaces import IKleinRequest
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource, Resource

from llamaproxy.chat.endpoint import ChatCompletions
from llamaproxy.cors import CorsMemory
from llamaproxy.request import ProxyRequest

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
        if (origin := request.head.origin) is not None:
            # For an error of ours, should there be one.
            self._cors.apply(origin, request.responseHeaders)
        is_routed = request.path in self._paths
        return (self._routes if is_routed else self._passthrough).render(request)


class _CoroutineResource(Resource):
    """Answers one request with what a coroutine comes to."""

    isLeaf = True

    def __init__(self, work: Coroutine[Any, Any, bytes | None]) -> None:
        Resource.__init__(self)
        self._work = work

    def render(self, request: ProxyRequest) -> int:
        # What Klein waits for is of no use to it any more, and would be kept as long as a stream.
        request.notifications.clear()
        request.unsetComponent(IKleinRequest)
        return request.respond(self._work)


@attrs.frozen(eq=False, repr=False)
class ProxyApp:
    """The URL map."""

    _chat: ChatCompletions
    _passthrough: IResource
    _cors: CorsMemory = attrs.Factory(CorsMemory)
    _routes: ClassVar[Klein] = Klein()

    def resource(self) -> IResource:
        """The root of the resource tree."""
        return _Root(self._routes.resource(), self._passthrough, self._cors)

    @_routes.route("/health", methods=["GET"])
    def health(self, request: IRequest) -> bytes:
        request.setHeader(b"content-type", b"application/json")
        return b'{"status": "healthy"}'

    @_routes.route(CHAT_PATHS[0], methods=["POST"])
    @_routes.route(CHAT_PATHS[1], methods=["POST"])
    def chat_completions(self, request: ProxyRequest) -> IResource:
        request.half_closable = False
        # A resource, and no Deferred: Klein would answer and cancel in a way of its own.
        return _CoroutineResource(self._chat.respond(request))

    @_routes.route("/", branch=True)
    def passthrough(self, request: IRequest) -> IResource:
        return self._passthrough
