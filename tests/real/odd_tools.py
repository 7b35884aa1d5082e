"""An MCP server over standard input and output; llama.cpp refuses the schema of its one tool."""

from __future__ import annotations

import json
import sys
from typing import Any

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "a": {"type": "any"},
        "b": {"$ref": "#/$defs/Nowhere"},
        "c": {"type": "string", "minLength": 5, "maxLength": 1},
        "d": {"enum": []},
        "e": {"$ref": "#"},
    },
    "anyOf": [{"required": ["city"]}, {"required": ["a"]}],
    "required": ["city"],
}

TOOL = {"name": "get_time", "description": "The time in a city", "inputSchema": SCHEMA}


def result(message: dict[str, Any]) -> dict[str, Any]:
    if message["method"] == "initialize":
        server = {"serverInfo": {"name": "odd", "version": "1"}, "capabilities": {"tools": {}}}
        return {"protocolVersion": message["params"]["protocolVersion"], **server}
    if message["method"] == "tools/list":
        return {"tools": [TOOL]}
    return {"content": [{"type": "text", "text": "12:00"}]}


for line in sys.stdin:
    message = json.loads(line)
    if "id" in message:
        answer = {"jsonrpc": "2.0", "id": message["id"], "result": result(message)}
        print(json.dumps(answer), flush=True)
