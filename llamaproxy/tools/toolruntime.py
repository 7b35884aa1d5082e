"""The tool-runtime API of Llama Stack up to 0.6: ``/v1/tools``, ``/v1/tool-runtime/invoke``."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import attrs
from twisted.logger import Logger

from llamaproxy import jsontext
from llamaproxy.deferreds import all_of
from llamaproxy.errors import (
    GroupMissing,
    ProxyError,
    ToolFailed,
    ToolUnknown,
    UpstreamBroke,
    UpstreamRefused,
    UpstreamTimeout,
)
from llamaproxy.jsontext import Json
from llamaproxy.tools.definitions import ToolDefinition, definition, in_slices
from llamaproxy.tools.results import ToolResult, result_of
from llamaproxy.tools.schemas import UnfitTool
from llamaproxy.tools.source import (
    BACKGROUND,
    MAX_GROUPS,
    Listing,
    ListLimits,
    each_listed,
)
from llamaproxy.upstream.client import LlamaStackClient
from llamaproxy.upstream.client_context import ClientContext
from llamaproxy.upstream.urls import url_for_log

_log = Logger()

#: Seconds for a call, whose limit is the catalogue's.
_NO_LIMIT = 7 * 86400.0

#: ``parameter_type`` (Llama Stack 0.2) to JSON Schema, where they differ.
_TYPES = {"int": "integer", "float": "number", "str": "string", "bool": "boolean", "list": "array"}
_TYPES |= {"dict": "object", "any": ""}


@attrs.frozen(eq=False, repr=False)
class ToolRuntime:
    """The tools of a server that runs them itself. Implements :class:`ToolSource`."""

    _client: LlamaStackClient

    async def list_tools(self, caller: ClientContext, limits: ListLimits = BACKGROUND) -> Listing:
        """All groups with one request, or with one for each where that fails.

        An MCP server that answers 401 makes the whole list a 401 on every version up to 0.6, and
        a dead one makes it a 500 on 0.2.12; on 0.6.1 the list is a success without its tools (all
        recorded).
        """
        if caller.has_tokens:
            # 0.4 to 0.6 take a token for one group at a time.
            return await self._group_by_group(caller, await self._groups(caller, limits), limits)
        now = self._client.clock.seconds()
        entries, groups = await all_of(
            [
                _or_error(self._tools(caller, None, limits.seconds_for(0.5, now))),
                _or_error(self._groups(caller, limits)),
            ]
        )
        if isinstance(entries, ProxyError):
            if isinstance(groups, ProxyError) or not groups:
                raise entries
            return await self._group_by_group(caller, groups, limits)
        # If the groups cannot be had, the tools can all the same.
        missing = {} if isinstance(groups, ProxyError) else _missing(groups, entries)
        names_all = not isinstance(groups, ProxyError)
        return Listing(await self._grouped(entries), missing, names_all=names_all)

    async def invoke(
        self, tool: ToolDefinition, arguments: dict[str, Any], caller: ClientContext
    ) -> ToolResult:
        body: Json = {"tool_name": tool.name, "kwargs": arguments}
        token = caller.token(tool.endpoint)
        if token is not None:
            body["authorization"] = token
        try:
            answer = await self._client.ask(
                "POST", "/v1/tool-runtime/invoke", caller, jsontext.dumps(body), timeout=_NO_LIMIT
            )
        except UpstreamRefused as error:
            # After a restart the server knows no tool until they are listed (recorded: 400); after
            # an upgrade to 0.7 the route is gone.
            unknown = "not served by provider" in str(error) or str(error) == "Not Found"
            if unknown and error.status in (400, 404):
                raise ToolUnknown(f"Error: {error}") from None
            raise ToolFailed(f"Error: {error}", f"HTTP status {error.status}") from None
        failed = bool(answer.get("error_code") or answer.get("error_message"))
        content = answer.get("content")
        return result_of(content or answer.get("error_message") if failed else content, failed)

    async def _groups(self, caller: ClientContext, limits: ListLimits) -> list[Json]:
        seconds = limits.seconds_for(0.2, self._client.clock.seconds())
        answer = await self._client.ask("GET", "/v1/toolgroups", caller, timeout=seconds)
        groups = [group for group in _entries(answer) if isinstance(group.get("identifier"), str)]
        return groups[:MAX_GROUPS]

    async def _tools(
        self, caller: ClientContext, group: str | None, seconds: float, token: str | None = None
    ) -> list[Json]:
        query = {} if group is None else {"toolgroup_id": group}
        if token is not None:
            query["authorization"] = token
        return _entries(
            await self._client.ask("GET", "/v1/tools", caller, query=query, timeout=seconds)
        )

    async def _group(
        self, caller: ClientContext, group: Json, limits: ListLimits
    ) -> list[Json] | ProxyError:
        name = group["identifier"]
        if name in limits.down:
            return limits.down[name]
        seconds = limits.seconds_for(0.3, self._client.clock.seconds())
        if not seconds:
            return limits.late(name, seconds)
        url = _mcp_url(group)
        token = caller.token(url) if url else None
        outcome = await _or_error(self._tools(caller, name, seconds, token))
        if isinstance(outcome, UpstreamTimeout):
            return limits.late(name, seconds, outcome)
        return outcome

    async def _group_by_group(
        self, caller: ClientContext, groups: list[Json], limits: ListLimits
    ) -> Listing:
        names = [group["identifier"] for group in groups]
        outcomes = await each_listed(
            names, lambda place: self._group(caller, groups[place], limits), limits
        )
        entries: list[Json] = []
        failures: dict[str, ProxyError] = {}
        for name, outcome in zip(names, outcomes, strict=True):
            if isinstance(outcome, ProxyError):
                failures[name] = outcome
            else:
                entries += outcome
        return Listing(await self._grouped(entries), _missing(groups, entries) | failures)

    async def _grouped(self, entries: list[Json]) -> dict[str, list[ToolDefinition]]:
        """Definitions by group; of equal names only the last, the one that can be invoked."""
        last: dict[str, Json] = {}
        for entry in entries:
            name = entry.get("name") or entry.get("identifier")
            if isinstance(name, str):
                last[name] = entry
        groups: dict[str, list[ToolDefinition]] = {}
        for tool in await in_slices(definition_of, last.values(), self._client.clock):
            if tool is not None:
                groups.setdefault(tool.group, []).append(tool)
        return groups


def _entries(answer: Json) -> list[Json]:
    """The objects of a ``{"data": [...]}`` answer."""
    entries = answer.get("data")
    if not isinstance(entries, list):
        raise UpstreamBroke("Llama Stack sent a list without data.")
    return [entry for entry in entries if isinstance(entry, dict)]


def definition_of(entry: Json) -> ToolDefinition | None:
    """A tool entry of either schema generation (DESIGN: L7), None if it cannot be offered."""
    name = entry.get("name") or entry.get("identifier")
    if not isinstance(name, str):
        return None
    schema = entry.get("input_schema")
    parameters = entry.get("parameters")
    if not isinstance(schema, dict):
        schema = _schema_of(parameters if isinstance(parameters, list) else [])
    group = entry.get("toolgroup_id")
    metadata = entry.get("metadata")
    endpoint = metadata.get("endpoint") if isinstance(metadata, dict) else None
    try:
        return definition(
            group=group if isinstance(group, str) else "",
            name=name,
            description=entry.get("description"),
            schema=schema,
            endpoint=endpoint if isinstance(endpoint, str) else "",
        )
    except UnfitTool as reason:
        _log.warn("a tool of {group} is not offered: {reason}", group=group, reason=str(reason))
        return None


def _schema_of(parameters: list[Any]) -> Json:
    """A JSON Schema of 0.2's ``parameters: [{name, parameter_type, required, default, ...}]``."""
    properties: Json = {}
    required: list[str] = []
    for parameter in parameters:
        if not isinstance(parameter, dict) or not isinstance(parameter.get("name"), str):
            continue
        type_name = str(parameter.get("parameter_type") or "")
        kind = _TYPES.get(type_name, type_name)
        schema: Json = {"type": kind} if kind else {}
        if kind == "array":
            # Strict model servers refuse an array without items.
            items = parameter.get("items")
            schema["items"] = items if isinstance(items, dict) else {}
        for key in ("description", "title", "enum", "default"):
            if parameter.get(key) not in (None, ""):
                schema[key] = parameter[key]
        properties[parameter["name"]] = schema
        if parameter.get("required", True):
            required.append(parameter["name"])
    schema = {"type": "object", "properties": properties}
    return {**schema, "required": required} if required else schema


async def _or_error(work: Coroutine[Any, Any, list[Json]]) -> list[Json] | ProxyError:
    """What *work* comes to, were it an error."""
    try:
        return await work
    except ProxyError as error:
        return error


def _mcp_url(group: Json) -> str:
    """The URL of the MCP server of a *group*; empty if it has none."""
    endpoint = group.get("mcp_endpoint")
    url = endpoint.get("uri") if isinstance(endpoint, dict) else None
    return url if isinstance(url, str) else ""


def _missing(groups: list[Json], entries: list[Json]) -> dict[str, ProxyError]:
    """The error of each of *groups* with an MCP server that has none of the tools in *entries*."""
    listed = {entry.get("toolgroup_id") for entry in entries}
    missing: dict[str, ProxyError] = {}
    for group in groups:
        if (url := _mcp_url(group)) and group["identifier"] not in listed:
            error = missing[group["identifier"]] = GroupMissing()
            error.where = url_for_log(url)
    return missing
