"""URLs of servers: parsed leniently, encoded for HTTP. Pure."""

from __future__ import annotations

import re

from hyperlink import DecodedURL, EncodedURL

#: The host of a URL while it is encoded.
_STAND_IN = "address"


def read_url(text: str) -> DecodedURL:
    """The URL in *text*; scheme and host in lower case (RFC 3986 section 6.2.2.1).

    :raises ValueError: if it is none.
    """
    text = re.sub(
        r"[A-Za-z][A-Za-z0-9+.-]*(?=://)", lambda scheme: scheme[0].lower(), text, count=1
    )
    url = DecodedURL.from_text(text)
    return url.replace(host=url.host.lower())


def as_uri(url: DecodedURL) -> EncodedURL:
    """*url* in ASCII.

    IDNA, which hyperlink asks, knows neither IPv6 addresses nor the underscore that names in a
    network of containers may have.

    :raises ValueError: if its host is no name.
    """
    if not re.search("[:_]", url.host) or not url.host.isascii():
        return url.to_uri()
    return url.replace(host=_STAND_IN).to_uri().replace(host=url.host)


def origin_of(url: DecodedURL) -> bytes:
    """Scheme and authority of *url*, without a path: ``http://localhost:8321``."""
    return as_uri(url.replace(path=(), query=(), fragment="")).to_text().encode("ascii")


def url_for_log(url: str) -> str:
    """*url* for the log: without user, query and fragment, which may be secret."""
    scheme, separator, remainder = url.partition("://")
    location = remainder.partition("?")[0].partition("#")[0]
    authority, slash, path = location.partition("/")
    return f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}"
