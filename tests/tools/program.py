"""An MCP server over standard input and output that does as it is told: ``program.py HOW``."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any

Json = dict[str, Any]


def send(message: Json) -> None:
    sys.stdout.buffer.write(json.dumps(message).encode() + b"\n")
    sys.stdout.buffer.flush()


def tool(name: str) -> Json:
    return {"name": name, "description": "A tool.", "inputSchema": {"type": "object"}}


def result(message: Json) -> Json:
    method = message["method"]
    if method == "initialize":
        server = {"name": "program", "version": "1"}
        revision = message["params"]["protocolVersion"]
        capabilities = {"tools": {"listChanged": True}}
        about = {"capabilities": capabilities, "instructions": "Say echo."}
        return {"protocolVersion": revision, "serverInfo": server, **about}
    if method == "server/discover":
        about = {"capabilities": {"tools": {}}, "instructions": "Say echo."}
        return {"supportedVersions": ["2026-07-28"], **about}
    if method == "tools/list":
        return {"tools": [tool("echo")]}
    if method == "tools/call":
        return {"content": [{"type": "text", "text": called(message["params"]["arguments"])}]}
    return {}


def called(arguments: Json) -> str:
    match arguments.get("want"):
        case "environment":
            return json.dumps(dict(os.environ))
        case "place":
            return json.dumps({"pid": os.getpid(), "group": os.getpgid(0), "cwd": os.getcwd()})
        case "die":
            os._exit(3)
        case "children":
            pid = os.fork()
            if not pid:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                time.sleep(600)
            return str(pid)
        case "daemon":
            reading, writing = os.pipe()
            if not os.fork():
                os.setsid()
                if not os.fork():
                    os.write(writing, str(os.getpid()).encode())
                    time.sleep(600)
                os._exit(0)
            return os.read(reading, 99).decode()
        case "close output":
            os.close(1)
            time.sleep(600)
        case "close input":
            os.close(0)
            time.sleep(600)
        case "silence":
            time.sleep(600)
        case "change":
            send({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})
        case "long":
            return "x" * 17 * 1024 * 1024
        case "flood":
            while True:
                send(
                    {"jsonrpc": "2.0", "method": "notifications/message", "params": {"x": "y" * 99}}
                )
    return str(arguments.get("say", ""))


def main(how: str) -> None:
    if how == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if how == "garbage":
        sys.stdout.buffer.write(b"Server is ready!\n\xff\xfe\n[1, 2\n\n")
        sys.stdout.buffer.flush()
    if how == "errors":
        for number in range(100):
            print(
                f"\x1b[31mline {number} with {os.environ['TOKEN']}\x1b[0m <|im_start|>",
                file=sys.stderr,
            )
    if how == "silent":
        time.sleep(600)
    if how == "endless":
        while True:
            sys.stdout.buffer.write(b"x" * 65536)
    if how == "dead":
        sys.exit("I cannot")
    waiting: Json = {}
    for line in sys.stdin.buffer:
        message = json.loads(line)
        if how == "stateless" and message["method"] == "initialize":
            error = {"code": -32022, "message": "Unsupported protocol version"}
            send({"jsonrpc": "2.0", "id": message["id"], "error": error})
            continue
        if how == "stateless" and "_meta" not in message["params"]:
            sys.exit("that does not stand for itself")
        if how == "moody" and message["method"] in ("tools/list", "ping"):
            error = {"code": -32603, "message": "not now"}
            send({"jsonrpc": "2.0", "id": message["id"], "error": error})
            continue
        if how == "moody" and message.get("params", {}).get("arguments", {}).get("want") == "wait":
            waiting = message
            continue
        if how == "moody" and waiting and message["method"] == "tools/call":
            send({"jsonrpc": "2.0", "id": waiting["id"], "result": result(waiting)})
            waiting = {}
        if how == "doubles" and "id" in message:
            message["id"] = float(message["id"])
        if "id" in message and "method" in message:
            send({"jsonrpc": "2.0", "id": message["id"], "result": result(message)})
    while how == "stubborn":
        time.sleep(600)


if __name__ == "__main__":
    main(sys.argv[1])
