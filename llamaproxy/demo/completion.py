"""Completions as Llama Stack 0.6.1 writes them, null fields and all (recorded)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import attrs

from llamaproxy import jsontext
from llamaproxy.demo.model import MODEL, Reply, ScriptedCall, text_of
from llamaproxy.jsontext import Json

_WORD = re.compile(r"\s*\S+\s*|\s+")

_DELTA = ("audio", "content", "function_call", "refusal", "role", "tool_calls")


@attrs.frozen
class ScriptedCompletion:
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
            **dict.fromkeys(("annotations", "audio", "function_call")),
            "tool_calls": [_tool_call(call) for call in self._reply.calls] or None,
        }
        choice = {"finish_reason": self._finish, "index": 0, "logprobs": None, "message": message}
        nulls = ("metadata", "moderation", "service_tier", "system_fingerprint")
        return self._envelope("chat.completion", [choice], nulls, self._usage())

    def chunks(self, include_usage: bool) -> Iterator[Json]:
        """The events of a streamed answer: the role, the words or calls, the finish, the usage."""
        content = self._reply.content
        yield self._delta(role="assistant", content=None if content is None else "")
        for word in _WORD.findall(content or ""):
            yield self._delta(content=word)
        for index, call in enumerate(self._reply.calls):
            opening = {"index": index, **_tool_call(call)}
            opening["function"]["arguments"] = ""
            yield self._delta(tool_calls=[opening])
            function = {"arguments": _arguments(call), "name": None}
            continuation = {"index": index, "id": None, "function": function, "type": None}
            yield self._delta(tool_calls=[continuation])
        yield self._delta(self._finish)
        if include_usage:
            yield self._chunk([], self._usage())

    @property
    def _finish(self) -> str:
        return "tool_calls" if self._reply.calls else "stop"

    def _delta(self, finish_reason: str | None = None, **fields: Any) -> Json:
        delta = dict.fromkeys(_DELTA) | fields
        choice = {"delta": delta, "index": 0, "finish_reason": finish_reason, "logprobs": None}
        return self._chunk([choice])

    def _chunk(self, choices: list[Json], usage: Json | None = None) -> Json:
        nulls = ("moderation", "obfuscation", "service_tier", "system_fingerprint")
        return self._envelope("chat.completion.chunk", choices, nulls, usage)

    def _envelope(
        self, kind: str, choices: list[Json], nulls: tuple[str, ...], usage: Json | None
    ) -> Json:
        fields = {"id": self._id, "choices": choices, "created": self._created, "model": MODEL}
        return {**fields, "object": kind, **dict.fromkeys(nulls), "usage": usage}

    def _usage(self) -> Json:
        """The usage; this model's tokens are words."""
        texts = [f"{call.name} {_arguments(call)}" for call in self._reply.calls]
        completion_tokens = len(" ".join([self._reply.content or "", *texts]).split())
        return {
            "completion_tokens": completion_tokens,
            "prompt_tokens": self._prompt_tokens,
            "total_tokens": self._prompt_tokens + completion_tokens,
            **dict.fromkeys(("completion_tokens_details", "prompt_tokens_details")),
        }


def prompt_tokens(messages: list[Any]) -> int:
    """The number of words in the messages."""
    contents = (message.get("content") for message in messages if isinstance(message, dict))
    return sum(len(text_of(content).split()) for content in contents)


def _tool_call(call: ScriptedCall) -> Json:
    function = {"arguments": _arguments(call), "name": call.name}
    return {"id": f"call_{uuid4().hex}", "function": function, "type": "function"}


def _arguments(call: ScriptedCall) -> str:
    return jsontext.dumps(call.arguments).decode()
