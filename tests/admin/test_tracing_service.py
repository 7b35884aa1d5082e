"""Traces as they are switched on, sent to a collector, and stopped with the daemon."""

from __future__ import annotations

import gzip
import logging
import os
import signal
import socket
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from typing import Any, cast

import pytest

pytest.importorskip("opentelemetry.sdk", reason="NO TRACE IS TESTED: llamaproxy[otel] is missing")

import requests
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, globalLogPublisher

from llamaproxy.admin.tracing import complaints
from llamaproxy.admin.tracing.complaints import Complaints
from llamaproxy.admin.tracing.service import FLUSH_SECONDS, TracingService
from llamaproxy.admin.tracing.session import CollectorSession
from llamaproxy.admin.tracing.switch import tracing_service
from tests.admin.traces import PARENT, TRACE
from tests.test_twistd import Daemon, question

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
NOWHERE = "http://127.0.0.1:9"


class Reactor(Clock):
    """A clock to which threads may say something, which is heard when it is asked for."""

    def __init__(self) -> None:
        Clock.__init__(self)
        self._said: Queue[Callable[[], object]] = Queue()

    def callFromThread(self, call: Callable[..., object], *arguments: object) -> None:
        self._said.put(lambda: call(*arguments))

    def hear(self) -> None:
        """Wait until a thread has said something, and do it."""
        self._said.get(timeout=30)()

    @property
    def has_heard(self) -> bool:
        return not self._said.empty()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked of OpenTelemetry but for what a test asks."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """The lines that are logged, as text."""
    written: list[str] = []

    def write(event: Any) -> None:
        written.append(event["log_format"].format(**event))

    observer = cast(ILogObserver, write)
    globalLogPublisher.addObserver(observer)
    yield written
    globalLogPublisher.removeObserver(observer)


def service_of(reactor: Reactor, **environment: str) -> TracingService:
    return TracingService(reactor, environment, upstream="http://stack:8321")


def ended(service: TracingService, reactor: Reactor) -> None:
    """Stop *service*, as far as it stops by itself."""
    stopped: list[object] = []
    service.stopService().addBoth(stopped.append)
    reactor.hear()
    assert stopped == [None]


# --- switched on and off


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {ENDPOINT: ""},
        {ENDPOINT: NOWHERE, "OTEL_SDK_DISABLED": "TRUE"},
        {ENDPOINT: NOWHERE, "OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": NOWHERE},
    ],
)
def test_traces_are_off_unless_there_is_a_collector(environment: dict[str, str]) -> None:
    assert tracing_service(environment, Reactor(), "http://stack", ["tcp:1"]) is None


@pytest.mark.parametrize("name", [ENDPOINT, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
def test_a_collector_is_enough_to_have_them_on(name: str) -> None:
    reactor = Reactor()
    service = tracing_service({name: NOWHERE}, reactor, "http://stack", ["tcp:1", "ssl:2"])
    assert service is not None
    ended(service, reactor)


def test_who_has_not_the_extra_is_told_once(
    monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "llamaproxy.admin.tracing.service", None)
    assert tracing_service({ENDPOINT: NOWHERE}, Reactor(), "http://stack", ["tcp:1"]) is None
    [line] = lines
    assert "llamaproxy[otel]" in line


def test_the_service_has_a_name_which_the_environment_may_replace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = []
    for own in ("", "mine"):
        if own:
            monkeypatch.setenv("OTEL_SERVICE_NAME", own)
            monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        reactor = Reactor()
        service = service_of(reactor)
        attributes = service._provider.resource.attributes
        names.append((attributes["service.name"], attributes.get("deployment.environment.name")))
        ended(service, reactor)
    assert names == [("llamaproxy", None), ("mine", "test")]


def test_no_thread_is_started_before_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINT, NOWHERE)
    before = set(threading.enumerate())
    reactor = Reactor()
    service = service_of(reactor)
    assert set(threading.enumerate()) == before
    service.startService()
    assert set(threading.enumerate()) > before
    ended(service, reactor)


def test_a_variable_that_is_wrong_is_told_and_costs_nothing_else(
    monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    monkeypatch.setenv(ENDPOINT, NOWHERE)
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many")
    assert tracing_service(os.environ, Reactor(), "http://stack", ["tcp:1"]) is None
    [line] = lines
    assert line.startswith("no traces are sent: ")
    assert logging.getLogger("opentelemetry").propagate


def test_limits_that_do_not_go_together_are_told_when_the_service_starts(
    monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "100")
    reactor = Reactor()
    service = service_of(reactor, OTEL_EXPORTER_OTLP_PROTOCOL="grpc")
    service.startService()
    assert [line.partition(":")[0] for line in lines] == [
        "traces are sent by http/protobuf, which OTEL_EXPORTER_OTLP_PROTOCOL does not ask for",
        "no traces are sent",
    ]
    ended(service, reactor)


def test_a_collector_that_does_not_answer_does_not_hold_up_the_stop(
    monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    answered = threading.Event()
    reactor = Reactor()
    service = service_of(reactor)
    shutdown = service._provider.shutdown

    def slow() -> None:
        answered.wait(30)
        shutdown()

    monkeypatch.setattr(service._provider, "shutdown", slow)
    stopped: list[object] = []
    service.stopService().addBoth(stopped.append)
    reactor.advance(FLUSH_SECONDS)
    assert stopped == [None] and not answered.is_set()
    assert lines == ["the last traces were not sent: the collector takes too long"]
    answered.set()
    reactor.hear()  # nobody waits for it any more
    service._complaints.close()


# --- what the SDK complains of


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Reactor, Complaints]]:
    reactor = Reactor()
    monkeypatch.setattr(complaints, "monotonic", reactor.seconds)
    handler = Complaints(
        reactor, {"OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20secret-key,x=secret-two"}
    )
    yield reactor, handler
    handler.close()


def test_the_sdk_is_heard_now_and_then(
    heard: tuple[Reactor, Complaints], lines: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    reactor, _ = heard
    sdk = logging.getLogger("opentelemetry.sdk.trace")
    for _ in range(1000):
        sdk.warning("Queue full, dropping %s.", "Span")
    reactor.hear()
    assert not reactor.has_heard and len(lines) == 1
    reactor.advance(complaints.INTERVAL)
    logging.getLogger("urllib3.connectionpool").error("refused")
    reactor.hear()
    assert lines == [
        "traces: Queue full, dropping Span.",
        "traces: refused (and 999 lines more before)",
    ]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "complaint",
    [
        "Header format invalid: authorization=Bearer%20secret-key",
        "refused: secret-key, secret-two",
        "cannot reach http://me:secret-three@collector/v1/traces?key=secret-four (refused)",
    ],
)
def test_no_key_is_in_a_complaint(
    heard: tuple[Reactor, Complaints], lines: list[str], complaint: str
) -> None:
    logging.getLogger("opentelemetry.exporter").error(complaint)
    heard[0].hear()
    [line] = lines
    assert line.startswith("traces: ") and "secret" not in line


def test_what_a_client_has_sent_is_not_complained_of(heard: tuple[Reactor, Complaints]) -> None:
    carrier = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "Bad=1,=,\u2028," * 40}
    TraceContextTextMapPropagator().extract(carrier)
    assert not heard[0].has_heard


def test_a_complaint_is_no_longer_than_anybody_reads(
    heard: tuple[Reactor, Complaints], lines: list[str]
) -> None:
    logging.getLogger("opentelemetry").error("x" * 100_000)
    heard[0].hear()
    assert len(lines[0]) < 400


def test_a_complaint_that_cannot_be_formatted_is_one_all_the_same(
    heard: tuple[Reactor, Complaints], lines: list[str]
) -> None:
    reactor, handler = heard
    record = logging.LogRecord("opentelemetry", 40, "", 1, "%d spans", ("many",), None)
    handler.emit(record)
    reactor.hear()
    assert lines == ["traces: %d spans"]


# --- a real collector


class Collector(ThreadingHTTPServer):
    """Receives spans by OTLP over HTTP."""

    def __init__(self) -> None:
        self.received: Queue[ExportTraceServiceRequest] = Queue()
        received = self.received

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == "/v1/traces"
                received.put(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nobody reads it."""

        ThreadingHTTPServer.__init__(self, ("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_daemon_sends_its_last_spans_to_a_collector(collector: Collector, tmp_path: Path) -> None:
    daemon = Daemon(
        tmp_path / "log",
        "--demo",
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_BSP_SCHEDULE_DELAY="600000",
    )
    try:
        status, _ = daemon.get("/v1/chat/completions", "POST", question("What is 6 * 7?"))
        assert status == 200
        assert daemon.stop() in (0, -signal.SIGTERM)
    finally:
        daemon.process.kill()
        daemon.process.wait()
    # It has sent what it had before it ended.
    batches = [collector.received.get(timeout=0) for _ in range(collector.received.qsize())]
    resources = [resource for batch in batches for resource in batch.resource_spans]
    [service] = {
        attribute.value.string_value
        for resource in resources
        for attribute in resource.resource.attributes
        if attribute.key == "service.name"
    }
    assert service == "llamaproxy"
    spans = [s for r in resources for scope in r.scope_spans for s in scope.spans]
    by_id = {span.span_id: span for span in spans}
    tree = {
        (span.name, by_id[span.parent_span_id].name if span.parent_span_id else "")
        for span in spans
    }
    assert ("POST /v1/chat/completions", "") in tree
    assert ("invoke_agent", "POST /v1/chat/completions") in tree
    assert ("chat demo/scripted", "invoke_agent") in tree
    assert any(name.startswith("execute_tool ") and up == "invoke_agent" for name, up in tree)
    for span in spans:
        assert span.start_time_unix_nano <= span.end_time_unix_nano


def test_a_daemon_whose_collector_is_away_serves_and_stops(tmp_path: Path) -> None:
    daemon = Daemon(
        tmp_path / "log",
        "--demo",
        OTEL_EXPORTER_OTLP_ENDPOINT=NOWHERE,
        OTEL_BSP_SCHEDULE_DELAY="100",
    )
    try:
        for _ in range(5):
            status, _ = daemon.get("/v1/chat/completions", "POST", question("What is 6 * 7?"))
            assert status == 200
        assert daemon.stop() in (0, -signal.SIGTERM)
    finally:
        daemon.process.kill()
        daemon.process.wait()
    log = daemon.log.read_text()
    assert "Traceback" not in log
    assert log.count("traces: ") <= 1


# --- collectors that answer badly

#: What is sent again and again, after what is sent once.
ENDLESS, DRIP = b"10000\r\n" + bytes(65536) + b"\r\n", b"x"
HEAD = b"HTTP/1.1 400 No\r\nContent-Length: %d\r\n"
BOMB = gzip.compress(bytes(20_000_000))


@pytest.mark.parametrize(
    ("first", "then", "reason"),
    [
        (b"HTTP/1.1 307 R\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n", b"", "a redirect (307)"),
        (b"HTTP/1.1 400 No\r\nTransfer-Encoding: chunked\r\n\r\n", ENDLESS, "code: 400"),
        (HEAD % len(BOMB) + b"Content-Encoding: gzip\r\n\r\n" + BOMB, b"", "code: 400"),
        (b"HTTP/1.1 200 OK\r\nX: ", DRIP, "no whole answer within 1.0 s"),
        (HEAD % 100_000 + b"\r\n", DRIP, "no whole answer within 1.0 s"),
    ],
    ids=["redirect", "endless", "bomb", "slow head", "slow body"],
)
def test_a_collector_that_answers_badly_costs_spans_alone_and_is_told_of(
    first: bytes,
    then: bytes,
    reason: str,
    heard: tuple[Reactor, Complaints],
    lines: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reactor, _ = heard
    ended = threading.Event()

    def answer(server: socket.socket) -> None:
        client, _ = server.accept()
        with client, suppress(OSError):
            client.recv(65536)
            client.sendall(first)
            while then and not ended.wait(0.001 if then is DRIP else 0):
                client.sendall(then)
            ended.wait(30)

    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv(ENDPOINT, f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
        collector = threading.Thread(target=answer, args=(server,))
        collector.start()
        exporter = OTLPSpanExporter(session=CollectorSession())
        raised = ""
        tracemalloc.start()
        try:
            assert exporter.export([]) is SpanExportResult.FAILURE
        except requests.RequestException as error:
            raised = str(error)  # older SDKs leave it to their processor to tell of it
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        ended.set()
        collector.join()
    assert most < 2_000_000
    if raised:
        assert reason in raised
    else:
        reactor.hear()
        [line] = lines
        assert line.startswith("traces: Failed to export ") and reason in line


def test_while_an_answer_has_no_end_no_other_is_asked_for() -> None:
    request = requests.Request("POST", NOWHERE).prepare()
    hold = threading.Event()
    session = CollectorSession()
    session.mount("http://", Held(hold))
    with pytest.raises(requests.RequestException, match="no whole answer"):
        session.send(request, timeout=0.01)
    with pytest.raises(requests.RequestException, match="has not come to its end"):
        session.send(request, timeout=0.01)
    hold.set()
    assert session._asking is not None
    session._asking.join(30)
    with pytest.raises(requests.ConnectionError):
        session.send(request, timeout=30)


class Held(requests.adapters.HTTPAdapter):
    """Fails as soon as it may."""

    def __init__(self, hold: threading.Event) -> None:
        requests.adapters.HTTPAdapter.__init__(self)
        self._hold = hold

    def send(self, *_: Any, **__: Any) -> requests.Response:
        self._hold.wait(30)
        raise requests.ConnectionError


@pytest.mark.parametrize("named", [False, True])
def test_who_brings_a_session_of_their_own_uses_that(
    named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions: list[object] = []
    monkeypatch.setattr(
        "llamaproxy.admin.tracing.service.OTLPSpanExporter",
        lambda session: sessions.append(session),
    )
    reactor, name = Reactor(), "OTEL_PYTHON_EXPORTER_OTLP_HTTP_TRACES_CREDENTIAL_PROVIDER"
    ended(service_of(reactor, **({name: "mine"} if named else {})), reactor)
    assert [session is None for session in sessions] == [named]
