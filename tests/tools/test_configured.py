"""MCP servers that the operator names, and changes while chats have the tools that were listed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from llamaproxy.errors import McpBroke
from llamaproxy.jsontext import Json
from llamaproxy.records import CallRecord, ChatRecord
from llamaproxy.tools.catalogue import Catalogue
from llamaproxy.tools.mcp.configured import ConfiguredServer, ConfiguredServers
from llamaproxy.tools.mcp.http import Fields
from llamaproxy.tools.mcp.program import Command
from llamaproxy.tools.mcp.programs import ProgramServer
from llamaproxy.tools.mcp.source import McpSource
from llamaproxy.upstream.client_context import ClientContext
from tests.support import outcome


@attrs.define
class Tools:
    """A session with a server, which has one tool."""

    endpoint: str
    called: list[str]
    instructions: object = None

    async def tools(self, fields: Fields = ()) -> list[Json]:
        return [{"name": "ping", "inputSchema": {"type": "object"}}]

    async def call(self, name: str, arguments: Json, schema: Json, fields: Fields = ()) -> Json:
        self.called.append(self.endpoint)
        return {"content": [{"type": "text", "text": "pong"}]}


class Sessions:
    """Those with programs that are configured just now."""

    def __init__(self) -> None:
        self.endpoints: set[str] = set()
        self.called: list[str] = []

    def configure(self, programs: list[ProgramServer]) -> None:
        self.endpoints = {program.endpoint for program in programs}

    def session(
        self, endpoint: str, fields: Fields, caller: ClientContext, chat: str = ""
    ) -> Tools:
        if endpoint.startswith("stdio:") and endpoint not in self.endpoints:
            raise McpBroke("The MCP server is not configured any more.")
        return Tools(endpoint, self.called)


def program(name: str, *args: str) -> ConfiguredServer:
    server = ProgramServer(Command(name, "server", args))
    return ConfiguredServer(server.endpoint, program=server)


class Configured:
    """Servers, and a chat that was offered their tools."""

    def __init__(self, servers: Mapping[str, ConfiguredServer]) -> None:
        self.sessions = Sessions()
        self.servers = ConfiguredServers(servers, self.sessions.configure)
        clock = Clock()
        source = McpSource(self.servers, self.sessions, clock)
        self.catalogue = Catalogue(source, clock, 60, 60, 1000)
        self.caller = ClientContext()
        self.offered = outcome(Deferred.fromCoroutine(self.catalogue.offer(self.caller)))

    def call(self) -> Any:
        record = CallRecord(ChatRecord(), 1, 1, 0.0)
        tool = self.offered.tools["ping"]
        calling = self.catalogue.invoke(tool, {}, self.caller, record)
        return outcome(Deferred.fromCoroutine(calling))


def test_a_program_that_is_started_in_another_way_now_is_called_as_it_is_now() -> None:
    """Chats that have the old list lose nothing: it has not been called yet."""
    configured = Configured({"it": program("it", "--old")})
    new = program("it", "--new")
    configured.servers.configure({"it": new})
    assert configured.call().text == "pong"
    assert configured.sessions.called == [new.endpoint]


def test_one_that_is_gone_is_no_tool_any_more_whoever_else_has_one_of_its_name() -> None:
    configured = Configured({"it": program("it")})
    configured.servers.configure({"other": program("other")})
    result = configured.call()
    assert result.is_error and "there is no tool 'ping' any more" in result.text
    assert configured.sessions.called == []


def test_a_chat_goes_on_with_the_url_that_it_was_offered() -> None:
    configured = Configured({"it": ConfiguredServer("http://old/mcp")})
    configured.servers.configure({"it": ConfiguredServer("http://new/mcp")})
    assert configured.call().text == "pong"
    assert configured.sessions.called == ["http://old/mcp"]
