"""What the admin port of a daemon with workers shows, with processes as they are."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from llamaproxy.admin import names
from tests.admin.test_metrics_files import KINDS
from tests.test_twistd import environment, free_port
from tests.workers.processes import Workers, until, workers

__all__ = ["environment"]

QUICK = "What is 6*7?"
ENDLESS = "Wait 60 seconds, then what is 6*7?"


class Watched:
    """A daemon with two workers, and its admin port."""

    def __init__(self, daemon: Workers, admin: int) -> None:
        self.daemon = daemon
        self.admin = admin
        self.answered = 0

    def ask(self, path: str, method: str = "GET", body: Any = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.admin, timeout=30)
        try:
            fields = {} if body is None else {"Content-Type": "application/json"}
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, fields)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def metrics(self) -> dict[str, float]:
        """All samples, by name and the values of labels."""
        return {
            " ".join((sample.name, *(value for _, value in sorted(sample.labels.items())))): (
                sample.value
            )
            for family in text_string_to_metric_families(self.ask("/metrics")[1].decode())
            for sample in family.samples
        }

    def status(self) -> Any:
        return json.loads(self.ask("/status")[1])

    def chats(self) -> None:
        """Streamed chats, some at every worker, that are answered."""
        streams = self.daemon.streams(QUICK)
        assert all(stream.end().endswith(b"data: [DONE]\n\n") for stream in streams)
        self.answered += len(streams)


class Feed:
    """A page that is open."""

    def __init__(self, watched: Watched) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", watched.admin, timeout=30)
        self.connection.request("GET", "/feed")
        self.response = self.connection.getresponse()
        self.rows: dict[int, Any] = {}
        self.events: set[bytes] = set()
        self._name = b""

    def read_until(self, condition: Any) -> None:
        """Read on until *condition* holds of the rows."""
        while not condition(list(self.rows.values())):
            assert self._read_line(), "the feed has ended"

    def read_all(self) -> None:
        """Read on until the feed ends."""
        while self._read_line():
            pass

    def _read_line(self) -> bool:
        """Whether there was one more."""
        line = self.response.readline()
        name = self._name
        if line.startswith(b"event: "):
            self._name = line[7:].strip()
            self.events.add(self._name)
        elif line.startswith(b"data: ") and name == b"rows":
            self.rows |= {row["key"]: row for row in json.loads(line[6:])["rows"]}
        elif line.startswith(b"data: ") and name == b"gone":
            for key in json.loads(line[6:])["keys"]:
                del self.rows[key]
        return bool(line)


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    admin = free_port()
    with workers(tmp_path / "log", "--admin", f"tcp:{admin}:interface=127.0.0.1") as daemon:
        yield Watched(daemon, admin)


def test_sums_are_what_was_sent_and_a_kill_takes_nothing_back(watched: Watched) -> None:
    watched.chats()
    chats = "llamaproxy_requests_total chat 200"
    until(lambda: watched.metrics()[chats] == watched.answered)
    text = watched.ask("/metrics")[1].decode()
    assert dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)) == KINDS
    before = watched.metrics()
    assert before["llamaproxy_request_duration_seconds_count chat"] == watched.answered
    assert before["llamaproxy_workers"] == before["llamaproxy_workers_answered"] == 2
    first, second = watched.status()["workers"]
    assert {first["pid"], second["pid"]} == watched.daemon.pids
    for number in ("1", "2"):
        for series in (names.WORKER_MEMORY, names.WORKER_CPU, names.WORKER_FILES):
            assert before[f"{series.name} {number}"] > 0
    os.kill(first["pid"], signal.SIGKILL)
    until(lambda: watched.metrics()["llamaproxy_worker_restarts_total 1"] == 1)
    counters = {series.name: series.kind for series in names.EVERY if series.kind != "gauge"}
    while True:
        after = watched.metrics()
        for name, value in before.items():
            whole = re.sub("_(bucket|sum|count)$", "", name.split(" ")[0])
            if whole in counters:
                assert after[name] >= value, name
        if after["llamaproxy_workers"] == 2:
            break
    watched.chats()
    until(lambda: watched.metrics()[chats] == watched.answered)
    assert watched.status()["tool_groups"]["demo::tools"]["calls"] == watched.answered
    assert [each["restarts"] for each in watched.status()["workers"]] == [1, 0]
    assert "memory_store" not in watched.status(), "without --memory there is none"


def test_a_page_shows_all_workers_stops_where_it_runs_and_ends_what_is_killed(
    watched: Watched,
) -> None:
    watched.chats()
    feed = Feed(watched)
    feed.read_until(lambda rows: len(rows) == watched.answered)
    assert {key % 2 for key in feed.rows} == {0, 1}
    for key, row in feed.rows.items():
        status, body = watched.ask(f"/answers/{key}")
        assert (status, json.loads(body)["id"]) == (200, row["id"])
    streams = watched.daemon.streams(ENDLESS)
    ids = {stream.response.headers["X-Request-Id"]: stream for stream in streams}

    def running(rows: list[Any]) -> list[int]:
        return [row["key"] for row in rows if row["id"] in ids and not row["status"]]

    feed.read_until(lambda rows: len(running(rows)) == len(streams))
    [stopped, *_] = running(list(feed.rows.values()))
    assert watched.ask(f"/answers/{stopped}/stop", "POST", {})[0] == 204
    victim = ids[feed.rows[stopped]["id"]]
    assert b'"code":"stopped"' in victim.end()
    killed = next(stream for stream in streams if stream.pid != victim.pid)
    os.kill(killed.pid, signal.SIGKILL)
    ended_with_it = {id for id, stream in ids.items() if stream.pid == killed.pid}
    feed.read_until(
        lambda rows: {row["id"] for row in rows if row["kind"] == "worker_gone"} == ended_with_it
    )
    for stream in streams:
        stream.connection.close()
    feed.connection.close()


def test_a_page_is_told_of_the_drain_and_how_the_last_answers_ended(tmp_path: Path) -> None:
    admin = free_port()
    drain = ("--drain-timeout", "1", "--admin", f"tcp:{admin}:interface=127.0.0.1")
    with workers(tmp_path / "log", *drain) as daemon:
        feed = Feed(Watched(daemon, admin))
        streams = daemon.streams(ENDLESS)
        feed.read_until(lambda rows: len(rows) == len(streams))
        daemon.send(signal.SIGTERM)
        feed.read_all()
        assert b"draining" in feed.events
        ends = {(row["status"], row["kind"]) for row in feed.rows.values()}
        assert ends == {(200, "shutting_down")}
        for stream in streams:
            assert b"shutting_down" in stream.end()
        daemon.ended()


def test_the_level_of_the_log_is_that_of_workers_too(watched: Watched) -> None:
    assert watched.ask("/ready")[0] == 200
    assert watched.ask("/log-level", "POST", {"level": "error"})[0] == 200
    before = watched.daemon.log.count("POST /v1/chat/completions")
    watched.chats()
    assert watched.ask("/log-level", "POST", {"level": "info"})[0] == 200
    assert watched.daemon.log.count("POST /v1/chat/completions") == before
    watched.chats()
    until(lambda: watched.daemon.log.count("POST /v1/chat/completions") > before)
