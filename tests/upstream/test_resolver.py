"""Names are looked up once for all who wait, and slow ones hold up only those who want them."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import Mock

import pytest
from hyperlink import DecodedURL
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor as _reactor
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import DNSLookupError
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers

from llamaproxy.errors import BadRequest
from llamaproxy.upstream.agent import (
    MAX_LOOK_UPS,
    AgentForAnywhere,
    UpstreamAgent,
)
from llamaproxy.upstream.pool import UpstreamPool
from llamaproxy.upstream.relay import read_body
from llamaproxy.upstream.resolver import (
    FRESH_SECONDS,
    MAX_NAMES,
    MISSING_SECONDS,
    Resolver,
)
from llamaproxy.upstream.urls import read_url
from tests.support import outcome
from tests.test_sockets import PATIENCE, Wires, on_sockets, wires

__all__ = ["wires"]

reactor: Any = _reactor

HERE = IPv4Address("TCP", "127.0.0.1", 0)
THERE = IPv6Address("TCP", "::1", 0)


class Names(Clock):
    """A reactor whose threads look names up, and are done when the test says so."""

    def __init__(self) -> None:
        Clock.__init__(self)
        #: The look-ups in flight, and how many there have been of each name.
        self.looking_up: dict[str, Callable[[bool, object], None]] = {}
        self.asked: Counter[str] = Counter()

    def getThreadPool(self) -> Names:
        return self

    def callFromThread(self, function: Callable[..., Any], *args: object) -> None:
        function(*args)

    def callInThreadWithCallback(
        self, ended: Callable[[bool, object], None], look_up: Callable[[str], Any], name: str
    ) -> None:
        assert name not in self.looking_up, "one at a time"
        self.asked[name] += 1
        self.looking_up[name] = ended

    def end(self, name: str, *addresses: Any) -> None:
        self.looking_up.pop(name)(True, addresses)

    def fail(self, name: str, error: Exception) -> None:
        self.looking_up.pop(name)(False, Failure(error))


def test_one_look_up_serves_all_who_wait_and_those_who_come_soon() -> None:
    names = Names()
    resolver = Resolver(names, max_running=4)
    waiting = [resolver.addresses("a") for _ in range(5)]
    names.end("a", HERE, THERE)
    assert [outcome(each) for each in waiting] == [(HERE, THERE)] * 5
    names.advance(FRESH_SECONDS - 0.1)
    assert outcome(resolver.addresses("a")) == (HERE, THERE)
    assert names.asked == {"a": 1}
    names.advance(0.1)
    resolver.addresses("a")
    assert names.asked == {"a": 2}


def test_that_there_is_no_address_is_known_for_a_moment() -> None:
    names = Names()
    resolver = Resolver(names, max_running=4)
    waiting = [resolver.addresses("a")]
    names.end("a")
    waiting.append(resolver.addresses("a"))
    for each in waiting:
        with pytest.raises(DNSLookupError):
            outcome(each)
    assert names.asked == {"a": 1}
    names.advance(MISSING_SECONDS)
    late = resolver.addresses("a")
    names.end("a", HERE)
    assert outcome(late) == (HERE,)


@pytest.mark.parametrize(
    "error", [OSError(24, "no descriptor is free"), UnicodeError("label"), MemoryError()]
)
def test_whatever_a_look_up_fails_by_the_name_is_looked_up_again(error: Exception) -> None:
    names = Names()
    resolver = Resolver(names, max_running=1)
    waiting, next_in_turn = resolver.addresses("a"), resolver.addresses("b")
    names.fail("a", error)
    with pytest.raises(DNSLookupError):
        outcome(waiting)
    names.end("b", HERE)
    assert outcome(next_in_turn) == (HERE,)
    names.advance(MISSING_SECONDS)
    late = resolver.addresses("a")
    names.end("a", HERE)
    assert outcome(late) == (HERE,)


def test_one_who_leaves_leaves_the_others_alone() -> None:
    names = Names()
    resolver = Resolver(names, max_running=4)
    leaving, staying = resolver.addresses("a"), resolver.addresses("a")
    leaving.cancel()
    with pytest.raises(CancelledError):
        outcome(leaving)
    names.end("a", HERE)
    assert outcome(staying) == (HERE,)


def test_a_look_up_that_nobody_waits_for_any_more_counts_until_it_ends() -> None:
    names = Names()
    resolver = Resolver(names, max_running=1)
    for _ in range(10):
        waiting = resolver.addresses("slow")
        waiting.addErrback(lambda failure: failure.trap(CancelledError) and None)
        waiting.cancel()
    other = resolver.addresses("other")
    assert names.asked == {"slow": 1}
    names.end("slow", HERE)
    names.end("other", THERE)
    assert outcome(other) == (THERE,)


def test_names_that_wait_take_their_turn_unless_nobody_wants_them_any_more() -> None:
    names = Names()
    resolver = Resolver(names, max_running=2)
    waiting = {name: resolver.addresses(name) for name in "abcde"}
    assert set(names.looking_up) == {"a", "b"}
    waiting["c"].addErrback(lambda failure: failure.trap(CancelledError) and None)
    waiting["c"].cancel()
    names.end("b", HERE)
    assert set(names.looking_up) == {"a", "d"}
    names.end("d", HERE)
    names.end("a", HERE)
    names.end("e", HERE)
    assert names.asked == dict.fromkeys("abde", 1)


def test_what_is_known_of_names_is_bounded() -> None:
    names = Names()
    resolver = Resolver(names, max_running=1)
    for number in range(MAX_NAMES + 2):
        resolver.addresses(str(number))
        names.end(str(number), HERE)
    assert len(resolver._answers) == MAX_NAMES
    assert resolver._waiters == {}


_STEPS = st.tuples(st.sampled_from(["ask", "leave", "end", "time"]), st.sampled_from("abcdef"))


@given(st.lists(_STEPS, max_size=60), st.integers(1, 3))
def test_whatever_happens_there_are_no_more_than_so_many_and_everybody_is_answered(
    steps: list[tuple[str, str]], most: int
) -> None:
    names = Names()
    resolver = Resolver(names, most)
    waiting: list[tuple[str, Deferred[Any]]] = []
    for step, name in steps:
        if step == "ask":
            waiting.append((name, resolver.addresses(name)))
        elif step == "leave" and waiting:
            _, left = waiting.pop()
            left.addErrback(lambda failure: failure.trap(CancelledError) and None)
            left.cancel()
        elif step == "end" and name in names.looking_up:
            names.end(name, HERE)
        elif step == "time":
            names.advance(3)
        assert len(names.looking_up) <= most
    while names.looking_up:
        names.end(next(iter(names.looking_up)), HERE)
    assert all(outcome(each) == (HERE,) for _, each in waiting)
    assert resolver._waiters == {} and not resolver._queue


# --- with the reactor's own threads


@on_sockets
async def test_names_that_cannot_be_take_no_place_of_others() -> None:
    resolver = Resolver(reactor, max_running=1)
    for name in ("a..b", "x" * 64, ".e", "a\0b"):
        with pytest.raises(DNSLookupError):
            await resolver.addresses(name)
    assert {each.host for each in await resolver.addresses("localhost")} <= {"127.0.0.1", "::1"}


class SlowNames:
    """The system's resolver, in which names that begin with ``slow`` take until they are let go."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.let_go = threading.Event()
        self.in_flight: Counter[str] = Counter()
        self.most: Counter[str] = Counter()

    def getaddrinfo(self, host: str, port: int, *more: Any) -> Any:
        with self._lock:
            self.in_flight[host] += 1
            self.in_flight["all"] += 1
            for each in (host, "all"):
                self.most[each] = max(self.most[each], self.in_flight[each])
        try:
            if host.startswith("slow"):
                self.let_go.wait(PATIENCE)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
        finally:
            with self._lock:
                self.in_flight[host] -= 1
                self.in_flight["all"] -= 1


@pytest.fixture
def slow_names(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowNames]:
    names = SlowNames()
    monkeypatch.setattr("llamaproxy.upstream.resolver.getaddrinfo", names.getaddrinfo)
    yield names
    names.let_go.set()


@on_sockets
async def test_slow_names_of_others_do_not_hold_up_the_servers(
    wires: Wires, slow_names: SlowNames
) -> None:
    pool: Any = UpstreamPool(reactor)
    anywhere = AgentForAnywhere(reactor, pool)
    port = wires.listen(wires.stack)
    asking: list[Deferred[Any]] = []
    for number in range(60):
        slow = f"http://slow{number % 20}.example:{port}/mcp".encode()
        asking.append(anywhere.request(b"GET", slow, Headers()))
        asking[-1].addErrback(lambda _: None)
    for url in (f"http://stack.example:{port}", f"http://llama_stack:{port}"):
        server: DecodedURL = read_url(url)
        answering = UpstreamAgent(reactor, server, pool).request(b"GET", f"{url}/x".encode())
        asked = await wires.stack.asked()
        assert asked.fields("Host") == [url.removeprefix("http://").encode()]
        asked.answer(b"done")
        assert await read_body(await answering, reactor, PATIENCE, 100) == b"done"
    for each in asking:
        each.cancel()
    assert slow_names.most["all"] <= MAX_LOOK_UPS + 1
    assert all(slow_names.most[f"slow{number}.example"] <= 1 for number in range(20))
    pool.close()


@pytest.mark.parametrize("host", [b"stack\0.example", b"", b"st ack"])
def test_what_is_no_host_is_not_asked(host: bytes) -> None:
    pool: Any = Mock()
    agent = AgentForAnywhere(reactor, pool)
    with pytest.raises(BadRequest):
        agent.request(b"GET", b"http://%b:1/mcp" % host)
    assert pool.mock_calls == []
