"""The errors of requests, and the answers to them.

Every class has the HTTP status and the OpenAI error type of its answer. Library
exceptions are translated into these once, in :mod:`llamaproxy.upstream`.
"""

from __future__ import annotations

from typing import Any

import attrs

from llamaproxy import jsontext
from llamaproxy.errorshapes import openai_error

#: OpenAI's error types by HTTP status (platform.openai.com, "Error codes").
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}


def error_object(
    status: int,
    message: str,
    type: str | None = None,
    param: str | None = None,
    code: str | int | None = None,
) -> dict[str, Any]:
    """An error as a JSON object of OpenAI's shape."""
    kind = type or _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class ProxyError(Exception):
    """Something failed inside llamaproxy; its log has the details."""

    status = 500
    type: str | None = None
    #: The ``code`` that clients get, and the label in the log and of the counter of errors.
    kind = "internal_error"
    #: The URL of the server that has failed, for the log; empty if it was none.
    where = ""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").split("\n\n")[0])

    @property
    def body(self) -> dict[str, Any]:
        """The error as the JSON object a client gets."""
        return error_object(self.status, str(self), self.type, code=self.kind)

    @property
    def detail(self) -> str:
        """The message without the words of the class, for who has words of his own for that."""
        words = (self.__doc__ or "").split("\n\n")[0].rstrip(".")
        return str(self).removeprefix(f"{words}: ")

    @property
    def headers(self) -> dict[str, str]:
        """Response fields that travel with the error."""
        return {}

    @property
    def logged(self) -> str:
        """The text for the log, without anything of a request, a tool or a model."""
        if self.status < 500:
            return self.kind
        return f"{self.kind} ({self})" + (f" at {self.where}" if self.where else "")


class BadRequest(ProxyError):
    """The request body is not a chat completion request."""

    status = 400
    kind = "invalid_request"


class Unauthorized(ProxyError):
    """Incorrect API key provided.

    Type and code are those that OpenAI answers with, which clients know; RFC 6750 section 3 wants
    a parameter beside the scheme.
    """

    status = 401
    type = "invalid_request_error"
    kind = "invalid_api_key"
    headers = {"WWW-Authenticate": 'Bearer realm="llamaproxy"'}  # noqa: RUF012


class Forbidden(ProxyError):
    """This is not done for pages of another origin."""

    status = 403
    kind = "forbidden"


class NotFound(ProxyError):
    """There is no such thing here, or not any more."""

    status = 404
    kind = "not_found"


class BodyTooLarge(ProxyError):
    """The request body is larger than this proxy accepts.

    Raise ``--max-chat-body`` (chat completions) or ``--max-body`` if such requests are wanted.
    """

    status = 413
    kind = "body_too_large"


class UnsupportedMediaType(ProxyError):
    """The request body is not of a type that is accepted."""

    status = 415
    kind = "unsupported_media_type"


class Overloaded(ProxyError):
    """Too many large chats are being answered; please ask again.

    ``--max-chat-bodies`` is the limit of all of them together.
    """

    status = 503
    kind = "overloaded"
    headers = {"Retry-After": "1"}  # noqa: RUF012


class UpstreamUnavailable(ProxyError):
    """Llama Stack could not be reached.

    Is it running at ``--llamastack-url``?
    """

    status = 502
    type = "upstream_error"
    kind = "upstream_unavailable"


class UpstreamTls(UpstreamUnavailable):
    """Llama Stack could not be reached securely.

    Is its authority the system's, or that of ``--upstream-ca``?
    """

    kind = "upstream_tls"


class UpstreamBroke(ProxyError):
    """Llama Stack did not finish its answer."""

    status = 502
    type = "upstream_error"
    kind = "upstream_broke"


class UpstreamRedirected(UpstreamBroke):
    """Llama Stack answered with a redirect, which is not followed."""

    def __init__(self, status: int, target: str) -> None:
        """:param target: where it leads, for messages."""
        self.target = target
        super().__init__(
            f"Llama Stack answered with a redirect ({status}) to {target}, which is not followed."
        )


class UpstreamNotJson(UpstreamBroke):
    """Llama Stack answered with something that is not JSON."""

    def __init__(self, is_page: bool) -> None:
        """:param is_page: whether it is a web page."""
        self.is_page = is_page
        super().__init__()


class UpstreamTimeout(ProxyError):
    """Llama Stack took too long to answer.

    ``--upstream-timeout`` is the limit.
    """

    status = 504
    type = "upstream_error"
    kind = "upstream_timeout"


class ParentSilent(UpstreamTimeout):
    """The process that lists tools for all workers did not answer."""

    kind = "parent_silent"


class UpstreamRefused(ProxyError):
    """Llama Stack answered with an error.

    Its status is kept, and its body too where that has OpenAI's shape (DESIGN: L21). The shapes of
    the generations, all recorded: ``{"detail": text}`` up to 0.4,
    ``{"error": {"detail": text or object}}`` in 0.5, ``{"error": {"message": text}}`` later.
    """

    kind = "upstream_refused"

    def __init__(self, status: int, body: object = None) -> None:
        self.status = status
        default = error_object(status, f"Llama Stack answered with HTTP status {status}.")
        self._body = openai_error(default, body)
        super().__init__(self._body["error"]["message"])

    @property
    def body(self) -> dict[str, Any]:
        return self._body

    @property
    def logged(self) -> str:
        # Its words are the server's.
        at = f" at {self.where}" if self.where else ""
        return f"{self.kind} (HTTP status {self.status}){at}"

    @property
    def missing_route(self) -> bool:
        """Whether the server has no such route, and so has not acted on the request.

        That, and nothing else, is exactly ``{"detail": "Not Found"}`` on every generation.
        """
        return self.status == 404 and str(self) == "Not Found"


def is_of_one_caller(error: ProxyError | None) -> bool:
    """Whether *error* is the server's refusal of a caller's credentials: others may fare better."""
    return isinstance(error, UpstreamRefused) and error.status in (401, 403)


class GroupMissing(ProxyError):
    """The server lists no tools of the group, and does not say why."""

    status = 502
    type = "upstream_error"
    kind = "group_missing"


class ShuttingDown(ProxyError):
    """The proxy is shutting down; please ask again."""

    status = 503
    kind = "shutting_down"
    headers = {"Retry-After": "1"}  # noqa: RUF012


class Stopped(ProxyError):
    """The operator has stopped this answer."""

    status = 403
    kind = "stopped"
    #: SDKs would ask again.
    headers = {"X-Should-Retry": "false"}  # noqa: RUF012


class McpBroke(ProxyError):
    """The MCP server did not answer as it should."""

    status = 502
    type = "upstream_error"
    kind = "mcp_broke"


class McpUnavailable(McpBroke):
    """The MCP server could not be reached."""

    kind = "mcp_unavailable"


class McpTimeout(McpBroke):
    """The MCP server did not answer in time."""

    kind = "mcp_timeout"


def error_response(request: Any, error: ProxyError) -> bytes:
    """The body of the answer to *request*, whose status and fields are set.

    Nothing must have been sent to the client yet.
    """
    request.setResponseCode(error.status)
    request.note(error)
    body = jsontext.dumps(error.body)
    fields = request.responseHeaders
    fields.setRawHeaders(b"Content-Type", [b"application/json"])
    fields.setRawHeaders(b"Content-Length", [b"%d" % len(body)])
    for name, value in error.headers.items():
        fields.setRawHeaders(name, [value])
    return body


@attrs.frozen
class ToolFailed(Exception):
    """A tool call did not succeed; *message* is for the model.

    Not a :class:`ProxyError`: no client sees it, it becomes a tool result (DESIGN: L13).
    """

    message: str
    #: The text for the log, without anything of a tool or a model.
    kind: str = "the tool could not be called"

    def __str__(self) -> str:
        return self.message


class ToolUnknown(ToolFailed):
    """The tool source does not know the tool, or not any more: listing again may help."""
