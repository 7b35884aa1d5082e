"""MCP's messages, which are JSON-RPC 2.0's. Pure."""

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

#: The form of a revision. A later one than those above is accepted too: lists and calls have been
#: the same in all revisions that begin with a handshake.
REVISION = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}")

#: The revision without handshake and sessions; each request has all that a server must know.
STATELESS = "2026-07-28"

METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
HEADER_MISMATCH = -32020
UNSUPPORTED_REVISION = -32022

#: Errors with which a server that knows only the stateless revision may answer the handshake.
NO_HANDSHAKE = (UNSUPPORTED_REVISION, HEADER_MISMATCH, METHOD_NOT_FOUND, INVALID_PARAMS)

#: Error codes have fewer digits than this.
_MAX_CODE = 10**10

#: The most bytes of one message.
MAX_MESSAGE = 16 * 1024 * 1024

#: The most messages of one batch (revision 2025-03-26 only).
_MAX_BATCH = 1000

CLIENT: Json = {"name": "llamaproxy", "version": __version__}

#: A name of a header field (RFC 9110 section 5.6.2).
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}")

#: Header fields that are repeated in ``_meta``.
_TRACED = ("traceparent", "tracestate")

_META = "io.modelcontextprotocol/"


class RpcError(McpBroke):
    """The MCP server answered with an error."""

    def __init__(self, error: object, http_status: int = 200) -> None:
        fields: Json = error if isinstance(error, dict) else {}
        code = jsontext.whole(fields.get("code"))
        #: None if it is no error code: what else a server puts there may be as long as it likes, or
        #: a secret.
        self.rpc_code = code if type(code) is int and abs(code) < _MAX_CODE else None
        self.http_status = http_status
        text = str(fields.get("message") or "it does not say why")[:2000]
        self.rpc_message = "".join(each if each.isprintable() else " " for each in text)
        super().__init__(f"The MCP server answered with an error: {self.rpc_message}")

    @property
    def without_words(self) -> str:
        """What it is, for the log: nothing in it is the server's own."""
        return "an error" if self.rpc_code is None else f"error {self.rpc_code}"


def with_trace(message: Json, fields: Iterable[tuple[str, str]]) -> Json:
    """*message* with the tracing *fields* of its caller in its ``_meta``.

    The header fields do not reach every part of a server (SEP-414, "OpenTelemetry trace context in
    _meta").
    """
    trace = {name: value for name, value in fields if name in _TRACED}
    if not trace:
        return message
    params = message["params"]
    return {**message, "params": {**params, "_meta": {**params.get("_meta", {}), **trace}}}


def request(request_id: int, method: str, params: Json | None = None) -> Json:
    """A request; its response has the same *request_id*."""
    return {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params or {}}


def notification(method: str, params: Json | None = None) -> Json:
    """A notification, which has no response."""
    return {"jsonrpc": "2.0", "method": method, **({"params": params} if params else {})}


def initialize(request_id: int) -> Json:
    """The request that begins the handshake; it proposes the newest revision."""
    params = {"protocolVersion": REVISIONS[0], "capabilities": {}, "clientInfo": CLIENT}
    return request(request_id, "initialize", params)


def cancelled(message: Json) -> Json:
    """The notification that the request *message* is cancelled (MCP 2025-11-25, "Cancellation")."""
    params = {"requestId": message["id"], "reason": "nobody waits for the answer any more"}
    return notification("notifications/cancelled", params)


def self_contained(message: Json) -> Json:
    """*message* with what the stateless revision requires of every request."""
    meta = {
        f"{_META}protocolVersion": STATELESS,
        f"{_META}clientInfo": CLIENT,
        f"{_META}clientCapabilities": {},
    }
    meta |= message["params"].get("_meta", {})
    return {**message, "params": {**message["params"], "_meta": meta}}


def reply_to(message: Json) -> Json | None:
    """The response to a request *message* of a server's, None if it is no request."""
    if "method" not in message or not isinstance(message.get("id"), str | int | float):
        return None
    answer: Json = {"jsonrpc": "2.0", "id": message["id"]}
    if message["method"] == "ping":
        return {**answer, "result": {}}
    return {**answer, "error": {"code": METHOD_NOT_FOUND, "message": "Method not found"}}


def parse_event(text: bytes) -> list[Json]:
    """The messages in an event; what is none, such as ``ping`` or ``[DONE]``, is ignored."""
    try:
        return parse(text)
    except McpBroke:
        return []


def parse(text: bytes) -> list[Json]:
    """The messages in *text*: one, or a batch of them.

    :raises McpBroke: if it is something else.
    """
    try:
        value = jsontext.loads_anyhow(text)
    except ValueError:
        raise McpBroke("The MCP server sent something that is not JSON.") from None
    batch = value if isinstance(value, list) else [value]
    if len(batch) > _MAX_BATCH or not all(isinstance(message, dict) for message in batch):
        raise McpBroke("The MCP server sent something that is not a JSON-RPC message.")
    return batch


def is_response(message: Json, request_id: object = None) -> bool:
    """Whether *message* is a response, and if *request_id* is not None, the one to that request."""
    if "method" in message or not ("result" in message or "error" in message):
        return False
    return request_id is None or response_id(message) == request_id


def response_id(message: Json) -> object:
    """The id of the request that the response *message* is for; some servers make a text of it."""
    request_id = jsontext.whole(message.get("id"))
    if (
        isinstance(request_id, str)
        and len(request_id) < 16
        and request_id.isascii()
        and request_id.isdigit()
    ):
        return int(request_id)
    return request_id


def is_error_without_id(message: Json) -> bool:
    """Whether *message* is an error that does not say which request it is about."""
    return "method" not in message and message.get("id") is None and bool(message.get("error"))


def result_in(response: Json, http_status: int = 200) -> Json:
    """The result in a *response*.

    :raises RpcError: if it has an error instead.
    """
    if response.get("error") is not None:
        raise RpcError(response["error"], http_status)
    result = response.get("result")
    if not isinstance(result, dict):
        raise McpBroke("The MCP server sent a result that is not an object.")
    return result


def parameter_fields(schema: Json, arguments: Json) -> tuple[tuple[str, str], ...]:
    """The arguments that a tool's *schema* wants repeated in header fields (``x-mcp-header``)."""
    fields: list[tuple[str, str]] = []
    properties = schema.get("properties")
    for name, property_schema in properties.items() if isinstance(properties, dict) else ():
        if not isinstance(property_schema, dict) or name not in arguments:
            continue
        value: Any = arguments[name]
        header_name = property_schema.get("x-mcp-header")
        if isinstance(value, dict):
            fields += parameter_fields(property_schema, value)
        elif (
            isinstance(header_name, str)
            and isinstance(value, str | int)
            and TOKEN.fullmatch(header_name)
        ):
            text = str(value).lower() if isinstance(value, bool) else str(value)
            fields.append((f"Mcp-Param-{header_name}", field_value(text)))
    return tuple(fields)


def field_value(value: str) -> str:
    """*value* encoded for a header field (MCP 2026-07-28, "Streamable HTTP")."""
    plain = value.isascii() and value.isprintable() and value == value.strip()
    if plain and not (value.startswith("=?base64?") and value.endswith("?=")):
        return value
    return f"=?base64?{base64.b64encode(value.encode('utf-8', 'replace')).decode()}?="
