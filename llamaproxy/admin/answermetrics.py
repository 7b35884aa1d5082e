"""AnswerMetrics: what became of requests, how long they took, and for whom they waited."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from http import HTTPStatus

from llamaproxy.admin import names
from llamaproxy.admin.tallies import Histogram, Measured, by_label
from llamaproxy.errors import (
    UpstreamBroke,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamTls,
    UpstreamUnavailable,
)
from llamaproxy.events import ConnectionsTurnedAway, LoopLimited, RequestEnded
from llamaproxy.records import ChatRecord, RequestRecord, durations

#: The status of an answer that did not come to its end.
_CUT_OFF = 499

_STATUSES = frozenset((*HTTPStatus, _CUT_OFF))

#: The limits that requests are refused for, by the kind of the error.
_REFUSALS = {
    "body_too_large": "body",
    "overloaded": "chat_bodies",
    "too_many_connections": "connections",
    "request_timeout": "request_time",
    "head_too_large": "head",
}

#: What the server, or the way to it, fails with. It begins at nothing: Prometheus sees no increase
#: in the first value of a series.
_UPSTREAM_KINDS = tuple(
    error.kind
    for error in (UpstreamUnavailable, UpstreamTls, UpstreamBroke, UpstreamTimeout, UpstreamRefused)
)

#: All limits: those of the tool loop and of a call as well.
LIMITS = ("rounds", "repetition", "tool_time", *dict.fromkeys(_REFUSALS.values()))


#: Routes by the endpoint's name.
_ROUTES = {"chat_completions": "chat", "health": "health", "": "refused"}


class _Route:
    """The requests of one route."""

    __slots__ = ("seconds", "statuses")

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.seconds = Histogram(names.REQUEST_SECONDS)


class AnswerMetrics:
    """Counts requests and chats.

    Routes are ``chat``, ``health``, ``passthrough``, and ``refused`` for what was answered before
    it had one.
    """

    def __init__(self, limits: Counter[str]) -> None:
        """:param limits: counts the limits that were reached."""
        self._limits = limits
        self._routes = {
            "chat": _Route(),
            "health": _Route(),
            "passthrough": _Route(),
            "refused": _Route(),
        }
        self._errors: Counter[str] = Counter()
        self._upstream_errors = Counter(dict.fromkeys(_UPSTREAM_KINDS, 0))
        self._left = 0
        self._model = Histogram(names.CHAT_SECONDS)
        self._tools = Histogram(names.CHAT_SECONDS)
        self._proxy = Histogram(names.CHAT_SECONDS)
        self._first_whole = Histogram(names.FIRST_BYTE_SECONDS)
        self._first_streamed = Histogram(names.FIRST_BYTE_SECONDS)
        self._rounds = Histogram(names.ROUNDS)
        self._calls = Histogram(names.CALLS)

    def limited(self, event: LoopLimited) -> None:
        self._limits[event.chat.limit] += 1

    def turned_away(self, event: ConnectionsTurnedAway) -> None:
        self._limits["connections"] += event.count

    def failed(self, kind: str) -> None:
        """A completion, a tool, or what else was asked for, came to an error of that *kind*."""
        if kind in self._upstream_errors:
            self._upstream_errors[kind] += 1

    def ended(self, events: Sequence[RequestEnded]) -> None:
        """The columns first, then each as a whole: of what is broken nothing is counted."""
        requests = [event.request for event in events]
        outcomes: defaultdict[tuple[str, int], list[RequestRecord]] = defaultdict(list)
        for request in requests:
            outcomes[request.route, request.status].append(request)
        self._chats_ended([(each, each.chat) for each in requests if each.chat is not None])
        for (name, status), alike in outcomes.items():
            route = self._route(name)
            route.seconds.add_all(durations(alike))
            route.statuses[status] += len(alike)
        for request in requests:
            if request.kind or request.status == _CUT_OFF:
                self._request_failed(request)

    def _route(self, name: str) -> _Route:
        return self._routes[_ROUTES.get(name, "passthrough")]

    def _request_failed(self, request: RequestRecord) -> None:
        kind = request.kind
        if not kind:
            self._left += 1
            return
        self._errors[kind] += 1
        if request.chat is None:
            self.failed(kind)
        if (limit := _REFUSALS.get(kind)) is not None:
            self._limits[limit] += 1

    def _chats_ended(self, ended: Sequence[tuple[RequestRecord, ChatRecord]]) -> None:
        # Without rounds the server was not even asked.
        asked = [(request, chat) for request, chat in ended if chat.rounds]
        whole, streamed = (
            [
                request.first_byte - request.began
                for request, chat in asked
                if chat.streamed is is_streamed and request.first_byte is not None
            ]
            for is_streamed in (False, True)
        )
        shares = [
            request.shares(request.began)
            for request, chat in ended
            if chat.rounds or chat.listing  # else: it was refused, and has waited for nobody
        ]
        self._first_whole.add_all(whole)
        self._first_streamed.add_all(streamed)
        if shares:
            model, tools, proxy = zip(*shares, strict=True)
            self._model.add_all(list(model))
            self._tools.add_all(list(tools))
            self._proxy.add_all(list(proxy))
        self._rounds.add_all([len(chat.rounds) for _, chat in asked])
        self._calls.add_all([len(chat.calls) for _, chat in asked])

    def measured(self) -> Iterator[Measured]:
        statuses: Counter[tuple[str, ...]] = Counter()
        for name, route in self._routes.items():
            for status, count in route.statuses.items():
                statuses[name, _status(status)] += count
        yield names.REQUESTS, statuses.items()
        yield (
            names.REQUEST_SECONDS,
            [((name,), route.seconds) for name, route in self._routes.items()],
        )
        yield names.ERRORS, by_label(self._errors)
        yield names.UPSTREAM_ERRORS, by_label(self._upstream_errors)
        yield names.CLIENTS_LEFT, [((), self._left)]
        yield (
            names.CHAT_SECONDS,
            [(("model",), self._model), (("tools",), self._tools), (("proxy",), self._proxy)],
        )
        yield (
            names.FIRST_BYTE_SECONDS,
            [(("no",), self._first_whole), (("yes",), self._first_streamed)],
        )
        yield names.ROUNDS, [((), self._rounds)]
        yield names.CALLS, [((), self._calls)]


def _status(status: int) -> str:
    """*status* as a label: a server may send any number of three digits."""
    return str(int(status)) if status in _STATUSES else f"{status // 100}xx"
