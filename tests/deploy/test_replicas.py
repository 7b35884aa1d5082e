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

from .balancers import Place, find, get, haproxy, needs, until
from .visitors import CUT, ERROR_EVENT, HALF, REFUSED, WHOLE, Visit, Visitors

STORE = next(filter(find, ("valkey-server", "redis-server")), "redis-server")

pytestmark = [pytest.mark.real, needs("haproxy"), needs(STORE)]

#: Visitors of each kind.
CROWD = {"plain": 9, "server": 6, "server by SDK": 4, "mixed": 6}

#: An answer's end as a client can tell it, if the one who answered is gone.
TOLD = {CUT, ERROR_EVENT, REFUSED}


class Replica:
    """One of the daemons, that can be started again on its ports."""

    def __init__(self, directory: Path, name: str, *arguments: str) -> None:
        self.late = 0
        self.place = Place(free_port(), free_port())
        self._arguments = arguments
        self._logs = (directory / f"{name}-{count}.log" for count in range(9))
        self.daemon = self.start()

    def start(self) -> Daemon:
        admin = PORT_LINE.format(port=self.place.admin)
        self.daemon = Daemon(
            next(self._logs),
            *("--admin", admin, *self._arguments),
            at=self.place.port,
            LLAMAPROXY_MEMORY_SECRET="a secret of all three",
        )
        return self.daemon

    def shares(self) -> bool:
        """Whether it asks the store."""
        return b"\nllamaproxy_memory_store_up 1.0\n" in get(self.place.admin, "/metrics")

    def count_late(self) -> None:
        """Before it goes: how often the store has not answered it in time."""
        pattern = rb'\nllamaproxy_memory_store_errors_total{kind="slow"} (\d+)'
        [count] = re.findall(pattern, get(self.place.admin, "/metrics"))
        self.late += int(count)

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
class Store:
    """A Valkey or Redis, that keeps nothing when it is stopped."""

    directory: Path
    port: int = attrs.Factory(free_port)
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = find(STORE)
        assert program is not None
        with (self.directory / "redis.out").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(program, "--port", str(self.port), "--bind", "127.0.0.1"),
                    *("--save", "", "--dir", str(self.directory)),
                ],
                stdout=log,
                stderr=log,
            )

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
            self._process = None


@attrs.define
class Story:
    """What happened, and what the visitors saw of each part of it."""

    visitors: Visitors
    _parts: list[tuple[str, float]] = attrs.Factory(list)

    def begins(self, part: str) -> None:
        self._parts.append((part, time.monotonic()))

    def visits(self, part: str) -> list[Visit]:
        """The visits that ended while *part* went on."""
        names = [name for name, _ in self._parts]
        at = names.index(part)
        start = self._parts[at][1]
        end = self._parts[at + 1][1] if at + 1 < len(self._parts) else float("inf")
        return [each for each in self.visitors.visits if start < each.ended <= end]

    def moment(self, part: str) -> float:
        """When *part* began."""
        [start] = [moment for name, moment in self._parts if name == part]
        return start

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


def report(story: Story, changed: int) -> None:
    told = json.dumps({**story.report(), "turns that changed replica": changed}, indent=2)
    print(told)
    if path := os.environ.get("LLAMAPROXY_FIGURES"):
        Path(path).write_text(told)


def check_outcomes(story: Story, outage: tuple[float, float], late: int, log: Path) -> None:
    """What clients saw is what they may see, where and when they may.

    :param outage: when the store was away.
    :param late: how often it did not answer in time else, as the replicas have counted.
    """
    servers = served_by(log)
    killed, down = story.moment("one is killed"), story.moment("two are there")
    for visit in story.visitors.visits:
        last = visit.answers[-1].identity
        if visit.outcome in TOLD:
            # Nobody is cut but by the one that was killed, and only then.
            assert servers[last] == "llamaproxy-1", visit
            assert visit.began < down and killed < visit.ended, visit
        else:
            assert visit.outcome in (WHOLE, HALF), visit
    halves = [visit for visit in story.visitors.visits if visit.outcome == HALF]
    # Nobody's turn is halved but while the store was away, or late.
    start, end = outage
    others = [visit for visit in halves if visit.ended < start or end < visit.began]
    assert len(others) <= late
    # New ones go elsewhere, and are whole.
    after = [each for each in story.visits("two are there") if each.began > down]
    assert after
    assert "llamaproxy-1" not in {servers[a.identity] for visit in after for a in visit.answers}


def changed_replica(visitors: Visitors, log: Path) -> int:
    """How many turns were begun by one replica and whole when another had ended them."""
    servers = served_by(log)
    mixed = [each for each in visitors.visits if each.kind == "mixed" and each.outcome == WHOLE]
    return sum(len({servers[answer.identity] for answer in each.answers}) == 2 for each in mixed)


def test_pieces_go_under_load_and_every_client_knows_what_it_has(tmp_path: Path) -> None:
    """One replica is killed, one stopped and started, and so is the store."""
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(counting_stack(tmp_path))
        store = Store(tmp_path)
        stack.callback(store.stop)
        store.start()
        options = [
            *("--llamastack-url", f"http://127.0.0.1:{upstream}"),
            *("--memory", f"redis://127.0.0.1:{store.port}"),
        ]
        replicas = []
        for number in (1, 2, 3):
            replicas.append(Replica(tmp_path, f"replica-{number}", *options))
            stack.callback(replicas[-1].kill)
        places = [replica.place for replica in replicas]
        front = stack.enter_context(haproxy(tmp_path, places))
        visitors = Visitors(front.port)
        stack.callback(visitors.stop)
        story = Story(visitors)

        def busy(name: str) -> bool:
            return int(front.servers()[name]["scur"]) > 2

        def all_share() -> bool:
            return all(replica.shares() for replica in replicas)

        story.begins("all are there")
        until(all_share)
        for kind, count in CROWD.items():
            visitors.start(kind, count)
        until(lambda: set(visitors.outcomes()) == set(CROWD))
        until(visitors.goes_on())

        story.begins("one is killed")
        until(lambda: busy("llamaproxy-1"))
        replicas[0].count_late()
        replicas[0].kill()
        until(lambda: front.servers()["llamaproxy-1"]["status"].startswith("DOWN"))
        story.begins("two are there")
        until(visitors.goes_on())
        replicas[0].start()
        until(front.all_up)

        story.begins("one is stopped and started")
        until(lambda: busy("llamaproxy-2"))
        replicas[1].count_late()
        replicas[1].daemon.stop()
        replicas[1].start()
        until(front.all_up)
        until(visitors.goes_on())

        story.begins("the store is away")
        stopped = time.monotonic()
        store.stop()
        until(visitors.goes_on())
        store.start()
        until(all_share)
        started = time.monotonic()
        story.begins("the store is back")
        until(visitors.goes_on())

        visitors.stop()
        for replica in replicas:
            replica.count_late()
        changed = changed_replica(visitors, front.log)
        report(story, changed)
        counts = json.loads(get(upstream, "/counts"))

    late = sum(replica.late for replica in replicas)
    check_outcomes(story, (stopped, started), late, front.log)
    killed = story.outcomes("one is killed")
    assert killed.total() > killed[WHOLE], "nothing was cut: nothing is proved"
    assert changed > 10
    check_counts(counts, visitors)
    check_logs(tmp_path)
