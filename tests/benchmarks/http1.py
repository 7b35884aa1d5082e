"""Just enough HTTP/1.1 to find where a message ends."""


def whole(received: bytes) -> int:
    """The length in bytes of the message that `received` starts with, 0 while some is missing.

    Good for peers that we know: lower or mixed case names, `Content-Length` or chunks, and no
    chunk that holds a bare `0` line.
    """
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return 0
    head = received[:end].lower()
    field = head.find(b"\r\ncontent-length:")
    if field >= 0:
        total = end + 4 + int(head[field + 17 :].split(b"\r\n", 1)[0])
        return total if len(received) >= total else 0
    if b"\r\ntransfer-encoding: chunked" in head:
        last = received.find(b"\r\n0\r\n\r\n", end + 2)
        return last + 7 if last >= 0 else 0
    return end + 4


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
    head = (
        f"HTTP/1.1 {status}\r\ndate: Sun, 22 Nov 2026 14:45:40 GMT\r\nserver: uvicorn\r\n"
        f"content-length: {len(body)}\r\ncontent-type: application/json\r\n\r\n"
    )
    return head.encode() + body
