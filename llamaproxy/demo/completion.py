"""Completions as Llama Stack 0.6.1 writes them, null fields and all (recorded)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import attrs

from llamaproxy import jsontext
from llamaproxy.demo.model import MODEL, Reply, ToolCall, text_of
from llamaproxy.jsontext import Json

_WORD = re.compile(r"\s*\S+\s*|\s+")

#: Arguments are streamed in pieces of so many characters.
_PIECE_LENGTH = 12

_DELTA = dict.fromkeys(
    ("audio", "content", "function_call", "refusal", "role", "tool_calls"),
)


@attrs.frozen
class Completion:
    """One answer of the model, in one piece or in chunks; ids are unique."""

    _reply: Reply
    _created: int
    _prompt_tokens: int
    _id: str = attrs.Factory(lambda: f"chatcmpl-{uuid4().hex}")

    def body(self) -> Json:
        """The body of an answer that is not streamed."""
        message = {
            "content": self._reply.content,
            "refusal": None,
            "role": "assistant",
            "annotations": None,
            "audio": None,
            "function_call": None,
            "tool_calls": [_tool_call(call) for call in self._reply.calls] or None,
        }
        choice = {
            "finish_reason": self._finish_reason,
            "index": 0,
            "logprobs": None,
            "message": message,
        }
        return {
            "id": self._id,
            "choices": [choice],
            "created": self._created,
            "model": MODEL,
            "object": "chat.completion",
            "metadata": None,
            "moderation": None,
            "service_tier": None,
            "system_fingerprint": None,
            "usage": self._usage(),
        }

    def chunks(self, include_usage: bool) -> Iterator[Json]:
        """The events of a streamed answer: the role, the words or calls, the finish, the usage."""
        content = self._reply.content
        yield self._delta(role="assistant", content=None if content is None else "")
        for word in _WORD.findall(content or ""):
            yield self._delta(content=word)
        for index, call in enumerate(self._reply.calls):
            opening = _tool_call(call)
            arguments, opening["function"]["arguments"] = opening["function"]["arguments"], ""
            yield self._delta(tool_calls=[{"index": index, **opening}])
            for start in range(0, len(arguments), _PIECE_LENGTH):
                function = {"arguments": arguments[start : start + _PIECE_LENGTH], "name": None}
                piece = {"index": index, "id": None, "function": function, "type": None}
                yield self._delta(tool_calls=[piece])
        yield self._delta(self._finish_reason)
        if include_usage:
            yield self._chunk([], self._usage())

    @property
    def _finish_reason(self) -> str:
        return "tool_calls" if self._reply.calls else "stop"

    def _delta(self, finish_reason: str | None = None, **fields: Any) -> Json:
        delta = {**_DELTA, **fields}
        choice = {"delta": delta, "index": 0, "finish_reason": finish_reason, "logprobs": None}
        return self._chunk([choice])

    def _chunk(self, choices: list[Json], usage: Json | None = None) -> Json:
        return {
            "id": self._id,
            "choices": choices,
            "created": self._created,
            "model": MODEL,
            "object": "chat.completion.chunk",
            "moderation": None,
            "obfuscation": None,
            "service_tier": None,
            "system_fingerprint": None,
            "usage": usage,
        }

    def _usage(self) -> Json:
        """The usage; this model's tokens are words."""
        texts = [f"{call.name} {_arguments(call)}" for call in self._reply.calls]
        completion_tokens = len(" ".join([self._reply.content or "", *texts]).split())
        return {
            "completion_tokens": completion_tokens,
            "prompt_tokens": self._prompt_tokens,
            "total_tokens": self._prompt_tokens + completion_tokens,
            "completion_tokens_details": None,
            "prompt_tokens_details": None,
        }


def prompt_tokens(messages: list[Any]) -> int:
    """The number of words in the messages."""
    contents = (message.get("content") for message in messages if isinstance(message, dict))
    return sum(len(text_of(content).split()) for content in contents)


def _tool_call(call: ToolCall) -> Json:
    return {
        "id": f"call_{uuid4().hex}",
        "function": {"arguments": _arguments(call), "name": call.name},
        "type": "function",
    }


def _arguments(call: ToolCall) -> str:
    return jsontext.dumps(call.arguments).decode()
