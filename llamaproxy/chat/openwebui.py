"""Open WebUI's tool cards, background tasks and old card markup (seen in 0.12.4). Pure."""

from __future__ import annotations

import secrets
from functools import cached_property
from typing import Any

import attrs

from llamaproxy import jsontext
from llamaproxy.chat.messages import ToolCall, objects, text_of
from llamaproxy.errors import ToolFailed
from llamaproxy.jsontext import Json
from llamaproxy.tools.arguments import parse_arguments
from llamaproxy.tools.results import ToolResult

#: ``output_index`` of every item: the page puts an item with a large one at the end, behind the
#: text that came before it, and one without any before the last item (seen in 0.12.4).
_LAST_INDEX = 1 << 20

#: What the prompts of its background tasks begin with (titles, tags, follow-up questions).
_TASK_PREFIX = "### Task:"

#: What versions before 0.10 put around tool cards in the text of an answer.
_CARD_BEGIN = '<details type="tool_calls"'
_CARD_END = "</details>"


def is_background_task(body: Json) -> bool:
    """Whether *body* looks like a background task: one user message with such a prompt, no tools.

    Administrators can edit the prompts; the field ``X-OpenWebUI-Task`` is certain.
    """
    messages = objects(body["messages"])
    return (
        len(messages) == 1
        and messages[0].get("role") == "user"
        and text_of(messages[0].get("content")).lstrip().startswith(_TASK_PREFIX)
        and not body.get("stream")
        and not body.get("tools")
    )


@attrs.frozen(eq=False, repr=False, slots=False)
class Card:
    """A tool call as Open WebUI shows it: items of OpenAI's Responses API.

    The ids are our own, because models repeat theirs. An item of type ``function_call`` without
    an output would be run by Open WebUI itself, so every card must be given its result.
    """

    call: ToolCall

    @cached_property
    def _id(self) -> str:
        return secrets.token_hex(12)

    def call_item(self) -> Json:
        """The call, shown as running."""
        return {
            "type": "function_call",
            "id": f"fc_{self._id}",
            "call_id": f"call_{self._id}",
            "name": self.call.name,
            "arguments": _shown_arguments(self.call.arguments),
            "status": "completed",
        }

    def output_item(self, result: ToolResult) -> Json:
        """The call's result, with its pictures.

        Open WebUI tells a failure by the text that it begins with, whatever the status.
        """
        text = result.text
        if result.is_error and not text.startswith("Error:"):
            text = f"Error: {text}"
        item: Json = {
            "type": "function_call_output",
            "id": f"fco_{self._id}",
            "call_id": f"call_{self._id}",
            "output": [{"type": "input_text", "text": text}],
            "status": "failed" if result.is_error else "completed",
        }
        if result.images:
            item["files"] = [{"type": "image", "url": image.url} for image in result.images]
        return item


def item_event(item: Json) -> Json:
    """*item* as an event of a chat completion's stream."""
    return {"type": "response.output_item.added", "output_index": _LAST_INDEX, "item": item}


def message_item(text: str) -> Json:
    """The text of an answer that is not streamed, as the last item of its ``output``."""
    return {
        "type": "message",
        "id": f"msg_{secrets.token_hex(12)}",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": text, "annotations": []}],
    }


def without_old_cards(messages: list[Any]) -> list[Any]:
    """*messages* without the tool cards that were written into the text of old answers."""
    return [_without_cards(message) for message in messages]


def _without_cards(message: Any) -> Any:
    if not isinstance(message, dict) or message.get("role") != "assistant":
        return message
    content = message.get("content")
    if isinstance(content, str) and _CARD_BEGIN in content:
        return {**message, "content": _stripped(content)}
    if isinstance(content, list):
        parts = [
            {**part, "text": _stripped(part["text"])}
            if isinstance(part, dict) and isinstance(part.get("text"), str)
            else part
            for part in content
        ]
        return {**message, "content": parts}
    return message


def _stripped(text: str) -> str:
    pieces: list[str] = []
    at = 0
    while (begin := text.find(_CARD_BEGIN, at)) >= 0:
        end = text.find(_CARD_END, begin + len(_CARD_BEGIN))
        if end < 0:
            break
        pieces.append(text[at:begin])
        at = _after_newlines(text, end + len(_CARD_END))
    return "".join([*pieces, text[at:]])


def _after_newlines(text: str, at: int) -> int:
    while text.startswith("\n", at):
        at += 1
    return at


def _shown_arguments(arguments: str) -> str:
    try:
        return jsontext.dumps(parse_arguments(arguments)).decode()
    except ToolFailed:
        return arguments
