"""Failures of the HTTP client as the proxy's errors, and the time limit to a response."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.error import ConnectError, ConnectingCancelledError, DNSLookupError
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from twisted.web.client import (
    RequestGenerationFailed,
    RequestTransmissionFailed,
    ResponseFailed,
    ResponseNeverReceived,
)
from twisted.web.http_headers import Headers

from llamaproxy.errors import ProxyError, UpstreamBroke, UpstreamTimeout, UpstreamUnavailable
from llamaproxy.upstream.bodies import Upload
from llamaproxy.watchdog import Watchdog

#: What Agent wraps other failures in; the second subclasses the first.
_WRAPPERS = (
    ResponseFailed,
    ResponseNeverReceived,
    RequestGenerationFailed,
    RequestTransmissionFailed,
)


def upstream_error(failure: Failure) -> BaseException:
    """The one translation of an HTTP client's failure, unwrapping what Agent wraps.

    Cancellation stays :class:`CancelledError`, however deep it is buried.
    """
    error = failure.value
    if isinstance(error, ProxyError | CancelledError):
        return error
    if isinstance(error, ConnectingCancelledError):
        return CancelledError()
    if isinstance(error, _WRAPPERS):
        for reason in error.reasons:
            if isinstance(reason, Failure) and reason.check(ProxyError, CancelledError, *_WRAPPERS):
                return upstream_error(reason)
        return UpstreamBroke("Llama Stack closed the connection before it answered.")
    if isinstance(error, TimeoutError | ConnectTimeout):
        return UpstreamTimeout("Llama Stack did not accept a connection in time.")
    described = isinstance(error, ConnectError | DNSLookupError)
    reason = (type(error).__doc__ or "").strip() if described else ""
    return UpstreamUnavailable(
        f"Llama Stack could not be reached: {reason or type(error).__name__}"
    )


async def response_within(
    request: Deferred[Any],
    clock: IReactorTime,
    seconds: float,
    upload: Upload | None = None,
    where: str = "",
) -> Any:
    """The response to *request*, whose head must come within *seconds*.

    While there is an *upload*, they count from the last time that the upstream has taken some of
    it. *where* is the server's URL, for the log.

    :raises ProxyError: if there is no response.
    """
    timed_out = False

    def expire() -> None:
        nonlocal timed_out
        timed_out = True
        request.cancel()

    watchdog = Watchdog(clock, seconds, expire)
    if upload is not None:
        upload.progressed = watchdog.feed
    watchdog.start()
    try:
        return await request
    except Exception:
        error = upstream_error(Failure())
        if timed_out:
            error = UpstreamTimeout(f"Llama Stack did not begin to answer within {seconds:g} s.")
        if isinstance(error, ProxyError):
            error.where = where
        raise error from None
    finally:
        watchdog.stop()


def redirect_target(headers: Headers) -> str:
    """The ``Location`` of a redirect, without user and query, which may be secret; for messages."""
    location = headers.getRawHeaders(b"location", [b""])[0].decode("latin-1")
    text = "".join(c if c.isprintable() else "?" for c in location.partition("?")[0])
    return text.rpartition("@")[2][:200] or "nowhere"
