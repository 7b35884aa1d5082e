"""What clients, models and servers were seen to send: one JSON file each in ``fixtures/field``.

DESIGN: L8b, L12b, L15b, L15c, S8 and others.

``request`` is sent with the answers of ``upstream`` waiting, in order (the last one repeats), and
``check`` is an expression that must be true of what came of it. The server has one tool, ``act``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from twisted.web.http import Request

from tests.chat.streams import stack_with
from tests.support import CHAT, FIXTURES, INVOKE, Answer, Proxy, answer, event, tool_result

CASES = sorted((FIXTURES / "field").glob("*.json"))


def upstream_answer(given: dict[str, Any]) -> Answer:
    """An answer of the server as a case has it."""
    fields = {name: str(value) for name, value in given.get("headers", {}).items()}

    def write(request: Request) -> None:
        if "sse" in given:
            events = [each.encode() if isinstance(each, str) else each for each in given["sse"]]
            body, kind = b"".join(map(event, events)), "text/event-stream"
        else:
            kind = "application/json"
            text = json.dumps(given["json"]) if "json" in given else given["text"]
            body = text.encode() if "json" in given else text.encode("latin-1")
        named = {name.title(): value for name, value in fields.items()}
        answer(body, given.get("status", 200), {"Content-Type": kind, **named})(request)

    return write


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_a_case_from_the_field(path: Path) -> None:
    case = json.loads(path.read_text("utf-8"))
    sent = case["request"]
    stack = stack_with("act")
    stack.on("GET /v1/version", answer({"version": "0.6.1"}))
    stack.on(CHAT, *map(upstream_answer, case["upstream"]))
    stack.on(INVOKE, tool_result("act answered"))
    raw = sent.get("body_bytes_latin1")
    body = sent["body"] if raw is None else raw.encode("latin-1")
    fields = {"Content-Type": "application/json", **sent.get("headers", {})}
    target = sent.get("path", "/v1/chat/completions")
    exchange = Proxy(stack).request("POST", target, body, fields)
    chats, text = stack.asked_for(CHAT), exchange.body.decode("utf-8", "replace")
    lines = text.split("\n")
    scope = {
        "json": json,
        "status": exchange.status,
        "headers": {
            name.decode().lower(): b", ".join(values).decode("latin-1")
            for name, values in exchange.response.headers.getAllRawHeaders()
        },
        "body": text,
        "events": [json.loads(line[6:]) for line in lines if line.startswith("data: {")],
        "seen": [each.json() for each in chats],
        "seen_headers": [
            {n.decode().lower(): v[0].decode("latin-1") for n, v in each.headers.getAllRawHeaders()}
            for each in chats
        ],
        "seen_targets": [each.target for each in chats],
        "invoked": [each.json() for each in stack.asked_for(INVOKE)],
    }
    assert eval(case["check"], scope), f"{case['check']}\n{exchange.status} {text[:2000]}"
