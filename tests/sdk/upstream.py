"""A Llama Stack whose model plays the scenario that the last user message names.

It has two tools, ``clock`` and ``dice``, and real sockets: an answer can be cut off anywhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import attrs

Json = dict[str, Any]

HEAD: Json = {"id": "chatcmpl-up", "created": 1700000000, "model": "scripted"}


def call(name: str, arguments: Json | None = None, call_id: str = "call_1") -> Json:
    """A tool call in a message."""
    function = {"name": name, "arguments": json.dumps(arguments or {})}
    return {"id": call_id, "type": "function", "function": function}


def usage(prompt: int, completion: int) -> Json:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": 1},
    }


@attrs.frozen
class Said:
    """An ordinary turn; if *dies*, the connection is lost when half of it has been sent."""

    message: Json
    reason: str = "stop"
    usage: Json | None = None
    dies: bool = False

    def whole(self) -> bytes:
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": None, **self.message},
            "finish_reason": self.reason,
            "logprobs": None,
        }
        counted = {} if self.usage is None else {"usage": self.usage}
        answer = {**HEAD, "object": "chat.completion", "choices": [choice], **counted}
        return json.dumps(answer).encode()

    def events(self) -> list[bytes]:
        deltas: list[Json] = [{"role": "assistant", "content": ""}]
        for key, value in self.message.items():
            if key == "tool_calls":
                for index, made in enumerate(value):
                    deltas += _call_deltas(index, made)
            else:
                deltas += [{key: word} for word in re.findall(r"\s*\S+", value)]
        chunks = [chunk(delta) for delta in deltas] + [chunk({}, self.reason)]
        if self.usage is not None:
            chunks.append({**chunk({}), "choices": [], "usage": self.usage})
        return [event(each) for each in chunks]


@attrs.frozen
class Raw:
    """An answer byte for byte, whole or streamed."""

    unary: bytes
    stream: bytes

    def whole(self) -> bytes:
        return self.unary

    def events(self) -> list[bytes]:
        # Two pieces, cut where no server would.
        half = len(self.stream) // 2
        return [self.stream[:half], self.stream[half:]]

    dies = False


@attrs.frozen
class Refused:
    """An error status."""

    status: int
    body: bytes
    content_type: str = "application/json"


Turn = Said | Raw | Refused


def chunk(delta: Json | None, reason: str | None = None, **fields: Any) -> Json:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return {**HEAD, "object": "chat.completion.chunk", "choices": [choice], **fields}


def event(data: Json) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def events(*chunks: Json) -> bytes:
    return b"".join(map(event, chunks))


def _call_deltas(index: int, made: Json) -> Iterator[Json]:
    """A call as model servers stream it: the name, then the arguments in pieces."""
    function = made["function"]
    head = {**made, "function": {"name": function["name"], "arguments": ""}}
    yield {"tool_calls": [{"index": index, **head}]}
    for piece in re.findall(r".{1,4}", function["arguments"]):
        yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}


def _whole(message: Json, reason: str | None = "stop") -> bytes:
    choice = {"index": 0, "message": message, "finish_reason": reason}
    return json.dumps({**HEAD, "object": "chat.completion", "choices": [choice]}).encode()


_CLOCK = Said({"tool_calls": [call("clock")]}, "tool_calls")
_NOON = Said({"content": "It is noon."})


def _misshapen() -> Iterator[tuple[str, list[Turn]]]:
    """The same short answer, and the same calls, as bad servers write them."""
    hi = {"role": "assistant", "content": "It is noon."}
    said = _whole(hi)
    first, last = chunk({"role": "assistant", "content": "It is"}), chunk({"content": " noon."})
    end = chunk({}, "stop")
    plain = events(first, last, end)
    azure = {"id": "", "object": "", "created": 0, "model": "", "choices": []}
    foreign = {"type": "response.created", "response": {}}
    shapes: dict[str, tuple[bytes, bytes]] = {
        "no identity": (
            _without(said, "id", "created", "model"),
            _without(plain, "id", "created", "model"),
        ),
        "no object": (_without(said, "object"), _without(plain, "object")),
        "no role": (
            _whole({"content": "It is noon."}),
            events(chunk({"content": "It is"}), last, end),
        ),
        "a role in every chunk": (
            said,
            events(*[chunk({"role": "assistant", "content": each}) for each in ("It is", " noon.")])
            + event(end),
        ),
        "a null role": (
            _whole({"role": None, "content": "It is noon."}),
            events(chunk({"role": None, "content": "It is"}), last, end),
        ),
        "an empty first chunk": (
            said,
            events({**azure, "prompt_filter_results": []}, first, last, end),
        ),
        "null choices": (said, events({**first, "choices": None}, first, last, end)),
        "no choices": (said, events({"ping": 1}, first, last, end)),
        "a null delta": (said, events(chunk(None), first, last, chunk(None, "stop"))),
        "finish reasons in every chunk": (
            _whole(hi, "STOP"),
            events(*[chunk(each["choices"][0]["delta"], "") for each in (first, last)])
            + event(chunk({}, "STOP")),
        ),
        "a finish reason twice": (said, events(first, last, end, end)),
        "a finish reason with the last words": (
            said,
            events(first, chunk({"content": " noon."}, "stop")),
        ),
        "no finish reason": (_whole(hi, None), events(first, last) + b"data: [DONE]\n\n"),
        "an unknown finish reason": (_whole(hi, "eos"), events(first, last, chunk({}, "eos"))),
        "content in parts": (
            _whole({"role": "assistant", "content": [{"type": "text", "text": "It is noon."}]}),
            events(chunk({"content": [{"type": "text", "text": "It is noon."}]}), end),
        ),
        "whole messages": (said, events(*[_as_message(each) for each in (first, last)], end)),
        "null fields": (
            _whole({**hi, "tool_calls": None, "function_call": None, "refusal": None, "x": None}),
            events(
                chunk({"role": "assistant", "content": None, "tool_calls": None}),
                chunk({"content": "It is", "function_call": None, "refusal": None}),
                {**last, "usage": None, "service_tier": None},
                end,
            ),
        ),
        "no indices": (
            _without(said, "index"),
            _without(plain, "index"),
        ),
        "other ids in later chunks": (
            said,
            events(first, {**last, "id": "other"}, {**end, "id": "other", "model": "other"}),
        ),
        "events of another API": (said, events(first, foreign, last, end)),
        "CR LF, comments and no end": (
            said,
            b": hello\r\n\r\n" + plain.replace(b"\n", b"\r\n").rstrip(b"\r\n"),
        ),
        "one object for a stream": (said, b""),
    }
    for name, (unary, stream) in shapes.items():
        yield name, [Raw(unary, stream)]


def _without(text: bytes, *names: str) -> bytes:
    """JSON, or events of it, without the fields of these names that are no objects."""
    for name in names:
        text = re.sub(rb'"%b": [^{},]+, |, "%b": [^{},]+(?=})' % ((name.encode(),) * 2), b"", text)
        assert name.encode() not in text
    return text


def _as_message(each: Json) -> Json:
    (choice,) = each["choices"]
    rest = {key: value for key, value in choice.items() if key != "delta"}
    return {**each, "choices": [{**rest, "message": choice["delta"]}]}


def _misshapen_calls() -> Iterator[tuple[str, list[Turn]]]:
    """The call ``own(text="now")`` as bad servers write it."""
    function = {"name": "own", "arguments": '{"text": "now"}'}
    plain = {"id": "call_1", "type": "function", "function": function}
    as_object = {**plain, "function": {"name": "own", "arguments": {"text": "now"}}}
    end = chunk({}, "tool_calls")

    def turn(entry: Json, *deltas: Json, finish: Json = end, reason: str = "tool_calls") -> Raw:
        message = {"role": "assistant", "content": None, "tool_calls": [entry]}
        chunks = [chunk({"role": "assistant"})]
        chunks += [chunk({"tool_calls": [delta]}) for delta in deltas]
        return Raw(_whole(message, reason), events(*chunks, finish))

    head = {**plain, "index": 0, "function": {"name": "own", "arguments": ""}}
    rest: list[Json] = [
        {"index": 0, "function": {"arguments": piece}} for piece in ('{"text"', ': "now"}')
    ]
    without = {key: value for key, value in plain.items() if key == "function"}
    yield "a call without id, type and index", [turn(without, without)]
    yield "a call in one delta", [turn(plain, {"index": 0, **plain})]
    yield "arguments as an object", [turn(as_object, {"index": 0, **as_object})]
    yield (
        "everything repeated",
        [turn(plain, head, *[{**plain, **each, "function": each["function"]} for each in rest])],
    )
    nulled = [
        {**each, "id": None, "type": None, "function": {"name": None, **each["function"]}}
        for each in rest
    ]
    yield "nulls in the later deltas", [turn(plain, head, *nulled)]
    yield (
        "the finish reason of an answer",
        [turn(plain, head, *rest, finish=chunk({}, "stop"), reason="stop")],
    )
    yield "an index that begins at 1", [turn(plain, *[{**e, "index": 1} for e in (head, *rest)])]


MISSHAPEN = dict(_misshapen())
MISSHAPEN_CALLS = dict(_misshapen_calls())

_MIXED = [call("own", {"text": "now"}, "c1"), call("clock", {}, "c2"), call("own", {}, "c3")]

_ERROR = {"error": {"message": "The model is overloaded.", "type": "overloaded", "code": "x"}}


def _own_end(text: bytes) -> Raw:
    """An answer that has begun well and goes on with *text*; whole, it is broken off."""
    begun = events(chunk({"role": "assistant", "content": "It is"}))
    return Raw(b'{"choices": [', begun + text)


SCENARIOS: dict[str, list[Turn]] = {
    "plain": [Said({"content": "Grüße, 世界 🎲!\n\nIt is noon."})],
    "nothing": [Said({})],
    "cut off": [Said({"content": "It is"}, "length")],
    "server tool": [_CLOCK, _NOON],
    "content around a server tool": [
        Said({"content": "Let me see.", "tool_calls": [call("clock")]}, "tool_calls"),
        _NOON,
    ],
    "parallel": [
        Said({"tool_calls": [call("clock"), call("dice", {}, "call_2")]}, "tool_calls"),
        Said({"content": "HISTORY"}),
    ],
    "a tool that fails": [
        Said({"tool_calls": [call("clock", {"fail": True})]}, "tool_calls"),
        Said({"content": "HISTORY"}),
    ],
    "client tool": [
        Said({"tool_calls": [call("own", {"text": "now"})]}, "tool_calls"),
        Said({"content": "HISTORY"}),
    ],
    "mixed": [
        Said({"content": "Both.", "tool_calls": _MIXED}, "tool_calls"),
        Said({"content": "HISTORY"}),
    ],
    "server tool, then mixed": [
        _CLOCK,
        Said({"content": "Both.", "tool_calls": _MIXED}, "tool_calls"),
        Said({"content": "HISTORY"}),
    ],
    "reasoning": [
        Said(
            {"reasoning_content": "The clock knows.", "tool_calls": [call("clock")]}, "tool_calls"
        ),
        Said({"reasoning_content": " It said so.", "content": "It is noon."}),
    ],
    "usage": [attrs.evolve(_CLOCK, usage=usage(10, 5)), attrs.evolve(_NOON, usage=usage(20, 7))],
    "refusal": [Said({"refusal": "I cannot say that."})],
    "too many": [Refused(429, json.dumps(_ERROR).encode())],
    "not found": [Refused(404, b'{"detail": "Model nope not found"}')],
    "a page": [Refused(503, b"<html>busy</html>", "text/html")],
    "refused later": [_CLOCK, Refused(400, b'{"error": {"detail": "no more"}}')],
    "dies": [Said({"content": "It is noon, or so they say."}, dies=True)],
    "dies later": [_CLOCK, Said({"content": "It is noon, or so they say."}, dies=True)],
    "ends early": [_own_end(b"")],
    "an error event": [_own_end(event(_ERROR))],
    "no JSON": [_own_end(b"data: {nonsense\n\n")],
    **MISSHAPEN,
    **MISSHAPEN_CALLS,
}


def _turn(body: Json) -> Turn:
    """What the model says now."""
    asked = max(n for n, message in enumerate(body["messages"]) if message["role"] == "user")
    name, since = body["messages"][asked]["content"], body["messages"][asked + 1 :]
    rounds = sum(bool(message.get("tool_calls")) for message in since)
    if name in ("rounds", "repetition"):
        if body.get("tool_choice") == "none":
            return Said({"content": "Enough."})
        arguments = {"n": rounds} if name == "rounds" else {}
        return Said({"tool_calls": [call("clock", arguments, f"call_{rounds}")]}, "tool_calls")
    if name in MISSHAPEN_CALLS and rounds:
        return Said({"content": _history(since)})
    turn = SCENARIOS[name][rounds]
    if isinstance(turn, Said) and turn.message.get("content") == "HISTORY":
        return Said({"content": _history(since)})
    return turn


def _history(messages: list[Json]) -> str:
    """What the model has been told since the question, call by call."""
    results = {m["tool_call_id"]: m["content"] for m in messages if m["role"] == "tool"}
    calls = [made for message in messages for made in message.get("tool_calls") or ()]
    assert len(results) == len(calls), "a call without a result, or a result without a call"
    return ", ".join(f"{made['function']['name']}: {results[made['id']]}" for made in calls)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_GET(self) -> None:
        schema = {"type": "object", "properties": {}}
        tools = [
            {"toolgroup_id": "mcp::t", "name": name, "description": name, "input_schema": schema}
            for name in ("clock", "dice")
        ]
        answers = {"/v1/version": {"version": "0.6.1"}, "/v1/tools": {"data": tools}}
        path = self.path.partition("?")[0]
        if path in answers:
            self._answer(200, json.dumps(answers[path]).encode())
        else:
            self._answer(404, b'{"detail": "Not Found"}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/tool-runtime/invoke":
            failed = bool(body["kwargs"].get("fail"))
            text = {"clock": "12:00", "dice": "4"}[body["tool_name"]]
            content = [{"type": "text", "text": "it broke" if failed else text}]
            self._answer(200, json.dumps({"content": content, "error_code": int(failed)}).encode())
            return
        try:
            turn = _turn(body)
        except Exception as error:
            turn = Refused(500, json.dumps({"detail": f"scenario broke: {error!r}"}).encode())
        if isinstance(turn, Refused):
            self._answer(turn.status, turn.body, turn.content_type)
        elif body.get("stream") and (parts := turn.events()) and any(parts):
            self._stream(parts[: len(parts) // 2] if turn.dies else parts, turn.dies)
        else:
            whole = turn.whole()
            self._answer(200, whole, size=len(whole) * (1 + turn.dies))

    def _answer(
        self, status: int, body: bytes, kind: str = "application/json", size: int | None = None
    ) -> None:
        """:param size: that which is promised, if it is not that of *body*."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if size is None else size))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = size not in (None, len(body))

    def _stream(self, parts: list[bytes], dies: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for part in parts:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
            self.wfile.flush()
        if not dies:
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = dies

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def running() -> Iterator[str]:
    """The server's URL, while it runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
