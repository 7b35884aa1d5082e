"""Just enough HTTP/1.1 to find where a message ends."""


def wanted(received: bytes) -> int:
    """The length in bytes of the message that `received` starts with, 0 if nothing tells it yet.

    Good for peers that we know: lower or mixed case names, and a `Content-Length` or no body.
    """
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return 0
    head = received[:end].lower()
    field = head.find(b"\r\ncontent-length:")
    if field >= 0:
        return end + 4 + int(head[field + 17 :].split(b"\r\n", 1)[0])
    return 0 if b"\r\ntransfer-encoding: chunked" in head else end + 4


def whole(received: bytes) -> int:
    """The length in bytes of the message that `received` starts with, 0 while some is missing.

    No chunk may hold a bare `0` line.
    """
    if total := wanted(received):
        return total if len(received) >= total else 0
    last = received.find(b"\r\n0\r\n\r\n")
    return last + 7 if last >= 0 else 0


def request(method: str, path: str, body: bytes = b"") -> bytes:
    """The bytes of a request such as an OpenAI client sends, on a connection that stays open."""
    fields = [
        f"{method} {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Accept: application/json",
        "User-Agent: llamaproxy-benchmarks",
        "Authorization: Bearer benchmark",
    ]
    if body:
        fields += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*fields, "", ""]).encode() + body


def response(body: bytes, status: str = "200 OK") -> bytes:
    """The bytes of a JSON answer, with the header fields that uvicorn sends."""
    return head(len(body), status) + body


def head(length: int, status: str = "200 OK") -> bytes:
    """The head of a JSON answer of so many bytes."""
    return (
        f"HTTP/1.1 {status}\r\ndate: Sun, 22 Nov 2026 14:45:40 GMT\r\nserver: uvicorn\r\n"
        f"content-length: {length}\r\ncontent-type: application/json\r\n\r\n"
    ).encode()
