"""What spans are called, and what they say: OpenTelemetry's names for what records hold. Pure.

The names are those of the semantic conventions v1.41 (docs/http/http-spans.md, docs/gen-ai). What
v1.41 has added to the span of a completion is *newest*: it is said where it is asked for. There is
nothing in them that a client, a model or a tool has written, but for names, which are cut.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias
from urllib.parse import urlsplit

from llamaproxy.admin import names
from llamaproxy.records import CallRecord, ChatRecord, RequestRecord, RoundRecord, name_of

Attributes: TypeAlias = dict[str, str | bool | int | float | list[str]]

#: The conventions that the names are taken from.
SCHEMA_URL = "https://opentelemetry.io/schemas/1.41.0"

#: Characters of a path, and of the words about an error.
_MAX_PATH, _MAX_WORDS = 256, 200

#: Endpoints whose route is a request's path.
_ROUTED = ("chat_completions", "health")

#: Methods that are called by their names (RFC 9110, RFC 5789, QUERY).
_METHODS = frozenset(
    {"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"}
)

#: The status of an answer that did not come to its end.
_CUT_OFF = 499


def text(value: str) -> str:
    """*value* as UTF-8 can hold it: half a surrogate pair would cost a whole batch of spans."""
    return value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")


def words(reason: str) -> str:
    """What the log says of an error, as the description of a span's status."""
    return text(reason.lstrip(":, ")[:_MAX_WORDS])


# --- the request


def request_name(request: RequestRecord) -> str:
    """Its method and its route; the method alone if it is passed through, or refused."""
    method = request.method if request.method in _METHODS else "HTTP"
    return f"{method} {request.path}" if request.route in _ROUTED else method


def request_attributes(request: RequestRecord) -> Attributes:
    """What is known of a request when it begins."""
    attributes: Attributes = {
        "http.request.method": request.method if request.method in _METHODS else "_OTHER",
        "url.path": request.path[:_MAX_PATH],
        "llamaproxy.request.id": request.id,
    }
    if request.method not in _METHODS:
        attributes["http.request.method_original"] = name_of(request.method)
    if request.client != "-":
        attributes["client.address"] = request.client
    return attributes


def answer_attributes(request: RequestRecord) -> Attributes:
    """What is known of a request when it has ended."""
    attributes: Attributes = {}
    if request.status:
        attributes["http.response.status_code"] = request.status
    if request.route in _ROUTED:
        attributes["http.route"] = request.path
    return attributes


def request_error(request: RequestRecord) -> str:
    """The type of the error that a request ended with, empty if there is none."""
    if request.kind:
        return request.kind
    if request.status in (0, _CUT_OFF):
        return "cancelled"  # its client has left, or the daemon has stopped
    return str(request.status) if request.status >= 500 else ""


def is_clients_error(request: RequestRecord) -> bool:
    """Whether the error is the client's, with which a server's span has no status of an error."""
    return 400 <= request.status < 500 and request.status != _CUT_OFF


# --- the chat


def agent_attributes(chat: ChatRecord) -> Attributes:
    """What is known of a chat when it has been read."""
    return _operation("invoke_agent", chat)


def agent_answer_attributes(chat: ChatRecord) -> Attributes:
    """What is known of a chat when it has been answered."""
    attributes: Attributes = {
        "llamaproxy.tools.offered": len(chat.offered),
        "llamaproxy.tools.listing_seconds": chat.listing,
    }
    if chat.not_injected:
        attributes["llamaproxy.tools.not_injected"] = words(chat.not_injected)
    if chat.limit:
        attributes["llamaproxy.limit"] = chat.limit
    if chat.rounds and chat.rounds[-1].finish_reason:
        attributes["gen_ai.response.finish_reasons"] = [text(chat.rounds[-1].finish_reason)]
    for name, counts in (
        ("gen_ai.usage.input_tokens", [each.input_tokens for each in chat.rounds]),
        ("gen_ai.usage.output_tokens", [each.output_tokens for each in chat.rounds]),
    ):
        counted = [count for count in counts if count is not None]
        if counted:
            attributes[name] = sum(counted)
    return attributes


def _operation(name: str, chat: ChatRecord) -> Attributes:
    attributes: Attributes = {names.OPERATION_NAME: name, names.PROVIDER_NAME: names.PROVIDER}
    if chat.model:
        attributes[names.REQUEST_MODEL] = text(chat.model)
    if chat.conversation:
        attributes["gen_ai.conversation.id"] = text(chat.conversation)
    return attributes


# --- a round


def round_name(round: RoundRecord) -> str:
    """``chat`` and the model."""
    return f"chat {text(round.chat.model)}".rstrip()


def round_attributes(round: RoundRecord, newest: bool) -> Attributes:
    """What is known of a round when it begins."""
    attributes = _operation(names.CHAT, round.chat)
    if newest and round.chat.streamed:
        attributes["gen_ai.request.stream"] = True
    return attributes


def round_answer_attributes(round: RoundRecord, newest: bool) -> Attributes:
    """What is known of a round when it has ended."""
    attributes: Attributes = {}
    if round.model:
        attributes[names.RESPONSE_MODEL] = text(round.model)
    if round.finish_reason:
        attributes["gen_ai.response.finish_reasons"] = [text(round.finish_reason)]
    if round.input_tokens is not None:
        attributes["gen_ai.usage.input_tokens"] = round.input_tokens
    if round.output_tokens is not None:
        attributes["gen_ai.usage.output_tokens"] = round.output_tokens
    if newest and round.chat.streamed and round.first is not None:
        attributes["gen_ai.response.time_to_first_chunk"] = round.first - round.began
    return attributes


# --- a call


def call_name(call: CallRecord) -> str:
    """``execute_tool`` and the tool; there may be no such tool."""
    return f"execute_tool {text(name_of(call.tool))}".rstrip()


def call_attributes(call: CallRecord) -> Attributes:
    """What is known of a call when it begins."""
    attributes: Attributes = {names.OPERATION_NAME: "execute_tool"}
    if call.tool:
        attributes["gen_ai.tool.name"] = text(name_of(call.tool))
        attributes["gen_ai.tool.type"] = "extension"  # run by the agent, not by its client
    if call.group:
        attributes["llamaproxy.tool.group"] = text(name_of(call.group))
    return attributes


def call_answer_attributes(call: CallRecord) -> Attributes:
    """What is known of a call when it has ended."""
    return {"llamaproxy.tool.result_cut": True} if call.cut else {}


def call_error(call: CallRecord) -> str:
    """The type of the error that a call came to, empty if there is none."""
    return "" if call.outcome == "answered" else call.kind or call.outcome or "cancelled"


def mcp_attributes(call: CallRecord, method: str, number: int, revision: str) -> Attributes:
    """Of a call that is a request to an MCP server; the session's id, a secret, is not told."""
    return {
        "mcp.method.name": method,
        "jsonrpc.request.id": str(number),
        "mcp.protocol.version": text(revision),
        "network.protocol.name": "http",
        "network.transport": "tcp",
        **server_attributes(call.endpoint),
    }


def server_attributes(url: str) -> Attributes:
    """The address and the port of the server at *url*; nothing if that is no URL."""
    host, port = _address_of(url)
    return {"server.address": host, "server.port": port} if host else {}


@lru_cache(maxsize=256)
def _address_of(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        return text(parts.hostname or ""), parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return "", 0
