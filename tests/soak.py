"""Mixed load with clients that leave at any moment, for minutes: nothing may grow.

``python -m tests.soak --minutes 10`` from the project's root. Two daemons: one with the demo's
server, for chats, and one before a server with large answers, for what passes through.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import re
import socket
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import attrs

from tests.benchmarks.crowd import BIG, allow_descriptors, metrics, upstream
from tests.test_sockets import memory
from tests.test_twistd import PORT_LINE, Daemon, free_port, question

#: Clients at the same time, to each daemon.
CLIENTS = 8

#: The part of the time after which memory must have found its level.
WARM_UP = 0.4

#: Bytes by which a daemon may grow after the warm-up, whatever the length of the rest: what
#: fragments, and what is kept on purpose, are bounded; a leak is not.
GROWTH = 5_000_000

#: What no line of a log may say.
WRONG = re.compile("Traceback|Unhandled|CRITICAL|never retrieved")


class Ask:
    """A request: its bytes, and what a client that stays must get."""

    def __init__(self, line: str, body: bytes = b"", chunked: bool = False) -> None:
        self.method, self.path = line.split(" ")
        self.body = body
        self.chunked = chunked

    @property
    def wire(self) -> bytes:
        head = f"{self.method} {self.path} HTTP/1.1\r\nHost: proxy\r\n"
        if self.chunked:
            pieces = [self.body[i : i + 9999] for i in range(0, len(self.body), 9999)]
            body = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"
            return f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + body
        return f"{head}Content-Length: {len(self.body)}\r\n\r\n".encode() + self.body


def chat(text: str, stream: bool) -> Ask:
    body = json.dumps(question(text, stream=stream)).encode()
    return Ask("POST /v1/chat/completions", body)


CHATS = {
    "whole": chat("What is 6*7?", stream=False),
    "streamed": chat("What is 6*7?", stream=True),
    "slow tool": chat("Wait 0.5 seconds, then what is 6*7?", stream=True),
    "small talk": chat("Hello there", stream=True),
    "nonsense": Ask("POST /v1/chat/completions", b"{"),
    "models": Ask("GET /v1/models"),
    "missing": Ask("GET /v1/nothing"),
}

PASSED = {
    "small": Ask("GET /v1/models"),
    "big": Ask("GET /big"),
    "upload": Ask("POST /v1/files", random.Random(1).randbytes(700_000)),
    "small upload": Ask("POST /v1/files", b"x" * 700),
    "chunked upload": Ask("POST /v1/files", b"x" * 300_000, chunked=True),
}

#: The answers to clients that stay, by status and by something in them.
EXPECTED = {
    "whole": (200, b"6*7 = 42."),
    "streamed": (200, b"data: [DONE]\n\n"),
    "slow tool": (200, b"data: [DONE]\n\n"),
    "small talk": (200, b"data: [DONE]\n\n"),
    "nonsense": (400, b'"error"'),
    "models": (200, b'"data"'),
    "missing": (404, b""),
    "small": (200, b'"data"'),
    "big": (200, b""),
    "upload": (200, b'"data"'),
    "small upload": (200, b'"data"'),
    "chunked upload": (200, b'"data"'),
}


@attrs.define
class Client:
    """Asks again and again; what it does is the generator's choice."""

    port: int
    asks: dict[str, Ask]
    choose: random.Random
    outcomes: Counter[str]
    wrong: list[str]
    over: threading.Event

    def run(self) -> None:
        kept = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(kept):
            while not self.over.is_set():
                name = self.choose.choice(list(self.asks))
                fate = self.choose.choice(["stays", "stays", "slow", "leaves", "never asks"])
                try:
                    outcome = self._ask(kept, name, fate)
                except (OSError, http.client.HTTPException) as error:
                    kept.close()
                    outcome = "wrong"
                    self.wrong.append(f"{name}, {fate}: {error!r}")
                self.outcomes[f"{name} {outcome}"] += 1

    def _ask(self, kept: http.client.HTTPConnection, name: str, fate: str) -> str:
        ask = self.asks[name]
        if fate == "stays" and not ask.chunked:
            kept.request(ask.method, ask.path, ask.body or None)
            response = kept.getresponse()
            return self._judge(name, response.status, response.read())
        with socket.create_connection(("127.0.0.1", self.port), 60) as client:
            if self.choose.random() < 0.5:  # closed with a reset
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if fate == "never asks":
                client.sendall(ask.wire[: self.choose.randrange(len(ask.wire))])
                return "never asked"
            client.sendall(ask.wire)
            if fate == "leaves":
                if self.choose.random() < 0.7:
                    client.settimeout(self.choose.random())
                    with contextlib.suppress(TimeoutError):
                        client.recv(self.choose.randrange(1, 5000))
                return "left"
            return self._judge(name, *self._slowly(client))

    def _slowly(self, client: socket.socket) -> tuple[int, bytes]:
        response = http.client.HTTPResponse(client)
        response.begin()
        parts = []
        while part := response.read1(200_000):
            parts.append(part)
            self.over.wait(0.02)
        response.close()
        return response.status, b"".join(parts)

    def _judge(self, name: str, status: int, body: bytes) -> str:
        expected, text = EXPECTED[name]
        size = BIG if name == "big" else len(body)
        broken = expected == 200 and b'"error":{' in body[-300:]
        if status != expected or text not in body or len(body) != size or broken:
            self.wrong.append(f"{name}: {status} {body[-200:]!r}")
            return "wrong"
        return "answered"


@attrs.define
class Watched:
    """A daemon, and what it holds."""

    name: str
    daemon: Daemon
    admin: int
    descriptors: int = 0
    level: int = 0

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.daemon.process.pid}/fd"))

    def rest(self) -> None:
        """Wait until it serves nobody.

        :raises AssertionError: if it goes on for longer than what it keeps may wait.
        """
        limit = time.monotonic() + 40
        while True:
            counted = metrics(self.admin)
            files = self.open_files()
            busy = counted["llamaproxy_connections"] or counted["llamaproxy_requests_running"]
            if not busy and (not self.descriptors or files <= self.descriptors):
                return
            assert time.monotonic() < limit, (self.name, files, self.descriptors, counted)
            time.sleep(0.2)  # until connections that are kept for a while are closed

    def resident(self) -> int:
        return memory(self.daemon.process.pid)


@contextlib.contextmanager
def watched(name: str, directory: Path, *arguments: str) -> Iterator[Watched]:
    """Run a daemon."""
    admin = free_port()
    port = PORT_LINE.format(port=admin)
    daemon = Daemon(directory / f"{name}.log", "--admin", port, *arguments)
    try:
        yield Watched(name, daemon, admin)
    finally:
        daemon.process.kill()
        daemon.process.wait()


def soak(directory: Path, minutes: float, seed: int) -> Counter[str]:
    """Run the load; what was answered, by kind.

    :raises AssertionError: for a wrong answer, a line in a log, or something that has grown.
    """
    seconds = minutes * 60
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    over = threading.Event()
    with contextlib.ExitStack() as stack:
        demo = stack.enter_context(watched("demo", directory, "--demo"))
        url = stack.enter_context(upstream())
        plain = stack.enter_context(watched("plain", directory, "--llamastack-url", url))
        both = (demo, plain)
        for each in both:
            each.rest()
            each.descriptors = each.open_files()
        threads = [
            threading.Thread(
                target=Client(
                    daemon.daemon.port,
                    asks,
                    random.Random(f"{seed} {daemon.name} {number}"),
                    outcomes,
                    wrong,
                    over,
                ).run
            )
            for daemon, asks in ((demo, CHATS), (plain, PASSED))
            for number in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        over.wait(seconds * WARM_UP)
        for each in both:
            each.level = each.resident()
        over.wait(seconds * (1 - WARM_UP))
        over.set()
        for thread in threads:
            thread.join()
        for each in both:
            each.rest()
            grown = each.resident() - each.level
            print(f"{each.name}: {each.level / 1e6:.1f} MB, {grown / 1e6:+.1f} MB", file=sys.stderr)
            assert grown < GROWTH, (each.name, each.level, grown)
            each.daemon.stop()
            said = each.daemon.log.read_text()
            found = WRONG.search(said)
            assert found is None, said[max(0, found.start() - 500) : found.end() + 3000]
        assert not wrong, (len(wrong), wrong[:10])
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = parser.parse_args()
    allow_descriptors()
    print(f"seed {options.seed}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as directory:
        outcomes = soak(Path(directory), options.minutes, options.seed)
    for kind, count in sorted(outcomes.items()):
        print(f"{kind:<28}{count:>8}")


if __name__ == "__main__":
    main()
