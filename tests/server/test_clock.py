"""Time that goes by, whatever time of day it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_twistd import PORT_LINE, Daemon, environment, free_port, question

#: twistd, in a process whose time of day jumps by so many seconds, five seconds after its start.
JUMPING = """
import time
real, began, step = time.time, time.monotonic(), {step}
time.time = lambda: real() + (step if time.monotonic() - began > 3 else 0)
import twisted.python.runtime as runtime
runtime.seconds = runtime.platform.seconds = lambda: time.time()
runtime.platform._seconds = runtime.seconds
from twisted.internet.base import ReactorBase
ReactorBase.seconds = staticmethod(lambda: time.time())
from twisted.scripts.twistd import run
run()
"""


@pytest.mark.parametrize("step", [700, -3600])
def test_a_step_of_the_time_of_day_ends_no_chat_and_stops_no_limit(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "tests.test_twistd.TWISTD", [sys.executable, "-c", JUMPING.format(step=step)]
    )
    daemon = Daemon(tmp_path / "log", "--demo", "--tool-timeout", "4")
    # Longer than the jump is away; a tool that waits too long is stopped by its limit all the same.
    status, body = daemon.get("/v1/chat/completions", "POST", question("Wait 3 seconds."))
    assert status == 200 and b"4 s" not in body
    status, body = daemon.get("/v1/chat/completions", "POST", question("Wait 8 seconds."))
    assert status == 200
    log = (tmp_path / "log").read_text()
    daemon.stop()
    assert "answered in 3.0" in log
    assert "no answer within 4 s" in log


@pytest.mark.parametrize("ignored", [True, False])
def test_a_daemon_that_was_started_with_sigint_ignored_ignores_it(
    ignored: bool, tmp_path: Path
) -> None:
    """A shell does that to what it puts into the background; SIGTERM is then the first signal."""
    import signal

    port = free_port()
    preamble = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); " if ignored else ""
    script = f"{preamble}from twisted.scripts.twistd import run; run()"
    listen = PORT_LINE.format(port=port)
    with (tmp_path / "log").open("wb") as out:
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", script, "-n", "--pidfile=", "llamaproxy", "--demo"),
                *("--admin", "off", "--listen", listen),
            ],
            env=environment(),
            stdout=out,
            stderr=out,
        )
    from tests.config.test_logformat import waited_for

    waited_for(lambda: "the server at" in (tmp_path / "log").read_text())
    process.send_signal(signal.SIGINT)
    if ignored:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.send_signal(signal.SIGTERM)
    assert process.wait(20) == -(signal.SIGTERM if ignored else signal.SIGINT)
    assert "Traceback" not in (tmp_path / "log").read_text()
