"""The URL map of the stand-in: the part of Llama Stack 0.6.1 that llamaproxy and clients use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import attrs
from klein import Klein
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource
from werkzeug.exceptions import HTTPException

from llamaproxy import jsontext
from llamaproxy.demo.completion import ScriptedCompletion, prompt_tokens
from llamaproxy.demo.model import MODEL, reply
from llamaproxy.demo.tools import GROUP, PROVIDER, Tool, demo_tools
from llamaproxy.jsontext import Json
from llamaproxy.upstream.sse import encode_event

#: The release whose wire format this is.
VERSION = "0.6.1"


class ScriptRefusal(Exception):
    """The request is answered with an error status and a message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@attrs.frozen
class DemoStack:
    """A Llama Stack with one scripted model and four real tools."""

    _clock: IReactorTime
    #: The time of day, in seconds since 1970.
    _now: Callable[[], float]
    #: Seconds between two words of a streamed answer, so that a person sees it stream.
    _word_delay: float = 0.02
    _tools: dict[str, Tool] = attrs.field(
        init=False,
        default=attrs.Factory(lambda self: demo_tools(self._clock, self._now), takes_self=True),
    )
    _routes: ClassVar[Klein] = Klein()

    def resource(self) -> IResource:
        return self._routes.resource()

    @_routes.route("/v1/version", methods=["GET"])
    def version(self, request: IRequest) -> bytes:
        return _json(request, {"version": VERSION})

    @_routes.route("/v1/health", methods=["GET"])
    def health(self, request: IRequest) -> bytes:
        return _json(request, {"status": "OK"})

    @_routes.route("/v1/models", methods=["GET"])
    def models(self, request: IRequest) -> bytes:
        return _json(request, {"data": [self._model()]})

    @_routes.route(f"/v1/models/{MODEL}", methods=["GET"])
    def model(self, request: IRequest) -> bytes:
        return _json(request, self._model())

    @_routes.route("/v1/toolgroups", methods=["GET"])
    def toolgroups(self, request: IRequest) -> bytes:
        group = {"identifier": GROUP, "provider_id": PROVIDER, "type": "tool_group"}
        return _json(request, {"data": [group]})

    @_routes.route("/v1/tools", methods=["GET"])
    def tools(self, request: IRequest) -> bytes:
        return _json(request, {"data": [tool.definition() for tool in self._tools.values()]})

    @_routes.route("/v1/tool-runtime/invoke", methods=["POST"])
    async def invoke(self, request: IRequest) -> bytes:
        body = _read(request, tool_name=str, kwargs=dict)
        tool = self._tools.get(body["tool_name"])
        if tool is None:
            name = body["tool_name"]
            raise ScriptRefusal(400, f"Tool_group `{name}` not served by provider: `{PROVIDER}`.")
        return _json(request, await tool.invoke(body["kwargs"]))

    @_routes.route("/v1/chat/completions", methods=["POST"])
    async def chat_completions(self, request: IRequest) -> bytes | None:
        body = _read(request, model=str, messages=list)
        if body["model"] != MODEL:
            hint = "Use 'client.models.list()' to list available Models."
            raise ScriptRefusal(404, f"Model '{body['model']}' not found. {hint}")
        completion = ScriptedCompletion(
            reply(body), int(self._now()), prompt_tokens(body["messages"])
        )
        if not body.get("stream"):
            return _json(request, completion.body())
        options = body.get("stream_options")
        include_usage = isinstance(options, dict) and bool(options.get("include_usage"))
        await self._stream(request, completion, include_usage)
        return None

    async def _stream(self, request: IRequest, completion: ScriptedCompletion, usage: bool) -> None:
        """Write the answer word by word; no ``[DONE]`` ends it, as in every Llama Stack."""
        # Twisted has not typed this method; the annotation does.
        write: Callable[[bytes], None] = request.write
        request.responseHeaders.setRawHeaders("Content-Type", ["text/event-stream; charset=utf-8"])
        for number, chunk in enumerate(completion.chunks(usage)):
            if number and self._word_delay:
                # Klein cancels this handler, and with it the wait, when the client leaves.
                await deferLater(self._clock, self._word_delay)
            write(encode_event(jsontext.dumps(chunk)))

    def _model(self) -> Json:
        return {
            "id": MODEL,
            "object": "model",
            "created": int(self._now()),
            "owned_by": "llama_stack",
            "custom_metadata": {
                "model_type": "llm",
                "provider_id": PROVIDER,
                "provider_resource_id": MODEL.partition("/")[2],
            },
        }

    @_routes.handle_errors(ScriptRefusal)
    def refused(self, request: IRequest, failure: Failure) -> bytes:
        error: Any = failure.value
        return _json(request, {"error": {"message": str(error)}}, error.status)

    @_routes.handle_errors(HTTPException)
    def no_route(self, request: IRequest, failure: Failure) -> bytes:
        error: Any = failure.value
        if methods := getattr(error, "valid_methods", None):
            request.responseHeaders.setRawHeaders("Allow", [", ".join(methods)])
        return _json(request, {"detail": error.name}, error.code)


def _read(request: IRequest, **types: type) -> Json:
    """The JSON body, an object that has a value of each type that is asked for, by name.

    :raises ScriptRefusal: if it is none.
    """
    try:
        body = jsontext.loads(request.content.read())
    except ValueError:
        raise ScriptRefusal(400, "The body is not JSON.") from None
    for name, expected in types.items():
        if not isinstance(body, dict) or not isinstance(body.get(name), expected):
            raise ScriptRefusal(400, f"The body needs '{name}', of type {expected.__name__}.")
    return dict(body)


def _json(request: IRequest, body: Json, status: int = 200) -> bytes:
    set_status: Callable[[int], None] = request.setResponseCode
    set_status(status)
    request.responseHeaders.setRawHeaders("Content-Type", ["application/json"])
    return jsontext.dumps(body)
