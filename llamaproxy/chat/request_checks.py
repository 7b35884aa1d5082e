"""Checks of a chat request's header fields: its origin and its content coding. Pure."""

from __future__ import annotations

from llamaproxy.errors import UnsupportedMediaType
from llamaproxy.heads import RequestHead, members

#: Values of ``Sec-Fetch-Site`` that no page of another origin sends (W3C Fetch Metadata).
_SAME_SITE = (b"same-origin", b"none")


def check_origin(head: RequestHead) -> None:
    """Refuse a request of a web page of another origin unless it is sent as JSON.

    For JSON a browser makes a preflight request first; text and forms it sends without one (Fetch
    standard, "CORS-safelisted request-header"), and any page could have tools run (DESIGN: 9).
    Clients other than browsers send neither ``Origin`` nor ``Sec-Fetch-Site``.

    :raises UnsupportedMediaType: if its ``Content-Type`` is another.
    """
    sites = head.by_name.get(b"sec-fetch-site", ())
    cross_origin = [site for site in sites if site.strip().lower() not in _SAME_SITE]
    if not cross_origin and not head.by_name.get(b"origin"):
        return
    types = head.by_name.get(b"content-type", ())
    if [value.partition(b";")[0].strip().lower() for value in types] != [b"application/json"]:
        raise UnsupportedMediaType(
            "A web page must send its chats as 'Content-Type: application/json'."
        )


def check_coding(head: RequestHead) -> None:
    """Refuse a compressed body (RFC 9110 section 8.4).

    :raises UnsupportedMediaType: if it has a ``Content-Encoding`` other than ``identity``.
    """
    codings = head.by_name.get(b"content-encoding")
    if codings and set(members(codings)) - {b"", b"identity"}:
        raise UnsupportedMediaType("The request body is compressed, which is not understood here.")
