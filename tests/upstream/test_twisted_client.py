"""Twisted's HTTP client does what the proxy relies on beyond its documentation.

These are tests of Twisted, without the proxy's own connection between the client and its transport.
Where one fails, look at ``llamaproxy/upstream/twisted_client.py`` and what uses it.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool, ResponseDone, ResponseNeverReceived
from twisted.web.http_headers import Headers
from twisted.web.iweb import IClientRequest
from zope.interface import implementer

from llamaproxy.upstream.bodies import PIECE_BYTES, Upload
from llamaproxy.upstream.twisted_client import TargetAgent, end_upload, is_idle, set_tunnel

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"


class Transport(StringTransport):
    """A transport that discards what is written, once it is muted."""

    muted = False

    def write(self, data: bytes) -> None:
        if not self.muted:
            StringTransport.write(self, data)


@implementer(IStreamClientEndpoint)
class Endpoint:
    """Connects to memory."""

    def __init__(self) -> None:
        self.clients: list[Any] = []

    def connect(self, factory: Any) -> Deferred[Any]:
        client = factory.buildProtocol(None)
        transport: Any = Transport
        client.makeConnection(transport())
        self.clients.append(client)
        return succeed(client)

    def endpointForURI(self, uri: object) -> Endpoint:
        return self

    @property
    def transport(self) -> Transport:
        """That of the last connection."""
        transport: Transport = self.clients[-1].transport
        return transport


class Pool(HTTPConnectionPool):
    """A pool that counts."""

    retryAutomatically = False
    asked = 0

    def getConnection(self, key: Any, endpoint: Any) -> Deferred[Any]:
        self.asked += 1
        return HTTPConnectionPool.getConnection(self, key, endpoint)


class Body(Protocol):
    """Keeps a body and its end."""

    def __init__(self) -> None:
        self.data = b""
        self.end: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Any = None) -> None:
        self.end = reason


class Client:
    """An agent with its pool, in memory."""

    def __init__(self) -> None:
        self.endpoint: Any = Endpoint()
        pool: Any = Pool
        self.pool = pool(Clock())
        self.agent = TargetAgent(self.endpoint, Clock(), self.pool)
        self.results: list[Any] = []

    def request(self, target: bytes = b"/", body: Upload | None = None) -> Deferred[Any]:
        headers = Headers({"Host": ["server"]})
        response = self.agent.request(b"POST" if body else b"GET", target, headers, body)
        return response.addBoth(self.results.append)

    def receive(self, data: bytes) -> None:
        self.endpoint.clients[-1].dataReceived(data)

    def response(self) -> Any:
        self.request()
        self.receive(ANSWER)
        return self.results.pop()


@pytest.mark.parametrize(
    "target",
    [b"/", b"/a//b", b"//a", b"/a?", b"/a;b?c=%2f&&d", b"/%7e:@!$&'()*+,", b"/a?b#c", b"/a|{}^"],
)
def test_a_target_is_sent_as_it_is(target: bytes) -> None:
    client = Client()
    client.request(target)
    sent = client.endpoint.transport.value()
    assert sent.startswith(b"GET %b HTTP/1.1\r\n" % target)
    assert sent.lower().count(b"\r\nhost: server\r\n") == 1


def test_agents_have_their_connections_from_the_pool_which_keeps_the_idle_ones() -> None:
    client = Client()
    client.response().deliverBody(Body())
    assert not is_idle(client.endpoint.clients[0])
    client.receive(b"ok")
    assert is_idle(client.endpoint.clients[0])
    client.response()
    assert (client.pool.asked, len(client.endpoint.clients)) == (2, 1)
    reactor: Any = Clock()
    Agent.usingEndpointFactory(reactor, client.endpoint, client.pool).request(b"GET", b"http://x/")
    assert (client.pool.asked, len(client.endpoint.clients)) == (3, 2)


def test_a_kept_connection_is_the_client_itself_with_its_transport() -> None:
    client = Client()
    client.response().deliverBody(Body())
    client.receive(b"ok")
    key = ("http-proxy", client.endpoint)
    [kept] = client.endpoint.clients
    results: list[Any] = []
    client.pool.getConnection(key, client.endpoint).addCallback(results.append)
    assert results == [kept]
    assert kept.transport is client.endpoint.transport


def test_a_connection_is_closed_by_way_of_its_transport() -> None:
    client = Client()
    client.request()
    client.receive(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
    client.results[0].deliverBody(Body())
    assert is_idle(client.endpoint.clients[0])
    assert client.endpoint.transport.disconnecting


def test_a_request_has_what_decides_whether_it_may_be_repeated() -> None:
    requests: list[Any] = []

    class Connection:
        def request(self, request: Any) -> Deferred[Any]:
            requests.append(request)
            return Deferred()

    client = Client()
    client.pool.getConnection = lambda key, endpoint: succeed(Connection())
    upload = Upload(BytesIO(b"x"))
    client.request()
    client.request(body=upload)
    assert all(map(IClientRequest.providedBy, requests))
    assert [each.method for each in requests] == [b"GET", b"POST"]
    assert [each.bodyProducer for each in requests] == [None, upload]
    assert not requests[0].headers.hasHeader(b"upgrade")


def test_a_body_is_paused_resumed_and_closed_by_its_transport() -> None:
    client = Client()
    body, transport = Body(), client.endpoint
    client.response().deliverBody(body)
    control: Any = body.transport
    control.pauseProducing()
    assert transport.transport.producerState == "paused"
    control.resumeProducing()
    assert transport.transport.producerState == "producing"
    control.loseConnection()
    assert transport.transport.disconnecting
    client.receive(b"ok")
    assert body.data == b"ok"
    assert body.end is not None and body.end.check(ResponseDone)


def uploading() -> tuple[Client, Upload, BytesIO]:
    """A client whose server takes no more than the first piece of a body."""
    client = Client()
    file = BytesIO(b"x" * (2 * PIECE_BYTES + 5))
    upload = Upload(file)
    upload.pauseProducing()
    client.request(body=upload)
    assert client.endpoint.transport.producer is upload
    return client, upload, file


def test_a_response_is_not_delivered_before_the_body_was_sent() -> None:
    """Else there is no need for :func:`end_upload`."""
    client, _, _ = uploading()
    client.receive(ANSWER)
    assert client.results == []


def test_a_body_that_is_too_short_fails_its_request() -> None:
    """Else there is no need for the zeros."""
    client, upload, _ = uploading()
    upload.complete()
    assert isinstance(client.results[0], Failure)


def test_an_upload_that_is_ended_early_lets_its_response_be_delivered() -> None:
    client, upload, file = uploading()
    transport = client.endpoint.transport
    transport.muted = True
    before = transport.value()
    end_upload(upload)
    assert (upload.finished, file.closed, transport.value()) == (True, True, before)
    assert transport.producer is None
    client.receive(ANSWER)
    body = Body()
    client.results[0].deliverBody(body)
    client.receive(b"ok")
    assert body.data == b"ok"


def test_a_cancelled_request_fails_with_the_reasons_it_was_cancelled_for() -> None:
    client = Client()
    request = client.request()
    request.cancel()
    [failure] = client.results
    assert failure.check(ResponseNeverReceived)
    assert [reason.type for reason in failure.value.reasons] == [CancelledError]


def test_a_response_can_be_made_one_of_a_tunnel() -> None:
    response = Client().response()
    set_tunnel(response, "tunnel")
    assert (response.code, response.tunnel) == (101, "tunnel")
    response.headers.setRawHeaders(b"X-A", [b"1"])
    assert response.headers.getRawHeaders("x-a") == ["1"]
