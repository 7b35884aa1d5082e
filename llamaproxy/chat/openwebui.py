"""What is Open WebUI's own. Pure (observed: Open WebUI 0.12.4)."""

from __future__ import annotations

from llamaproxy.chat.messages import objects, text_of
from llamaproxy.jsontext import Json

#: How the prompts of its background tasks begin (titles, tags, follow-up questions).
_TASK_MARK = "### Task:"


def is_background_task(body: Json) -> bool:
    """Whether *body* has the shape of a background task: one user message, and little else.

    The prompts can be edited by an administrator; the exact mark is the header
    ``X-OpenWebUI-Task``.
    """
    messages = objects(body["messages"])
    return (
        len(messages) == 1
        and messages[0].get("role") == "user"
        and text_of(messages[0].get("content")).lstrip().startswith(_TASK_MARK)
        and not body.get("stream")
        and not body.get("tools")
    )
