"""One request on its way through, told by hand what its upstream does."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hyperlink import DecodedURL
from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs

from llamaproxy.config.logformat import format_json, format_text
from llamaproxy.errors import BadRequest, UpstreamBroke
from llamaproxy.heads import Fields
from llamaproxy.upstream.dialect import PLAIN_OPENAI
from llamaproxy.upstream.exchange import AnswerTaker
from llamaproxy.upstream.passthrough import LlamaStackResource
from llamaproxy.upstream.response_head import ResponseHead, read_response_head
from llamaproxy.upstream.secrets import Secret
from tests.server.door import FrontDoor
from tests.support import pending_calls

GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
TIMEOUT = 5.0


class Exchange:
    """A request that the upstream has got."""

    def __init__(self, fields: Fields, taker: AnswerTaker, body: Any = None) -> None:
        self.fields = fields
        self.taker = taker
        self.body = body
        self.paused = self.cancelled = False

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def cancel(self) -> None:
        self.cancelled = True

    def answer(
        self,
        status: int = 200,
        length: int | None = None,
        fields: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        self.taker.answered(ResponseHead(status, b"OK", list(fields), length))


class Passing:
    """A client's request that has been sent on."""

    def __init__(
        self, asked: bytes = GET, refusal: Exception | None = None, key: bytes = b""
    ) -> None:
        self.door = FrontDoor()
        self.detection: Deferred[Any] = Deferred()
        self._refusal = refusal
        self.exchanges: list[Exchange] = []
        sender: Any = self
        detector: Any = self
        resource: Any = LlamaStackResource(
            sender,
            DecodedURL.from_text("http://stack:8321"),
            detector,
            self.door.clock,
            TIMEOUT,
            secret=Secret(key),
        )
        self.door.site.resource = resource
        self.client = self.door.client().send(asked)

    #: Of the detector.
    detected = None

    async def generation(self) -> Any:
        return await self.detection

    def send(self, method: bytes, target: bytes, fields: Fields, body: Any, taker: Any) -> Exchange:
        if self._refusal is not None:
            raise self._refusal
        self.exchanges.append(Exchange(fields, taker, body))
        return self.exchanges[-1]

    @property
    def exchange(self) -> Exchange:
        return self.exchanges[-1]

    @property
    def received(self) -> bytes:
        text: bytes = self.client.line.value()
        return text

    @property
    def is_over(self) -> bool:
        return pending_calls(self.door.clock) == self.door.clock.getDelayedCalls()[:1] and (
            self.door.site.connections.running == 0
        )


def test_a_body_is_passed_on_as_it_comes() -> None:
    passing = Passing()
    passing.exchange.answer()
    for part in (b"one", b"two"):
        passing.exchange.taker.received(part)
        assert passing.received.endswith(b"3\r\n%b\r\n" % part)
    passing.exchange.taker.ended()
    assert passing.received.endswith(b"\r\n0\r\n\r\n")
    assert passing.is_over


def test_a_body_that_is_cut_short_ends_abnormally() -> None:
    passing = Passing()
    passing.exchange.answer()
    passing.exchange.taker.received(b"one")
    passing.exchange.taker.failed(UpstreamBroke())
    assert passing.client.ended
    assert b"\r\n0\r\n\r\n" not in passing.received


def test_the_upstream_is_read_no_faster_than_the_client_reads() -> None:
    passing = Passing()
    passing.exchange.answer()
    passing.client.channel.pauseProducing()
    assert passing.exchange.paused
    passing.client.channel.resumeProducing()
    assert not passing.exchange.paused


def test_a_client_that_does_not_read_is_no_silence_of_the_upstream() -> None:
    passing = Passing()
    passing.exchange.answer()
    passing.client.channel.pauseProducing()
    passing.door.clock.advance(100)
    assert not passing.exchange.cancelled
    passing.client.channel.resumeProducing()
    passing.door.clock.advance(TIMEOUT)
    assert passing.exchange.cancelled
    assert passing.client.ended


@pytest.mark.parametrize("answered", [False, True])
def test_an_upstream_that_is_silent_is_given_up(answered: bool) -> None:
    passing = Passing()
    if answered:
        passing.door.clock.advance(TIMEOUT - 1)
        passing.exchange.answer()
        passing.door.clock.advance(TIMEOUT - 1)
        assert not passing.exchange.cancelled
    passing.door.clock.advance(TIMEOUT)
    assert passing.exchange.cancelled
    if answered:
        assert passing.client.ended
    else:
        assert passing.received.startswith(b"HTTP/1.1 504 ")
        assert b"did not begin to answer within 5 s" in passing.received


def test_an_upload_that_goes_on_is_given_more_time() -> None:
    passing = Passing(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx")
    for _ in range(4):
        passing.door.clock.advance(4)
        passing.exchange.body.resumeProducing()
    passing.door.clock.advance(4)
    assert not passing.exchange.cancelled
    passing.door.clock.advance(1)
    assert passing.exchange.cancelled
    assert passing.received.startswith(b"HTTP/1.1 504 ")
    assert passing.is_over


@pytest.mark.parametrize("answered", [False, True])
def test_a_client_that_leaves_ends_the_request(answered: bool) -> None:
    passing = Passing()
    if answered:
        passing.exchange.answer()
    passing.client.leave()
    assert passing.exchange.cancelled
    assert passing.is_over


def test_a_client_that_leaves_while_the_generation_is_asked_for_sends_nothing() -> None:
    passing = Passing(b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n")
    assert passing.exchanges == []
    passing.client.leave()
    assert passing.detection.called  # cancelled
    assert passing.exchanges == []
    assert passing.is_over


@pytest.mark.parametrize("error", [UpstreamBroke("no"), ZeroDivisionError()])
def test_a_generation_that_cannot_be_had_is_an_error(error: Exception) -> None:
    passing = Passing(b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n")
    passing.detection.errback(error)
    status = 502 if isinstance(error, UpstreamBroke) else 500
    assert passing.received.startswith(b"HTTP/1.1 %d " % status)
    assert passing.is_over


@pytest.mark.parametrize("error", [UpstreamBroke("no"), ZeroDivisionError()])
@pytest.mark.parametrize("answered", [False, True])
def test_what_is_logged_of_it_has_its_id(answered: bool, error: Exception) -> None:
    passing = Passing(GET.replace(b"\r\n\r\n", b"\r\nX-Request-Id: mine\r\n\r\n"))
    if answered:
        passing.exchange.answer()
    with capturedLogs() as logged:
        passing.exchange.taker.failed(error)
    assert len(logged) == answered + isinstance(error, ZeroDivisionError)
    for event in logged:
        assert (format_text(event) or "").endswith(" [mine]\n")
        assert json.loads(format_json(event))["request"] == "mine"


@pytest.mark.parametrize(("refusal", "status"), [(BadRequest("odd"), 400), (OSError(), 500)])
@pytest.mark.parametrize("path", [b"/x", b"/v1/models"])
def test_a_request_that_cannot_be_sent_is_an_error(
    path: bytes, refusal: Exception, status: int
) -> None:
    passing = Passing(GET.replace(b"/x", path), refusal=refusal)
    if not passing.detection.called:
        passing.detection.callback(PLAIN_OPENAI)
    assert passing.received.startswith(b"HTTP/1.1 %d " % status)
    assert passing.is_over


@pytest.mark.parametrize("length", [None, 2])
def test_a_head_is_not_held_back_for_a_body_that_has_not_come(length: int | None) -> None:
    passing = Passing()
    passing.exchange.answer(length=length)
    assert passing.received.startswith(b"HTTP/1.1 200 OK\r\n")
    assert passing.received.endswith(b"\r\n\r\n")


def test_a_short_answer_needs_no_producer() -> None:
    passing = Passing()
    channel = passing.client.channel
    passing.exchange.answer(length=2, fields=((b"Content-Length", b"2"),))
    assert channel._producer is None
    passing.exchange.taker.received(b"ok")
    passing.exchange.taker.ended()
    assert passing.client.answers()[0].body == b"ok"


def test_a_daemon_that_stops_cuts_it_short() -> None:
    for answered in (False, True):
        passing = Passing()
        if answered:
            passing.exchange.answer()
        passing.door.site.connections.cut_short()
        assert passing.exchange.cancelled
        assert passing.client.ended
        assert passing.received.startswith(b"HTTP/1.1 200 " if answered else b"HTTP/1.1 503 ")


def test_the_operators_key_is_masked_in_errors_wherever_it_is_cut() -> None:
    key = b"sk-secret"
    passing = Passing(key=key)
    assert (b"Accept-Encoding", b"identity") in passing.exchange.fields
    passing.exchange.answer(401, fields=((b"X-Echo", b"key sk-secret!"),))
    for part in (b"no: sk-", b"sec", b"ret, sk-secre"):
        passing.exchange.taker.received(part)
    passing.exchange.taker.ended()
    assert key not in passing.received
    assert b"X-Echo: key *********!" in passing.received
    chunks = passing.received.partition(b"\r\n\r\n")[2].split(b"\r\n")[1::2]
    assert b"".join(chunks) == b"no: *********, sk-secre"


def test_an_answer_that_has_begun_keeps_no_fields_of_its_request() -> None:
    passing = Passing()
    request: Any = passing.client.channel.request
    assert request.work._fields
    passing.exchange.answer()
    assert not request.work._fields and not request.head.fields


def test_a_date_that_concerns_the_connection_alone_is_replaced() -> None:
    passing = Passing()
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nServer: theirs\r\nDate: x\r\n"
    nominated = read_response_head(head + b"Connection: date\r\n\r\n", b"GET")
    passing.exchange.taker.answered(nominated)
    passing.exchange.taker.ended()
    assert passing.received.count(b"\r\nDate: ") == 1
    assert passing.received.count(b"\r\nServer: ") == 1
