"""The URL map of the stand-in: the part of Llama Stack 0.6.1 that llamaproxy and clients use."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import attrs
from klein import Klein
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from llamaproxy import jsontext
from llamaproxy.demo.model import MODEL, reply
from llamaproxy.demo.refusals import (
    Refused,
    check_chat,
    check_fields,
    check_group,
    check_model,
    read_json,
    tool_not_served,
    tool_unknown,
)
from llamaproxy.demo.tools import GROUP, PROVIDER, Tool, demo_tools
from llamaproxy.demo.wire import Completion, prompt_tokens
from llamaproxy.jsontext import Json
from llamaproxy.upstream.sse import encode_event

#: The release whose wire format this is; all bodies here were compared with its recordings.
VERSION = "0.6.1"


@attrs.frozen
class DemoStack:
    """A Llama Stack with one scripted model and four real tools."""

    _clock: IReactorTime
    #: Seconds between two words of a streamed answer, so that a person sees it stream.
    _word_delay: float = 0.02
    #: The time of day.
    _now: Callable[[], float] = attrs.field(
        default=attrs.Factory(lambda self: self._clock.seconds, takes_self=True)
    )
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
        return _json(request, {"data": [_listed_model(int(self._now()))]})

    @_routes.route("/v1/models/<path:model_id>", methods=["GET"])
    def model(self, request: IRequest, model_id: str) -> bytes:
        check_model(model_id)
        return _json(request, _MODEL)

    @_routes.route("/v1/tools", methods=["GET"])
    def tools(self, request: IRequest) -> bytes:
        for group in request.args.get(b"toolgroup_id", []):
            check_group(group.decode("utf-8", "replace"))
        return _json(request, {"data": [tool.definition() for tool in self._tools.values()]})

    @_routes.route("/v1/tools/<name>", methods=["GET"])
    def tool(self, request: IRequest, name: str) -> bytes:
        if name not in self._tools:
            raise tool_unknown(name)
        return _json(request, self._tools[name].definition())

    @_routes.route("/v1/toolgroups", methods=["GET"])
    def toolgroups(self, request: IRequest) -> bytes:
        return _json(request, {"data": [_GROUP]})

    @_routes.route("/v1/toolgroups/<path:group>", methods=["GET"])
    def toolgroup(self, request: IRequest, group: str) -> bytes:
        check_group(group)
        return _json(request, {**_GROUP, "owner": None, "source": "via_register_api"})

    @_routes.route("/v1/tool-runtime/invoke", methods=["POST"])
    async def invoke(self, request: IRequest) -> bytes:
        body = read_json(request)
        fields = body if isinstance(body, dict) else {}
        check_fields(fields, {"tool_name": str, "kwargs": dict})
        tool = self._tools.get(fields["tool_name"])
        if tool is None:
            raise tool_not_served(fields["tool_name"])
        return _json(request, await tool.invoke(fields["kwargs"]))

    @_routes.route("/v1/chat/completions", methods=["POST"])
    async def chat_completions(self, request: IRequest) -> bytes | None:
        body = read_json(request)
        check_chat(body)
        completion = Completion(reply(body), int(self._now()), prompt_tokens(body["messages"]))
        if not body.get("stream"):
            return _json(request, completion.whole())
        options = body.get("stream_options")
        include_usage = isinstance(options, dict) and bool(options.get("include_usage"))
        await self._stream(request, completion, include_usage)
        return None

    async def _stream(self, request: IRequest, completion: Completion, usage: bool) -> None:
        """Write the answer word by word; no ``[DONE]`` ends it, as in every Llama Stack."""
        # Twisted has not typed this method; the annotation does.
        write: Callable[[bytes], None] = request.write
        request.responseHeaders.setRawHeaders("Content-Type", ["text/event-stream; charset=utf-8"])
        for number, chunk in enumerate(completion.chunks(usage)):
            if number and self._word_delay:
                # Klein cancels this handler, and with it the wait, when the client leaves.
                await deferLater(self._clock, self._word_delay)
            write(encode_event(jsontext.dumps(chunk)))

    @_routes.handle_errors(Refused)
    def refused(self, request: IRequest, failure: Failure) -> bytes:
        refusal = failure.value
        assert isinstance(refusal, Refused)
        return _json(request, refusal.body, refusal.status)

    @_routes.handle_errors(HTTPException)
    def no_route(self, request: IRequest, failure: Failure) -> bytes:
        if isinstance(failure.value, MethodNotAllowed):
            methods = set(failure.value.valid_methods or ()) - {"HEAD"}
            request.responseHeaders.setRawHeaders("Allow", [", ".join(sorted(methods))])
            return _json(request, {"detail": "Method Not Allowed"}, 405)
        return _json(request, {"detail": "Not Found"}, 404)


_PROVIDER_RESOURCE = MODEL.partition("/")[2]

_MODEL: Json = {
    "identifier": MODEL,
    "provider_resource_id": _PROVIDER_RESOURCE,
    "provider_id": PROVIDER,
    "type": "model",
    "metadata": {},
    "model_type": "llm",
    "model_validation": None,
}

_GROUP: Json = {
    "identifier": GROUP,
    "provider_resource_id": GROUP,
    "provider_id": PROVIDER,
    "type": "tool_group",
    "mcp_endpoint": None,
    "args": None,
}


def _json(request: IRequest, body: Json, status: int = 200) -> bytes:
    set_status: Callable[[int], None] = request.setResponseCode
    set_status(status)
    request.responseHeaders.setRawHeaders("Content-Type", ["application/json"])
    return jsontext.dumps(body)


def _listed_model(created: int) -> Json:
    metadata = {
        "model_type": "llm",
        "provider_id": PROVIDER,
        "provider_resource_id": _PROVIDER_RESOURCE,
    }
    return {
        "id": MODEL,
        "object": "model",
        "created": created,
        "owned_by": "llama_stack",
        "custom_metadata": metadata,
    }
