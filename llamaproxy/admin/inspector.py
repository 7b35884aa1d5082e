"""Inspector: what the page at the root of the admin port asks for."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from llamaproxy import jsontext
from llamaproxy.admin.answers import Answer, Answers
from llamaproxy.admin.feed import Feed
from llamaproxy.admin.origin import check_fetched_here, check_same_origin
from llamaproxy.admin.page import file_of
from llamaproxy.admin.rows import MAX_CALLS_IN_DETAIL, MAX_ROUNDS_IN_DETAIL, row
from llamaproxy.admin.toolstatus import ToolStatus
from llamaproxy.errors import BadRequest, NotFound, ProxyError
from llamaproxy.events import Observers
from llamaproxy.jsontext import Json
from llamaproxy.records import ChatRecord, RequestRecord
from llamaproxy.request import ProxyRequest

if TYPE_CHECKING:
    from llamaproxy.admin.contents import ContentsKept

#: Runs a tool of a group with arguments; comes to None if there is no such tool.
TryTool = Callable[[str, str, dict[str, Any]], Coroutine[Any, Any, Json | None]]

_ANSWER = re.compile(r"/answers/([0-9]{1,15})(/stop)?")

#: What may stand in the name of a file.
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]+")


class Inspector(Resource):
    """Answers what the page asks for. What is asked for with GET changes nothing."""

    isLeaf = True

    def __init__(
        self,
        answers: Answers,
        feed: Feed,
        tools: ToolStatus,
        contents: ContentsKept | None,
        stop: Callable[[RequestRecord], bool],
        try_tool: TryTool,
        url: str,
    ) -> None:
        """:param contents: None if they are not kept.

        :param stop: ends the request of a record; whether it still ran.

        :param url: where clients reach the proxy.
        """
        Resource.__init__(self)
        self._answers = answers
        self.feed = feed
        self._tools = tools
        self._contents = contents
        self._stop = stop
        self._try_tool = try_tool
        self._url = url
        if contents is not None:
            answers.on_drop = contents.drop

    def listen(self, tell: Observers) -> None:
        """Hear of what is shown."""
        self._answers.listen(tell)
        if self._contents is not None:
            tell.listen(self._contents, *self._contents.hears)

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
        answer = self._answers.get(int(match[1]))
        if answer is None:
            raise NotFound("This answer is not kept any longer.")
        if match[2]:
            if not self._stop(answer.record):
                raise NotFound("This answer does not run any longer.")
            request.setResponseCode(204)
            return b""
        if b"download" in request.args:
            name = _NOT_IN_NAMES.sub("_", answer.record.id)[:64]
            disposition = f'attachment; filename="answer-{name}.json"'
            request.setHeader(b"content-disposition", disposition.encode())
        return _json(request, await self._detail(answer))

    async def _detail(self, answer: Answer) -> Json:
        """All that is known of *answer*."""
        from llamaproxy.admin.curl import curl  # when somebody looks

        contents = body = None
        if self._contents is not None:
            contents = await self._contents.of(answer)
            body = contents["rounds"].get("1", {}).get("request")
        record, now = answer.record, self._answers.now()
        chat = record.chat or ChatRecord()
        shown = row(answer.key, answer.at, record, now, MAX_ROUNDS_IN_DETAIL, MAX_CALLS_IN_DETAIL)
        return {
            **shown,
            "offered_tools": list(chat.offered),
            "withheld": self._withheld(chat, now if record.ended is None else record.ended),
            "curl": curl(record, self._url, None if body is None else _asked(body, chat)),
            "contents": contents,
        }

    def _withheld(self, chat: ChatRecord, until: float) -> dict[str, str]:
        """Why each tool was not offered; of groups that could not be listed, as far as is known."""
        if not chat.rounds or chat.not_injected:
            return {}  # it has not been settled what is offered, or that nothing is
        reasons = dict(chat.withheld)
        offered = frozenset(chat.offered)
        for group, (reason, names) in self._tools.failing(until).items():
            if not group and not offered:
                reasons["(all groups)"] = f"the groups could not be listed: {reason}"
            why = f"its group {group} could not be listed: {reason}"
            if group and not names:
                reasons[f"{group} (group)"] = why
            for name in names:
                if name not in offered:
                    reasons.setdefault(name, why)
        return reasons

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


def _asked(body: Json, chat: ChatRecord) -> Json:
    """The request that a client sent, of the *body* that the server was sent in the first round."""
    offered = frozenset(chat.offered)
    tools = [tool for tool in body.get("tools") or [] if _name_of(tool) not in offered]
    absent = () if tools else ("tools", "tool_choice", "parallel_tool_calls")
    asked = {name: value for name, value in body.items() if name not in absent}
    return {**asked, "tools": tools} if tools else asked


def _name_of(tool: object) -> object:
    function = tool.get("function") if isinstance(tool, dict) else None
    return function.get("name") if isinstance(function, dict) else None


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
