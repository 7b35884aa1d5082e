"""In which words MCP servers say that they do not know a session. Pure."""

from __future__ import annotations

import re

from llamaproxy import jsontext
from llamaproxy.errors import McpBroke
from llamaproxy.errorshapes import words_of
from llamaproxy.tools.mcp.http import HttpRefused
from llamaproxy.tools.mcp.messages import RpcError


def means_unknown_session(error: McpBroke) -> bool:
    """Whether the words of *error* can mean nothing but that there is no such session.

    Nothing was done then. They are those of the official SDKs for Python, TypeScript, Go, Java, C#
    and Rust, and of fastmcp; a tool may well speak of a session too, which may have expired after
    it has acted.
    """
    said = re.sub(r"[^a-z ]", "", _words(error).strip().lower().removeprefix("bad request"))
    return " ".join(said.split()) in _LOST_WORDS


#: Characters of a refusal that are looked at.
_MAX_WORDS = 1000

_LOST_WORDS = frozenset(
    {
        *("session not found", "session not found or expired", "no valid session id provided"),
        *("no valid session id", "invalid session id", "invalid or missing session id"),
        *("missing session id", "session terminated", "session has been terminated"),
        *("session id not found", "unknown session", "unknown session id", "session expired"),
        *("server not initialized", "no session found", "no active session", "invalid session"),
        *("mcpsessionid header is required", "session does not exist"),
    }
)


def _words(error: McpBroke) -> str:
    if not isinstance(error, HttpRefused):
        return error.said if isinstance(error, RpcError) else ""
    try:
        return words_of(jsontext.loads(error.text))
    except ValueError:
        return error.text[:_MAX_WORDS]
