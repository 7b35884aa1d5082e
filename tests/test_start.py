"""What is loaded by a daemon that starts, and what the garbage collector leaves alone."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest

from llamaproxy import start
from llamaproxy.config.options import Options

ROOT = Path(__file__).parents[1]

#: Builds the daemon as twistd would, and tells what is loaded once it has been started.
BUILD = """
import json, sys
from twisted.internet import reactor
from llamaproxy.start import Options, makeService
options = Options({})
options.parseOptions(sys.argv[1:])
loaded_for_options = list(sys.modules)
service = makeService(options)
reactor.callWhenRunning(service.startService)
reactor.callWhenRunning(reactor.callLater, 0, reactor.stop)
reactor.run()
threads = reactor.threadpool is not None and len(reactor.threadpool.threads)
print(json.dumps([loaded_for_options, list(sys.modules), threads]))
"""

#: What few daemons need, or none until somebody asks for it, and what needs it.
LAZY = (
    *("llamaproxy.admin.endpoint", "llamaproxy.check", "llamaproxy.demo"),
    *("llamaproxy.workers", "llamaproxy.server.notify", "twisted.protocols.amp"),
    *("json_repair", "opentelemetry", "prometheus_client"),
)


def built(*arguments: str) -> tuple[set[str], set[str], int]:
    """The modules loaded for options and for the daemon, and the threads that it started."""
    everywhere = ("--listen", "tcp:0:interface=127.0.0.1", "--admin", "tcp:0:interface=127.0.0.1")
    ran = subprocess.run(
        [sys.executable, "-c", BUILD, *everywhere, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    options, daemon, threads = json.loads(ran.stdout)
    return set(options), set(daemon), threads


def test_a_daemon_loads_what_it_uses() -> None:
    options, daemon, threads = built("--llamastack-url", "http://127.0.0.1:1")
    assert not daemon.intersection(LAZY)
    assert threads == 0
    # An option's mistake, and --help, need none of that.
    assert not options & {"llamaproxy.tap", "klein", "treq"}


def test_the_demo_is_loaded_before_it_is_needed() -> None:
    _, daemon, _ = built("--demo")
    assert "llamaproxy.demo.tools" in daemon


def test_the_collector_leaves_alone_what_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[object] = []
    monkeypatch.setattr("llamaproxy.tap.makeService", lambda _: steps.append("build"))
    monkeypatch.setattr(gc, "freeze", lambda: steps.append("freeze"))
    monkeypatch.setattr(gc, "set_threshold", lambda *numbers: steps.append(numbers))
    start.makeService(Options({}))
    # More than the chats of a hundred clients have at once, and a few requests' that have failed.
    assert steps == [(start.YOUNG, *gc.get_threshold()[1:]), "freeze", "build", "freeze"]
