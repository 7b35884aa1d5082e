"""A small crowd: many who are idle, who do not end their requests, who do not read their answers.

``python -m tests.benchmarks.crowd`` has a large one, and takes the time; no test does that.
"""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks.crowd import BIG, KINDS, ask, crowded, metrics, settled, upstream
from tests.test_restart import until
from tests.test_twistd import PORT_LINE, Daemon, free_port


def test_a_crowd_keeps_nobody_else_from_being_served(tmp_path: Path) -> None:
    admin = free_port()
    with upstream() as url:
        daemon = Daemon(
            tmp_path / "log",
            *("--llamastack-url", url, "--admin", PORT_LINE.format(port=admin)),
        )
        try:
            before = settled(daemon.process.pid)
            with crowded(daemon.port) as crowd:
                crowd.idle(200)
                crowd.half_sent(50)
                crowd.slow_readers(50)
                assert connections(admin) == 300
                for kind in KINDS:
                    ask(daemon.port, kind, 20)
                assert settled(daemon.process.pid) - before < 50 * BIG / 5
            until(lambda: connections(admin) == 0)
            ask(daemon.port, "health", 1)
        finally:
            daemon.stop()
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert "Unhandled" not in log


def connections(admin: int) -> int:
    """How many clients the daemon says that it has."""
    return int(metrics(admin)["llamaproxy_connections"])
