"""A small language for tests of chats: what the model does in each round, and what comes of it.

chat = Chat(calling("clock"), saying("Noon."), results=["12:00"], stream=True)
assert chat.text == "Noon."
assert chat.invoked == [("clock", {})]
assert chat.results == [("call_1", "12:00")]

A round is what the model answers, the last one for ever after: ``saying``, ``calling``, ``turn``,
``events``, ``answer`` and ``hang_up`` of :mod:`tests.support`, ``replying`` of
:mod:`tests.chat.streams`, and ``calls`` of this module. A test with the fixture ``ask`` has chats
that are unary, and again streamed. The test itself plays the model of a ``live`` chat: ``sends``,
``ends``, ``breaks``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from tests.chat.streams import (
    Streamed,
    client_tool,
    failure_in,
    finish_of,
    joined,
    message_of,
    own_ids,
)
from tests.support import (
    CHAT,
    INVOKE,
    Answer,
    FakeStack,
    Proxy,
    answer,
    begin_events,
    chunk,
    event,
    pending_calls,
    saying,
    tool,
    tool_result,
    turn,
)

Json = dict[str, Any]

KEEP_ALIVE = b": keep-alive\n\n"

#: A tool of the client's.
OWN = client_tool("own")

#: The beginning of a streamed answer.
HALF = chunk({"role": "assistant", "content": "Half"})


class Chat:
    """A request for a chat completion, which the scripted model and tools have answered."""

    def __init__(
        self,
        *rounds: Answer,
        server: Answer | Iterable[str | Json] = ("clock",),
        results: Iterable[str | Answer] = ("12:00",),
        proxy: Mapping[str, Any] | None = None,
        body: Json | None = None,
        fields: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        """:param rounds: one answer of the model for each round.

        :param server: the server's tools, or its answer to whoever asks for them.
        :param results: of the tools, in the order of their calls, the last one for ever after.
        :param proxy: options of the proxy's.
        :param body: the request's, like *more*; *fields* are its header fields.
        """
        self.stack = FakeStack()
        if callable(server):
            self.stack.on("GET /v1/tools", server)
        else:
            tools = [tool(each) if isinstance(each, str) else each for each in server]
            self.stack.on("GET /v1/tools", answer({"data": tools}))
        answers = (tool_result(each) if isinstance(each, str) else each for each in results)
        self.stack.on(INVOKE, *answers)
        self.proxy = Proxy(self.stack, **(proxy or {}))
        self._stream = {key: more.pop(key) for key in ("stream",) if key in more}
        self.again(*rounds, body=body, fields=fields, **more)

    def again(
        self,
        *rounds: Answer,
        body: Json | None = None,
        fields: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        """Begin another chat with the same proxy, of which the client sees all from now on.

        It is unary or streamed as the first one is.
        """
        self.stack.on(CHAT, *(rounds or (saying("Hi."),)))
        self.exchange = self.proxy.chat(body, fields, **self._stream, **more)

    # --- what the client sees

    @property
    def message(self) -> Json:
        """The answer's message, without what is null in it."""
        return message_of(self.exchange)

    @property
    def own_message(self) -> Json:
        """The message with its calls under the model's own ids, which must have had marks."""
        return own_ids(self.message)

    @property
    def text(self) -> str | None:
        """The content of the answer."""
        return self.message.get("content")

    @property
    def called(self) -> list[str]:
        """The names of the calls that the client is handed."""
        return [entry["function"]["name"] for entry in self.message["tool_calls"]]

    @property
    def finish_reason(self) -> str | None:
        return finish_of(self.exchange)

    @property
    def usage(self) -> Any:
        """The ``usage`` of the answer."""
        return self.joined.usage if self._is_streamed else self.exchange.json()["usage"]

    @property
    def joined(self) -> Streamed:
        """The streamed answer, put together by a strict client."""
        return joined(self.exchange.events())

    @property
    def cards(self) -> list[Json]:
        """The items with which Open WebUI shows tools, in order."""
        if not self._is_streamed:
            return [item for item in self.exchange.json()["output"] if item["type"] != "message"]
        shown = [each for each in self.events[:-1] if "item" in each]
        for each in shown:
            assert each.keys() == {"type", "output_index", "item"}
            assert each["output_index"] == 1 << 20, "the page puts it at the end"
            assert each["type"] == "response.output_item.added"
        return [each["item"] for each in shown]

    @property
    def _is_streamed(self) -> bool:
        return (self.exchange.field("Content-Type") or "").startswith("text/event-stream")

    @property
    def events(self) -> list[Any]:
        return self.exchange.events()

    @property
    def delta(self) -> Json:
        """The last delta so far."""
        delta: Json = self.events[-1]["choices"][0]["delta"]
        return delta

    @property
    def error(self) -> Json:
        """The error with which the stream ended."""
        return failure_in(self.events)

    # --- what the server sees

    @property
    def requests(self) -> list[Json]:
        """The bodies of the completions that the model was asked for."""
        return [each.json() for each in self.stack.asked_for(CHAT)]

    @property
    def offered(self) -> list[str] | None:
        """The names of the tools in the last request; None if it says nothing of tools."""
        tools = self.requests[-1].get("tools")
        return tools and [entry["function"]["name"] for entry in tools]

    @property
    def invoked(self) -> list[tuple[str, Json]]:
        """The tools that were run, with their arguments."""
        bodies = [each.json() for each in self.stack.asked_for(INVOKE)]
        return [(body["tool_name"], body["kwargs"]) for body in bodies]

    @property
    def results(self) -> list[tuple[str, str]]:
        """The results in the last request to the model: id of the call, and content."""
        messages = self.requests[-1]["messages"]
        return [(m["tool_call_id"], m["content"]) for m in messages if m.get("role") == "tool"]

    @property
    def choices(self) -> list[Any]:
        """The ``tool_choice`` of each request to the model, None for none."""
        return [body.get("tool_choice") for body in self.requests]

    @property
    def nothing_left(self) -> bool:
        """Whether no request is open and no timer is running."""
        return self.stack.open == [] and pending_calls(self.proxy.clock) == []

    # --- what happens next

    def wait(self, seconds: float, times: int = 1) -> None:
        """Let *seconds* pass, so many *times*."""
        for _ in range(times):
            self.proxy.advance(seconds)

    def sends(self, *chunks: Json | bytes) -> None:
        """The upstream sends chunks, or bytes as they are."""
        for each in chunks:
            self.stack.open[-1].write(each if isinstance(each, bytes) else event(each))
            self.proxy.settle()

    def replies(self, reply: Answer) -> None:
        """The upstream answers the request that waits."""
        reply(self.stack.open[-1])
        self.proxy.settle()

    def ends(self) -> None:
        """The upstream's answer comes to its end."""
        self.replies(lambda request: request.finish())

    def breaks(self) -> None:
        """The upstream's connection is lost."""
        self.replies(lambda request: request.loseConnection())


#: What the fixture ``ask`` is: :class:`Chat`, unary or streamed.
Ask: TypeAlias = Callable[..., Chat]


def streamed(*rounds: Answer, **more: Any) -> Chat:
    """A streamed chat."""
    return Chat(*rounds, stream=True, **more)


def live(*rounds: Answer, **more: Any) -> Chat:
    """A streamed chat whose last round has begun, and has said nothing yet."""
    return streamed(*rounds, begin_events, **more)


def calls(*entries: Json, content: str | None = None, **fields: Any) -> Answer:
    """The model makes several calls, and may say something before."""
    return turn(content, [*entries], **fields)


def call_chunk(index: int = 0, **entry: Any) -> Json:
    """A chunk with one call delta."""
    return chunk({"tool_calls": [{"index": index, **entry}]})


def more_arguments(text: str, index: int = 0) -> Json:
    """A chunk with more of a call's arguments."""
    return call_chunk(index, function={"arguments": text})
