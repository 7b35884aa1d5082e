"""Whether a chat is asked for by a web page that its server has not been asked about. Pure."""

from __future__ import annotations

from twisted.web.http_headers import Headers

from llamaproxy.errors import UnsupportedMediaType

#: Values of ``Sec-Fetch-Site`` with which no page of another origin asks (W3C Fetch Metadata).
_OWN = (b"same-origin", b"none")


def check_origin(headers: Headers) -> None:
    """Let a page of another origin send JSON, and nothing else.

    For JSON a browser asks the server first; text and forms it sends without asking (Fetch
    standard, "CORS-safelisted request-header"), and tools would be run for any page that somebody
    looks at (DESIGN: 9). What is no browser has neither of the fields.

    :raises UnsupportedMediaType: if it is something else.
    """
    sites = headers.getRawHeaders(b"sec-fetch-site", [])
    foreign = any(site.strip().lower() not in _OWN for site in sites)
    if not foreign and not headers.hasHeader(b"origin"):
        return
    types = headers.getRawHeaders(b"content-type", [])
    if [each.partition(b";")[0].strip().lower() for each in types] != [b"application/json"]:
        raise UnsupportedMediaType(
            "A web page must send its chats as 'Content-Type: application/json'."
        )


def check_coding(headers: Headers) -> None:
    """:raises UnsupportedMediaType: if the body is compressed."""
    codings = b",".join(headers.getRawHeaders(b"content-encoding", [])).lower().split(b",")
    if any(coding.strip() not in (b"", b"identity") for coding in codings):
        raise UnsupportedMediaType("The request body is compressed, which is not understood here.")
