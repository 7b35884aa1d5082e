"""ProxyRequest.respond: the one way in which chats and the pass-through are answered."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from typing import Any, cast

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import ILogObserver, LogLevel, globalLogPublisher
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from llamaproxy.errors import BadRequest, UpstreamBroke
from llamaproxy.events import Event, RequestBegan, RequestEnded, request_id
from llamaproxy.request import MAX_PIPELINED_PER_TURN, ProxyRequest
from llamaproxy.server.site import ProxySite
from tests.server.door import Client, FrontDoor

Work = Callable[[ProxyRequest], Coroutine[Any, Any, bytes | int | None]]


class Responding(Resource):
    """Answers with what a coroutine comes to."""

    isLeaf = True

    def __init__(self, work: Work) -> None:
        Resource.__init__(self)
        self._work = work

    def render(self, request: ProxyRequest) -> int:
        return request.respond(self._work(request))


@pytest.fixture
def faults() -> Iterator[list[Any]]:
    """What is logged as a fault of the program."""
    logged: list[Any] = []

    def observe(event: Any) -> None:
        if event.get("log_level") is LogLevel.critical:
            logged.append(event)

    observer = cast(ILogObserver, observe)
    globalLogPublisher.addObserver(observer)
    yield logged
    globalLogPublisher.removeObserver(observer)


def asking(work: Work, method: bytes = b"GET") -> tuple[FrontDoor, Client]:
    door = FrontDoor()
    door.site.resource = Responding(work)
    return door, door.client().send(method + b" / HTTP/1.1\r\nHost: a\r\n\r\n")


async def hang(request: ProxyRequest) -> None:
    await Deferred()


async def begin_and_hang(request: ProxyRequest) -> None:
    request.write(b"x")
    await Deferred()


async def swallow(request: ProxyRequest) -> bytes:
    try:
        await Deferred()
    except CancelledError:
        pass
    return b"too late"


async def turn_into_an_error(request: ProxyRequest) -> None:
    try:
        await Deferred()
    except CancelledError:
        raise UpstreamBroke() from None


async def lose_something(request: ProxyRequest) -> None:
    inner: Deferred[None] = Deferred()
    inner.cancel()
    await inner


async def fail(request: ProxyRequest) -> None:
    raise ValueError("a fault")


async def refuse(request: ProxyRequest) -> None:
    raise BadRequest("no")


async def whole(request: ProxyRequest) -> bytes:
    return b"whole"


async def leave_to_others(request: ProxyRequest) -> int:
    return NOT_DONE_YET


@pytest.mark.parametrize(
    ("work", "status", "code"),
    [(whole, 200, b"whole"), (refuse, 400, b"invalid_request"), (fail, 500, b"internal_error")],
)
@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
def test_work_is_answered_with_what_it_comes_to(
    work: Work, status: int, code: bytes, method: bytes, faults: list[Any]
) -> None:
    door, client = asking(work, method)
    assert client.line.value().startswith(b"HTTP/1.1 %d " % status)
    assert (code in client.line.value()) == (method == b"GET")
    assert door.site.connections.running == 0
    assert len(faults) == (work is fail)


@pytest.mark.parametrize("work", [hang, begin_and_hang, swallow, turn_into_an_error])
def test_work_ends_when_the_client_leaves_and_nothing_is_a_fault(
    work: Work, faults: list[Any]
) -> None:
    """DESIGN: L17."""
    door, client = asking(work)
    client.leave()
    assert door.site.connections.running == 0 and faults == []


def test_a_daemon_that_stops_says_so() -> None:
    door, client = asking(hang)
    door.site.connections.cut_short()
    assert client.line.value().startswith(b"HTTP/1.1 503 ")
    assert b"shutting_down" in client.line.value()


def test_what_has_not_been_begun_when_it_says_so_is_not_begun_any_more() -> None:
    """A client's ninth request of a turn waits for the next."""
    door = FrontDoor()
    client = door.client().send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 12)
    begun = len(door.inside.passed)
    door.site.connections.cut_short()
    door.clock.advance(0)
    assert len(door.inside.passed) == begun == MAX_PIPELINED_PER_TURN
    assert client.statuses() == [200] * begun + [503] and client.ended


def test_an_answer_that_has_begun_is_cut_off() -> None:
    door, client = asking(begin_and_hang)
    door.site.connections.cut_short()
    assert client.line.ended and not client.line.value().endswith(b"0\r\n\r\n")


def test_what_was_cancelled_by_anything_else_is_a_fault_and_no_end_of_the_daemon(
    faults: list[Any],
) -> None:
    _, client = asking(lose_something)
    assert client.line.value().startswith(b"HTTP/1.1 500 ")
    assert b"shutting_down" not in client.line.value() and len(faults) == 1


def test_work_may_leave_the_end_to_the_connection() -> None:
    door, client = asking(leave_to_others)
    assert client.line.value() == b"" and door.site.connections.running == 1


def test_a_fault_in_a_resource_is_an_error_like_any_other(faults: list[Any]) -> None:
    """DESIGN: L21: never a page."""

    def render(request: object) -> bytes:
        raise ValueError("a fault")

    door = FrontDoor()
    door.inside.render = render  # type: ignore[method-assign]
    client = door.client().send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 2)
    assert client.statuses() == [500, 500] and len(faults) == 2
    [error, _] = client.answers()
    assert error.fields["content-type"] == ["application/json"]
    assert b"internal_error" in error.body


def test_a_request_that_ends_because_another_is_cut_short_is_no_trouble() -> None:
    """One may have waited for what the other held."""
    door = FrontDoor(at_once=False)
    clients = [door.client().send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n") for _ in range(3)]
    waiting: Any = list(door.inside.waiting)

    class Holding:
        def cancel(self) -> None:
            for request in waiting:
                if request.channel is not None:
                    request.finish()

    for request in waiting:
        request.work = Holding()
    door.site.connections.cut_short()
    assert all(client.line.ended for client in clients)
    assert door.site.connections.running == 0


def test_a_stream_does_not_keep_the_fields_that_it_was_asked_for_in() -> None:
    begun: list[ProxyRequest] = []

    async def stream(request: ProxyRequest) -> None:
        assert request.head.fields and request.head.by_name
        request.write(b"one")
        begun.append(request)
        await Deferred()

    asking(stream)
    [request] = begun
    assert request.head.fields == [] and request.head.by_name == {}
    assert request.head.id and request.head.line.target == b"/"


def test_who_is_told_of_a_request_is_told_as_that_request() -> None:
    """So that what he logs has its id, and what he counts has all that is known of it."""
    told: list[tuple[str, str, int]] = []

    def listen(event: Event) -> None:
        if isinstance(event, RequestBegan | RequestEnded):
            told.append((event.request.id, request_id.get(), door.site.connections.streams))

    async def work(request: ProxyRequest) -> bytes:
        return b"done"

    door = FrontDoor()
    door.site = ProxySite(Responding(work), door.clock, tell=listen)
    ids = [f"id{number}" for number in range(MAX_PIPELINED_PER_TURN + 2)]
    lines = b"GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: "
    door.client().send(b"".join(lines + id.encode() + b"\r\n\r\n" for id in ids))
    door.clock.advance(0)
    assert told == [(id, id, 0) for id in ids for _ in range(2)]
    assert request_id.get() == ""
