"""What happens while requests are answered, told to all who watch: log, counters, status, traces.

Whoever does something tells of it once, here; who listens is decided where the daemon is put
together. What is known of a request, a round or a call stands in its record
(:mod:`llamaproxy.records`), in the same one for all; only ``Contents`` holds what was written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, get_args

import attrs
from twisted.logger import Logger

from llamaproxy.errors import ProxyError
from llamaproxy.jsontext import Json
from llamaproxy.records import CallRecord, ChatRecord, RequestRecord, RoundRecord

#: The id of the request that is being worked on; coroutines keep it (PEP 567).
request_id: ContextVar[str] = ContextVar("request_id", default="")


@attrs.define(eq=False, repr=False)
class RequestBegan:
    """A whole request has been received, and is answered from now on."""

    request: RequestRecord


@attrs.define(eq=False, repr=False)
class RequestEnded:
    """A request has been answered, refused or given up; it may never have begun."""

    request: RequestRecord


@attrs.define(eq=False, repr=False)
class ChatBegan:
    """A request is a chat completion's, and has been read."""

    chat: ChatRecord


@attrs.define(eq=False, repr=False)
class RoundBegan:
    """The server is asked for a completion, once more."""

    round: RoundRecord


@attrs.define(eq=False, repr=False)
class RoundEnded:
    """A completion has come; or, if the round has a ``kind``, an error in its place."""

    round: RoundRecord


@attrs.define(eq=False, repr=False)
class CallBegan:
    """A server tool runs from now on."""

    call: CallRecord


@attrs.define(eq=False, repr=False)
class CallEnded:
    """A call has its outcome; it may never have begun to run."""

    call: CallRecord


@attrs.define(eq=False, repr=False)
class LoopLimited:
    """A chat's rounds were ended by its ``limit``."""

    chat: ChatRecord


@attrs.define(eq=False, repr=False)
class Contents:
    """What was written: the one event that holds it, for those who were asked to look.

    *name* says what of the *part* it is: the ``request`` or the ``answer`` of a round, the
    ``arguments`` or the ``result`` of a call. *content* is shared, and must not be changed.
    """

    part: RoundRecord | CallRecord
    name: Literal["request", "answer", "arguments", "result"]
    content: object


class Tool(Protocol):
    """A tool as its source describes it; *parameters* is a JSON Schema."""

    @property
    def name(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def parameters(self) -> Json: ...
    @property
    def annotations(self) -> Json: ...
    @property
    def title(self) -> str: ...
    @property
    def origin(self) -> str: ...


@attrs.define(eq=False, repr=False)
class GroupListed:
    """The tools of one group: the *names* that are offered, and the URL that they are run at.

    *tools* are theirs, in the same order; *size* the bytes of their definitions as they are sent;
    *instructions* are the server's.
    """

    names: tuple[str, ...]
    endpoint: str
    tools: tuple[Tool, ...] = ()
    size: int = 0
    instructions: str = ""


@attrs.define(eq=False, repr=False)
class ListRefreshed:
    """Tools have been listed for one of *callers*, in so many *seconds*.

    *groups* are those that have answered, *failures* the errors of others; *groups_error* is that
    of the list of the groups, None if that has come. *left_out* are tools that are not offered for
    want of room, as ``group/name``, None if there is no list of tools yet. If it is *shared*,
    another process has listed them, for all, and has told of that. If it is *late*, a chat has
    waited in vain, and they are still listed. The failures of those *remembered* are of before:
    those groups were not asked this time, or had too little time to answer; ``""`` stands for the
    list of the groups. The groups that have *gone* were in the caller's list before.
    """

    callers: int
    groups: Mapping[str, GroupListed]
    failures: Mapping[str, ProxyError]
    groups_error: ProxyError | None = None
    left_out: tuple[str, ...] | None = None
    seconds: float = 0.0
    shared: bool = False
    late: bool = False
    remembered: Collection[str] = ()
    gone: Collection[str] = ()


@attrs.define(eq=False, repr=False)
class ListsStale:
    """A server has told that its tools have changed: all lists are stale."""


@attrs.define(eq=False, repr=False)
class ConnectionsTurnedAway:
    """*count* connections over the *limit* have been closed without an answer.

    It is told at once of the first, and then of many together.
    """

    count: int
    limit: int


Event: TypeAlias = (
    RequestBegan
    | RequestEnded
    | ChatBegan
    | RoundBegan
    | RoundEnded
    | CallBegan
    | CallEnded
    | LoopLimited
    | Contents
    | ListRefreshed
    | ListsStale
    | ConnectionsTurnedAway
)


class Tell(Protocol):
    """Tells all who watch of an event; it never raises anything."""

    def __call__(self, event: Event, /) -> None: ...


#: Requests that have ended after which those who hear later are told.
MANY = 64


class Observers:
    """All who watch. One that fails is counted in :attr:`failures`, and costs nothing else.

    Some hear of an event when it happens, others later and of many at once: that takes a fraction
    of the time, which counts where there are thousands in a second.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(self, *listeners: Callable[[Event], None]) -> None:
        self._listeners: dict[type[Event], list[Callable[[Event], None]]] = {
            kind: list(listeners) for kind in get_args(Event)
        }
        #: Those who hear later, by kind, and what they have not heard of yet. Of what is kept for
        #: them there is a limit in the requests that have ended: all else belongs to those that
        #: run, or to them.
        self._later: dict[type[Event], list[Callable[[Sequence[Any]], None]]] = {}
        self._put_off: dict[type[Event], list[Event]] = {}
        self._ended: list[Event] = []
        self.failures = 0

    def listen(self, listener: Callable[[Event], None], *kinds: type[Event]) -> None:
        """Let *listener* hear of all events that follow, or of those of the *kinds* given."""
        for kind in kinds or self._listeners:
            self._listeners[kind].append(listener)

    def listen_later(self, listener: Callable[[Sequence[Any]], None], kind: type[Event]) -> None:
        """Let *listener* hear of the events of that *kind* that follow, many at once.

        Whoever looks at what it has made of them calls :meth:`deliver` before. Those of one kind
        come in their order, and the ends of requests after all else: until then there are the
        records of their parts.
        """
        if not self._later:
            self._put_off[RequestEnded] = self._ended
            self._listeners[RequestEnded].append(self._end)
        if kind not in self._put_off:
            self._put_off = {kind: [], **self._put_off}
            self._listeners[kind].append(self._put_off[kind].append)
        self._later.setdefault(kind, []).append(listener)

    def leave(self, listener: Callable[[Event], None]) -> None:
        """Let *listener* hear of nothing any more."""
        for kind, listeners in self._listeners.items():
            self._listeners[kind] = [each for each in listeners if each != listener]

    def deliver(self) -> None:
        """Tell those who hear later of all that has happened."""
        for kind, waiting in self._put_off.items():
            if waiting:
                events = waiting[:]
                waiting.clear()
                for listener in self._later.get(kind, ()):
                    try:
                        listener(events)
                    except Exception:
                        self._note_failure()

    def __call__(self, event: Event, /) -> None:
        for listener in self._listeners[type(event)]:
            try:
                listener(event)
            except Exception:
                self._note_failure()

    def _end(self, event: Event) -> None:
        ended = self._ended
        ended.append(event)
        if len(ended) >= MANY:
            self.deliver()

    def _note_failure(self) -> None:
        self.failures += 1
        self._log.failure("a listener failed")


def tell_nobody(event: Event, /) -> None:
    """Nobody watches."""
