"""The page's files, and the fields that every answer on its port has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

#: The folder of the files; there is nothing else in it.
FOLDER = Path(__file__).parent / "page"

#: Nothing from elsewhere, nothing that is not a file of the page's, and no page around it (Content
#: Security Policy, level 3); nothing is made of HTML text, whoever wrote it (Trusted Types).
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'"
)

FIELDS = (
    (b"Content-Security-Policy", _POLICY.encode()),
    (b"X-Content-Type-Options", b"nosniff"),
    (b"Referrer-Policy", b"no-referrer"),
    (b"Cross-Origin-Resource-Policy", b"same-origin"),
    (b"Cross-Origin-Opener-Policy", b"same-origin"),
    (b"Cache-Control", b"no-store"),
)

_TYPES = {
    "html": b"text/html; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "svg": b"image/svg+xml",
    "png": b"image/png",
    "woff2": b"font/woff2",
}

#: A name that leads nowhere else.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*\.([a-z0-9]+)")


def add_fields(request: Any) -> None:
    """Give the answer to *request* those fields."""
    for name, value in FIELDS:
        request.setHeader(name, value)


def file_of(name: str, folder: Path = FOLDER) -> tuple[bytes, bytes] | None:
    """The media type and the text of the page's file *name*, None if there is none."""
    match = _NAME.fullmatch(name)
    media_type = _TYPES.get(match[1]) if match else None
    if media_type is None:
        return None
    try:
        return media_type, (folder / name).read_bytes()
    except OSError:
        return None
