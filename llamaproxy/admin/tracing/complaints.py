"""Complaints: what OpenTelemetry's SDK logs, now and then, as lines of the daemon's own log."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from time import monotonic
from typing import Any, ClassVar

from twisted.logger import Logger

#: The loggers of the SDK, and of what it sends with.
_LOGGERS = ("opentelemetry", "urllib3")

#: Those below that complain of what a client has sent: of a ``tracestate`` with mistakes in it.
_CLIENTS = "opentelemetry.trace."

#: Seconds between two lines: a collector that is away is complained of for every batch.
INTERVAL = 60.0

#: Characters of a line.
_MAX_REASON = 300

#: The variables in which the collector's key may stand, and the fewest characters of one.
_SECRETS = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")
_MIN_SECRET = 6

#: What may be a key in a URL: a password, and a query.
_URL_SECRETS = re.compile(r"(?<=//)[^/@\s]+@|\?[^\s)]+")


class Complaints(logging.Handler):
    """Takes the SDK's log lines, from any thread; without it they would go to stderr."""

    _log: ClassVar[Logger] = Logger()

    def __init__(self, reactor: Any, environment: Mapping[str, str]) -> None:
        logging.Handler.__init__(self, logging.WARNING)
        self._reactor = reactor
        self._secrets = list(_secrets_in(environment.get(name, "") for name in _SECRETS))
        self._written_at = -INTERVAL
        self._unwritten = 0
        for name in _LOGGERS:
            logger = logging.getLogger(name)
            logger.addHandler(self)
            logger.propagate = False

    def close(self) -> None:
        """Take no more."""
        for name in _LOGGERS:
            logger = logging.getLogger(name)
            logger.removeHandler(self)
            logger.propagate = True
        logging.Handler.close(self)

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith(_CLIENTS):
            return
        now = monotonic()
        if now - self._written_at < INTERVAL:
            self._unwritten += 1
            return
        self._written_at = now
        try:
            reason = record.getMessage()
        except Exception:  # whoever logged it has made a mistake
            reason = str(record.msg)
        unwritten, self._unwritten = self._unwritten, 0
        # The daemon's log is not written by several threads at a time.
        self._reactor.callFromThread(self._write, reason, unwritten)

    def _write(self, reason: str, unwritten: int) -> None:
        for secret in self._secrets:
            reason = reason.replace(secret, "***")
        reason = _URL_SECRETS.sub("", reason)[:_MAX_REASON]
        more = f" (and {unwritten} lines more before)" if unwritten else ""
        self._log.warn("traces: {reason}", reason=reason + more)


def _secrets_in(values: Iterable[str]) -> Iterable[str]:
    """The values of header fields in those of variables; and without a scheme before them."""
    for value in values:
        for field in value.split(","):
            secret = field.partition("=")[2].strip()
            for each in (secret, re.split(r"\s|%20", secret)[-1]):
                if len(each) >= _MIN_SECRET:
                    yield each
