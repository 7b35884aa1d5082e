"""A rolling restart behind HAProxy, under load: no request is lost, no stream is cut."""

from __future__ import annotations

import contextlib
import csv
import http.client
import io
import json
import os
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from tests.test_twistd import PORT_LINE, Daemon, free_port, question

HAPROXY = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

pytestmark = pytest.mark.skipif(
    HAPROXY is None, reason="NO ROLLING RESTART IS TESTED: install the Debian package haproxy"
)

#: A plainer one than deploy/haproxy.cfg, which tests/deploy/ has: clients keep their connections.
#: HAProxy repeats by itself only what it could not even connect for.
CONFIGURATION = """
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    timeout check 10s
    option redispatch 1

frontend clients
    bind 127.0.0.1:{front}
    stats enable
    stats uri /haproxy
    default_backend llamaproxy

backend llamaproxy
    option httpchk GET /ready
    http-reuse {reuse}
    default-server check inter 200ms fall 1 rise 1
    server one 127.0.0.1:{one.port} port {one.admin}
    server two 127.0.0.1:{two.port} port {two.admin}
"""

#: What the load tells of answers that are as they should be.
KINDS = {"whole", "streamed", "listed"}


class Instance:
    """One of two daemons, on ports of its own, that can be started again."""

    def __init__(self, directory: Path, name: str) -> None:
        self.port, self.admin = free_port(), free_port()
        self._logs = (directory / f"{name}{count}.log" for count in range(9))
        self.daemon = self.start()

    def start(self) -> Daemon:
        admin = PORT_LINE.format(port=self.admin)
        self.daemon = Daemon(next(self._logs), "--demo", "--admin", admin, at=self.port)
        return self.daemon


@attrs.define
class Load:
    """Asks without a pause, on kept connections, from several threads."""

    port: int
    outcomes: Counter[str] = attrs.Factory(Counter)
    _over: threading.Event = attrs.Factory(threading.Event)
    _threads: list[threading.Thread] = attrs.Factory(list)

    def start(self, ask: Callable[[http.client.HTTPConnection], str], times: int) -> None:
        for _ in range(times):
            thread = threading.Thread(target=self._run, args=(ask,))
            thread.start()
            self._threads.append(thread)

    def _run(self, ask: Callable[[http.client.HTTPConnection], str]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            while not self._over.is_set():
                try:
                    outcome = ask(connection)
                except (OSError, http.client.HTTPException, ValueError) as error:
                    outcome = f"{ask.__name__} failed: {error!r}"
                    connection.close()
                self.outcomes[outcome] += 1

    def goes_on(self) -> Callable[[], bool]:
        """A condition: every kind of request has been answered again."""
        before = self.outcomes.copy()
        return lambda: all(self.outcomes[kind] > before[kind] for kind in KINDS)

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)


def chat(connection: http.client.HTTPConnection, text: str, stream: bool) -> tuple[int, bytes]:
    body = json.dumps(question(text, stream=stream))
    connection.request("POST", "/v1/chat/completions", body)
    response = connection.getresponse()
    return response.status, response.read()


def whole(connection: http.client.HTTPConnection) -> str:
    status, body = chat(connection, "What is 6*7?", stream=False)
    if status == 200 and json.loads(body)["choices"][0]["message"]["content"] == "6*7 = 42.":
        return "whole"
    return f"whole: {status} {body[:200]!r}"


def streamed(connection: http.client.HTTPConnection) -> str:
    status, body = chat(connection, "Wait 1 second, then what is 6*7?", stream=True)
    if status == 200 and body.endswith(b"data: [DONE]\n\n") and b'"error":{' not in body:
        return "streamed"
    return f"streamed: {status} {body[-300:]!r}"


def listed(connection: http.client.HTTPConnection) -> str:
    connection.request("GET", "/v1/models")
    response = connection.getresponse()
    body = response.read()
    if response.status == 200 and json.loads(body)["data"]:
        return "listed"
    return f"listed: {response.status} {body[:200]!r}"


def states(front: int) -> dict[str, str]:
    """What HAProxy thinks of its servers."""
    connection = http.client.HTTPConnection("127.0.0.1", front, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", "/haproxy;csv")
        table = connection.getresponse().read().decode().removeprefix("# ")
    rows = csv.DictReader(io.StringIO(table))
    return {row["svname"]: row["status"] for row in rows if row["pxname"] == "llamaproxy"}


def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.05)  # until another process is there; nothing tells


@contextlib.contextmanager
def haproxy(directory: Path, one: Instance, two: Instance, reuse: str) -> Iterator[int]:
    """Run HAProxy before two instances; its port."""
    front = free_port()
    path = directory / "haproxy.cfg"
    path.write_text(CONFIGURATION.format(front=front, one=one, two=two, reuse=reuse))
    assert HAPROXY is not None
    with (directory / "haproxy.log").open("wb") as log:
        process = subprocess.Popen([HAPROXY, "-db", "-f", str(path)], stdout=log, stderr=log)
    try:

        def serves() -> bool:
            assert process.poll() is None, (directory / "haproxy.log").read_text()
            with contextlib.suppress(OSError):
                return states(front)["BACKEND"] == "UP"
            return False

        until(serves)
        yield front
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("reuse", ["always", "never"])
def test_two_instances_are_restarted_in_turn(tmp_path: Path, reuse: str) -> None:
    """Kept connections are closed, or new ones made, while the daemon leaves."""
    instances = [Instance(tmp_path, "one"), Instance(tmp_path, "two")]
    try:
        with haproxy(tmp_path, instances[0], instances[1], reuse) as front:
            load = Load(front)
            load.start(whole, 6)
            load.start(streamed, 6)
            load.start(listed, 2)
            try:
                for instance in instances:
                    until(lambda: list(states(front).values()).count("UP") == 3)
                    until(load.goes_on())
                    instance.daemon.stop()
                    instance.start()
                until(lambda: list(states(front).values()).count("UP") == 3)
            finally:
                load.stop()
    finally:
        for instance in instances:
            instance.daemon.stop()
    assert load.outcomes.keys() == KINDS, load.outcomes
    for log in tmp_path.glob("*.log"):
        said = log.read_text()
        assert "Traceback" not in said
        assert "Unhandled" not in said
        assert "cut short" not in said
