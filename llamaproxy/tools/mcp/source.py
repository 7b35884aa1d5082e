"""McpSource: tools of MCP servers that the proxy calls itself; Connectors: the upstream's."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import islice
from typing import Any, ClassVar, Protocol

import attrs
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from llamaproxy.errors import (
    McpBroke,
    McpTimeout,
    ProxyError,
    ToolFailed,
    ToolUnknown,
    UpstreamBroke,
    UpstreamRefused,
)
from llamaproxy.jsontext import Json
from llamaproxy.tools.definitions import ToolDefinition, definition, in_slices
from llamaproxy.tools.instructions import ToolGroup, instructions_of, tidied
from llamaproxy.tools.mcp.http import Fields, HttpRefused
from llamaproxy.tools.mcp.messages import INVALID_PARAMS, METHOD_NOT_FOUND, RpcError
from llamaproxy.tools.mcp.session import McpTools
from llamaproxy.tools.results import ToolResult, result_of
from llamaproxy.tools.schemas import UnfitTool
from llamaproxy.tools.source import (
    BACKGROUND,
    MAX_GROUPS,
    PROXY_CALLED,
    Listing,
    ListLimits,
    each_listed,
)
from llamaproxy.upstream.client import LlamaStackClient
from llamaproxy.upstream.client_context import ClientContext
from llamaproxy.upstream.dialect import Detector
from llamaproxy.upstream.urls import url_for_log

_log = Logger()

#: The fewest characters of a header value that is treated as a secret.
_MIN_SECRET = 6


class McpServers(Protocol):
    """Knows which MCP servers there are."""

    async def named(
        self, caller: ClientContext, limits: ListLimits = BACKGROUND
    ) -> Mapping[str, str]:
        """Their URLs, or what stands for one, by name.

        :raises ProxyError: if they cannot be listed.
        """

    def fields(self, name: str, endpoint: str) -> Fields:
        """The operator's header fields for the server of that *name* at *endpoint*."""

    def offers(self, name: str, tool: str, endpoint: str = "") -> bool:
        """Whether the *tool* of the server of that *name* may be offered and called.

        :param endpoint: where it is to be called.
        """


class Sessions(Protocol):
    """Keeps sessions with MCP servers."""

    def session(
        self, endpoint: str, fields: Fields, caller: ClientContext, chat: str = ""
    ) -> McpTools:
        """The session with the server at *endpoint* of *caller*; see :class:`SessionPool`."""


@attrs.frozen(eq=False, repr=False)
class Connectors:
    """The MCP servers that Llama Stack or OGX knows. Implements :class:`McpServers`."""

    _client: LlamaStackClient
    _detector: Detector

    async def named(
        self, caller: ClientContext, limits: ListLimits = BACKGROUND
    ) -> Mapping[str, str]:
        generation = await self._detector.generation(limits.until)
        upstream_caller = generation.context_for(caller)
        for path in generation.connectors:
            try:
                seconds = limits.seconds_for(0.8, self._client.clock.seconds())
                answer = await self._client.ask("GET", path, upstream_caller, timeout=seconds)
            except UpstreamRefused as error:
                if error.missing_route:
                    continue
                if error.status < 500:
                    raise
                # OGX 1.0.4 answers so whatever is configured (recorded).
                raise UpstreamBroke(
                    f"the server cannot list its connectors (HTTP status {error.status} on "
                    f"{path}); name its MCP servers with --mcp-server NAME=URL"
                ) from None
            return _urls(answer)
        if generation.connectors:
            raise UpstreamBroke(
                "the server has no connectors API; name MCP servers with --mcp-server NAME=URL"
            )
        return {}

    def fields(self, name: str, endpoint: str) -> Fields:
        return ()

    def offers(self, name: str, tool: str, endpoint: str = "") -> bool:
        return True


def _urls(answer: Json) -> dict[str, str]:
    """MCP URLs by name in a list of connectors, or of tool groups (up to 0.4)."""
    entries = answer.get("data")
    if not isinstance(entries, list):
        raise UpstreamBroke("Llama Stack sent a list without data.")
    urls: dict[str, str] = {}
    for entry in entries:
        if not isinstance(entry, dict):
            continue
        endpoint = entry.get("mcp_endpoint")
        url = entry.get("url") or (endpoint.get("uri") if isinstance(endpoint, dict) else None)
        name = entry.get("connector_id") or entry.get("identifier")
        if isinstance(name, str) and isinstance(url, str):
            urls[name] = url
    return urls


@attrs.frozen(eq=False, repr=False)
class McpSource:
    """The tools of MCP servers. Implements :class:`ToolSource`.

    Each server is a group. Of a caller's credentials a server gets the ``mcp_headers`` for its URL
    and nothing else. *origin* is that of its tools.
    """

    _servers: McpServers
    _sessions: Sessions
    _clock: IReactorTime
    _origin: str = PROXY_CALLED
    _log: ClassVar[Logger] = Logger()

    async def list_tools(self, caller: ClientContext, limits: ListLimits = BACKGROUND) -> Listing:
        urls = dict(islice((await self._servers.named(caller, limits)).items(), MAX_GROUPS))
        groups: dict[str, list[ToolDefinition]] = {}
        failures: dict[str, ProxyError] = {}
        names = list(urls)
        outcomes = await each_listed(
            names,
            lambda place: self._group(names[place], urls[names[place]], caller, limits),
            limits,
        )
        for name, outcome in zip(names, outcomes, strict=True):
            if isinstance(outcome, ProxyError):
                failures[name] = outcome
            else:
                groups[name] = outcome
        return Listing(groups, failures)

    async def invoke(
        self, tool: ToolDefinition, arguments: dict[str, Any], caller: ClientContext
    ) -> ToolResult:
        if not self._servers.offers(tool.group, tool.name, tool.endpoint):
            raise ToolUnknown(f"Error: there is no tool {tool.name!r} any more.")
        fields = self._fields(tool.group, tool.endpoint, caller)
        try:
            session = self._sessions.session(tool.endpoint, fields, caller, caller.chat)
            call_result = await session.call(tool.name, arguments, tool.parameters, caller.tracing)
        except RpcError as error:
            text = _redacted(error.rpc_message, fields)
            if error.rpc_code in (INVALID_PARAMS, METHOD_NOT_FOUND) and _means_unknown_tool(
                tool, error.rpc_message
            ):
                raise ToolUnknown(f"Error: {text}") from None
            raise ToolFailed(
                f"Error: {text}", f"the MCP server answered with {error.without_words}"
            ) from None
        except HttpRefused as error:
            raise ToolFailed(f"Error: {error}", f"HTTP status {error.http_status}") from None
        if call_result.get("resultType") not in (None, "complete"):
            raise ToolFailed("Error: the tool wants to ask a person, which it cannot do here.")
        result = result_of(
            call_result.get("content"),
            call_result.get("isError") is True,
            call_result.get("structuredContent"),
        )
        if result.is_error and _means_unknown_tool(tool, result.text):
            raise ToolUnknown(result.text)
        return result

    def _fields(self, group: str, url: str, caller: ClientContext) -> Fields:
        """Header fields for the server at *url*: the operator's, replaced by the caller's."""
        caller_fields = caller.mcp_headers(url)
        names = {name.lower() for name, _ in caller_fields}
        operator_fields = self._servers.fields(group, url)
        return (
            *((n, value) for n, value in operator_fields if n.lower() not in names),
            *caller_fields,
        )

    async def _group(
        self, name: str, url: str, caller: ClientContext, limits: ListLimits
    ) -> list[ToolDefinition] | ProxyError:
        if name in limits.down:
            return limits.down[name]
        seconds = limits.seconds_for(0.9, self._clock.seconds())
        if not seconds:
            return limits.late(name, seconds)
        try:
            session = self._sessions.session(url, self._fields(name, url, caller), caller)
            listing = Deferred.fromCoroutine(self._definitions(session, name, url, caller))
            listing.addTimeout(seconds, self._clock)
            tools = await listing
        except CancelledError:
            raise
        except TimeoutError:
            slow = McpTimeout(f"The MCP server did not answer within {seconds:.3g} s.")
            return limits.late(name, seconds, _at(url, slow))
        except ProxyError as error:
            if isinstance(error, RpcError):
                error = McpBroke(f"The MCP server answered with {error.without_words}.")
            return _at(url, error)
        except Exception:  # whatever it is, the other servers' tools are not to be lost for it
            self._log.failure("listing the tools of {group} broke", group=name)
            return McpBroke("The MCP server's tools could not be understood.")
        return ToolGroup({tool.name: tool for tool in tools}.values(), instructions_of(tools))

    async def _definitions(
        self, session: McpTools, name: str, url: str, caller: ClientContext
    ) -> list[ToolDefinition]:
        """The tools that can be offered; other work goes on while a long list is looked at."""
        entries = await session.tools(caller.tracing)
        define = partial(definition_of, name, url, origin=self._origin)
        tools = await in_slices(define, entries, self._clock)
        allowed = (tool for tool in tools if tool and self._servers.offers(name, tool.name))
        return ToolGroup(allowed, tidied(session.instructions))


def _redacted(text: str, fields: Fields) -> str:
    """*text* without what was sent in *fields*: secrets that a server may repeat."""
    for _, value in fields:
        for secret in {value, value.rpartition(" ")[2]}:
            if len(secret) >= _MIN_SECRET:
                text = text.replace(secret, "***")
    return text


def _at(url: str, error: ProxyError) -> ProxyError:
    """*error*, saying which server it was."""
    error.where = error.where or url_for_log(url)
    return error


def _means_unknown_tool(tool: ToolDefinition, text: str) -> bool:
    """Whether the error *text* of a server means that there is no such tool: it has run none then.

    The texts are those of the official SDKs; MCP has no error code for it.
    """
    message = text.removeprefix("Error: ").removeprefix("MCP error -32602: ").rstrip(".").lower()
    name = tool.name.lower()
    return message in (
        *(f"unknown tool: {name}", f"unknown tool '{name}'", f"unknown tool {name}"),
        *(f"tool {name} not found", f"tool '{name}' not found", f"tool not found: {name}"),
    )


def definition_of(
    group: str, url: str, entry: Json, origin: str = PROXY_CALLED
) -> ToolDefinition | None:
    """A tool as MCP describes it, None if it cannot be offered, or not just be called."""
    name = entry.get("name")
    execution = entry.get("execution")
    if not isinstance(name, str) or not name:
        return None
    if isinstance(execution, dict) and execution.get("taskSupport") == "required":
        return None
    try:
        return definition(
            group=group,
            name=name,
            description=entry.get("description") or entry.get("title"),
            schema=entry.get("inputSchema"),
            origin=origin,
            endpoint=url,
            annotations=entry.get("annotations"),
            title=entry.get("title"),
        )
    except UnfitTool as reason:
        _log.warn("a tool of {group} is not offered: {reason}", group=group, reason=str(reason))
        return None
