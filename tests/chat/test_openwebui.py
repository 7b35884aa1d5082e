"""What is Open WebUI's own."""

from __future__ import annotations

from typing import Any

import pytest

from llamaproxy.chat.openwebui import is_background_task

_TASK = "### Task:\nGenerate a concise title\n### Chat History:\n<chat_history>\n</chat_history>"


def _asking(content: object, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": content}], **more}


@pytest.mark.parametrize(
    "body",
    [
        _asking(_TASK),
        _asking(_TASK, stream=False, max_tokens=1000),
        _asking("\n " + _TASK, stream=None, tools=None),
        _asking([{"type": "text", "text": _TASK}], tools=[]),
    ],
)
def test_a_background_task_is_known_by_its_shape(body: dict[str, Any]) -> None:
    assert is_background_task(body)


@pytest.mark.parametrize(
    "body",
    [
        _asking("What is the weather?"),
        _asking("Explain the mark ### Task: to me"),
        _asking(_TASK, stream=True),
        _asking(_TASK, tools=[{"type": "function", "function": {"name": "f"}}]),
        _asking(None),
        _asking(7),
        {"messages": []},
        {"messages": [None, "x"]},
        {"messages": [{"role": "system", "content": _TASK}]},
        {"messages": [{"role": "assistant", "content": _TASK}]},
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": _TASK},
            ]
        },
    ],
)
def test_a_chat_is_not_taken_for_a_background_task(body: dict[str, Any]) -> None:
    assert not is_background_task(body)
