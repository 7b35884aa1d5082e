"""Error texts with which MCP servers report an unknown session. Pure."""

from __future__ import annotations

import re

from llamaproxy import jsontext
from llamaproxy.errors import McpBroke
from llamaproxy.errorshapes import error_text
from llamaproxy.tools.mcp.http import HttpRefused
from llamaproxy.tools.mcp.messages import RpcError


def means_unknown_session(error: McpBroke) -> bool:
    """Whether the text of *error* can mean nothing but that there is no such session.

    The server has not acted on the request then. The texts are those of the official SDKs for
    Python, TypeScript, Go, Java, C# and Rust, and of fastmcp. Other texts with a session in them
    may be a tool's, which may have acted before.
    """
    text = re.sub(r"[^a-z ]", "", _error_text(error).strip().lower().removeprefix("bad request"))
    return " ".join(text.split()) in _UNKNOWN_SESSION_TEXTS


#: Characters of a refusal that are looked at.
_MAX_TEXT = 1000

_UNKNOWN_SESSION_TEXTS = frozenset(
    {
        *("session not found", "session not found or expired", "no valid session id provided"),
        *("no valid session id", "invalid session id", "invalid or missing session id"),
        *("missing session id", "session terminated", "session has been terminated"),
        *("session id not found", "unknown session", "unknown session id", "session expired"),
        *("server not initialized", "no session found", "no active session", "invalid session"),
        *("mcpsessionid header is required", "session does not exist"),
    }
)


def _error_text(error: McpBroke) -> str:
    if not isinstance(error, HttpRefused):
        return error.rpc_message if isinstance(error, RpcError) else ""
    try:
        return error_text(jsontext.loads(error.text))
    except ValueError:
        return error.text[:_MAX_TEXT]
