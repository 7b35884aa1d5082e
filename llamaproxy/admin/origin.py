"""check_same_origin: what no page of another origin may have a browser do on the admin port."""

from __future__ import annotations

import re

from llamaproxy.errors import Forbidden, UnsupportedMediaType
from llamaproxy.heads import RequestHead
from llamaproxy.request import ProxyRequest

#: Values of ``Sec-Fetch-Site`` of what a person, or a page of this origin, asks for (W3C Fetch
#: Metadata, section 2.4).
_OWN_SITES = (b"same-origin", b"none")

_JSON = re.compile(rb"\s*application/json\s*(?:;.*)?", re.IGNORECASE | re.DOTALL)

#: The schemes of an origin, and the port that each leaves out.
_DEFAULT_PORTS = {b"http": b":80", b"https": b":443"}


def check_same_origin(request: ProxyRequest) -> None:
    """See that *request*, which changes something, comes from no page of another origin.

    Forms, and what a page may send without asking, have other types than JSON (Fetch standard,
    "CORS-safelisted request-header"); for JSON the browser asks first, and is answered by nobody
    here. Browsers say besides where a request comes from; programs say nothing.

    :raises UnsupportedMediaType: if the body is not declared to be JSON.
    :raises Forbidden: if it comes from elsewhere.
    """
    head = request.head
    types = head.by_name.get(b"content-type", ())
    if len(types) != 1 or not _JSON.fullmatch(types[0]):
        raise UnsupportedMediaType("The body must be sent as 'Content-Type: application/json'.")
    check_fetched_here(request)
    if any(not _is_own(origin, head) for origin in head.by_name.get(b"origin", ())):
        raise Forbidden()


def check_fetched_here(request: ProxyRequest) -> None:
    """See that a browser asks for no page of another origin.

    Such a page could not read the answer, but have the browser hold it, or save it.

    :raises Forbidden: if it does.
    """
    sites = request.head.by_name.get(b"sec-fetch-site", ())
    if any(site.strip().lower() not in _OWN_SITES for site in sites):
        raise Forbidden()


def _is_own(origin: bytes, head: RequestHead) -> bool:
    """Whether *origin* is that of the page which the request would be for.

    What stands in front may have taken TLS off: the scheme need not be that of the connection.
    """
    hosts = head.by_name.get(b"host", ())
    scheme, _, place = origin.strip().lower().partition(b"://")
    if scheme not in _DEFAULT_PORTS or len(hosts) != 1:
        return False
    port = _DEFAULT_PORTS[scheme]
    return bool(place) and place.removesuffix(port) == hosts[0].strip().lower().removesuffix(port)
