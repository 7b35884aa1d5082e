"""Heads of responses, parsed strictly (RFC 9112). Pure.

Twisted's client accepts much that is no HTTP, keeps the fields that ``Connection`` nominates, and
uses a connection again that is about to close.
"""

from __future__ import annotations

import re

import attrs

from llamaproxy.upstream.headers import HOP_BY_HOP

#: The most bytes, and the most fields, of one head.
MAX_HEAD, MAX_FIELDS = 64 * 1024, 256

#: Where a head ends; a single LF may end a line (RFC 9112 section 2.2).
END_OF_HEAD = re.compile(rb"\n\r?\n")

#: RFC 9112 section 5: space before the colon is for a proxy to remove (5.1), and folded lines for
#: it to unfold (5.2); a bare CR, or a NUL, makes the head invalid (2.2, and RFC 9110 section 5.5).
_NAME = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_VALUE = rb"[^\r\n\0]*(?:\r?\n[ \t][^\r\n\0]*)*"
_FIELD = re.compile(rb"(" + _NAME + rb")[ \t]*:(" + _VALUE + rb")\r?\n")

#: RFC 9112 section 4; the phrase, and the space before it, are left out by some servers.
_HEAD = re.compile(
    rb"HTTP/1\.([0-9]) ([1-9][0-9][0-9])(?: ([^\0-\x08\n-\x1f\x7f]*))?\r?\n"
    rb"((?:" + _NAME + rb"[ \t]*:" + _VALUE + rb"\r?\n)*)\r?\n"
)
_LENGTH = re.compile(rb"[0-9]{1,18}")


class BadHead(ValueError):
    """What is wrong with a head: a predicate that follows "The answer"."""


@attrs.define
class ResponseHead:
    """One head: its end-to-end *fields* by lower-case name, and how its body is framed.

    *length* is that of the body, None if it is chunked or ends with the connection;
    *close* tells that the connection cannot be used again.
    """

    status: bytes
    phrase: bytes
    fields: dict[bytes, list[bytes]]
    length: int | None = None
    until_close: bool = False
    close: bool = False
    bodiless: bool = False

    @property
    def interim(self) -> bool:
        """Whether another response follows (RFC 9110 section 15.2)."""
        return self.status.startswith(b"1") and not self.switches

    @property
    def switches(self) -> bool:
        """Whether another protocol follows (RFC 9110 section 7.8)."""
        return self.status == b"101"

    def for_client(self) -> bytes:
        """The head as Twisted's HTTP client needs it: the status and the framing alone."""
        if self.bodiless:
            framing = b""
        elif self.length is None:
            framing = b"Transfer-Encoding: chunked\r\n"
        else:
            framing = b"Content-Length: %d\r\n" % self.length
        close = b"Connection: close\r\n" if self.close else b""
        # That client takes 101 for an interim answer, and waits for another.
        status = b"200" if self.switches else self.status
        return b"HTTP/1.1 %b %b\r\n%b%b\r\n" % (status, self.phrase, framing, close)


def read_response_head(raw: bytes, method: bytes, upgrade: bool = False) -> ResponseHead:
    """The head *raw* of an answer to a request of *method*, which may have asked for an *upgrade*.

    :raises BadHead: if it is not valid, or leaves open where the body ends.
    """
    match = _HEAD.fullmatch(raw)
    if match is None:
        raise BadHead("has a malformed head")
    minor, status, phrase, lines = match.groups()
    field_lines = _FIELD.findall(lines)
    if len(field_lines) > MAX_FIELDS:
        raise BadHead(f"has more than {MAX_FIELDS} header fields")
    fields: dict[bytes, list[bytes]] = {}
    for name, value in field_lines:
        if b"\n" in value:
            value = b" ".join(line.strip(b" \t\r") for line in value.split(b"\n"))
        fields.setdefault(name.lower(), []).append(value.strip(b" \t"))
    if status == b"101" and upgrade:
        for name in (b"content-length", b"transfer-encoding", b"keep-alive"):
            fields.pop(name, None)
        return ResponseHead(status, phrase or b"", fields, None, until_close=True, close=True)
    if status == b"101":
        raise BadHead("switches protocols, for which nobody asked")
    if status.startswith(b"1"):
        return ResponseHead(status, phrase or b"", {})
    options: list[bytes] = []
    if b"connection" in fields:
        tokens = b",".join(fields[b"connection"]).lower().split(b",")
        options = [option.strip(b" \t") for option in tokens]
    length = _length(fields)
    chunked = b"transfer-encoding" in fields
    fields.pop(b"content-length", None)
    for name in HOP_BY_HOP.intersection(fields).union(options):
        fields.pop(name, None)
    bodiless = method == b"HEAD" or status in (b"204", b"304")
    if bodiless and length is not None and status != b"204":
        # What the length of another answer would be (RFC 9110 section 8.6).
        fields[b"content-length"] = [b"%d" % length]
    # After an error of its model provider, a Llama Stack closes the connection some seconds later,
    # though it says that it will not, and a request that is sent until then is lost (seen in 0.6.1
    # and OGX 1.5.0).
    failed = status[:1] in b"45"
    until_close = not bodiless and length is None and not chunked
    return ResponseHead(
        status,
        phrase or b"",
        fields,
        0 if bodiless else length,
        until_close,
        failed or until_close or minor == b"0" or b"close" in options,
        bodiless,
    )


def _length(fields: dict[bytes, list[bytes]]) -> int | None:
    """The length that a head announces (RFC 9112 section 6.3)."""
    lengths = fields.get(b"content-length")
    codings = fields.get(b"transfer-encoding")
    if codings is not None:
        if lengths is not None:
            raise BadHead("has both a Content-Length and a Transfer-Encoding")
        if len(codings) > 1 or codings[0].lower() != b"chunked":
            raise BadHead("has an unknown transfer coding")
        return None
    if lengths is None:
        return None
    values = {value.strip(b" \t") for value in b",".join(lengths).split(b",")}
    if len(values) > 1 or not _LENGTH.fullmatch(value := values.pop()):
        raise BadHead("has an invalid Content-Length")
    return int(value)
