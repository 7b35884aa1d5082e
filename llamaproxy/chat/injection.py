"""Which requests are given the server's tools, and in which place (L1 to L4). Pure."""

from __future__ import annotations

from llamaproxy.chat.messages import objects, payload_of
from llamaproxy.chat.openwebui import is_background_task
from llamaproxy.chat.tool_choice import mode_of
from llamaproxy.jsontext import Json, JsonList


def why_not_injected(body: Json, patterns: str, task: str) -> str:
    """Why a request gets no server tools (L4); empty if it gets them.

    :param patterns: its field ``X-Llamaproxy-Tools``, empty if it has none.

    :param task: its field ``X-OpenWebUI-Task``, empty if it has none.
    """
    if "tool_choice" in body and mode_of(body) == "none":
        return "its tool_choice is none"
    if isinstance(body.get("n"), int | float) and body["n"] > 1:
        return "it asks for several choices (n)"
    if patterns.lower() == "none":
        return "its X-Llamaproxy-Tools is none"
    if task != "" or is_background_task(body):
        return "it is a background task of Open WebUI"
    return ""


def tool_names(body: Json) -> frozenset[str]:
    """The names of the tools that the client declared, functions or not (L8b)."""
    names = (payload_of(tool).get("name") for tool in objects(body.get("tools")))
    return frozenset(name for name in names if isinstance(name, str))


def with_tools(body: Json, server_tools: JsonList) -> Json:
    """*body* with server tools behind the client's own (L1); no empty list is left (L3)."""
    tools = JsonList.of(body.get("tools") or []) + server_tools
    if tools:
        return {**body, "tools": tools}
    return without_tools(body)


def without_tools(body: Json) -> Json:
    """*body* without tools, and what only makes sense beside them."""
    absent = ("tools", "tool_choice", "parallel_tool_calls")
    return {key: value for key, value in body.items() if key not in absent}
