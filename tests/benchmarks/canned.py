"""What the stub says: bodies in the shapes that Llama Stack 0.6.1 was recorded with."""

import json
from typing import Any, Final

WORD: Final = b"lorem"
"""Stands once in every content delta, so that relayed events can be counted however written."""

MODEL: Final = "vllm/scripted-1"

TOOL_COUNT: Final = 10


def compact(value: Any) -> bytes:
    """JSON as the recorded servers write it: no spaces."""
    return json.dumps(value, separators=(",", ":")).encode()


def _tool(number: int) -> dict[str, Any]:
    """A tool definition of ordinary size: three parameters, one of them required."""
    return {
        "toolgroup_id": "mcp::main",
        "name": f"get_text_{number}",
        "description": "Plain text result.\n\n    Args: city to look up, days ahead, units.",
        "input_schema": {
            "properties": {
                "city": {"title": "City", "type": "string"},
                "days": {"default": 3, "title": "Days", "type": "integer"},
                "units": {"default": "metric", "enum": ["metric", "imperial"], "type": "string"},
            },
            "required": ["city"],
            "title": "get_textArguments",
            "type": "object",
        },
        "output_schema": {
            "properties": {"result": {"title": "Result", "type": "string"}},
            "required": ["result"],
            "title": "get_textOutput",
            "type": "object",
        },
        "metadata": {"endpoint": "http://127.0.0.1:9102/mcp"},
    }


def tools(count: int) -> bytes:
    """The list of so many tools."""
    return compact({"data": [_tool(number) for number in range(count)]})


def _completion(message: dict[str, Any], finish_reason: str) -> bytes:
    return compact(
        {
            "id": "chatcmpl-scripted-953586109",
            "choices": [
                {
                    "finish_reason": finish_reason,
                    "index": 0,
                    "logprobs": None,
                    "message": {
                        "content": None,
                        "refusal": None,
                        "role": "assistant",
                        "annotations": None,
                        "audio": None,
                        "function_call": None,
                        "tool_calls": None,
                        **message,
                    },
                }
            ],
            "created": 1700000000,
            "model": MODEL,
            "object": "chat.completion",
            "metadata": None,
            "moderation": None,
            "service_tier": None,
            "system_fingerprint": "fp_scripted",
            "usage": {
                "completion_tokens": 5,
                "prompt_tokens": 10,
                "total_tokens": 15,
                "completion_tokens_details": None,
                "prompt_tokens_details": None,
            },
        }
    )


def _event(finish_reason: str | None = None, **delta: Any) -> bytes:
    """One streamed completion chunk as an SSE event in a chunk of its own."""
    empty = dict.fromkeys(("audio", "content", "function_call", "refusal", "role", "tool_calls"))
    event = compact(
        {
            "id": "chatcmpl-scripted-953586110",
            "choices": [
                {
                    "delta": empty | delta,
                    "index": 0,
                    "finish_reason": finish_reason,
                    "logprobs": None,
                }
            ],
            "created": 1700000000,
            "model": MODEL,
            "object": "chat.completion.chunk",
            "moderation": None,
            "obfuscation": None,
            "service_tier": None,
            "system_fingerprint": "fp_scripted",
            "usage": None,
        }
    )
    framed = b"data: " + event + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(framed), framed)


HEALTH: Final = compact({"status": "OK"})
VERSION: Final = compact({"version": "0.6.1"})
TOOLGROUPS: Final = compact(
    {
        "data": [
            {
                "identifier": "mcp::main",
                "provider_resource_id": "mcp::main",
                "provider_id": "mcp",
                "type": "tool_group",
                "mcp_endpoint": {"uri": "http://127.0.0.1:9102/mcp"},
                "args": None,
            }
        ]
    }
)
RESULT: Final = compact(
    {
        "content": [{"type": "text", "text": "Sunny in Oslo for 3 days"}],
        "error_message": None,
        "error_code": 0,
        "metadata": None,
    }
)
ANSWER: Final = _completion({"content": "Hello from the scripted model."}, "stop")
NOT_FOUND: Final = compact({"detail": "Not Found"})


def calls(count: int) -> bytes:
    """A completion that makes so many calls at once."""
    arguments = '{"city": "Oslo", "days": 3}'
    return _completion(
        {
            "tool_calls": [
                {
                    "id": f"call_1_{number}",
                    "function": {"arguments": arguments, "name": f"get_text_{number}"},
                    "type": "function",
                }
                for number in range(count)
            ]
        },
        "tool_calls",
    )


STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ndate: Sun, 22 Nov 2026 14:45:40 GMT\r\nserver: uvicorn\r\n"
    b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
FIRST_EVENT: Final = _event(content="", role="assistant")
CONTENT_EVENT: Final = _event(content=f"{WORD.decode()} ")
_DONE: Final = b"data: [DONE]\n\n"
LAST_EVENT: Final = _event("stop") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(_DONE), _DONE)
BURST: Final = STREAM_HEAD + FIRST_EVENT + 100 * CONTENT_EVENT + LAST_EVENT
"""A stream of 103 events that are all there at once."""


def chat(text: str, **fields: Any) -> bytes:
    """The body of a client's chat completion request."""
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": text},
    ]
    return compact({"model": MODEL, "messages": messages, **fields})
