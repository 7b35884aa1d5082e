"""Whether traces are on: what OpenTelemetry's environment variables say.

Nothing of OpenTelemetry is loaded unless they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from twisted.logger import Logger

if TYPE_CHECKING:
    from llamaproxy.admin.tracing.service import TracingService

_log = Logger()

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")

#: The value of OTEL_SEMCONV_STABILITY_OPT_IN that wants the newest names.
_NEWEST = "gen_ai_latest_experimental"


def tracing_service(
    environment: Mapping[str, str], reactor: Any, upstream: str, endpoints: Iterable[str]
) -> TracingService | None:
    """What makes spans and sends them to a collector, None if traces are off.

    :param upstream: the URL of the server; *endpoints*: where clients come in.
    """
    endpoint = next(filter(None, map(environment.get, _ENDPOINTS)), "")
    exporters = environment.get("OTEL_TRACES_EXPORTER") or "otlp"
    is_disabled = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if not endpoint or is_disabled or "otlp" not in _members(exporters):
        return None
    try:
        from llamaproxy.admin.tracing.service import TracingService
    except ImportError:
        _log.warn(
            "no traces are sent, though OTEL_EXPORTER_OTLP_ENDPOINT is set: "
            "that needs llamaproxy[otel]"
        )
        return None
    try:
        return TracingService(
            reactor,
            environment,
            upstream=upstream,
            scheme=_scheme_of(endpoints),
            newest=_NEWEST in _members(environment.get("OTEL_SEMCONV_STABILITY_OPT_IN", "")),
        )
    except Exception as error:  # a variable's value, or a file that one names
        _log.warn("no traces are sent: {reason}", reason=str(error)[:200])
        return None


def _scheme_of(endpoints: Iterable[str]) -> str:
    """The scheme by which clients come to all *endpoints*, empty if they differ."""
    schemes = {"https" if "ssl" in each.split(":")[:2] else "http" for each in endpoints}
    return schemes.pop() if len(schemes) == 1 else ""


def _members(value: str) -> list[str]:
    return [member.strip() for member in value.split(",")]
