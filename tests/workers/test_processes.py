"""A daemon with workers as processes: both serve, one is killed or stuck, signals, their end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from pathlib import Path

import pytest

from tests.test_restart import Load, listed, streamed, whole
from tests.test_twistd import Daemon
from tests.workers.processes import is_there, until, workers

#: How a daemon ends that SIGTERM or SIGINT has ended.
ENDED = {0, -signal.SIGTERM, -signal.SIGINT}

SLOW = "Wait 1 second, then what is 6*7?"
ENDLESS = "Wait 60 seconds, then what is 6*7?"


def is_whole(answer: bytes) -> bool:
    return answer.endswith(b"data: [DONE]\n\n") and b'"error":{' not in answer


def test_all_serve_and_say_who_they_are(tmp_path: Path) -> None:
    with workers(tmp_path / "log", "--log-format", "json") as daemon:
        assert len(daemon.pids) == 2
        streams = daemon.streams(SLOW)
        assert all(is_whole(stream.end()) for stream in streams)
        daemon.send(signal.SIGTERM)
        assert daemon.ended() in ENDED
        lines = [json.loads(line) for line in daemon.log.splitlines()]
    answered = [line["worker"] for line in lines if line.get("path") == "/v1/chat/completions"]
    assert len(answered) == len(streams) and set(answered) == {1, 2}
    assert "worker" not in lines[0], "the parent is none"


def test_who_is_killed_takes_only_its_own_requests_along(tmp_path: Path) -> None:
    with workers(tmp_path / "log") as daemon:
        before = daemon.pids
        streams = daemon.streams(SLOW)
        killed = streams[0].pid
        os.kill(killed, signal.SIGKILL)
        for stream in streams:
            assert is_whole(stream.end()) == (stream.pid != killed)
        daemon.wait_for(3)
        assert len(daemon.pids) == 2 and killed not in daemon.pids and before & daemon.pids
        assert all(is_whole(stream.end()) for stream in daemon.streams(SLOW))
        assert f"process {killed}, has ended: signal 9" in daemon.log
        daemon.send(signal.SIGTERM)
        assert daemon.ended() in ENDED


def test_a_worker_that_is_killed_under_load_costs_each_client_one_request(tmp_path: Path) -> None:
    with workers(tmp_path / "log") as daemon:
        load = Load(daemon.daemon.port)
        load.start(whole, 2)
        load.start(streamed, 4)
        load.start(listed, 2)
        try:
            until(load.goes_on())
            os.kill(min(daemon.pids), signal.SIGKILL)
            daemon.wait_for(3)
            until(load.goes_on())
        finally:
            load.stop()
        failed = sum(n for kind, n in load.outcomes.items() if "failed" in kind)
        wrong = [kind for kind in load.outcomes if ": " in kind and "failed" not in kind]
        assert failed <= 8 and not wrong, load.outcomes


def test_a_worker_that_is_stuck_is_replaced(tmp_path: Path) -> None:
    with workers(tmp_path / "log") as daemon:
        stuck = min(daemon.pids)
        os.kill(stuck, signal.SIGSTOP)
        daemon.wait_for(3)
        assert not is_there(stuck)
        assert re.search(rf"worker \d, process {stuck}, is stuck", daemon.log)
        assert all(is_whole(stream.end()) for stream in daemon.streams(SLOW))


def test_what_is_being_served_ends_before_the_daemon_does(tmp_path: Path) -> None:
    with workers(tmp_path / "log") as daemon:
        streams = daemon.streams(SLOW)
        daemon.send(signal.SIGTERM)
        until(lambda: refuses(daemon.daemon.port))
        assert daemon.daemon.process.poll() is None
        assert all(is_whole(stream.end()) for stream in streams)
        assert daemon.ended() in ENDED
        assert "Traceback" not in daemon.log and "Unhandled" not in daemon.log


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 10).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_all_processes_may_get_the_signal(tmp_path: Path, number: int) -> None:
    """From a terminal, or from a service manager that sends it to all."""
    with workers(tmp_path / "log") as daemon:
        streams = daemon.streams(SLOW)
        for pid in [*daemon.pids, daemon.pid]:
            os.kill(pid, number)
        assert all(is_whole(stream.end()) for stream in streams)
        assert daemon.ended() in ENDED
        assert "Traceback" not in daemon.log and "has ended" not in daemon.log


def test_a_second_signal_ends_what_is_being_served(tmp_path: Path) -> None:
    with workers(tmp_path / "log") as daemon:
        streams = daemon.streams(ENDLESS)
        daemon.send(signal.SIGTERM)
        until(lambda: refuses(daemon.daemon.port))
        daemon.send(signal.SIGTERM)
        for stream in streams:
            answer = stream.end()
            assert b'"error":{' in answer and answer.endswith(b"data: [DONE]\n\n")
        assert daemon.ended() in ENDED


def test_a_worker_that_is_told_to_end_ends_in_good_order(tmp_path: Path) -> None:
    with workers(tmp_path / "log") as daemon:
        streams = daemon.streams(SLOW)
        os.kill(streams[0].pid, signal.SIGTERM)
        assert all(is_whole(stream.end()) for stream in streams)
        daemon.wait_for(3)
        assert streams[0].pid not in daemon.pids


def test_workers_end_in_good_order_when_their_parent_is_killed(tmp_path: Path) -> None:
    # The stand-in would end with the parent.
    upstream = Daemon(tmp_path / "upstream", "--demo")
    server = f"http://127.0.0.1:{upstream.port}"
    try:
        with workers(tmp_path / "log", "--llamastack-url", server) as daemon:
            streams = daemon.streams(SLOW)
            daemon.send(signal.SIGKILL)
            assert all(is_whole(stream.end()) for stream in streams)
            until(lambda: not any(map(is_there, daemon.seen)))
            assert refuses(daemon.daemon.port)
    finally:
        upstream.process.kill()
        upstream.process.wait()
