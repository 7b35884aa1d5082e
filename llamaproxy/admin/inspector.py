"""Inspector: what the page at the root of the admin port asks for."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from typing import Any

from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from llamaproxy import jsontext
from llamaproxy.admin.feed import Feed
from llamaproxy.admin.origin import check_fetched_here, check_same_origin
from llamaproxy.admin.page import file_of
from llamaproxy.admin.shown import Shown
from llamaproxy.errors import BadRequest, NotFound, ProxyError
from llamaproxy.jsontext import Json
from llamaproxy.request import ProxyRequest

#: Runs a tool of a group with arguments; comes to None if there is no such tool.
TryTool = Callable[[str, str, dict[str, Any]], Coroutine[Any, Any, Json | None]]

_ANSWER = re.compile(r"/answers/([0-9]{1,15})(/stop)?")

_NOT_KEPT = "This answer is not kept any longer."

#: What may stand in the name of a file.
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]+")


class Inspector(Resource):
    """Answers what the page asks for. What is asked for with GET changes nothing."""

    isLeaf = True

    def __init__(self, shown: Shown, feed: Feed, try_tool: TryTool) -> None:
        Resource.__init__(self)
        self._shown = shown
        self.feed = feed
        self._try_tool = try_tool

    def render(self, request: ProxyRequest) -> int:
        if request.path == b"/feed":
            return self._open_feed(request)
        return request.respond(self._answer(request, request.path.decode("latin-1")))

    def _open_feed(self, request: ProxyRequest) -> int:
        try:
            check_fetched_here(request)
            if request.method == b"HEAD":
                request.finish()
            else:
                self.feed.open(request)
        except ProxyError as error:
            request.fail(error)
        return NOT_DONE_YET

    async def _answer(self, request: ProxyRequest, path: str) -> bytes:
        if path == "/" or path.startswith("/page/"):
            return _file(request, path.removeprefix("/page/") if path != "/" else "index.html")
        if request.method == b"POST":
            check_same_origin(request)
        else:
            check_fetched_here(request)
        if path == "/tools/try":
            return _json(request, await self._tried(request))
        match = _ANSWER.fullmatch(path)
        if match is None:
            raise NotFound()
        key = int(match[1])
        if match[2]:
            return await self._stopped(request, key)
        detail = await self._shown.detail(key)
        if detail is None:
            raise NotFound(_NOT_KEPT)
        id, text = detail
        if b"download" in request.args:
            name = _NOT_IN_NAMES.sub("_", id)[:64]
            disposition = f'attachment; filename="answer-{name}.json"'
            request.setHeader(b"content-disposition", disposition.encode())
        return _sized(request, b"application/json", text)

    async def _stopped(self, request: ProxyRequest, key: int) -> bytes:
        ran = await self._shown.stop(key)
        if ran is None:
            raise NotFound(_NOT_KEPT)
        if not ran:
            raise NotFound("This answer does not run any longer.")
        request.setResponseCode(204)
        return b""

    async def _tried(self, request: ProxyRequest) -> Json:
        request.half_closable = False  # when the page leaves, the tool is cancelled at once
        try:
            body = jsontext.loads_exactly(request.content.read())
        except ValueError:
            raise BadRequest("The body is not valid JSON.") from None
        if not isinstance(body, dict):
            raise BadRequest("The body must be a JSON object.")
        group, tool = body.get("group"), body.get("tool")
        arguments = body.get("arguments", {})
        if not isinstance(group, str) or not isinstance(tool, str):
            raise BadRequest("'group' and 'tool' must be names.")
        if not isinstance(arguments, dict):
            raise BadRequest("'arguments' must be a JSON object.")
        result = await self._try_tool(group, tool, arguments)
        if result is None:
            raise NotFound("No such tool is offered to those who come without credentials.")
        return result


def _file(request: ProxyRequest, name: str) -> bytes:
    file = file_of(name)
    if file is None:
        raise NotFound()
    return _sized(request, *file)


def _json(request: ProxyRequest, body: Json) -> bytes:
    return _sized(request, b"application/json", jsontext.dumps_strictly(body))


def _sized(request: ProxyRequest, media_type: bytes, text: bytes) -> bytes:
    request.setHeader(b"content-type", media_type)
    request.setHeader(b"content-length", b"%d" % len(text))
    return text
