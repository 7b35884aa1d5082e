"""Failures of the HTTP client as the proxy's errors, and the time limit to a response."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from llamaproxy.errors import ProxyError, UpstreamTimeout, UpstreamUnavailable
from llamaproxy.upstream.urls import MASK, url_for_log
from llamaproxy.watchdog import Watchdog

#: Scheme and authority, and the slash behind them.
_ORIGIN = re.compile(r"(?i:https?)://[\w.:\[\]-]{1,200}(?:/|\Z)", re.ASCII)


def connecting_error(failure: Failure) -> ProxyError:
    """What *failure* to connect means."""
    error = failure.value
    if isinstance(error, ProxyError):
        return error
    if isinstance(error, ConnectTimeout):
        return UpstreamTimeout("Llama Stack did not accept a connection in time.")
    described = isinstance(error, ConnectError | DNSLookupError)
    reason = (type(error).__doc__ or "").strip() if described else ""
    return UpstreamUnavailable(
        f"Llama Stack could not be reached: {reason or type(error).__name__}"
    )


def not_begun(seconds: float) -> UpstreamTimeout:
    """The error of an answer whose head has not come within *seconds*."""
    return UpstreamTimeout(f"Llama Stack did not begin to answer within {round(seconds, 1):g} s.")


async def response_within(request: Deferred[Any], clock: IReactorTime, seconds: float) -> Any:
    """The response to *request*, whose head must come within *seconds*.

    :raises ProxyError: if there is no response.
    """
    timed_out = False

    def expire() -> None:
        nonlocal timed_out
        timed_out = True
        request.cancel()

    watchdog = Watchdog(clock, seconds, expire)
    watchdog.start()
    try:
        return await request
    except (ProxyError, CancelledError) as failure:
        raise (not_begun(seconds) if timed_out else failure) from None
    finally:
        watchdog.stop()


def is_page(kinds: Sequence[bytes], text: bytes) -> bool:
    """Whether an answer with these ``Content-Type`` fields and this *text* is a web page."""
    return any(b"html" in kind.lower() for kind in kinds) or text.lstrip()[:1] == b"<"


def redirect_target(locations: Sequence[bytes]) -> str:
    """Where a redirect with these ``Location`` fields leads, for messages: to which server.

    What else is in one may be anything, such as the credentials of the request.
    """
    location = url_for_log(locations[0].decode("latin-1") if locations else "")
    origin = _ORIGIN.match(location)
    shown = "" if origin is None else origin[0]
    return (shown if shown == location else f"{shown}{MASK}") or "nowhere"
