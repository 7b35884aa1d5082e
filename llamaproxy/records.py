"""What is known of a request: its answer, the rounds of a chat, the calls in it.

They are filled in while it is answered, by those who answer it, and read by all who watch
(:mod:`llamaproxy.events`). Times are seconds on the reactor's clock. Nothing in them is what a
model, a tool or a client has written, but for a model's name, the id of a conversation and patterns
of names, which are cut.

A record holds those of its parts, and they refer to it weakly: whoever wants to keep them keeps
that of the request, and none of them is left to the garbage collector.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Literal, TypeAlias
from weakref import ReferenceType, ref

import attrs
from attrs.setters import NO_OP

#: Characters of a name of a peer's that are kept.
_MAX_NAME = 100

#: Characters of patterns that are kept: no chat has more of them.
_MAX_PATTERNS = 17_000

#: What has become of a call, empty while it waits or runs. ``unknown``: there is no such tool;
#: ``refused``: it was not run, for its arguments, or because there were too many.
Outcome: TypeAlias = Literal["", "answered", "failed", "timeout", "cancelled", "unknown", "refused"]

#: Those of calls that no tool has been given.
_NOT_RUN: tuple[Outcome, ...] = ("unknown", "refused")

_NOTHING: Mapping[str, str] = MappingProxyType({})


@attrs.define(eq=False, repr=False)
class RequestRecord:
    """One request, from when all of it has come.

    *client* is its address, *who* the beginning of the digest of its key, empty if it has none;
    *trace_id* that of the trace that it belongs to (W3C Trace Context), if it names one.
    """

    id: str
    client: str
    method: str
    path: str
    began: float
    who: str = ""
    trace_id: str = ""
    #: What answers it, by the endpoint's name; empty if it was refused before that.
    route: str = ""
    #: When the first of its answer was sent.
    first_byte: float | None = None
    ended: float | None = None
    #: 499 if the answer did not come to its end; 0 before.
    status: int = 0
    #: Bytes of the answer's body.
    sent: int = 0
    #: Of the error that it was answered with, or cut short by: its kind, and the words for the log.
    kind: str = ""
    error: str = ""
    #: What the client says of the span that the request is part of; empty if there is no trace.
    traceparent: str = ""
    tracestate: str = ""
    chat: ChatRecord | None = None

    @property
    def seconds(self) -> float:
        """How long it took, 0 before its end."""
        return 0.0 if self.ended is None else self.ended - self.began

    def shares(self, now: float) -> tuple[float, float, float]:
        """Seconds for which its chat has waited, until *now* or its end, 0 if there is none.

        For the model, for tools, and for the proxy itself. To the model belongs a client that reads
        too slowly; to the tools the list of them. Of tools that run at the same time each second
        counts once.
        """
        chat = self.chat
        if chat is None:
            return 0.0, 0.0, 0.0
        # For every chat that ends, so no more calls than there must be.
        end = now if self.ended is None else self.ended
        model = 0.0
        for round in chat.rounds:
            model += (end if round.ended is None else round.ended) - round.began
        tools = chat.listing if chat.listing_since is None else chat.listed_for(end)
        if chat.calls:
            tools += chat.called_for(end)
        rest = end - self.began - model - tools
        if rest <= 0.0:
            return model, tools, 0.0
        client = chat.stalled if chat.stalled_since is None else chat.stalled_for(end)
        if client > rest:
            client = rest
        return model + client, tools, rest - client


def _no_time() -> float:
    return 0.0


def _weakly(request: RequestRecord | None) -> ReferenceType[RequestRecord] | None:
    return None if request is None else ref(request)


def _weakly_chat(chat: ChatRecord) -> ReferenceType[ChatRecord]:
    return ref(chat)


# Without NO_OP, a class with a converter has every attribute set by a function in Python.
@attrs.define(eq=False, repr=False, on_setattr=NO_OP)
class ChatRecord:
    """The answer to one chat completion; *now* returns the time."""

    _request: ReferenceType[RequestRecord] | None = attrs.field(default=None, converter=_weakly)
    now: Callable[[], float] = _no_time
    #: As the client named it.
    model: str = ""
    streamed: bool = False
    #: The id of the conversation, if the client says it.
    conversation: str = ""
    #: The names of the server's tools that the model is offered.
    offered: Collection[str] = ()
    #: Why each other is not, by name.
    withheld: Mapping[str, str] = _NOTHING
    #: The patterns of the tools that the client wants, empty if it names none.
    patterns: str = ""
    #: Why no tool is offered at all, empty if any may be.
    not_injected: str = ""
    #: Seconds for which it waited for the list of tools; since when it does, None if it does not.
    listing: float = 0.0
    listing_since: float | None = None
    #: The same of the client, which was to read before it went on.
    stalled: float = 0.0
    stalled_since: float | None = None
    rounds: list[RoundRecord] = attrs.Factory(list)
    calls: list[CallRecord] = attrs.Factory(list)
    #: The limit that ended the rounds: ``rounds`` or ``repetition``.
    limit: str = ""

    def note_patterns(self, patterns: str) -> None:
        """Keep which tools the client wants."""
        self.patterns = patterns[:_MAX_PATTERNS]

    @property
    def request(self) -> RequestRecord | None:
        """The request that it is the answer to, None in a test, or when nobody has its record."""
        return None if self._request is None else self._request()

    @property
    def run(self) -> int:
        """How many calls have begun to run."""
        return sum(call.began is not None for call in self.calls)

    @property
    def failed(self) -> int:
        """How many calls came to an error; to be cancelled is none."""
        return sum(call.outcome not in ("", "answered", "cancelled") for call in self.calls)

    def listed_for(self, now: float) -> float:
        """Seconds for which it has waited for the list of tools, until *now* if it still does."""
        return self.listing if self.listing_since is None else now - self.listing_since

    def called_for(self, now: float) -> float:
        """The same of calls, of which several may run at the same time."""
        seconds = until = 0.0
        for call in self.calls:  # in the order in which they were asked for
            if call.began is None and call.outcome in _NOT_RUN:
                continue  # no tool has had anything to do with it
            ended = now if call.ended is None else call.ended
            seconds += max(0.0, ended - max(until, call.asked))
            until = max(until, ended)
        return seconds

    def stalled_for(self, now: float) -> float:
        """The same of the client, which was to read."""
        return (
            self.stalled if self.stalled_since is None else now - self.stalled_since + self.stalled
        )


@attrs.define(eq=False, repr=False, on_setattr=NO_OP)
class _Part:
    """A part of an answer, which it does not keep."""

    _chat: ReferenceType[ChatRecord] = attrs.field(converter=_weakly_chat)

    @property
    def chat(self) -> ChatRecord:
        """The answer that it is part of."""
        chat = self._chat()
        if chat is None:
            raise ReferenceError("nobody has kept the record of the request")
        return chat


@attrs.define(eq=False, repr=False, on_setattr=NO_OP)
class RoundRecord(_Part):
    """One completion that the model is asked for; *number* counts from 1."""

    number: int
    began: float
    #: When the first of the model's answer came.
    first: float | None = None
    ended: float | None = None
    #: Of the error that it ended with; ``cancelled``: the client has left, or the daemon stops.
    kind: str = ""
    #: That of its HTTP answer, if it ended with an error.
    status: int = 0
    #: As the server names it.
    model: str = ""
    finish_reason: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None

    @property
    def seconds(self) -> float:
        """How long it took, 0 before its end."""
        return 0.0 if self.ended is None else self.ended - self.began

    def note_first(self) -> None:
        """The first of the model's answer has come."""
        if self.first is None:
            self.first = self.chat.now()

    def note_answer(self, model: object, finish_reason: object, usage: object) -> None:
        """Keep what a server says of its completion, as far as it can be believed."""
        self.model = name_of(model)
        self.finish_reason = name_of(finish_reason)
        if isinstance(usage, dict):
            self.input_tokens = _count(usage.get("prompt_tokens"))
            self.output_tokens = _count(usage.get("completion_tokens"))


@attrs.define(eq=False, repr=False, on_setattr=NO_OP)
class CallRecord(_Part):
    """A call of a server tool that the model made in the round *round*; *number* counts from 1.

    *tool* is the tool's name, *offered* that by which it is offered, *group* its group and
    *endpoint* the URL of its MCP server; they are empty where they are not known.
    """

    number: int
    round: int
    asked: float
    tool: str = ""
    group: str = ""
    endpoint: str = ""
    offered: str = ""
    #: When it began to run, None if it has not.
    began: float | None = None
    ended: float | None = None
    outcome: Outcome = ""
    #: Of the error that it came to: ``tool_error`` is one of the tool's own.
    kind: str = ""
    #: Why it failed, for the log; nothing that the tool says.
    reason: str = ""
    #: Whether its result was cut to what a model is shown.
    cut: bool = False

    @property
    def seconds(self) -> float:
        """How long it ran, 0 if it has not, or does still."""
        if self.began is None or self.ended is None:
            return 0.0
        return self.ended - self.began


def durations(records: Iterable[RequestRecord | RoundRecord]) -> list[float]:
    """How long each of them took, as its ``seconds`` say, in a third of the time."""
    return [0.0 if each.ended is None else each.ended - each.began for each in records]


def name_of(value: object) -> str:
    """A name that a peer gave, cut; empty if it is no text."""
    return value[:_MAX_NAME] if isinstance(value, str) else ""


def _count(value: object) -> int | None:
    """A number of tokens, None if it can be none."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40:
        return value
    return None
