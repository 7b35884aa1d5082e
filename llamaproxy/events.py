"""What happens while requests are answered, told to all who watch: log, counters, status, traces.

Whoever does something tells of it once, here; who listens is decided where the daemon is put
together. An event says nothing that a request, a tool or a model said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import ClassVar, Protocol, TypeAlias, get_args

import attrs
from twisted.logger import Logger

from llamaproxy.errors import ProxyError

#: The id of the request that is being worked on; coroutines keep it (PEP 567).
request_id: ContextVar[str] = ContextVar("request_id", default="")


@attrs.define(eq=False, repr=False)
class ChatRecord:
    """How far the answer to one chat completion has come.

    *tools* are offered, *rounds* have begun, *calls* were made of server tools, of which *run*
    have begun to run and *failed* came to an error.
    """

    tools: int = 0
    rounds: int = 0
    calls: int = 0
    run: int = 0
    failed: int = 0


@attrs.frozen(eq=False, repr=False)
class RequestBegan:
    """A whole request has been received, and is answered from now on."""

    request_id: str


@attrs.frozen(eq=False, repr=False)
class RequestEnded:
    """A request has been answered, refused or given up.

    *status* is 499 if the answer did not come to its end; *sent* the bytes of its body; *seconds*
    the time since the request was received; *fields* what else its line in the log says.
    """

    client: str
    method: str
    path: str
    status: int
    sent: int
    seconds: float
    fields: Mapping[str, str | int | float]


@attrs.frozen(eq=False, repr=False)
class RoundBegan:
    """The server is asked for a completion, once more."""

    chat: ChatRecord


@attrs.frozen(eq=False, repr=False)
class FirstByte:
    """The client is sent the first of its answer."""

    chat: ChatRecord


@attrs.frozen(eq=False, repr=False)
class RoundEnded:
    """A completion has come; or, if *kind* is not empty, an error of that kind in its place.

    ``cancelled``: the client has left, or the daemon stops.
    """

    chat: ChatRecord
    kind: str = ""


@attrs.frozen(eq=False, repr=False)
class CallBegan:
    """A server tool runs from now on."""

    chat: ChatRecord
    tool: str
    group: str


@attrs.frozen(eq=False, repr=False)
class CallEnded:
    """A server tool has answered, or *failed* for a *reason*.

    *endpoint* is the URL of the MCP server, empty if it is not known.
    """

    chat: ChatRecord
    tool: str
    group: str
    endpoint: str
    seconds: float
    failed: bool
    reason: str = ""


@attrs.frozen(eq=False, repr=False)
class CallCancelled:
    """A server tool was stopped: the client has left, or the daemon stops."""

    chat: ChatRecord
    tool: str
    group: str


@attrs.frozen(eq=False, repr=False)
class CallUnknown:
    """The model has called a tool that there is not."""

    chat: ChatRecord


@attrs.frozen(eq=False, repr=False)
class LoopLimited:
    """A chat's rounds were ended by a *limit*: ``rounds`` or ``repetition``."""

    chat: ChatRecord
    limit: str


@attrs.frozen(eq=False, repr=False)
class GroupListed:
    """The tools of one group: the *names* that are offered, and the URL that they are run at."""

    names: tuple[str, ...]
    endpoint: str


@attrs.frozen(eq=False, repr=False)
class ListRefreshed:
    """Tools have been listed for one of *callers*.

    *groups* are those that have answered, *failures* the errors of others; *groups_error* is that
    of the list of the groups, None if that has come. *left_out* are tools that are not offered for
    want of room, as ``group/name``.
    """

    callers: int
    groups: Mapping[str, GroupListed]
    failures: Mapping[str, ProxyError]
    groups_error: ProxyError | None = None
    left_out: tuple[str, ...] = ()


Event: TypeAlias = (
    RequestBegan
    | RequestEnded
    | RoundBegan
    | FirstByte
    | RoundEnded
    | CallBegan
    | CallEnded
    | CallCancelled
    | CallUnknown
    | LoopLimited
    | ListRefreshed
)


class Tell(Protocol):
    """Tells all who watch of an event; it never raises anything."""

    def __call__(self, event: Event, /) -> None: ...


class Observers:
    """All who watch. One that fails is counted in :attr:`failures`, and costs nothing else."""

    _log: ClassVar[Logger] = Logger()

    def __init__(self, *listeners: Callable[[Event], None]) -> None:
        self._listeners: dict[type[Event], list[Callable[[Event], None]]] = {
            kind: list(listeners) for kind in get_args(Event)
        }
        self.failures = 0

    def listen(self, listener: Callable[[Event], None], *kinds: type[Event]) -> None:
        """Let *listener* hear of all events that follow, or of those of the *kinds* given."""
        for kind in kinds or self._listeners:
            self._listeners[kind].append(listener)

    def __call__(self, event: Event, /) -> None:
        for listener in self._listeners[type(event)]:
            try:
                listener(event)
            except Exception:
                self.failures += 1
                self._log.failure("a listener failed")


def tell_nobody(event: Event, /) -> None:
    """Nobody watches."""
