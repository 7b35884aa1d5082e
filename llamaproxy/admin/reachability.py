"""Reachability: whether the server can be reached, by what requests meet and by a question."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Protocol

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from llamaproxy.errors import (
    ProxyError,
    UpstreamBroke,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamTls,
    UpstreamUnavailable,
)
from llamaproxy.events import Event, ListRefreshed, Observers, RequestEnded
from llamaproxy.jsontext import Json

#: Errors in a row, and seconds from the first to the last of them, after which the server counts as
#: one that cannot be reached: real ones stall for 10 s, and are started again within 30.
_ERRORS, _SECONDS = 3, 30.0

#: Seconds for which an answer is news enough for whoever asks, and from an error to the next
#: question, which goes on until there is an answer.
_FRESH, _RETRY = 15.0, 5.0

#: Seconds for which one answer is like another.
_SAME = 0.1

#: Kinds of the errors of a server that was not reached, or did not answer.
FAILURES = frozenset(
    each.kind for each in (UpstreamUnavailable, UpstreamTls, UpstreamTimeout, UpstreamBroke)
)

#: Statuses with which what stands in front of a server says that it is not there.
_GATEWAY = (502, 503, 504)

#: Of a request that was passed through: what the server has said nothing of.
_NO_ANSWER = (*_GATEWAY, 499)

#: Characters of an error that are kept.
_MAX_ERROR = 500


class Hearing(Protocol):
    """Who is told what is heard of the server; times are seconds on the clock."""

    def answered(self, at: float) -> None:
        """The server has answered, whatever it has said."""

    def failed(self, at: float, kind: str, error: str) -> None:
        """It has not been reached, or has not answered, with an error of that *kind*."""


class ServerNews:
    """A listener that finds in what has happened what it says of the server."""

    def __init__(self, clock: IReactorTime, hearing: Hearing) -> None:
        self._clock = clock
        self._hearing = hearing
        #: When the next answer is news: of thousands in a second each would cost something.
        self._news_at = 0.0

    def listen(self, tell: Observers, *kinds: type[Event]) -> None:
        """Hear of what *tell* tells from now on, of these *kinds* of events."""
        hear: dict[type[Event], Callable[[Any], None]] = {
            ListRefreshed: self._list_refreshed,
            RequestEnded: self._request_ended,
        }
        for kind in kinds:  # each goes to who looks at it
            tell.listen(hear[kind], kind)

    def doubt(self) -> None:
        """Something else has failed: the next answer is news."""
        self._news_at = 0.0

    def _request_ended(self, event: RequestEnded) -> None:
        request = event.request
        ended = request.ended
        if ended is not None and ended < self._news_at and not request.kind:
            return
        if request.chat is not None:
            for round in reversed(request.chat.rounds):
                is_refused = round.kind == UpstreamRefused.kind and round.status not in _GATEWAY
                if round.ended is not None and (is_refused or not round.kind):
                    self._answered(round.ended)  # a tool may have run for long since
                    break
        elif request.route == "passthrough" and not request.kind:
            if request.status not in _NO_ANSWER:
                self._answered(self._clock.seconds())  # by the server, whatever it says
        if request.kind in FAILURES:
            self._failed(request.kind, request.error)

    def _list_refreshed(self, event: ListRefreshed) -> None:
        error = event.groups_error
        # One that is late may be so for a tool server.
        is_news = not event.late and "" not in event.remembered
        if error is not None and error.kind in FAILURES and is_news:
            self._failed(error.kind, error.logged)

    def _answered(self, at: float) -> None:
        self._news_at = at + _SAME
        self._hearing.answered(at)

    def _failed(self, kind: str, error: str) -> None:
        self.doubt()
        self._hearing.failed(self._clock.seconds(), kind, error)


@attrs.define(eq=False, repr=False)
class Reachability:
    """What knows whether the server answers; times are seconds on the clock.

    *ask* asks the server something cheap within a limit of its own, and returns the status of the
    answer, whatever that is, or raises a ProxyError if there is none. It is used when somebody
    wants to know and nothing is known, and after an error until there is an answer; nobody waits
    for it.
    """

    _clock: IReactorTime
    _ask: Callable[[], Awaitable[int]]
    #: When the server answered last.
    answered_at: float | None = attrs.field(init=False, default=None)
    #: The last error, of what kind, and when it was.
    error: str = attrs.field(init=False, default="")
    kind: str = attrs.field(init=False, default="")
    failed_at: float = attrs.field(init=False, default=0.0)
    #: Errors since the last answer, and when the first of them was.
    failures: int = attrs.field(init=False, default=0)
    _first_failed_at: float = attrs.field(init=False, default=0.0)
    _news: ServerNews | None = attrs.field(init=False, default=None)
    _question: Deferred[None] | None = attrs.field(init=False, default=None)
    _retry: IDelayedCall | None = attrs.field(init=False, default=None)
    _stopped: bool = attrs.field(init=False, default=False)
    _log: ClassVar[Logger] = Logger()

    def listen(self, tell: Observers) -> None:
        """Hear of what *tell* tells from now on."""
        self._news = ServerNews(self._clock, self)
        self._news.listen(tell, RequestEnded, ListRefreshed)

    @property
    def reachable(self) -> bool | None:
        """Whether the server can be reached; None if it has not been asked, or is in doubt."""
        if self.failures:
            lasting = self.failed_at - self._first_failed_at >= _SECONDS
            return False if self.failures >= _ERRORS and lasting else None
        return None if self.answered_at is None else True

    def wanted(self) -> None:
        """Somebody wants to know: ask the server if it has not answered for a while."""
        known_at = self.answered_at
        if known_at is None or self._clock.seconds() - known_at >= _FRESH:
            self._start_question()

    def answered(self, at: float) -> None:
        self.answered_at = at if self.answered_at is None else max(at, self.answered_at)
        if self.failures and at < self.failed_at:
            if at >= self._first_failed_at:  # those before it are over
                self.failures, self._first_failed_at = 1, self.failed_at
            return  # there is later news
        self.failures = 0
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def failed(self, at: float, kind: str, error: str) -> None:
        if at >= self.failed_at:
            self.kind, self.error, self.failed_at = kind, error[:_MAX_ERROR], at
        if self.answered_at is not None and at < self.answered_at:
            return  # there is later news
        if self._news is not None:
            self._news.doubt()
        self._first_failed_at = min(at, self._first_failed_at) if self.failures else at
        self.failures += 1
        if self._retry is None and self._question is None and not self._stopped:
            self._retry = self._clock.callLater(_RETRY, self._ask_again)

    def stop(self) -> None:
        """Ask nothing any more."""
        self._stopped = True
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._question is not None:
            self._question.cancel()

    def as_json(self) -> Json:
        """What is known, for the admin's status; *last_error* stays after the server is back."""
        return {
            "reachable": self.reachable,
            "answered_seconds_ago": self._ago(self.answered_at),
            "errors_in_a_row": self.failures,
            "last_error": self.error or None,
            "last_error_seconds_ago": self._ago(self.failed_at if self.error else None),
        }

    def _ago(self, time: float | None) -> float | None:
        return None if time is None else round(self._clock.seconds() - time, 1)

    def _ask_again(self) -> None:
        self._retry = None
        self._start_question()

    def _start_question(self) -> None:
        if self._question is None and self._retry is None and not self._stopped:
            question = self._question = Deferred.fromCoroutine(self._ask_server())
            question.addErrback(lambda failure: failure.trap(CancelledError) and None)
            if question.called:
                self._question = None

    async def _ask_server(self) -> None:
        failure: ProxyError | None = None
        try:
            status = await self._ask()
            if status in _GATEWAY:
                failure = UpstreamUnavailable(f"Llama Stack's gateway answers with {status}.")
        except ProxyError as error:
            failure = error
        except CancelledError:
            raise
        except Exception:
            self._log.failure("asking whether the server answers broke")
            return
        finally:
            self._question = None
        now = self._clock.seconds()
        if failure is None:
            self.answered(now)
        else:
            self.failed(now, failure.kind, failure.logged)
