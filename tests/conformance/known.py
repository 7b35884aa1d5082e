"""Cases that llamaproxy does not pass yet, by what they wait for: who mends one takes it out."""

from __future__ import annotations

KNOWN: dict[str, str] = {
    "responses: then another: more than the length, later": (
        "once the next request is on its way, nothing tells it from the answer"
    ),
}
