"""Cases that llamaproxy does not pass yet, by what they wait for: who mends one takes it out."""

from __future__ import annotations

_STATUS_LINES = (
    "responses: bad answer: status line b'HTTP/1.1 20 OK'",
    "responses: bad answer: status line b'HTTP/1.1 2000 OK'",
    "responses: bad answer: status line b'HTTP/1.1 -200 OK'",
    "responses: bad answer: status line b'HTTP/1.1 000 OK'",
)
_FIELDS = (
    "responses: bad answer: a head of 1 MB",
    "responses: odd answer: a NUL in a field",
)
_LEFT_OVER = (
    "responses: then another: more than the length, later",
    "responses: then another: more after the last chunk",
    "responses: then another: a body for HEAD",
)

KNOWN: dict[str, str] = {
    "forwarding: Date made where there is none": "the upstream's Date or none is relayed",
    "forwarding: a nominated field in an answer": "Twisted's client hides Connection from us",
    **dict.fromkeys(_STATUS_LINES, "Twisted's client takes any number for a status"),
    **dict.fromkeys(_FIELDS, "the fields of an answer are neither bounded nor checked"),
    **dict.fromkeys(_LEFT_OVER, "bytes that nobody asked for are taken for the next answer"),
}
