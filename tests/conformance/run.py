"""Runs one case against one server, and judges what came of it."""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import time

from .case import ANY, AUTHORITY, CLOSED, OPEN, SILENCE, Case, Outcome
from .upstream import Upstream
from .wire import CLOSE, HALF_CLOSE, RESET, Malformed, Pause, Reply, Step, Until, replies

_probes = itertools.count()


class _Client:
    """A connection that is written to and read from at the same time, as real clients do."""

    def __init__(self, port: int, deadline: float) -> None:
        self.raw = b""
        self.closed = False
        self._deadline = deadline
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=5)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(False)
        self.ours_closed = False

    def close(self) -> None:
        self._socket.close()

    def do(self, step: Step) -> None:
        """Carry a step out; one that is no longer possible is left out."""
        if isinstance(step, bytes):
            self._send(step)
        elif isinstance(step, Pause):
            until = time.monotonic() + step.seconds
            while time.monotonic() < until and not self.closed:
                self.read(until)
        elif isinstance(step, Until):
            while step.text not in self.raw and self.read():
                pass
        elif step is HALF_CLOSE:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
            self.ours_closed = True
        else:
            assert step in (CLOSE, RESET)
            self.closed = self.ours_closed = True

    def read(self, until: float | None = None, writing: bool = False) -> bool:
        """Wait for something to happen; false if nothing can, or nothing did in time."""
        if self.closed:
            return False
        left = (until or self._deadline) - time.monotonic()
        if left <= 0:
            return False
        writers = [self._socket] if writing else []
        readable, writable, _ = select.select([self._socket], writers, [], left)
        if readable:
            try:
                data = self._socket.recv(262144)
            except OSError:
                data = b""
            self.raw += data
            self.closed = not data
        return bool(readable or writable)

    def _send(self, text: bytes) -> None:
        left = memoryview(text)
        while left and self.read(writing=True) and not self.closed:
            try:
                left = left[self._socket.send(left) :]
            except BlockingIOError:
                continue
            except OSError:
                # The server has closed; what it said before that is still to be read.
                while self.read():
                    pass
                return


def run(case: Case, port: int, upstream: Upstream) -> list[str]:
    """What is wrong about a case; empty if nothing is."""
    upstream.prepare(case.answers)
    client = _Client(port, time.monotonic() + case.timeout)
    try:
        for step in case.send:
            if isinstance(step, bytes):
                step = step.replace(AUTHORITY, b"127.0.0.1:%d" % port)
            client.do(step)
        outcome = _read(case, client, upstream, len(case.statuses))
        problems = _judged(case, outcome)
        problems += _afterwards(case, client, outcome, upstream)
    finally:
        client.close()
    return problems


def _read(case: Case, client: _Client, upstream: Upstream, wanted: int) -> Outcome:
    """Read until there are so many final answers, or there will be no more."""
    while True:
        try:
            found, wrong = replies(client.raw, case.asked, client.closed), ""
        except Malformed as error:
            found, wrong = [], str(error)
        outcome = Outcome(client.raw, found, wrong, client.closed, upstream.seen, upstream.garbage)
        whole = [reply for reply in outcome.finals if reply.complete]
        if len(whole) >= wanted or wrong or not client.read():
            return outcome


def _judged(case: Case, outcome: Outcome) -> list[str]:
    """What is wrong with the answers and with what the upstream saw."""
    if outcome.malformed and not (case.cut and outcome.closed):
        return [f"malformed answer: {outcome.malformed}"]
    problems = [f"upstream saw no request: {each}" for each in outcome.garbage]
    found = [reply.status for reply in outcome.finals] or ([SILENCE] if outcome.closed else [])
    wanted = case.statuses
    if len(found) != len(wanted) or any(
        status not in allowed for status, allowed in zip(found, wanted, strict=False)
    ):
        problems.append(f"status {_listed(found)} instead of {_wanted(wanted)}")
    last = outcome.finals[-1] if outcome.finals else None
    if last is not None and last.complete and case.cut and last.status < 400:
        problems.append("the answer seems whole")
    if last is not None and not last.complete:
        if not case.cut:
            problems.append("the answer breaks off")
        elif not outcome.closed:
            problems.append("the answer stalls")
    count = len(outcome.seen)
    if case.seen is None:
        due = sum(200 <= status < 400 for status in found)
        if count != due:
            problems.append(f"upstream saw {count} requests instead of {due}")
    elif count not in case.seen:
        problems.append(f"upstream saw {count} requests")
    return problems + [said for check in case.checks if (said := check(outcome))]


def _afterwards(case: Case, client: _Client, outcome: Outcome, upstream: Upstream) -> list[str]:
    """What is wrong with the connection after the answers."""
    last: Reply | None = outcome.finals[-1] if outcome.finals else None
    if client.ours_closed or last is None or not last.complete or outcome.malformed:
        return []
    must_close = case.after == CLOSED or (case.after == ANY and not last.persistent)
    if must_close:
        before = len(client.raw)
        limit = time.monotonic() + 1
        while client.read(limit):
            pass
        if not client.closed:
            return ["the connection stays open"]
        return [f"more came: {client.raw[before:][:60]!r}"] if len(client.raw) > before else []
    if case.after == OPEN and not last.persistent:
        return ["the connection is not kept"]
    if last.status == 400 and case.after == ANY and not outcome.seen:
        return ["400 without closing"]
    token = b"/probe%d" % next(_probes)
    client.do(b"GET %b HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n" % token)
    more = _read(case, client, upstream, len(outcome.finals) + 1).finals
    if len(more) != len(outcome.finals) + 1 or more[-1].body != b"GET " + token:
        said = [(reply.status, reply.body[:40]) for reply in more[len(outcome.finals) :]]
        return [f"out of step afterwards: {said or 'closed unannounced'}"]
    return []


def _listed(statuses: list[int]) -> str:
    return " ".join("silence" if s == SILENCE else str(s) for s in statuses) or "none"


def _wanted(wanted: tuple[frozenset[int], ...]) -> str:
    return " ".join("/".join(str(s) for s in sorted(each)) for each in wanted)
