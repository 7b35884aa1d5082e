"""Cases that llamaproxy does not pass yet, and why: who mends one takes it out."""

from __future__ import annotations

KNOWN: dict[str, str] = {}
