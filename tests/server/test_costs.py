"""What a request costs, counted: Deferreds, delayed calls, writes; what a connection keeps."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.web.http_headers import Headers
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from llamaproxy.request import ProxyRequest
from tests.server.door import Client, FrontDoor

GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab"


class Raw(Resource):
    """Answers with raw fields."""

    isLeaf = True

    def render(self, request: ProxyRequest) -> int:
        request.begin(200, b"OK", [(b"content-TYPE", b"text/plain"), (b"Content-Length", b"2")])
        request.write(b"ok")
        request.finish()
        return NOT_DONE_YET


class Costs:
    """Counts what is made."""

    def __init__(self, door: FrontDoor, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        self.deferreds = self.headers = self.delayed_calls = self.writes = 0
        later, write = door.clock.callLater, client.line.write

        def count(what: str, call: Any) -> Any:
            def counted(*args: Any, **kwargs: Any) -> Any:
                setattr(self, what, getattr(self, what) + 1)
                return call(*args, **kwargs)

            return counted

        deferred: Any = Deferred.__init__
        headers: Any = Headers.__init__
        monkeypatch.setattr(Deferred, "__init__", count("deferreds", deferred))
        monkeypatch.setattr(Headers, "__init__", count("headers", headers))
        monkeypatch.setattr(door.clock, "callLater", count("delayed_calls", later))
        monkeypatch.setattr(client.line, "write", count("writes", write))


@pytest.mark.parametrize("sent", [GET, POST], ids=["GET", "POST"])
def test_a_small_request_costs_two_writes_and_nothing_that_waits(
    sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    door = FrontDoor()
    raw: Any = Raw
    door.site.resource = raw()
    client = door.client()
    costs = Costs(door, client, monkeypatch)
    for count in range(1, 4):
        client.send(sent)
        assert costs.writes == 2 * count
    assert (costs.deferreds, costs.delayed_calls, costs.headers) == (0, 0, 0)
    answers = client.answers()
    assert [answer.body for answer in answers] == [b"ok"] * 3
    assert b"\r\ncontent-TYPE: text/plain\r\n" in client.line.value()
    for name in ("date", "x-request-id"):
        assert len(answers[0].fields[name]) == 1
    assert door.site.connections.running == 0


def test_a_connection_between_two_requests_keeps_nothing_of_them() -> None:
    door = FrontDoor()
    client = door.client().send(GET, POST, POST[:20], POST[20:])
    assert client.statuses() == [200] * 3
    fresh = door.client()
    channel = client.channel
    assert fresh.channel.client_host == channel.client_host, "that of the connection"
    kept = {
        name
        for name in type(channel).__slots__
        if hasattr(channel, name) and getattr(channel, name) != getattr(fresh.channel, name)
    }
    assert kept <= {"transport", "state", "served"}
    assert vars(channel) == {} == vars(fresh.channel)


class Ends:
    """The least that a connection needs of its transport."""

    def registerProducer(self, producer: object, streaming: bool) -> None:
        """Nobody is to be paused."""

    def getPeer(self) -> None:
        """There is no client."""


def test_an_idle_connection_costs_less_than_a_kilobyte() -> None:
    door = FrontDoor()
    transport: Any = Ends()

    def connect(count: int) -> None:
        for _ in range(count):
            channel: Any = door.site.buildProtocol(None)
            channel.makeConnection(transport)

    connect(10)
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        connect(1000)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert door.site.connections.connected == 1010
    assert (after - before) / 1000 < 1000
