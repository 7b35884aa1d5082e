"""A Llama Stack that counts what it is asked for: ``python -m tests.deploy.stack PORT``.

Its model reads the last user message, ``KIND NONCE``, and what has come after it:

``plain``
    it counts from 0 to 29, slowly
``server``
    it calls the server's tool ``stamp`` with the nonce, and then counts and quotes the result
``mixed``
    it calls ``stamp`` and, in the same round, the client's tool ``ask_user``; then it counts and
    quotes both results, or says that one is missing

``GET /counts`` tells how often each request has come, by what makes it the only one of its kind.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import Any, ClassVar

import attrs
from klein import Klein
from twisted.internet import reactor as _reactor
from twisted.internet.task import deferLater
from twisted.web.iweb import IRequest
from twisted.web.server import Site

from llamaproxy import jsontext
from llamaproxy.demo.completion import ScriptedCompletion
from llamaproxy.demo.model import Reply, ScriptedCall, text_of
from llamaproxy.jsontext import Json
from llamaproxy.upstream.sse import encode_event

reactor: Any = _reactor

MODEL = "counting"

#: The model counts this far; seconds between two words.
WORDS = 30
PACE = 0.05

COUNTED = " ".join(map(str, range(WORDS)))

_STAMP = {
    "toolgroup_id": "mcp::stamps",
    "name": "stamp",
    "description": "Stamps a nonce",
    "input_schema": {"type": "object", "properties": {"nonce": {"type": "string"}}},
}


def stamped(nonce: str) -> str:
    """What the server's tool says."""
    return f"stamped-{nonce}"


def counted(*results: str) -> str:
    """The model's answer, with the results that it has seen."""
    return " ".join([COUNTED, *results])


def reply(messages: list[Json]) -> Reply:
    """What the model says to the conversation."""
    last = max(at for at, message in enumerate(messages) if message["role"] == "user")
    kind, nonce = text_of(messages[last]["content"]).split()
    results = [text_of(each["content"]) for each in messages[last:] if each["role"] == "tool"]
    calls = [ScriptedCall("stamp", {"nonce": nonce})]
    if kind == "mixed":
        calls.append(ScriptedCall("ask_user", {"nonce": nonce}))
    if kind == "plain" or results:
        missing = [] if kind == "plain" or len(results) == len(calls) else ["missing"]
        return Reply(counted(*results, *missing))
    return Reply(None, calls)


@attrs.frozen
class CountingStack:
    """The part of Llama Stack 0.6 that llamaproxy asks for."""

    _counts: Counter[str] = attrs.Factory(Counter)
    _routes: ClassVar[Klein] = Klein()

    def resource(self) -> Any:
        return self._routes.resource()

    @_routes.route("/counts")
    def counts(self, request: IRequest) -> bytes:
        return jsontext.dumps(dict(self._counts))

    @_routes.route("/v1/version")
    def version(self, request: IRequest) -> bytes:
        return jsontext.dumps({"version": "0.6.1"})

    @_routes.route("/v1/toolgroups")
    def toolgroups(self, request: IRequest) -> bytes:
        group = {"identifier": "mcp::stamps", "provider_id": "stamps", "type": "tool_group"}
        return jsontext.dumps({"data": [group]})

    @_routes.route("/v1/tools")
    def tools(self, request: IRequest) -> bytes:
        return jsontext.dumps({"data": [_STAMP]})

    @_routes.route("/v1/tool-runtime/invoke", methods=["POST"])
    def invoke(self, request: IRequest) -> bytes:
        nonce = jsontext.loads(request.content.read())["kwargs"]["nonce"]
        self._counts[f"tool {nonce}"] += 1
        content = [{"type": "text", "text": stamped(nonce)}]
        return jsontext.dumps({"content": content, "error_message": None, "error_code": 0})

    @_routes.route("/v1/chat/completions", methods=["POST"])
    async def chat_completions(self, request: IRequest) -> bytes | None:
        body = jsontext.loads(request.content.read())
        [identity] = request.requestHeaders.getRawHeaders("X-Request-Id", [""])
        # Of one request of a client's no two rounds have as many messages.
        self._counts[f"completion {identity} {len(body['messages'])}"] += 1
        said = reply(body["messages"])
        completion = ScriptedCompletion(said, int(time.time()), 1)
        if not body.get("stream"):
            await deferLater(reactor, PACE * WORDS if said.content else PACE)
            return jsontext.dumps(completion.body())
        write: Any = request.write
        request.responseHeaders.setRawHeaders("Content-Type", ["text/event-stream"])
        for chunk in completion.chunks(False):
            await deferLater(reactor, PACE)
            write(encode_event(jsontext.dumps(chunk)))
        return None


class _QuietSite(Site):
    def log(self, request: Any) -> None:
        pass


def main() -> None:
    site: Any = _QuietSite
    port = int(sys.argv[1])
    reactor.listenTCP(port, site(CountingStack().resource()), 1024, "127.0.0.1")
    reactor.run()


if __name__ == "__main__":
    main()
