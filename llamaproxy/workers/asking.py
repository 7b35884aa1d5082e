"""What the parent asks its workers for an operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

from twisted.protocols import amp

from llamaproxy.jsontext import Json
from llamaproxy.workers.link import Long, LongJson


class Figures(amp.Command):
    """All that a worker has counted, what its status shows, and the calls of its tools."""

    response: ClassVar[Any] = ((b"told", LongJson()),)


class Rows(amp.Command):
    """The rows of the page that have changed after the worker's *change*, -1 for all.

    *rows* are texts of JSON, one a line; *told* has the key and the state of each
    (:class:`llamaproxy.admin.answers.Answer`); *keys* are all that are kept. *calls* counts the
    calls of tools that have ended.
    """

    arguments: ClassVar[Any] = ((b"change", amp.Integer()),)
    response: ClassVar[Any] = (
        (b"change", amp.Integer()),
        (b"keys", LongJson()),
        (b"told", LongJson()),
        (b"rows", Long()),
        (b"calls", amp.Integer()),
    )


class LastRows(amp.Command):
    """To the parent: the rows that have changed since the worker *number*, which ends, was asked.

    All else is as in an answer to :class:`Rows`.
    """

    arguments: ClassVar[Any] = ((b"number", amp.Integer()), *Rows.response)


class Detail(amp.Command):
    """All that is known of an answer, as JSON, and the id of its request; nothing if it is gone."""

    arguments: ClassVar[Any] = ((b"key", amp.Integer()),)
    response: ClassVar[Any] = ((b"id", Long(optional=True)), (b"text", Long(optional=True)))


class StopAnswer(amp.Command):
    """End an answer; whether it *ran*, nothing if it is not kept."""

    arguments: ClassVar[Any] = ((b"key", amp.Integer()),)
    response: ClassVar[Any] = ((b"ran", amp.Boolean(optional=True)),)


class SetLogLevel(amp.Command):
    """The level of the log from now on."""

    arguments: ClassVar[Any] = ((b"level", amp.Unicode()),)


class ServerHeard(amp.Command):
    """To the parent: what has been heard of the server, the oldest first.

    Each of *news* is when it was, by the clock of all processes, and the kind and the words of an
    error, which are empty for an answer.
    """

    arguments: ClassVar[Any] = ((b"news", LongJson()),)


class Worker(Protocol):
    """One process that serves clients; *since* is in Unix seconds."""

    number: int
    pid: int
    since: float
    ready: bool
    #: How many have ended in its place before.
    restarts: int


class Crew(Protocol):
    """The workers, and who looks after them.

    *on_ready* are called with each that begins to serve, *on_gone* with each that has ended.
    """

    on_ready: list[Callable[[Any], object]]
    on_gone: list[Callable[[Any], object]]

    @property
    def count(self) -> int:
        """How many there are to be."""

    @property
    def workers(self) -> Any:
        """Those that there are."""

    @property
    def draining(self) -> bool:
        """Whether the daemon stops, so that none is replaced."""

    async def ask(
        self, worker: Any, command: type[amp.Command], seconds: float, **values: Any
    ) -> Json | None:
        """What *worker* answers; None if it does not in time, or cannot."""
