"""Program: an MCP server that is a process of this machine: how it is started, and how it ends.

Only the operator's file names programs (:mod:`llamaproxy.config.mcpfile`); nothing that comes over
the network starts one.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, cast

import attrs
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import (
    IDelayedCall,
    IPushProducer,
    IReactorProcess,
    IReactorTime,
)
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from llamaproxy.errors import McpBroke
from llamaproxy.tools.mcp import messages
from llamaproxy.tools.mcp.reaper import KILL
from llamaproxy.tools.neutral import harmless

#: Seconds that a program is given to end: after its standard input is closed, after SIGTERM, and
#: for the rest of its output once it has ended (MCP 2025-11-25, "Lifecycle", section "Shutdown").
GRACE_SECONDS = 2.0

#: What a program gets of the daemon's own environment: what programs cannot do without, and nothing
#: that may be a secret. The first six are those of MCP's official clients.
_INHERITED = (
    *("HOME", "LOGNAME", "PATH", "SHELL", "TERM", "USER"),
    *("LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "TZ"),
)

#: Starts it, as a process between this one and the program.
_REAPER = str(Path(__file__).with_name("reaper.py"))

#: Characters of a line of its standard error that are logged, and lines in so many seconds.
_MAX_LOGGED, _LOGGED_LINES, _LOGGED_SECONDS = 1000, 50, 10.0

#: The fewest characters of a value in its environment that is treated as a secret.
_MIN_SECRET = 6


def is_inherited(name: str) -> bool:
    """Whether every program has the variable of that *name*, which is no secret then."""
    return name in _INHERITED


class ProgramEnded(McpBroke):
    """The program has ended, or has been ended."""


@attrs.frozen
class Command:
    """How a program is started: *name* is that of the server, *env* what it gets besides.

    *secrets* are what in *args* came from the environment, and is not to be shown.
    """

    name: str
    command: str
    args: tuple[str, ...] = attrs.field(default=(), repr=False)
    env: tuple[tuple[str, str], ...] = attrs.field(default=(), repr=False)
    cwd: str = ""
    secrets: tuple[str, ...] = attrs.field(default=(), repr=False)

    def environment(self, own: Mapping[str, str]) -> dict[str, str]:
        """That of the program, where the daemon has *own*."""
        inherited = {name: own[name] for name in _INHERITED if name in own}
        return {**inherited, **dict(self.env)}

    def cleaned(self, line: bytes) -> str:
        """A *line* that it has written, fit for the log: short, without what it must not show."""
        text = line[: 4 * _MAX_LOGGED].decode("utf-8", "replace").rstrip()
        secrets = {*self.secrets, *(value for _, value in self.env)}
        for secret in sorted(secrets, key=len, reverse=True):  # one may begin with another
            if len(secret) >= _MIN_SECRET:
                text = text.replace(secret, "***")
        text = "".join(each if each.isprintable() else " " for each in harmless(text))
        return text if len(text) <= _MAX_LOGGED else f"{text[:_MAX_LOGGED]} ..."


@implementer(IPushProducer)
class Program(ProcessProtocol):
    """A program that runs: *on_line* is called with each line that it writes."""

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        command: Command,
        clock: IReactorTime,
        on_line: Callable[[bytes], None],
        on_end: Callable[[ProgramEnded], None],
    ) -> None:
        """:param on_end: is called once, when it takes nothing and says nothing any more."""
        self.command = command
        self._clock = clock
        self._on_line = on_line
        self._on_end = on_end
        self.transport: Any = None
        self._pid = 0
        #: Of the line that has not ended yet, and their bytes.
        self._parts: list[bytes] = []
        self._size = 0
        self._errors = bytearray()
        #: The last line that it has written there.
        self._last_line = b""
        self._logged = 0
        self._logged_since = -_LOGGED_SECONDS
        #: Whether it has yet to read what it was sent.
        self.stalled = False
        self._exited = False
        self._waiting: list[Deferred[None]] = []
        self._closing: IDelayedCall | None = None
        #: Why it was ended by this side, None if it was not.
        self._reason: ProgramEnded | None = None

    def start(self, reactor: IReactorProcess) -> None:
        """:raises ProgramEnded: if there can be no further process."""
        spawn: Any = reactor.spawnProcess
        command = self.command
        reaper = (sys.executable, "-I", "-S", _REAPER, str(os.getpid()), command.cwd or ".")
        try:
            spawn(
                self,
                sys.executable,
                [*reaper, command.command, *command.args],
                env=command.environment(os.environ),
            )
        except OSError as error:
            raise ProgramEnded(f"The MCP server cannot be started ({error.strerror}).") from None

    @property
    def running(self) -> bool:
        """Whether it can be sent something."""
        return self._pid != 0 and self._reason is None and not self._exited

    def write(self, data: bytes) -> None:
        """Send *data* to its standard input."""
        if self.running:
            self.transport.write(data)

    async def end(self) -> None:
        """Have it end in good order, and by force if it does not."""
        self._stop_with(ProgramEnded("The MCP server was stopped."))
        try:
            if self._pid and not await self._exits():
                self._signal(signal.SIGTERM)
                await self._exits()
        finally:
            self.kill()

    def kill(self, reason: str = "The MCP server was stopped.") -> None:
        """End it, and all that it has started, at once."""
        self._stop_with(ProgramEnded(reason))
        self._signal(KILL)

    def _stop_with(self, reason: ProgramEnded) -> None:
        if self._reason is None:
            self._reason = reason
            if self._pid:
                self.transport.unregisterProducer()
                self.transport.closeStdin()

    async def _exits(self) -> bool:
        """Whether it does, within the grace."""
        if self._exited:
            return True
        exited: Deferred[None] = Deferred()
        self._waiting.append(exited)
        try:
            await exited.addTimeout(GRACE_SECONDS, cast(Any, self._clock))
        except TimeoutError:
            return False
        return True

    def _signal(self, number: int) -> None:
        """Have the reaper send the signal to it, and to all that it has started."""
        if self._pid:
            with suppress(ProcessExitedAlready, OSError):
                self.transport.signalProcess(number)

    # --- ProcessProtocol

    def connectionMade(self) -> None:
        self._pid = self.transport.pid
        self.transport.registerProducer(self, True)

    def outReceived(self, data: bytes) -> None:
        first, *others = data.split(b"\n")
        self._take(first)
        for each in others:
            line = b"".join(self._parts)
            self._parts, self._size = [], 0
            if self._reason is None:
                self._on_line(line)
            self._take(each)

    def _take(self, part: bytes) -> None:
        self._size += len(part)
        if self._size <= messages.MAX_MESSAGE:
            self._parts.append(part)
        elif self._reason is None:
            self._parts.clear()
            self.kill(f"The MCP server sent a message of more than {messages.MAX_MESSAGE} bytes.")

    def errReceived(self, data: bytes) -> None:
        self._errors += data
        *lines, rest = self._errors.split(b"\n")
        self._errors = bytearray(rest[: 4 * _MAX_LOGGED])
        # The last may be the reason why it ends; of a flood no more is looked at.
        for line in (*lines[:_LOGGED_LINES], *lines[_LOGGED_LINES:][-1:]):
            self._log_line(bytes(line))

    def inConnectionLost(self) -> None:
        self._cut_off("reads")

    def outConnectionLost(self) -> None:
        self._cut_off("writes")

    def _cut_off(self, what: str) -> None:
        """It has closed one of them: it is about to end, or of no use any more."""
        if self._reason is None and not self._exited and self._closing is None:
            reason = f"The MCP server neither ends nor {what} any more."
            self._closing = self._clock.callLater(GRACE_SECONDS, self._give_up, reason)

    def _give_up(self, reason: str) -> None:
        self._closing = None
        self.kill(reason)

    def processExited(self, reason: Failure) -> None:
        self._exited = True
        for waiter in self._waiting:
            if not waiter.called:
                waiter.callback(None)
        if self._closing is not None:
            self._closing.cancel()
        # Where the reaper could not find all, one may hold its output open.
        self._closing = self._clock.callLater(GRACE_SECONDS, self._close_pipes)

    def processEnded(self, reason: Failure) -> None:
        if self._errors:
            self._log_line(bytes(self._errors))
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None
        ended = self._reason
        if ended is None:
            value: Any = reason.value
            how = (
                f"by signal {value.signal}"
                if getattr(value, "signal", None)
                else f"with status {getattr(value, 'exitCode', None)}"
            )
            ended = ProgramEnded(f"The MCP server ended {how}.")
            self._log.warn(
                "MCP server {name}: it ended {reason}", name=self.command.name, reason=how
            )
        self._on_end(ended)

    def _close_pipes(self) -> None:
        self._closing = None
        self.transport.loseConnection()

    @property
    def last_words(self) -> str:
        """What it has written to its standard error last, cleaned; empty if nothing."""
        return self.command.cleaned(self._last_line)

    def _log_line(self, line: bytes) -> None:
        if not line.strip():
            return
        self._last_line = line
        now = self._clock.seconds()
        if now - self._logged_since >= _LOGGED_SECONDS:
            self._logged, self._logged_since = 0, now
        self._logged += 1
        if self._logged <= _LOGGED_LINES:
            text = self.command.cleaned(line)
            self._log.info("MCP server {name} writes: {line}", name=self.command.name, line=text)
        elif self._logged == _LOGGED_LINES + 1:
            self._log.info("MCP server {name} writes too much", name=self.command.name)

    # --- IPushProducer, of what it is sent

    def pauseProducing(self) -> None:
        self.stalled = True

    def resumeProducing(self) -> None:
        self.stalled = False

    def stopProducing(self) -> None:
        self.stalled = True
