"""The official client's side of a conversation over WebSocket: ``responses.connect()``.

Usage: python responses_client.py BASE_URL KEY MODEL TEXT...; it prints one JSON object: for each
text what was answered and the types of the events, or the status of a refusal.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from openai import OpenAI


def converse(client: Any, model: str, texts: list[str]) -> dict[str, Any]:
    answers, kinds = [], set()
    with client.responses.connect() as connection:
        for text in texts:
            connection.response.create(model=model, input=text)
            said = ""
            for event in connection:
                kinds.add(event.type)
                if event.type == "response.output_text.delta":
                    said += event.delta
                if event.type in ("response.completed", "response.failed", "error"):
                    break
            answers.append(said)
    return {"answers": answers, "events": sorted(kinds)}


def main() -> None:
    base_url, key, model, *texts = sys.argv[1:]
    client = OpenAI(base_url=base_url, api_key=key, max_retries=0)
    try:
        outcome = converse(client, model, texts)
    except Exception as error:  # of the library under the client
        status = getattr(getattr(error, "response", None), "status_code", None)
        outcome = {"refused": status, "error": type(error).__name__}
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
