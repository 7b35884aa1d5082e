"""Three replicas behind HAProxy, with the files of deploy/: pieces go under load, clients count.

What clients see of each piece that goes is printed (``pytest -s``), and written to the file that
``LLAMAPROXY_FIGURES`` names.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from tests.test_twistd import PORT_LINE, ROOT, Daemon, environment, free_port

from .balancers import Place, get, haproxy, needs, until
from .visitors import CUT, ERROR_EVENT, REFUSED, SHORT, WHOLE, Visit, Visitors

pytestmark = [pytest.mark.real, needs("haproxy")]

#: Visitors of each kind.
CROWD = {"plain": 9, "server": 6, "server whole": 3, "mixed": 6}

#: An answer's end as a client can tell it, if the one who answered is gone.
TOLD = {CUT, ERROR_EVENT, REFUSED}


class Replica:
    """One of the daemons, that can be started again on its ports."""

    def __init__(self, directory: Path, name: str, *arguments: str) -> None:
        self.name = name
        self.place = Place(free_port(), free_port())
        self._arguments = arguments
        self._logs = (directory / f"{name}-{count}.log" for count in range(9))
        self.daemon = self.start()

    def start(self) -> Daemon:
        admin = PORT_LINE.format(port=self.place.admin)
        self.daemon = Daemon(
            next(self._logs), "--admin", admin, *self._arguments, at=self.place.port
        )
        return self.daemon

    def kill(self) -> None:
        self.daemon.process.send_signal(signal.SIGKILL)
        self.daemon.process.wait()


def served_by(log: Path) -> dict[str, str]:
    """The server that HAProxy sent each request to, by the request's id."""
    lines = re.findall(r" llamaproxy/(\S+) .*\" (\S+)$", log.read_text(), re.MULTILINE)
    return {identity: server for server, identity in lines}


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
        places = [replica.place for replica in replicas]
        front = stack.enter_context(haproxy(tmp_path, places))
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
