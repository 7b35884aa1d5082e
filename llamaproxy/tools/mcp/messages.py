"""MCP's messages: JSON-RPC 2.0 and what MCP makes of it, without I/O."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from typing import Any

from llamaproxy import __version__, jsontext
from llamaproxy.errors import McpBroke
from llamaproxy.jsontext import Json

#: The revisions that begin with a handshake, the newest first. The last is what servers of the old
#: HTTP+SSE transport speak.
REVISIONS = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")

#: What a revision looks like. One that is not known here differs in what is not used here: so far,
#: lists and calls have been the same in all that begin with a handshake.
REVISION = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}")

#: The revision without handshake and sessions: every request says all that the server must know.
STATELESS = "2026-07-28"

METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
HEADER_MISMATCH = -32020
UNSUPPORTED_REVISION = -32022

#: Errors with which a server that knows only the stateless revision may answer the handshake.
NO_HANDSHAKE = (UNSUPPORTED_REVISION, HEADER_MISMATCH, METHOD_NOT_FOUND, INVALID_PARAMS)

#: The most bytes of one message.
MAX_MESSAGE = 16 * 1024 * 1024

#: The most messages of one batch (a thing of revision 2025-03-26).
_MAX_BATCH = 1000

CLIENT: Json = {"name": "llamaproxy", "version": __version__}

#: What a field may be called (RFC 9110, 5.6.2).
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}")

#: Header fields that stand in ``_meta`` too.
_TRACED = ("traceparent", "tracestate")

_META = "io.modelcontextprotocol/"


class RpcError(McpBroke):
    """The MCP server answered with an error."""

    def __init__(self, error: object, http_status: int = 200) -> None:
        said: Json = error if isinstance(error, dict) else {}
        self.rpc_code = said.get("code")
        self.data = said.get("data")
        self.http_status = http_status
        words = str(said.get("message") or "it does not say why")[:2000]
        self.said = "".join(each if each.isprintable() else " " for each in words)
        super().__init__(f"The MCP server answered with an error: {self.said}")


def traced(message: Json, fields: Iterable[tuple[str, str]]) -> Json:
    """*message* with the tracing *fields* of its caller in its ``_meta``.

    A server that answers in another process than the one that was asked sees no header fields
    (SEP-414, "OpenTelemetry trace context in _meta").
    """
    known = {name: value for name, value in fields if name in _TRACED}
    if not known:
        return message
    params = message["params"]
    return {**message, "params": {**params, "_meta": {**params.get("_meta", {}), **known}}}


def request(number: int, method: str, params: Json | None = None) -> Json:
    """A request; its answer carries *number* too."""
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": params or {}}


def notification(method: str, params: Json | None = None) -> Json:
    """What needs no answer."""
    return {"jsonrpc": "2.0", "method": method, **({"params": params} if params else {})}


def initialize(number: int) -> Json:
    """The handshake: the newest revision is asked for, the server says what it will be."""
    params = {"protocolVersion": REVISIONS[0], "capabilities": {}, "clientInfo": CLIENT}
    return request(number, "initialize", params)


def cancelled(message: Json) -> Json:
    """What tells the server that nobody waits for the answer to *message* any more."""
    params = {"requestId": message["id"], "reason": "nobody waits for the answer any more"}
    return notification("notifications/cancelled", params)


def self_contained(message: Json) -> Json:
    """*message* as the stateless revision wants it."""
    meta = {
        f"{_META}protocolVersion": STATELESS,
        f"{_META}clientInfo": CLIENT,
        f"{_META}clientCapabilities": {},
    }
    meta |= message["params"].get("_meta", {})
    return {**message, "params": {**message["params"], "_meta": meta}}


def reply_to(message: Json) -> Json | None:
    """What a server's own *message* is answered with, None if it is no request."""
    if "method" not in message or not isinstance(message.get("id"), str | int):
        return None
    answer: Json = {"jsonrpc": "2.0", "id": message["id"]}
    if message["method"] == "ping":
        return {**answer, "result": {}}
    return {**answer, "error": {"code": METHOD_NOT_FOUND, "message": "Method not found"}}


def read_event(text: bytes) -> list[Json]:
    """The messages in an event; what is none, such as ``ping`` or ``[DONE]``, is ignored."""
    try:
        return read(text)
    except McpBroke:
        return []


def read(text: bytes) -> list[Json]:
    """The messages in *text*: one, or a batch of them.

    :raises McpBroke: if it is something else.
    """
    try:
        said = jsontext.loads_anyhow(text)
    except ValueError:
        raise McpBroke("The MCP server sent something that is not JSON.") from None
    batch = said if isinstance(said, list) else [said]
    if len(batch) > _MAX_BATCH or not all(isinstance(message, dict) for message in batch):
        raise McpBroke("The MCP server sent something that is not a JSON-RPC message.")
    return batch


def is_answer(message: Json, number: object = None) -> bool:
    """Whether *message* is an answer, and if a *number* is given, the one to that request."""
    if "method" in message or not ("result" in message or "error" in message):
        return False
    return number is None or answers(message) == number


def answers(message: Json) -> object:
    """The number of the request that *message* answers; some servers make a text of it."""
    number = message.get("id")
    if isinstance(number, str) and len(number) < 16 and number.isascii() and number.isdigit():
        return int(number)
    return number


def is_refusal(message: Json) -> bool:
    """Whether *message* is an error that does not say which request it is about."""
    return "method" not in message and message.get("id") is None and bool(message.get("error"))


def result_in(answer: Json, http_status: int = 200) -> Json:
    """The result that an *answer* has.

    :raises RpcError: if it has an error instead.
    """
    if answer.get("error") is not None:
        raise RpcError(answer["error"], http_status)
    result = answer.get("result")
    if not isinstance(result, dict):
        raise McpBroke("The MCP server sent a result that is not an object.")
    return result


def parameter_fields(schema: Json, arguments: Json) -> tuple[tuple[str, str], ...]:
    """The arguments that a tool's *schema* wants repeated in header fields (``x-mcp-header``)."""
    found: list[tuple[str, str]] = []
    properties = schema.get("properties")
    for name, each in properties.items() if isinstance(properties, dict) else ():
        if not isinstance(each, dict) or name not in arguments:
            continue
        value: Any = arguments[name]
        called = each.get("x-mcp-header")
        if isinstance(value, dict):
            found += parameter_fields(each, value)
        elif isinstance(called, str) and isinstance(value, str | int) and TOKEN.fullmatch(called):
            said = str(value).lower() if isinstance(value, bool) else str(value)
            found.append((f"Mcp-Param-{called}", field_value(said)))
    return tuple(found)


def field_value(value: str) -> str:
    """*value* so that it survives in a header field (MCP 2026-07-28, "Streamable HTTP")."""
    plain = value.isascii() and value.isprintable() and value == value.strip()
    if plain and not (value.startswith("=?base64?") and value.endswith("?=")):
        return value
    return f"=?base64?{base64.b64encode(value.encode('utf-8', 'replace')).decode()}?="
