"""TracingService: OpenTelemetry's SDK, which sends spans to a collector while the daemon runs.

All else that it can be told is told by its own environment variables.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, ClassVar

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from llamaproxy import __version__
from llamaproxy.admin.tracing.attributes import SCHEMA_URL
from llamaproxy.admin.tracing.complaints import Complaints
from llamaproxy.admin.tracing.session import CollectorSession
from llamaproxy.admin.tracing.spans import Spans

#: Seconds in which the collector may take the last spans when the daemon stops.
FLUSH_SECONDS = 3.0

_HTTP = "http/protobuf"

#: The end of variables that name who makes the SDK's session, with credentials of its own.
_OWN_SESSION = "OTLP_HTTP_CREDENTIAL_PROVIDER", "OTLP_HTTP_TRACES_CREDENTIAL_PROVIDER"


class TracingService(Service):
    """Sends the spans that :attr:`spans` makes, in a thread of the SDK's.

    That has a queue with a limit. Spans for which there is no room are dropped, so a collector that
    is slow or away costs requests nothing.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(self, reactor: Any, environment: Mapping[str, str], **about: Any) -> None:
        """:param about: what :class:`Spans` is told of the daemon.

        :raises Exception: if the environment has something that the SDK cannot use.
        """
        self._reactor = reactor
        self._complaints = Complaints(reactor, environment)
        protocols = [environment.get(f"OTEL_EXPORTER_OTLP_{n}PROTOCOL") for n in ("TRACES_", "")]
        self._protocol = next(filter(None, protocols), _HTTP)
        try:
            # Now, for a daemon that gives up its rights cannot load or read everything afterwards.
            own = any(name.endswith(_OWN_SESSION) and environment[name] for name in environment)
            self._exporter = OTLPSpanExporter(session=None if own else CollectorSession())
            self._provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        except BaseException:
            self._complaints.close()
            raise
        tracer = self._provider.get_tracer("llamaproxy", __version__, schema_url=SCHEMA_URL)
        self.spans = Spans(tracer, reactor.seconds, **about)

    def startService(self) -> None:
        """Start the thread: not before, for a daemon in the background is another process."""
        Service.startService(self)
        if self._protocol != _HTTP:
            self._log.warn(
                "traces are sent by http/protobuf, "
                "which OTEL_EXPORTER_OTLP_PROTOCOL does not ask for"
            )
        try:
            processor = BatchSpanProcessor(self._exporter)
        except ValueError as error:  # limits that do not go together
            self._log.warn("no traces are sent: {reason}", reason=str(error)[:200])
            return
        self._provider.add_span_processor(processor)

    def stopService(self) -> Deferred[None]:
        """Send what there is, but do not wait long for it."""
        Service.stopService(self)
        self.spans.end_all()
        flushed: Deferred[None] = Deferred()
        # A thread of the reactor's would have to end before the process does.
        threading.Thread(target=self._flush, args=(flushed,), daemon=True).start()
        flushed.addTimeout(FLUSH_SECONDS, self._reactor)
        flushed.addCallbacks(lambda _: self._complaints.close(), self._not_flushed)
        return flushed

    def _flush(self, flushed: Deferred[None]) -> None:
        try:
            self._provider.shutdown()
        finally:
            self._reactor.callFromThread(flushed.callback, None)

    def _not_flushed(self, _: Failure) -> None:
        # The thread is still there, and would complain to stderr: the handler stays.
        self._log.warn("the last traces were not sent: the collector takes too long")


def _resource() -> Resource:
    """What all spans say of the daemon; what the environment says counts more.

    With ``Resource.create`` alone it would be the other way round.
    """
    about = {"service.name": "llamaproxy", "service.version": __version__}
    return Resource.create(about).merge(OTELResourceDetector().detect())
