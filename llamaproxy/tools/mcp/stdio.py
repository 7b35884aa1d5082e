"""Stdio: MCP's messages as lines of a program's standard input and output.

MCP 2025-11-25, "Transports", section "stdio".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import attrs
from twisted.internet.interfaces import IReactorProcess, IReactorTime
from twisted.logger import Logger

from llamaproxy import jsontext
from llamaproxy.errors import McpBroke, McpUnavailable
from llamaproxy.jsontext import Json
from llamaproxy.tools.mcp import messages
from llamaproxy.tools.mcp.handshake import NextId, Receive, discover, initialize
from llamaproxy.tools.mcp.http import Fields
from llamaproxy.tools.mcp.pending import Pending
from llamaproxy.tools.mcp.program import Command, Program, ProgramEnded
from llamaproxy.tools.mcp.transport import SessionLost, Transport

#: Requests that may be under way at one program.
_MAX_PENDING = 1000

#: Bytes that a program may write without answering anything.
_MAX_UNASKED = 4 * messages.MAX_MESSAGE

#: Characters of what a program writes last, in the error for one that ends before it begins.
_MAX_WORDS = 300

#: Lines of its standard output that are no messages, of which the log is told.
_MAX_TOLD = 3

#: Seconds before a program that has failed is started again, the first time and at most; a program
#: that has run for longer than the most has not failed.
FIRST_PAUSE, LAST_PAUSE = 1.0, 60.0


class Stdio:
    """A :class:`Transport` over the standard input and output of a program."""

    has_session = True  # whatever the revision, it is one process that may hang
    is_process = True
    revision = ""
    _log: ClassVar[Logger] = Logger()

    def __init__(
        self, command: Command, clock: IReactorTime, on_message: Callable[[Json], None]
    ) -> None:
        """:param on_message: is called with each message of the server's that is no response."""
        self._on_message = on_message
        self._pending = Pending()
        self._unasked = 0
        self._told = 0
        self.program = Program(command, clock, self._receive, self._end)
        #: Is called when the program has ended.
        self.on_end: Callable[[], None] = lambda: None
        #: Whether the session has not ended.
        self.alive = True

    async def ask(self, message: Json, fields: Fields = ()) -> Json:
        if not self.alive:
            raise SessionLost()
        if self.program.stalled or len(self._pending) >= _MAX_PENDING:
            raise McpBroke("The MCP server does not read what it is sent.")
        if self.revision == messages.STATELESS:
            message = messages.self_contained(message)
        response = self._pending.expect(message)
        try:
            self._write(message)
            return messages.result_in(await response)
        finally:
            self._pending.forget(message)
            response.addErrback(lambda _: {})

    async def tell(self, message: Json, fields: Fields = ()) -> None:
        if self.alive and not self.program.stalled:
            self._write(message)

    async def abandon(self, message: Json) -> None:
        await self.tell(messages.cancelled(message))

    async def listen(self) -> None:
        """Do nothing: what the program writes is read anyhow."""

    async def close(self) -> None:
        self.alive = False
        self.on_end = lambda: None  # it is no failure
        await self.program.end()

    def _write(self, message: Json) -> None:
        self.program.write(jsontext.dumps(message) + b"\n")

    def _receive(self, line: bytes) -> None:
        self._unasked += len(line) + 1
        try:
            received = messages.parse(line) if line.strip() else []
        except McpBroke:
            self._told += 1
            if self._told <= _MAX_TOLD:
                self._log.warn(
                    "MCP server {name} writes to its standard output what is no message",
                    name=self.program.command.name,
                )
            received = []
        for message in received:
            if self._pending.take(message):
                self._unasked = 0
            else:
                self._on_message(message)
        if self._unasked > _MAX_UNASKED and self.alive:
            self.alive = False
            self.program.kill("The MCP server writes without end, and answers nothing.")

    def _end(self, reason: ProgramEnded) -> None:
        self.alive = False
        self.on_end()
        self._pending.fail(reason)


@attrs.define(eq=False, repr=False)
class StdioOpener:
    """Starts a program when a session with it is wanted. Implements :class:`Opener`.

    A program that has failed is left alone for a while, longer each time.
    """

    _command: Command
    _reactor: IReactorProcess
    clock: IReactorTime
    #: Some programs are fetched from a registry before they start.
    seconds: float = 120.0
    _failures: int = attrs.field(init=False, default=0)
    _not_before: float = attrs.field(init=False, default=0.0)
    _began: float = attrs.field(init=False, default=0.0)

    @property
    def place(self) -> str:
        return self._command.name

    async def open(self, next_id: NextId, receive: Receive) -> tuple[Transport, Json]:
        transport = self._started(lambda message: receive(transport, message))
        try:
            return transport, await self._agree(transport, next_id)
        except ProgramEnded as error:
            # Nobody's words can be in it yet.
            words = transport.program.last_words[:_MAX_WORDS]
            raise ProgramEnded(f"{error} It wrote: {words}" if words else str(error)) from None
        finally:
            if not transport.revision:
                transport.program.kill("The MCP server did not begin as it should.")

    async def _agree(self, transport: Stdio, next_id: NextId) -> Json:
        """:raises McpBroke: if there is no revision that both speak."""
        try:
            return await initialize(transport, next_id)
        except messages.RpcError as error:
            if error.rpc_code not in messages.NO_HANDSHAKE:
                raise
            transport.revision = messages.STATELESS
            about = await discover(transport, next_id)
            if about is None:
                transport.revision = ""
                raise
            return about

    def _started(self, on_message: Callable[[Json], None]) -> Stdio:
        """:raises McpBroke: if it cannot be started, or not yet again."""
        now = self.clock.seconds()
        if now < self._not_before:
            raise McpUnavailable(
                "The MCP server has ended, and is started again in "
                f"{self._not_before - now:.0f} s at the soonest."
            )
        self._began = now
        transport = Stdio(self._command, self.clock, on_message)
        transport.on_end = self._note_failure
        try:
            transport.program.start(self._reactor)
        except ProgramEnded:
            self._note_failure()
            raise
        return transport

    def _note_failure(self) -> None:
        now = self.clock.seconds()
        if now - self._began > LAST_PAUSE:
            self._failures = 0
        self._not_before = now + min(FIRST_PAUSE * 2**self._failures, LAST_PAUSE)
        self._failures = min(self._failures + 1, 10)
