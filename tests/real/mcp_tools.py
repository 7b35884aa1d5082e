"""A real MCP server, made with the official SDK, whose tools cover what a tool can answer.

Run as ``python mcp_tools.py {streamable-http|sse} [PORT]``; it prints one line, ``listening on
127.0.0.1:PORT``, and serves MCP at ``/mcp`` (streamable-http) or ``/sse`` (sse). As ``python
mcp_tools.py stdio`` it speaks over its standard input and output. With ``MCP_TOKEN`` in the
environment, every MCP request over HTTP must carry that bearer token; ``MCP_PREFIX`` comes before
the name of every tool.

``GET /_calls`` tells how many calls of each tool were started, finished, failed and cancelled.
"""

# The SDK is installed where this program runs, not where it is type-checked.
# mypy: disable-error-code="import-not-found, untyped-decorator, unused-ignore"

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import socket
import struct
import sys
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any, Literal

import uvicorn
from mcp.server.fastmcp import Context, FastMCP, Image
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

mcp = FastMCP("contract-tools", host="127.0.0.1")  # the host switches the check of Host headers on
counts: defaultdict[str, Counter[str]] = defaultdict(
    lambda: Counter(started=0, finished=0, failed=0, cancelled=0)
)


def tool(function: Callable[..., Any]) -> None:
    """Offer the function as a tool, and count its calls."""

    @functools.wraps(function)
    async def counted(*args: Any, **kwargs: Any) -> Any:
        count = counts[function.__name__]
        count["started"] += 1
        try:
            result = function(*args, **kwargs)
            if inspect.isawaitable(result):
                result = await result
        except asyncio.CancelledError:
            count["cancelled"] += 1
            raise
        except Exception:
            count["failed"] += 1
            raise
        count["finished"] += 1
        return result

    mcp.tool(name=os.environ.get("MCP_PREFIX", "") + function.__name__)(counted)


class Weather(BaseModel):
    """A structured result."""

    city: str
    temperature_c: float
    conditions: list[str]


class Address(BaseModel):
    """A nested argument."""

    street: str
    zip: str | None = None


@tool
def get_text(city: str, days: int = 3) -> str:
    """Plain text result.

    Args: city to look up, days ahead."""
    return f"Sunny in {city} for {days} days"


@tool
def get_structured(city: str) -> Weather:
    """Structured JSON result."""
    return Weather(city=city, temperature_c=21.5, conditions=["sunny", "dry"])


@tool
def get_image(color: str = "red") -> Image:
    """Returns a PNG image."""
    return Image(data=red_square(), format="png")


@tool
def get_mixed():  # type: ignore[no-untyped-def]  # a return type would make it a structured result
    """Returns text, image and text blocks."""
    return ["before", Image(data=red_square(), format="png"), "after"]


@tool
def fail(reason: str = "because") -> str:
    """Always raises."""
    raise ValueError(f"deliberate failure: {reason}")


@tool
async def slow(seconds: float = 3.0) -> str:
    """Sleeps then answers."""
    await asyncio.sleep(seconds)
    return f"slept {seconds}s"


@tool
def ping() -> str:
    """No parameters."""
    return "pong"


@tool
def nested(
    address: Address,
    tags: list[str],
    unit: Literal["c", "f"] = "c",
    matrix: list[list[int]] | None = None,
    extra: dict[str, int] | None = None,
) -> str:
    """Nested object, array, enum and nullable parameters."""
    return f"{address.street}|{','.join(tags)}|{unit}|{matrix}|{extra}"


@tool
def big(n: int = 1000) -> str:
    """Returns n characters."""
    return "x" * n


@tool
def headers(ctx: Context) -> str:
    """Shows the request's authorization and x- headers."""
    shown = ctx.request_context.request.headers.items()
    return str({k: v for k, v in shown if k == "authorization" or k.startswith("x-")})


@mcp.custom_route("/_calls", methods=["GET"])
async def calls(request: Request) -> Response:
    return JSONResponse(counts)


def red_square() -> bytes:
    """A PNG of four by four red pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0)
    pixels = zlib.compress((b"\0" + b"\xff\0\0" * 4) * 4)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def demanding(token: str, app: Any) -> Any:
    """The ASGI app, for callers with the token only."""
    expected = b"Bearer " + token.encode()

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        private = scope["type"] == "http" and not scope["path"].startswith("/_")
        if private and dict(scope["headers"]).get(b"authorization") != expected:
            refusal = JSONResponse(
                {"error": "unauthorized"}, 401, headers={"WWW-Authenticate": "Bearer"}
            )
            await refusal(scope, receive, send)
        else:
            await app(scope, receive, send)

    return guarded


def main() -> None:
    if sys.argv[1] == "stdio":
        mcp.run("stdio")
        return
    transport, port = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0
    app = {"streamable-http": mcp.streamable_http_app, "sse": mcp.sse_app}[transport]()
    if token := os.environ.get("MCP_TOKEN"):
        app = demanding(token, app)
    listener = socket.create_server(("127.0.0.1", port))
    print(f"listening on 127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


if __name__ == "__main__":
    main()
