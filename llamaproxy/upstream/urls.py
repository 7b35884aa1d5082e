"""URLs of servers: parsed leniently, encoded for HTTP. Pure."""

from __future__ import annotations

import re
from functools import lru_cache

from hyperlink import DecodedURL, EncodedURL

#: The host of a URL while it is encoded.
_STAND_IN = "address"

#: What stands before the two slashes; nothing does in a reference to another host.
_SCHEME = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*:)?")

#: Stands for what is not shown.
MASK = "***"

#: The fewest characters of a word of a path that may be a key; and how keys look that have shorter
#: ones (RFC 9562).
_MIN_KEY = 12
_UUID = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")

#: Characters of a URL whose form for the log is remembered.
_MAX_REMEMBERED = 1000


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
    """*url*, which need be none, for logs and pages: without what may be secret.

    That is its user, its query and fragment, and in its path what looks like a key: hosted MCP
    servers have one there (``/s/KEY/mcp``).
    """
    # Those of tools come again with every call, and this is a good part of what one costs.
    return _url_for_log(url) if len(url) > _MAX_REMEMBERED else _remembered(url)


def _url_for_log(url: str) -> str:
    location = url.partition("?")[0].partition("#")[0]
    scheme, slashes, remainder = location.partition("//")
    if not slashes or not _SCHEME.fullmatch(scheme):
        scheme, slashes, remainder = "", "", location
    authority, slash, path = remainder.partition("/")
    shown = "/".join(map(_segment_for_log, path.split("/")))
    return f"{scheme}{slashes}{authority.rpartition('@')[2]}{slash}{shown}"


_remembered = lru_cache(maxsize=64)(_url_for_log)


def _segment_for_log(segment: str) -> str:
    if _UUID.search(segment) or any(map(_looks_random, re.split("[-._~]", segment))):
        return MASK
    return segment


def _looks_random(word: str) -> bool:
    """Whether *word* is long and has digits, as keys have and names have not."""
    return len(word) >= _MIN_KEY and any(map(str.isdigit, word))
