"""What is kept of one streamed round is bounded, whatever the upstream sends without end."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

import orjson
import pytest

from llamaproxy.chat.body_budget import BodyBudget
from llamaproxy.chat.calls import CallVisibility
from llamaproxy.chat.stream import RoundStream
from llamaproxy.errors import UpstreamBroke
from tests.chat.script import HALF, Ask, live, streamed
from tests.chat.streams import client_tool
from tests.support import calling, chunk, saying

Json = dict[str, Any]

LIMIT = 20_000
LONG = "x" * 1000


def reader() -> RoundStream:
    visibility = CallVisibility(client_tools=("own",))
    return RoundStream(visibility, set(), max_characters=LIMIT, max_usage=LIMIT)


def of_choice(index: int, **fields: Any) -> Json:
    return {**chunk({}), "choices": [{"index": index, "delta": {}, **fields}]}


def of_call(number: int, **fields: Any) -> Json:
    return chunk({"tool_calls": [{"index": 0, "function": {"name": "own"}, **fields}]})


FLOODS: dict[str, Callable[[int], Json]] = {
    "texts": lambda n: chunk({f"k{n}": LONG}),
    "keys": lambda n: chunk({f"{n}{LONG}": ""}),
    "lists": lambda n: chunk({"k": [LONG]}),
    "values": lambda n: chunk({f"k{n}": {"v": LONG}}),
    "numbers": lambda n: chunk({f"{n}{LONG}": 1}),
    "content parts": lambda n: chunk({"content": [{"type": "image", "data": LONG}]}),
    "blocks": lambda n: chunk({"reasoning_details": [{"index": n, "type": LONG}]}),
    "pieces": lambda n: chunk({"reasoning_details": [{"index": 0, "type": "a", "text": LONG}]}),
    "block keys": lambda n: chunk({"reasoning_details": [{"index": 0, f"k{n}": LONG}]}),
    "content": lambda n: chunk({"content": LONG}),
    "usage": lambda n: {**chunk({}), "usage": {f"k{n}": LONG}},
    "beside usage": lambda n: {**chunk({}), "choices": [], "usage": {"n": 1}, f"k{n}": LONG},
    "beside nothing": lambda n: {**chunk({}), f"k{n}": LONG},
    "ends": lambda n: of_choice(n % 100, finish_reason="stop", logprobs={"content": [LONG]}),
    "beside choices": lambda n: {**of_choice(n % 100, finish_reason="stop"), f"k{n}": LONG},
    "call keys": lambda n: of_call(0, **{f"k{n}": LONG}),
    "function keys": lambda n: of_call(0, function={"name": "own", f"k{n}": LONG}),
    "arguments": lambda n: of_call(0, function={"arguments": LONG}),
    "ids": lambda n: of_call(0, index=n, id=f"{n}{LONG}"),
    "kinds": lambda n: of_call(0, index=n, type=f"{n}{LONG}", function=None),
}


@pytest.mark.parametrize("kind", FLOODS)
def test_a_stream_without_end_does_not_fill_the_memory(kind: str) -> None:
    stream = reader()
    with suppress(UpstreamBroke):
        for number in range(500):
            stream.feed(FLOODS[kind](number))
        stream.feed(chunk({}, "stop"))
    with suppress(UpstreamBroke):
        assert len(json.dumps(stream.completion().message)) < 2 * LIMIT
    assert len(json.dumps([stream.usage, stream.beside_usage])) < 2 * LIMIT
    assert sum(len(json.dumps(each)) for each in stream.finish_chunks()) < 101 * 3 * 1000


def test_arguments_that_are_sent_anew_count_once() -> None:
    stream = reader()
    text = json.dumps({"k": "x" * 5000})
    for end in range(10, len(text) + 10, 10):
        stream.feed(of_call(0, id="c1", function={"name": "own", "arguments": text[:end]}))
    assert [call.arguments for call in stream.completion().calls] == [text]


def test_a_usage_beside_every_chunk_is_the_last_ones() -> None:
    stream = reader()
    for number in range(1000):
        stream.feed({**chunk({}), "usage": {"completion_tokens": number, "note": "x" * 50}})
    assert stream.usage is not None and stream.usage["completion_tokens"] == 999


def test_a_running_chat_keeps_no_parsed_request() -> None:
    """Its messages and its tools are kept as they are sent, in a tenth of the memory."""
    message = {"role": "user", "content": "Hi", "kept_of_this": ["message"]}
    tools = [client_tool("own", kept_of_this=["tool"])]
    chat = live(body={"messages": [message] * 3, "tools": tools})
    chat.sends(HALF)
    mine = {id(message), *map(id, tools)}
    # Not isinstance(): other objects may do anything when they are asked for their class.
    kept = [each for each in gc.get_objects() if type(each) is dict and "kept_of_this" in each]
    assert {id(each) for each in kept} <= mine
    assert chat.requests[0]["messages"] == [message] * 3
    assert chat.requests[0]["tools"][0] == tools[0]
    assert chat.requests[0]["tools"][1]["function"]["name"] == "clock"


def test_a_budget_does_not_keep_what_it_counts() -> None:
    text = json.dumps({"messages": []}).encode()
    references = sys.getrefcount(text)
    budget = BodyBudget(1000)
    budget.release(budget.hold(text))
    assert sys.getrefcount(text) == references and budget.in_use == 0


def test_names_are_compared_once_for_all_chats(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []

    def counted(names: Collection[str]) -> frozenset[str]:
        compared.append(len(names))
        return frozenset(names)

    monkeypatch.setattr("llamaproxy.tools.names.whole_names", counted)
    rounds = [calling("clock"), saying("Noon.")]
    chat = streamed(*rounds, server=["clock", "web"])
    chat.again(*rounds)
    assert chat.text == "Noon."
    assert compared == [2]
    chat.again(*rounds, tools=[client_tool("own")])
    assert compared == [2, 3], "a client's own tools are compared too"


def test_tools_are_serialised_once_for_all_chats(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the messages once for all rounds."""
    rounds = [calling("clock"), calling("clock"), calling("clock"), saying("Noon.")]
    results = ["12:00", "12:01", "12:02"] * 2
    names = ["clock", *(f"tool{number}" for number in range(100))]
    chat = ask(*rounds, server=names, results=results)
    dumps, seen = orjson.dumps, 0

    def counted(value: Any, **options: Any) -> bytes:
        nonlocal seen
        seen += _entries_in(value)
        return dumps(value, **options)

    monkeypatch.setattr(orjson, "dumps", counted)
    chat.again(*rounds, messages=[{"role": "user", "content": "Hi"}] * 50)
    assert chat.text == "Noon."
    assert len(chat.requests[-1]["tools"]) == 101
    assert len(chat.requests[-1]["messages"]) == 56
    assert seen < 100, "50 messages once, and what the rounds have added"


def _entries_in(value: Any) -> int:
    """The objects in *value* that are the elements of a list."""
    if isinstance(value, dict):
        return sum(map(_entries_in, value.values()))
    if isinstance(value, list):
        return len(value) + sum(map(_entries_in, value))
    return 0
