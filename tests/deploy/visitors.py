"""Visitors: clients that ask without a pause, and tell exactly what became of each request."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import attrs
import openai
from openai import OpenAI

from .stack import MODEL, counted, stamped

Json = dict[str, Any]

_ASK_USER = {
    "type": "function",
    "function": {
        "name": "ask_user",
        "parameters": {"type": "object", "properties": {"nonce": {"type": "string"}}},
    },
}

#: Outcomes of an answer. A client can trust the first two, and knows of the next three that they
#: are none; the last must not happen.
WHOLE = "whole"
HALF = "without the server's half"
REFUSED = "refused with an error"
ERROR_EVENT = "ended by an error event"
CUT = "cut off"
SHORT = "short, with a clean end"


@attrs.define
class Answer:
    """What a client has read of one request."""

    identity: str
    status: int = 0
    code: str = ""
    text: str = ""
    calls: list[Json] = attrs.Factory(list)
    error: str = ""
    done: bool = False
    finish_reason: str | None = None
    #: Whether the connection ended as HTTP wants it.
    clean: bool = False

    @property
    def finished(self) -> bool:
        return self.status == 200 and self.clean and self.done and not self.error

    def outcome(self, expected: str) -> str:
        """Which of the outcomes it is, where the text should be *expected*."""
        if not self.clean:
            return CUT
        if self.status != 200:
            return REFUSED if self.error else SHORT
        if self.error:
            return ERROR_EVENT if self.done else CUT
        return WHOLE if self.finished and self.text == expected else SHORT

    def take(self, chunk: Json) -> None:
        """Add a chunk of the stream, or the error that there is instead."""
        if "error" in chunk:
            self.error, self.code = chunk["error"]["message"], str(chunk["error"]["code"])
            return
        for choice in chunk["choices"]:
            delta = choice["delta"]
            self.text += delta.get("content") or ""
            for call in delta.get("tool_calls") or ():
                index = call["index"]
                if index == len(self.calls):
                    self.calls.append({"id": call["id"], "arguments": "", "name": ""})
                function = call.get("function") or {}
                self.calls[index]["name"] += function.get("name") or ""
                self.calls[index]["arguments"] += function.get("arguments") or ""
            self.finish_reason = choice["finish_reason"] or self.finish_reason


def ask(port: int, identity: str, messages: list[Json], tools: bool = False) -> Answer:
    """Ask once for a stream, on a connection of its own, and read to the end, whichever that is."""
    answer = Answer(identity)
    body: Json = {"model": MODEL, "messages": messages, "stream": True}
    if tools:
        body["tools"] = [_ASK_USER]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        fields = {"X-Request-Id": identity, "Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), fields)
        response = connection.getresponse()
        answer.status = response.status
        if response.status != 200:
            answer.take(json.loads(response.read()))
        else:
            for event in _events(response):
                if event == "[DONE]":
                    answer.done = True
                else:
                    answer.take(json.loads(event))
        answer.clean = True
    return answer


@cache
def _sdk(port: int) -> OpenAI:
    """As it comes: it asks again by itself where it is not told not to."""
    return OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=30)


def ask_by_sdk(port: int, identity: str, messages: list[Any]) -> Answer:
    """Ask once, as far as its user can tell, for an answer that is not streamed."""
    answer = Answer(identity)
    try:
        completion = _sdk(port).chat.completions.create(
            model=MODEL, messages=messages, extra_headers={"X-Request-Id": identity}
        )
    except openai.APIStatusError as error:
        answer.status, answer.error, answer.clean = error.status_code, error.message, True
    except openai.APIConnectionError:
        pass
    else:
        answer.status, answer.done, answer.clean = 200, True, True
        answer.text = completion.choices[0].message.content or ""
    return answer


def _events(response: http.client.HTTPResponse) -> Iterator[str]:
    """The data of each event.

    :raises IncompleteRead: if the body, which is chunked, ends before its last chunk.
    """
    rest = b""
    while piece := response.read1(65536):
        *events, rest = (rest + piece).split(b"\n\n")
        for event in events:
            if event.startswith(b"data: "):
                yield event.removeprefix(b"data: ").decode()


@attrs.frozen
class Visit:
    """One conversation: its kind, when it began and ended, and what became of it."""

    kind: str
    outcome: str
    answers: tuple[Answer, ...]
    began: float
    ended: float


@attrs.define
class Visitors:
    """So many clients, each in a thread, until they are stopped."""

    port: int
    visits: list[Visit] = attrs.Factory(list)
    _numbers: Iterator[int] = attrs.Factory(itertools.count)
    _over: threading.Event = attrs.Factory(threading.Event)
    _threads: list[threading.Thread] = attrs.Factory(list)

    def start(self, kind: str, count: int) -> None:
        for _ in range(count):
            thread = threading.Thread(target=self._run, args=(kind,))
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)

    def outcomes(self) -> dict[str, Counter[str]]:
        """How often each outcome was, by the kind of visit."""
        told: dict[str, Counter[str]] = {}
        for visit in list(self.visits):
            told.setdefault(visit.kind, Counter())[visit.outcome] += 1
        return told

    def since(self, moment: float) -> list[Visit]:
        """The visits that began after *moment*, a reading of ``time.monotonic``."""
        return [visit for visit in list(self.visits) if visit.began > moment]

    def goes_on(self) -> Callable[[], bool]:
        """A condition: two visits of each kind that began from now on were answered whole."""
        moment, kinds = time.monotonic(), set(self.outcomes())

        def went_on() -> bool:
            whole = Counter(each.kind for each in self.since(moment) if each.outcome == WHOLE)
            return bool(kinds) and all(whole[kind] >= 2 for kind in kinds)

        return went_on

    def _run(self, kind: str) -> None:
        while not self._over.is_set():
            nonce = f"n{next(self._numbers)}"
            began = time.monotonic()
            outcome, answers = visit(self.port, kind, nonce, self._think)
            self.visits.append(Visit(kind, outcome, answers, began, time.monotonic()))
            if outcome != WHOLE:
                self._over.wait(0.2)  # as a person would; a refusal comes back at once

    def _think(self, nonce: str) -> None:
        """A while that is another for each, so that another replica has room by then."""
        self._over.wait(0.05 + int(nonce[1:]) % 5 * 0.08)


def visit(
    port: int, kind: str, nonce: str, think: Callable[[str], object]
) -> tuple[str, tuple[Answer, ...]]:
    """Have one conversation; its outcome, and its answers.

    :param think: takes the time that a client's own tool takes.
    """
    messages: list[Json] = [{"role": "user", "content": f"{kind.split()[0]} {nonce}"}]
    match kind:
        case "plain":
            answer = ask(port, f"{nonce}-1", messages)
            return answer.outcome(counted()), (answer,)
        case "server":
            answer = ask(port, f"{nonce}-1", messages)
            return answer.outcome(counted(stamped(nonce))), (answer,)
        case "server by SDK":
            answer = ask_by_sdk(port, f"{nonce}-1", messages)
            return answer.outcome(counted(stamped(nonce))), (answer,)
    first = ask(port, f"{nonce}-1", messages, tools=True)
    if (outcome := first.outcome("")) != WHOLE:
        return outcome, (first,)
    if [call["name"] for call in first.calls] != ["ask_user"]:
        return SHORT, (first,)
    [call] = first.calls
    function = {"name": call["name"], "arguments": call["arguments"]}
    messages += [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": call["id"], "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": call["id"], "content": f"yes-{nonce}"},
    ]
    think(nonce)
    second = ask(port, f"{nonce}-2", messages, tools=True)
    if second.finished and second.text == counted(f"yes-{nonce}", "missing"):
        return HALF, (first, second)
    return second.outcome(counted(stamped(nonce), f"yes-{nonce}")), (first, second)
