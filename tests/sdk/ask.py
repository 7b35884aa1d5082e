"""Asks by OpenAI's Python client, in every way that it knows: cases in, answers out (JSON).

Each case is asked until the model wants no client tool any more; each tool says ``local``.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from openai import APIError, AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk

Json = dict[str, Any]
Ask = Callable[[Any, Json], Awaitable[Json]]


async def _now(value: Any) -> Any:
    """*value*, waited for if it is the asynchronous client's."""
    return await value if hasattr(value, "__await__") else value


def answer_of(completion: ChatCompletion) -> Json:
    """What is compared of a completion; writing it out warns of fields of a wrong type."""
    return completion.model_dump(exclude_none=True)


async def create(client: Any, body: Json) -> Json:
    body = {key: value for key, value in body.items() if key != "stream_options"}
    return answer_of(await _now(client.chat.completions.create(**body)))


async def create_stream(client: Any, body: Json) -> Json:
    chunks: list[ChatCompletionChunk] = []
    stream = await _now(client.chat.completions.create(**body, stream=True))
    if isinstance(client, AsyncOpenAI):
        async for chunk in stream:
            chunks.append(chunk)
    else:
        chunks += stream
    return joined([chunk.model_dump(exclude_none=True) for chunk in chunks])


async def helper(client: Any, body: Json) -> Json:
    if isinstance(client, AsyncOpenAI):
        async with client.chat.completions.stream(**body) as stream:
            async for _ in stream:
                pass
            return answer_of(await stream.get_final_completion())
    with client.chat.completions.stream(**body) as stream:
        for _ in stream:
            pass
        return answer_of(stream.get_final_completion())


def joined(chunks: list[Json]) -> Json:
    """The chunks put together as most programs do it who use no helper."""
    messages: dict[int, Json] = {}
    reasons: dict[int, str] = {}
    usage = None
    for chunk in chunks:
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            message = messages.setdefault(choice["index"], {"tool_calls": []})
            for key, value in choice["delta"].items():
                if key == "tool_calls":
                    for made in value:
                        _join_call(message["tool_calls"], made)
                elif key == "role":
                    message["role"] = value
                else:
                    message[key] = message.get(key, "") + value
            if choice.get("finish_reason"):
                reasons[choice["index"]] = choice["finish_reason"]
    choices = [
        {"index": index, "message": message, "finish_reason": reasons[index]}
        for index, message in messages.items()
    ]
    return {**chunks[0], "choices": choices, "usage": usage}


def _join_call(calls: list[Json], delta: Json) -> None:
    if delta["index"] == len(calls):
        calls.append({"id": delta["id"], "type": delta["type"], "function": delta["function"]})
    else:
        calls[delta["index"]]["function"]["arguments"] += delta["function"]["arguments"]


WAYS: dict[str, tuple[bool, bool, Ask]] = {
    "create": (False, False, create),
    "create, strictly": (False, True, create),
    "create(stream)": (False, False, create_stream),
    "create(stream), strictly": (False, True, create_stream),
    "stream()": (False, False, helper),
    "async create": (True, False, create),
    "async create(stream)": (True, False, create_stream),
    "async stream()": (True, False, helper),
}


async def converse(client: Any, ask: Ask, body: Json) -> Json:
    """The answers of one conversation, or the error it ended with."""
    turns: list[Json] = []
    messages = list(body["messages"])
    try:
        while not turns or turns[-1]["choices"][0]["message"].get("tool_calls"):
            turns.append(await ask(client, {**body, "messages": messages}))
            message = turns[-1]["choices"][0]["message"]
            calls = message.get("tool_calls") or []
            messages = [
                *messages,
                {key: value for key, value in message.items() if key != "parsed"},
                *({"role": "tool", "tool_call_id": c["id"], "content": "local"} for c in calls),
            ]
    except Exception as error:
        return {
            "turns": turns,
            "error": {
                "name": type(error).__name__,
                "is_api_error": isinstance(error, APIError),
                "status": getattr(error, "status_code", None),
                "message": str(error),
            },
        }
    return {"turns": turns}


async def main() -> None:
    cases = json.loads(sys.argv[1])
    said: Json = {}
    for way, (asynchronous, strict, ask) in WAYS.items():
        for base_url in {case["base_url"] for case in cases}:
            options = {
                "base_url": base_url,
                "api_key": "none",
                "max_retries": 0,
                "timeout": 20.0,
                "_strict_response_validation": strict,
            }
            client: Any = (AsyncOpenAI if asynchronous else OpenAI)(**options)
            for case in cases:
                if case["base_url"] == base_url:
                    outcome = await converse(client, ask, case["body"])
                    said.setdefault(way, {})[case["name"]] = outcome
            await _now(client.close())
    json.dump(said, sys.stdout)


if __name__ == "__main__":
    asyncio.run(main())
