"""Three replicas behind HAProxy, with the files of deploy/: pieces go under load, clients count.

What clients see of each piece that goes is printed (``pytest -s``), and written to the file that
``LLAMAPROXY_FIGURES`` names.
"""

from __future__ import annotations

import contextlib
import csv
import http.client
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from tests.test_twistd import PORT_LINE, ROOT, Daemon, environment, free_port

from .visitors import CUT, ERROR_EVENT, REFUSED, SHORT, WHOLE, Visit, Visitors

SEARCHED = f"{os.environ.get('PATH', '')}:/usr/sbin"
HAPROXY = shutil.which("haproxy", path=SEARCHED)

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        HAPROXY is None, reason="NO REPLICAS ARE TESTED: install the Debian package haproxy"
    ),
]

#: Visitors of each kind.
CROWD = {"plain": 9, "server": 6, "server whole": 3, "mixed": 6}

#: An answer's end as a client can tell it, if the one who answered is gone.
TOLD = {CUT, ERROR_EVENT, REFUSED}


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.05)  # until another process is there; nothing tells


def get(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", path)
        return connection.getresponse().read()


class Replica:
    """One of the daemons, that can be started again on its ports."""

    def __init__(self, directory: Path, name: str, *arguments: str) -> None:
        self.name = name
        self.port, self.admin = free_port(), free_port()
        self._arguments = arguments
        self._logs = (directory / f"{name}-{count}.log" for count in range(9))
        self.daemon = self.start()

    def start(self) -> Daemon:
        admin = PORT_LINE.format(port=self.admin)
        self.daemon = Daemon(
            next(self._logs), "--admin", admin, *self._arguments, at=self.port
        )
        return self.daemon

    def kill(self) -> None:
        self.daemon.process.send_signal(signal.SIGKILL)
        self.daemon.process.wait()


@attrs.frozen
class Balancer:
    """A running HAProxy."""

    port: int
    operators: int
    log: Path

    def servers(self) -> dict[str, dict[str, str]]:
        """What it thinks of its servers, by their names."""
        table = get(self.operators, "/;csv").decode().removeprefix("# ")
        rows = csv.DictReader(io.StringIO(table))
        return {row["svname"]: row for row in rows if row["pxname"] == "llamaproxy"}

    def all_up(self) -> bool:
        states = [row["status"] for name, row in self.servers().items() if name != "BACKEND"]
        return states == ["UP"] * len(states)

    def served_by(self) -> dict[str, str]:
        """The server that each request went to last, by its id."""
        lines = self.log.read_text()
        return {
            identity: server
            for server, identity in re.findall(r" llamaproxy/(\S+) .*\" (\S+)$", lines, re.M)
        }


def configuration(replicas: list[Replica], port: int, operators: int) -> str:
    """deploy/haproxy.cfg, with other addresses and checks in more of a hurry."""
    text = (ROOT / "deploy" / "haproxy.cfg").read_text()
    changes = {
        "bind :80\n": f"bind 127.0.0.1:{port}\n",
        "bind 127.0.0.1:8404": f"bind 127.0.0.1:{operators}",
        "check inter 1s": "check inter 200ms",
    }
    for number, replica in enumerate(replicas, 1):
        server = f"server llamaproxy-{number} "
        changes[f"{server}llamaproxy-{number}:8322 port 8323\n"] = (
            f"{server}127.0.0.1:{replica.port} port {replica.admin}\n"
        )
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


@contextlib.contextmanager
def balancer(directory: Path, replicas: list[Replica]) -> Iterator[Balancer]:
    running = Balancer(free_port(), free_port(), directory / "haproxy.out")
    path = directory / "haproxy.cfg"
    path.write_text(configuration(replicas, running.port, running.operators))
    assert HAPROXY is not None
    with running.log.open("wb") as log:
        process = subprocess.Popen([HAPROXY, "-db", "-f", str(path)], stdout=log, stderr=log)
    try:

        def serves() -> bool:
            assert process.poll() is None, running.log.read_text()
            with contextlib.suppress(OSError):
                return running.all_up()
            return False

        until(serves)
        yield running
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def counting_stack(directory: Path) -> Iterator[int]:
    """Run the stand-in for Llama Stack; its port."""
    port = free_port()
    with (directory / "stack.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.deploy.stack", str(port)],
            env=environment(),
            cwd=ROOT,
            stdout=log,
            stderr=log,
        )
    try:

        def serves() -> bool:
            assert process.poll() is None, (directory / "stack.log").read_text()
            with contextlib.suppress(OSError):
                return get(port, "/v1/version") != b""
            return False

        until(serves)
        yield port
    finally:
        process.kill()
        process.wait()


@attrs.define
class Story:
    """What happened, and what the visitors saw of each part of it."""

    visitors: Visitors
    _parts: list[tuple[str, float]] = attrs.Factory(list)

    def begins(self, part: str) -> None:
        self._parts.append((part, time.monotonic()))

    def visits(self, part: str) -> list[Visit]:
        """The visits that went on while *part* did, its beginning at least."""
        names = [name for name, _ in self._parts]
        at = names.index(part)
        start = self._parts[at][1]
        end = self._parts[at + 1][1] if at + 1 < len(self._parts) else float("inf")
        return [each for each in self.visitors.visits if start < each.ended <= end]

    def outcomes(self, part: str) -> Counter[str]:
        return Counter(visit.outcome for visit in self.visits(part))

    def report(self) -> dict[str, dict[str, int]]:
        return {part: dict(self.outcomes(part)) for part, _ in self._parts}


def check_counts(counts: dict[str, int], visitors: Visitors) -> None:
    """Nothing was sent twice, no tool run twice, and each was run that an answer quotes."""
    repeated = {name: count for name, count in counts.items() if count != 1}
    assert not repeated
    for visit in visitors.visits:
        if visit.outcome == WHOLE and visit.kind != "plain":
            nonce = visit.answers[0].identity.partition("-")[0]
            assert counts[f"tool {nonce}"] == 1


def check_logs(directory: Path) -> None:
    for log in directory.glob("*.log"):
        text = log.read_text()
        assert "Traceback" not in text, log
        assert "Unhandled" not in text, log


def report(story: Story) -> None:
    told = json.dumps(story.report(), indent=2)
    print(told)
    if path := os.environ.get("LLAMAPROXY_FIGURES"):
        Path(path).write_text(told)


def test_pieces_go_under_load_and_every_client_knows_what_it_has(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(counting_stack(tmp_path))
        url = f"http://127.0.0.1:{upstream}"
        replicas = [
            Replica(tmp_path, f"replica{number}", "--llamastack-url", url) for number in range(3)
        ]
        for replica in replicas:
            stack.callback(replica.kill)
        front = stack.enter_context(balancer(tmp_path, replicas))
        visitors = Visitors(front.port)
        stack.callback(visitors.stop)
        story = Story(visitors)
        one, two, _ = replicas

        story.begins("all are there")
        for kind, count in CROWD.items():
            visitors.start(kind, count)
        until(lambda: set(visitors.outcomes()) == set(CROWD))
        until(visitors.goes_on())

        story.begins("one is killed")
        until(lambda: int(front.servers()["llamaproxy-1"]["scur"]) > 2)
        one.kill()
        until(lambda: front.servers()["llamaproxy-1"]["status"].startswith("DOWN"))
        story.begins("two are there")
        until(visitors.goes_on())

        story.begins("it is started again")
        one.start()
        until(front.all_up)
        until(visitors.goes_on())

        story.begins("one is stopped and started")
        until(lambda: int(front.servers()["llamaproxy-2"]["scur"]) > 2)
        two.daemon.stop()
        two.start()
        until(front.all_up)
        until(visitors.goes_on())

        story.begins("the end")
        visitors.stop()
        report(story)
        counts = json.loads(get(upstream, "/counts"))

    assert SHORT not in Counter(visit.outcome for visit in visitors.visits)
    assert set(story.outcomes("all are there")) == {WHOLE}
    killed = story.outcomes("one is killed")
    assert set(killed) <= {WHOLE, *TOLD}
    assert killed.total() > killed[WHOLE], "nothing was cut: nothing is proved"
    check_counts(counts, visitors)
    check_logs(tmp_path)
