"""Text that is added to a conversation's system message. Pure."""

from __future__ import annotations

from typing import Any

from llamaproxy.chat.messages import as_object


def with_system_text(messages: list[Any], text: str) -> list[Any]:
    """*messages* with *text* at the end of the first, if that is the system's; else before it.

    Most chat templates know one system message, at the beginning, and fail over a second.
    """
    first = as_object(messages[0]) if messages else {}
    if first.get("role") not in ("system", "developer"):
        return [{"role": "system", "content": text}, *messages]
    content = first.get("content")
    if isinstance(content, list):
        content = [*content, {"type": "text", "text": text}]
    else:
        content = f"{content}\n\n{text}" if isinstance(content, str) and content else text
    return [{**first, "content": content}, *messages[1:]]
